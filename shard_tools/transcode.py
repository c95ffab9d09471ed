"""Transcodes videos with FFmpeg into clips that are cheap to decode, and decodes each clip in full to prove it."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from data.errors import UserError
from shard_tools.clip_command import Job, VideoSettings, clip_command
from shard_tools.failures import Unpackable
from shard_tools.mp4_boxes import has_track, key_frames
from shard_tools.source_video import count_decodable, one_line

_PREROLLS = (30.0, float("inf"))  # seconds, for a source in which a shorter seek came out late
_CHUNK_BYTES = 2**26  # decoded at a time when a clip is proven


class LateStartError(ValueError):
    """A clip whose first frame is not at 0: FFmpeg's seek came out behind the place asked for."""


@dataclass(frozen=True)
class Clip:
    """An encoded clip that decodes whole, its frames counted; `key_frames` are numbers of the codec's key frames."""

    video: bytes
    frames: int
    fps: Fraction
    width: int
    height: int
    key_frames: list[int]

    def record(self) -> dict[str, Any]:
        """The `video` field of a sample's JSON."""
        rate = [self.fps.numerator, self.fps.denominator]
        size = {"width": self.width, "height": self.height}
        return {"frames": self.frames, "fps": rate, **size, "keyframes": self.key_frames}


def require_ffmpeg() -> str:
    """Version of the FFmpeg program. Raises UserError where it is missing or has no x264."""
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg not found: install it (Debian/Ubuntu: apt-get install ffmpeg)")
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-h", "encoder=libx264"], capture_output=True, text=True, check=False
    )
    if "libx264" not in done.stdout:
        raise UserError("this ffmpeg has no H.264 encoder (libx264): install a full build of it")
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=False).stdout.split()
    return version[2] if len(version) > 2 else "unknown"


def transcode(jobs: Sequence[Job], settings: VideoSettings) -> list[Clip | Unpackable]:
    """Makes the clips of `jobs`, one result each.

    They share one FFmpeg process, as starting one costs more than a short clip. Where it reports anything at all, each
    job gets a process of its own, so that a result never depends on its neighbours.
    """
    if len(jobs) > 1:
        videos, status, _ = _run_ffmpeg(jobs, settings)
        if status == 0:
            return [_finish(job, video, settings) for job, video in zip(jobs, videos, strict=True)]
    return [_transcode_one(job, settings) for job in jobs]


def _transcode_one(job: Job, settings: VideoSettings) -> Clip | Unpackable:
    (video,), status, message = _run_ffmpeg([job], settings)
    if status > 0:
        frames = job.source.seconds and round(job.source.seconds * job.source.fps)
        where = "" if job.span else f"decode error at frame {count_decodable(job.path)} of {frames or 'unknown'}: "
        return Unpackable("decode error", where + one_line(message, job.path))
    return _finish(job, video, settings)


def _finish(job: Job, video: bytes, settings: VideoSettings) -> Clip | Unpackable:
    """The proven clip; made again with a longer way to go where FFmpeg sought too far, as it does in MPEG streams."""
    try:
        return _proven(job, video, settings)
    except LateStartError as error:
        longer = [seconds for seconds in _PREROLLS if seconds > job.preroll]
        if not longer or not job.seek:
            return Unpackable("unreadable", str(error))
        return _transcode_one(replace(job, preroll=longer[0]), settings)


def _proven(job: Job, video: bytes, settings: VideoSettings) -> Clip | Unpackable:
    if not has_track(video):
        if job.seek:
            raise LateStartError("no frame could be decoded")
        return Unpackable("unreadable", "no frame could be decoded")
    try:
        clip = prove(video, job.fps)
    except LateStartError:
        raise
    except ValueError as error:
        return Unpackable("unreadable", f"the transcoded clip does not decode: {one_line(str(error), job.path)}")
    source = job.source
    if job.span is None and source.seconds and clip.frames / clip.fps < source.seconds - source.slack:
        got, said = round(clip.frames / clip.fps * source.fps), round(source.seconds * source.fps)
        return Unpackable("truncated", f"decode error at frame {got} of {said}")
    if clip.frames < settings.min_frames:
        return Unpackable("too short", f"{clip.frames} frames, at least {settings.min_frames} are needed")
    return clip


def prove(video: bytes, fps: Fraction) -> Clip:
    """Decodes every frame of an encoded clip.

    Raises:
        LateStartError: its first frame is not at 0.
        ValueError: it does not decode to its end, or its frame rate is not `fps` throughout.
    """
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(video, seek_mode="exact", num_ffmpeg_threads=1)
        frames, meta = len(decoder), decoder.metadata
        width, height = meta.width or 0, meta.height or 0
        step = max(_CHUNK_BYTES // max(3 * width * height, 1), 1)
        for first in range(0, frames, step):
            batch = decoder.get_frames_in_range(first, min(first + step, frames))
            for number, seconds in enumerate(batch.pts_seconds.tolist(), first):
                if abs(seconds * fps - number) > 0.1 and number == 0:
                    raise LateStartError(f"the first frame is at {seconds:.3f} s")
                if abs(seconds * fps - number) > 0.1:
                    raise ValueError(f"frame {number} is shown at {seconds:.3f} s, the frame rate is not {fps}")
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(str(error)) from error
    return Clip(video, frames, fps, width, height, key_frames(video, frames))


def _run_ffmpeg(jobs: Sequence[Job], settings: VideoSettings) -> tuple[list[bytes], int, str]:
    """Runs one process for all jobs.

    Returns:
        the encoded videos (without a track where there was no frame), a status, and FFmpeg's first message. The status
        is 0 for a run without any message, -1 for messages but success, 1 for failure.
    """
    # The muxer seeks in its output, so no pipe; a file in memory leaves nothing behind, however the process ends.
    files = [os.memfd_create("clip") for _ in jobs]
    try:
        done = subprocess.run(
            clip_command(jobs, settings, [f"/proc/self/fd/{file}" for file in files]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=files,
            check=False,
        )
        messages = done.stderr.decode(errors="replace").splitlines()
        status = 1 if done.returncode else -1 if messages else 0
        return (
            [_read(file) for file in files],
            status,
            messages[0] if messages else f"ffmpeg exit {done.returncode}",
        )
    finally:
        for file in files:
            os.close(file)


def _read(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as reader:
        reader.seek(0)
        return reader.read()
