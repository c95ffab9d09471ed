"""What loading costs: counted where it happens, carried by the batches, and told as figures that a user can act on.

Counts are sums and may be added up over batches, workers and ranks. Their names:

    clips, padded_clips             clips loaded; those that repeat border frames because the video is too short
    substitutes                     samples that could not be used
    load_s                          seconds of a worker for all of a clip, of which
    read_s, decode_s, view_s        reading, decoding, and cutting out and augmenting the view
    send_s                          putting batches together and into shared memory
    read_bytes, hits, misses, ...   what storage adds: bytes handed over, reads of remote samples in the cache or not
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_counts: dict[str, float] = {}


def count(**amounts: float) -> None:
    """Adds to this process's counts, as in count(padded_clips=1)."""
    for name, amount in amounts.items():
        _counts[name] = _counts.get(name, 0.0) + amount


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Counts the seconds inside of it, also where it ends with an exception. Works as a decorator too."""
    began = time.perf_counter()
    try:
        yield
    finally:
        _counts[name] = _counts.get(name, 0.0) + time.perf_counter() - began


def take() -> dict[str, float]:
    """What this process has counted since the last call."""
    taken = dict(_counts)
    _counts.clear()
    return taken


def add(total: dict[str, float], counts: Mapping[str, float]) -> None:
    """Adds `counts` to `total`, in place."""
    for name, amount in counts.items():
        total[name] = total.get(name, 0.0) + amount


def figures(counts: Mapping[str, float], elapsed_s: float) -> dict[str, float]:
    """Figures of some batches that took `elapsed_s` seconds of the run.

    Returns:
        clips_per_second, read_megabytes_per_second; load_ms and its parts read_ms, decode_ms and view_ms, and send_ms,
        each per clip; padded_share of the clips; substitutes, a number; cache_hit_rate, where there were reads of
        remote samples, and fetched_megabytes_per_second. Empty where nothing was loaded.
    """
    clips, seconds = counts.get("clips", 0.0), max(elapsed_s, 1e-9)
    if not clips:
        return {}
    told = {
        "clips_per_second": clips / seconds,
        "read_megabytes_per_second": counts.get("read_bytes", 0.0) / 1e6 / seconds,
        **{f"{part}_ms": 1e3 * counts.get(f"{part}_s", 0.0) / clips for part in ("load", "read", "decode", "view")},
        "send_ms": 1e3 * counts.get("send_s", 0.0) / clips,
        "padded_share": counts.get("padded_clips", 0.0) / clips,
        "substitutes": counts.get("substitutes", 0.0),
    }
    remote = counts.get("hits", 0.0) + counts.get("misses", 0.0)
    if remote:
        told["cache_hit_rate"] = counts.get("hits", 0.0) / remote
        told["fetched_megabytes_per_second"] = counts.get("fetched_bytes", 0.0) / 1e6 / seconds
    return told
