"""Transcodes videos with FFmpeg into clips that are cheap to decode, and decodes each clip in full to prove it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np

from shard_tools.clip_command import MAX_ERROR_RATE, Job, VideoSettings, clip_command
from shard_tools.failures import Unpackable
from shard_tools.ffmpeg_check import counts_damage, takes_many
from shard_tools.mp4_boxes import has_track, key_frames
from shard_tools.run_ffmpeg import damaged_share, run_into_memory, run_one_into_memory
from shard_tools.source_video import count_decodable, one_line

_PREROLLS = (30.0, float("inf"))  # seconds, for a source in which a shorter seek came out late
_STILL = ("no video stream", "a still picture, such as the cover of a sound file")
_CHUNK_BYTES = 2**26  # decoded at a time when a clip is proven


class LateStartError(ValueError):
    """A clip whose first frame is not at 0: FFmpeg's seek came out behind the place asked for."""


@dataclass(frozen=True)
class Clip:
    """An encoded clip that decodes whole, its frames counted; `key_frames` are numbers of the codec's key frames.

    `copied` marks a source's own stream. It may have no constant rate: `times` then says when each frame is shown, in
    seconds after the first, and `fps` is the average.
    """

    video: bytes
    frames: int
    fps: Fraction
    width: int
    height: int
    key_frames: list[int]
    copied: bool = False
    times: list[float] | None = None

    def record(self) -> dict[str, Any]:
        """The `video` field of a sample's JSON."""
        rate = [self.fps.numerator, self.fps.denominator]
        size = {"width": self.width, "height": self.height}
        record = {"frames": self.frames, "fps": rate, **size, "keyframes": self.key_frames}
        return record | ({"copied": True} if self.copied else {}) | ({"times": self.times} if self.times else {})


def transcode(jobs: Sequence[Job], settings: VideoSettings) -> list[Clip | Unpackable]:
    """Makes the clips of `jobs`, one result each.

    They share one FFmpeg process where its version allows it, as starting one costs more than a short clip. Where it
    reports anything at all, each job gets a process of its own, so that a result never depends on its neighbours.
    """
    if len(jobs) > 1 and takes_many():
        ran = run_into_memory(lambda outputs: clip_command(jobs, settings, outputs), len(jobs))
        if ran.status == 0:
            return [_finish(job, video, settings) for job, video in zip(jobs, ran.videos, strict=True)]
    return [_transcode_one(job, settings) for job in jobs]


def _transcode_one(job: Job, settings: VideoSettings) -> Clip | Unpackable:
    try:
        return _made_alone(replace(job, shared_seek=None), settings)
    except Unpackable as failure:  # FFmpeg was killed
        return failure


def _made_alone(job: Job, settings: VideoSettings) -> Clip | Unpackable:
    ran = run_one_into_memory(lambda outputs: clip_command([job], settings, outputs))
    if ran.status > 0 and "No such filter" in ran.message:
        return Unpackable("hdr", "this ffmpeg has no filter zscale, which HDR video needs: install one with libzimg")
    if ran.status > 0:
        return _decode_error(job, ran.message)
    made = _finish(job, ran.videos[0], settings)
    if ran.status < 0 and isinstance(made, Clip) and not counts_damage():
        told = run_one_into_memory(lambda outputs: clip_command([job], settings, outputs, "verbose"))
        if (damaged_share(told.messages) or 0) > MAX_ERROR_RATE:
            return _decode_error(job, ran.message)
    return made


def _decode_error(job: Job, message: str) -> Unpackable:
    frames = job.source.seconds and round(job.source.seconds * job.source.fps)
    where = "" if job.span else f"decode error at frame {count_decodable(job.path)} of {frames or 'unknown'}: "
    return Unpackable("decode error", where + one_line(message, job.path))


def _finish(job: Job, video: bytes, settings: VideoSettings) -> Clip | Unpackable:
    """The proven clip; made again with a longer way to go where FFmpeg sought too far, as it does in MPEG streams."""
    try:
        return _proven(job, video, settings)
    except LateStartError as error:
        if job.shared_seek is not None:
            return _transcode_one(job, settings)
        longer = [seconds for seconds in _PREROLLS if seconds > job.preroll]
        if not longer or not job.seek:
            return Unpackable("unreadable", str(error))
        return _transcode_one(replace(job, preroll=longer[0]), settings)


def _proven(job: Job, video: bytes, settings: VideoSettings) -> Clip | Unpackable:
    if not has_track(video):
        if job.source.still:
            return Unpackable(*_STILL)
        if job.seek:
            raise LateStartError("no frame could be decoded")
        return Unpackable("unreadable", "no frame could be decoded")
    try:
        clip = prove(video, job.fps, settings.verify)
    except LateStartError:
        raise
    except ValueError as error:
        return Unpackable("unreadable", f"the transcoded clip does not decode: {one_line(str(error), job.path)}")
    return checked_length(job, clip, settings.min_frames)


def checked_length(job: Job, clip: Clip, min_frames: int) -> Clip | Unpackable:
    """The clip, unless it is shorter than its source says, or too short."""
    source = job.source
    if source.still and clip.frames == 1:
        return Unpackable(*_STILL)
    if job.span is None and source.seconds and clip.frames / clip.fps < source.seconds - source.slack:
        got, said = round(clip.frames / clip.fps * source.fps), round(source.seconds * source.fps)
        return Unpackable("truncated", f"decode error at frame {got} of {said}")
    if clip.frames < min_frames:
        return Unpackable("too short", f"{clip.frames} frames, at least {min_frames} are needed")
    return clip


def prove(video: bytes, fps: Fraction, every_frame: bool = True) -> Clip:
    """Decodes every frame of an encoded clip, or the first and takes the others' times from the file.

    Raises:
        LateStartError: its first frame is not at 0.
        ValueError: it does not decode to its end, or its frame rate is not `fps` throughout.
    """
    times, width, height = decode_all(video, every_frame)
    odd = np.flatnonzero(np.abs(times * float(fps) - np.arange(len(times))) > 0.1)
    if len(odd) and odd[0] == 0:
        raise LateStartError(f"the first frame is at {times[0]:.3f} s")
    if len(odd):
        raise ValueError(f"frame {odd[0]} is shown at {times[odd[0]]:.3f} s, the frame rate is not {fps}")
    return Clip(video, len(times), fps, width, height, key_frames(video, len(times)))


def decode_all(video: bytes, every_frame: bool = True) -> tuple[np.ndarray, int, int]:
    """Decodes every frame of a video, or the first one alone.

    Returns:
        float64 [frames], when each is shown, in seconds; width and height in pixels.

    Raises:
        ValueError: it does not decode to its end.
    """
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(video, seek_mode="exact", num_ffmpeg_threads=1)
        frames, meta = len(decoder), decoder.metadata
        width, height = meta.width or 0, meta.height or 0
        if not every_frame:
            first = decoder.get_frame_at(0).pts_seconds if frames else 0.0
            return first + np.arange(frames) / float(meta.average_fps or 1), width, height
        step = max(_CHUNK_BYTES // max(3 * width * height, 1), 1)
        firsts = range(0, frames, step)
        parts = [decoder.get_frames_in_range(first, min(first + step, frames)).pts_seconds for first in firsts]
    except (RuntimeError, IndexError, TypeError) as error:
        raise ValueError(str(error)) from error
    return np.concatenate([np.empty(0), *(part.numpy() for part in parts)]), width, height
