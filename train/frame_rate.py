"""The constant rate of frames that stands for a video's own, which may vary."""

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np

MAX_RATE = 60
"""Frames per second that a video of varying rate is written with at most."""

_LOOKED_AT = 300
"""Frames from the beginning on by whose distances a varying rate is judged."""

_FAST_SHARE = 0.1
"""So many of the distances may be shorter than those of the fast parts: single frames that follow at once."""


def steady_rate(path: Path, stream: int | None, average: float, first: float) -> Fraction:
    """Frames per second to write with: the video's own, or for a varying rate that of its fast parts.

    Args:
        stream: number of the video's stream in the file.
        average: frames per second.
        first: seconds that the first frame is shown. Where they fit the average the rate is taken for constant, which
            saves a look at the others.
    """
    own = _fast_rate(path, stream) if abs(first * average - 1) > 0.05 else 0.0
    rate = average
    if told := own > 0.9 * average:  # else the beginning alone is slow
        rate = own if own < 1.05 * average else min(own, MAX_RATE)
    # Averages, and durations in whole milliseconds, are a little off the rate that was meant: 30, or 30000/1001.
    meant = (Fraction(max(round(rate), 1)), Fraction(max(round(rate * 1.001), 1) * 1000, 1001))
    near = min(meant, key=lambda candidate: abs(float(candidate) - rate))
    tolerance = 0.03 if told else 0.002
    return near if abs(float(near) - rate) < tolerance * rate else Fraction(rate).limit_denominator(1001)


def _fast_rate(path: Path, stream: int | None) -> float:
    """Frames per second of the fast parts of a video's beginning, without decoding; 0 where it cannot be told."""
    command = ["ffprobe", "-v", "error", "-protocol_whitelist", "file", "-read_intervals", f"%+#{_LOOKED_AT}"]
    command += ["-select_streams", "V:0" if stream is None else str(stream), "-show_entries", "packet=pts_time"]
    try:
        told = subprocess.run([*command, "-of", "csv=p=0", f"file:{path.resolve()}"], capture_output=True, text=True)
    except OSError:
        return 0.0
    words = (line.strip(",") for line in told.stdout.split())
    gaps = np.diff(np.sort([float(word) for word in words if word and word != "N/A"]))
    gaps = gaps[gaps > 0]
    if not len(gaps):
        return 0.0
    low = np.quantile(gaps, _FAST_SHARE, method="higher")
    # The mean of its like, as distances in whole milliseconds are rounded.
    return 1 / float(gaps[(gaps > 0.8 * low) & (gaps < 1.2 * low)].mean())
