"""Takes the video streams of sources as they are, into MP4 files, and decodes each in full to know what it holds."""

import os
import subprocess
from fractions import Fraction

import numpy as np

from shard_tools.clip_command import Job, VideoSettings, copy_command
from shard_tools.failures import Unpackable
from shard_tools.run_ffmpeg import run_one_into_memory
from shard_tools.source_video import one_line, snap_rate
from shard_tools.transcode import Clip, checked_length, decode_all

_STEADY = 0.25  # of a frame: how far a frame may be from its place at a constant rate


def copy_stream(job: Job, settings: VideoSettings) -> Clip | Unpackable:
    """The clip that is all of a source's video stream: no sound, no metadata, not one picture encoded again."""
    try:
        ran = run_one_into_memory(lambda outputs: copy_command(job.path, job.source.stream, *outputs))
    except Unpackable as failure:
        return failure
    (video,), status, message = ran.videos, ran.status, ran.message
    if status > 0:
        return Unpackable("not copyable", one_line(message, job.path))
    try:
        return checked_length(job, describe(video), settings.min_frames)
    except ValueError as error:
        return Unpackable("unreadable", one_line(str(error), job.path))


def describe(video: bytes) -> Clip:
    """Decodes every frame of any MP4 video, of whatever rate.

    Raises:
        ValueError: it does not decode to its end.
    """
    times, width, height = decode_all(video)
    if not len(times):
        raise ValueError("no frame could be decoded")
    times = times - times[0]
    rate = snap_rate((len(times) - 1) / times[-1]) if len(times) > 1 and times[-1] > 0 else Fraction(1)
    steady = bool((np.abs(times * float(rate) - np.arange(len(times))) <= _STEADY).all())
    keys = _key_frames(video, len(times))
    return Clip(video, len(times), rate, width, height, keys, True, None if steady else times.round(6).tolist())


def _key_frames(video: bytes, frames: int) -> list[int]:
    """Numbers of the key frames, in order of showing. The order of the file will not do: with open groups of pictures,
    frames that are shown before a key frame come after it."""
    file = os.memfd_create("clip")
    try:
        os.write(file, video)
        command = ["ffprobe", "-v", "error", "-protocol_whitelist", "file", "-format_whitelist", "mov"]
        command += ["-select_streams", "v:0", "-show_entries", "packet=pts,flags", "-of", "csv=p=0"]
        done = subprocess.run(
            [*command, f"file:/proc/self/fd/{file}"], capture_output=True, pass_fds=[file], check=False, text=True
        )
    finally:
        os.close(file)
    packets = [line.split(",") for line in done.stdout.splitlines()]
    shown = sorted((int(pts), "K" in flags) for pts, flags, *_ in packets if pts != "N/A" and "D" not in flags)
    if len(shown) != frames:
        raise ValueError(f"{frames} frames decode, {len(shown)} are in the file")
    return [number for number, (_, key) in enumerate(shown) if key]
