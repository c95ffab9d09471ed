"""The FFmpeg command that makes clips: which part of a source, at which rate and size, encoded how."""

import math
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from shard_tools.source_video import Source

MAX_ERROR_RATE = 0.01
"""A clip is lost when FFmpeg cannot decode more than this share of its frames."""

B_FRAMES = 1
"""Every second frame is one that no other depends on: a clip at an even stride leaves them out (data/thin_video.py)."""

_SCALER = "bicubic+accurate_rnd"
_RGB_SCALER = f"{_SCALER}+full_chroma_inp+full_chroma_int"  # without the last two, greys turn pink
# BT.2100 light made linear, its colours BT.709's, its highlights compressed.
_HDR_TO_SDR = (
    "zscale=w={width}:h={height}:f=bicubic:pin=bt2020:min=bt2020nc:t=linear:npl=100,format=gbrpf32le,zscale=p=bt709,"
    "tonemap=hable:desat=0,zscale=t=bt709:m=bt709:r=tv"
)
# Containers that hold their own streams; no playlist that would name other files.
_DEMUXERS = "mov,matroska,avi,flv,ogg,asf,mpeg,mpegts,mpegvideo,gif"


@dataclass(frozen=True)
class VideoSettings:
    """How clips are encoded. `short_side` and `fps` of None keep the source's; `gop` is in frames; `copy` keeps the
    source's stream as it is, and of the others only `min_frames` and `max_pixels` count. Without `verify` an encoded
    clip is trusted to decode after its first frame."""

    short_side: int | None
    fps: Fraction | None
    crf: int
    preset: str
    gop: int
    min_frames: int
    max_pixels: int
    copy: bool = False
    verify: bool = True


@dataclass(frozen=True)
class Span:
    """A part of a source: `frames` frames from `start` (seconds after the file's beginning) on.

    Frame i shows what the source shows at start + i / fps. `key_frames` are frames to encode as key frames.
    """

    start: Fraction
    frames: int
    key_frames: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """One clip to make.

    Attributes:
        span: the part of the source; None for all of it.
        preroll: seconds ahead of the span to seek to; where that is before the file's beginning, it does not seek.
        shared_seek: where to seek to instead, so that jobs of one file that have it in common read the file once.
    """

    path: str
    source: Source
    fps: Fraction
    span: Span | None = None
    preroll: float = 1.0
    shared_seek: Fraction | None = None

    @property
    def seek(self) -> Fraction:
        """Second of the file to seek to; 0 for no seeking."""
        if self.shared_seek is not None:
            return self.shared_seek
        if self.span is None or self.span.start <= self.preroll:
            return Fraction(0)
        place = max(self.span.start - math.ceil(self.preroll * self.fps) / self.fps, Fraction(0))
        # A time of the source's frames: FFmpeg takes it off every timestamp in the file's own unit, which in AVI is a
        # whole frame, so that all would move by up to half of one.
        return math.floor(place * self.source.fps) / self.source.fps


def clip_size(width: int, height: int, short_side: int | None) -> tuple[int, int]:
    """Size to encode at: short side as asked but never larger than the source's, width a multiple of 32, height even.

    Decoders work in blocks: a width that is no multiple of 32 costs 8 to 10 % of their speed. The picture is stretched
    to it, by 16 pixels at most.
    """
    scale = min(1.0, short_side / min(width, height)) if short_side else 1.0
    return max(32 * round(width * scale / 32), 32), max(2 * round(height * scale / 2), 16)


def clip_command(
    jobs: Sequence[Job], settings: VideoSettings, outputs: Sequence[str], level: str = "error"
) -> list[str]:
    """The command for one process that makes all clips, each into the path of `outputs` at its place; `level` of what
    FFmpeg says."""
    command = [*_ffmpeg(level), "-filter_threads", "1", "-max_error_rate", str(MAX_ERROR_RATE)]
    inputs: dict[tuple[str, Fraction], int] = {}
    for job in jobs:
        place = (job.path, job.seek)
        if place in inputs:
            continue
        inputs[place] = len(inputs)
        command += ["-ss", _seconds(job.seek)] if job.seek else []
        command += ["-threads", "1", *_input(), "-max_pixels:v", str(settings.max_pixels)]
        command += ["-i", f"file:{job.path}"]
    for job, output in zip(jobs, outputs, strict=True):
        # One thread and bitexact: the same input gives the same bytes everywhere.
        command += ["-map", f"{inputs[job.path, job.seek]}:{job.source.stream}", "-vf"]
        command += [",".join(_filters(job, settings)), "-threads", "1"]
        command += ["-c:v", "libx264", "-preset", settings.preset, "-tune", "fastdecode", "-crf", str(settings.crf)]
        command += ["-g", str(settings.gop), "-keyint_min", str(settings.gop), "-sc_threshold", "0"]
        command += ["-bf", str(B_FRAMES), "-b_strategy", "0", "-b-pyramid", "none"]
        if job.span:
            command += ["-frames:v", str(job.span.frames)]
            if job.span.key_frames:
                # A quarter of a frame early: newer FFmpegs take the first frame that is not before a time, and a time
                # that was rounded up to microseconds would be the next one's.
                times = (max(n - Fraction(1, 4), Fraction(0)) / job.fps for n in job.span.key_frames)
                command += ["-force_key_frames", ",".join(map(_seconds, times))]
        command += ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]
        command += ["-flags:v", "+bitexact", *_output(output)]
    return command


def copy_command(path: str, stream: int, output: str) -> list[str]:
    """The command that puts the video stream of a file into an MP4 file, untouched."""
    return [*_ffmpeg(), *_input(), "-i", f"file:{path}", "-map", f"0:{stream}", "-c:v", "copy", *_output(output)]


def _ffmpeg(level: str = "error") -> list[str]:
    return [*_die_with_parent(), "ffmpeg", "-hide_banner", "-v", level, "-nostdin", "-nostats", "-y"]


def _input() -> list[str]:
    return ["-protocol_whitelist", "file", "-format_whitelist", _DEMUXERS]


def _output(output: str) -> list[str]:
    plain = ["-map_metadata", "-1", "-map_chapters", "-1", "-disposition:v:0", "0", "-fflags", "+bitexact"]
    return [*plain, "-movflags", "+faststart", "-f", "mp4", output]


def _filters(job: Job, settings: VideoSettings) -> list[str]:
    width, height = clip_size(job.source.width, job.source.height, settings.short_side)
    if job.source.hdr:
        picture = [_HDR_TO_SDR.format(width=width, height=height), "format=yuv420p"]
    elif job.source.matrix == "rgb":
        picture = [f"scale={width}:{height}:flags={_RGB_SCALER}:out_color_matrix=bt709:out_range=tv", "format=yuv420p"]
    else:
        picture = [f"scale={width}:{height}:flags={_SCALER}:interl=-1:out_range=tv", "format=yuv420p"]
        # Not the scaler's work: it would go from one matrix to the other by way of RGB, at the cost of the encoding.
        picture += [] if job.source.matrix == "bt709" else [f"colormatrix={job.source.matrix}:bt709"]
    # Fields are scaled apart and joined after it, in the frames that are marked as interlaced; others pass. Frames are
    # then marked as what they have become: newer FFmpegs would convert them once more to what the encoder is told.
    marked = "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
    return [*_time(job), *picture, "setsar=1", "yadif=deint=interlaced", marked]


def _time(job: Job) -> list[str]:
    """Filters that give the clip its frames: each is the source's frame nearest in time.

    After a seek the clip's time is kept as the source has it, so that a seek that came out too late can be seen: its
    first frame is not at 0. Without one, a source that begins late has its first frame repeated.

    The last filter changes no frame: it says the rate again, which setpts drops in FFmpeg 7.
    """
    again = f"fps={job.fps}"
    # The filter takes the last frame before the middle between two output frames. Moved by this much, it takes the
    # frame nearest in time, at any pair of rates; timestamps that tremble, as in WebM, do no harm.
    shift = (1 / job.fps - 1 / job.source.fps) / 2
    if job.span is None:
        return [*_move(shift), f"fps={job.fps}", "setpts=PTS-STARTPTS", again]
    if not job.seek:
        return [*_move(shift), f"fps={job.fps}:start_time={_seconds(job.span.start)}", "setpts=PTS-STARTPTS", again]
    # The span starts on the frame grid, which begins at the place sought.
    ahead = math.ceil((job.span.start - job.seek) * job.fps)
    shift += ahead / job.fps - (job.span.start - job.seek)
    return [*_move(shift), f"fps={job.fps}", f"trim=start_pts={ahead}", f"setpts=PTS-{ahead}", again]


def _move(seconds: Fraction) -> list[str]:
    # In microseconds: the filter cuts off what is less than a unit, and where a unit is a whole frame (AVI, Ogg), a
    # move back by a hair would be one by a frame.
    return ["settb=AVTB", f"setpts=PTS+{_seconds(seconds)}/TB"] if seconds else []


def _seconds(value: Fraction) -> str:
    return f"{float(value):.6f}"


def _die_with_parent() -> list[str]:
    """util-linux's setpriv has the kernel end FFmpeg with the worker that started it, even one killed outright."""
    setpriv = shutil.which("setpriv")
    if not setpriv:
        return []
    command = (setpriv, "--pdeathsig", "KILL", "--")
    return list(command) if _starts(command) else []


@cache
def _starts(command: tuple[str, ...]) -> bool:
    """Whether a command that runs others does so; it is tried once. An older setpriv (RHEL 8) knows no --pdeathsig, and
    every clip would fail."""
    try:
        done = subprocess.run([*command, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0
