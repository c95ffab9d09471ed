"""Reads a video of any kind by time, and writes one frame by frame: rotated, of varying rate, of odd size."""

import math
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.decode import decoder_reason, require_ffmpeg
from data.errors import UserError

CONTAINERS = (".mp4", ".mov", ".mkv")
"""Endings of the names of files that VideoWriter can write."""

MAX_RATE = 60
"""Frames per second that a video of varying rate is written with at most."""

_SEEK_TOLERANCE = 1.0
"""Seconds by which the first frame may come after the stream's stated beginning: less than a wrong seek is off."""

_HD = 720
"""Pictures of this short side and more are of ITU-R BT.709 where the file does not say, smaller ones of BT.601."""

_EPSILON = 1e-4  # seconds: far below a frame, far above the rounding of timestamps


class DamagedVideo(UserError):
    """A frame that cannot be decoded, in a video that can be opened."""


def require_encoder() -> None:
    """Raises UserError where the ffmpeg program, which VideoWriter runs, is missing."""
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg is not installed (Debian, Ubuntu: apt-get install ffmpeg)")


def _rgb_to_yuv(red: float, blue: float) -> np.ndarray:
    """float64 [3, 3]: R, G, B to Y, Cb, Cr, from the luma weights of red and blue."""
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, ([0, 0, 1] - luma) / (2 - 2 * blue), ([1, 0, 0] - luma) / (2 - 2 * red)])


_BT601_TO_BT709 = torch.from_numpy(np.linalg.inv(_rgb_to_yuv(0.2126, 0.0722)) @ _rgb_to_yuv(0.299, 0.114)).float()
"""RGB that was read by BT.601 to what it is by BT.709."""


class VideoReader:
    """A video opened for reading; one frame is held at a time. Frames come out upright: rotation is applied.

    Attributes:
        width, height: of the upright frames, pixels.
        seconds: length.
        fps: average frames per second.
        damage: where `steady` had to end before the video does, and why; None if it did not.

    Raises:
        UserError: no such file, no video, or none that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        require_ffmpeg()
        from torchcodec.decoders import VideoDecoder

        self.path = path
        if not path.is_file():
            raise UserError(f"{path}: there is no such file")
        try:
            # Exact: the approximate mode goes wrong where the frame rate varies.
            self.decoder = VideoDecoder(str(path), seek_mode="exact")
            self.count = len(self.decoder)
            first, last = self.decoder.get_frame_at(0), self.decoder.metadata.end_stream_seconds
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"{path} cannot be decoded: {decoder_reason(error)}") from error
        self.height, self.width = first.data.shape[-2:]
        # The decoder takes every file without a tag for BT.601, players and packing go by the size.
        self._misread = self.decoder.metadata.color_space is None and min(self.height, self.width) >= _HD
        stated = self.decoder.metadata.begin_stream_seconds
        if stated is not None and first.pts_seconds > stated + _SEEK_TOLERANCE:
            raise UserError(
                f"{path}: asked for the frame for second 0.0, the decoder gives that of second"
                f" {first.pts_seconds - stated:.1f}: frames of this file cannot be found by time. Put it into another"
                f" container first: ffmpeg -i {path.name} -c copy {path.stem}.mkv"
            )
        # Time counts from the beginning of the file, which may be that of the sound. Streams rarely begin at 0 sharp;
        # only a file that begins late is taken as cut out of a longer one.
        begin = min(first.pts_seconds, _sound_begins(path))
        self.origin = begin if begin > 0.5 else 0.0
        end = max(float(last or 0.0), first.pts_seconds + first.duration_seconds)
        self.seconds = end - self.origin
        self.fps = self.count / (end - first.pts_seconds)
        self._begin, self._shortest = first.pts_seconds, first.duration_seconds
        self._starts: np.ndarray | None = None  # float64 [count], seconds
        self.damage: str | None = None

    @property
    def rate(self) -> Fraction:
        """Frames per second to write with: the video's own, or for a varying rate that of its fast parts."""
        own = 1 / self._shortest if self._shortest > 0 else self.fps
        varies = own > 1.05 * self.fps
        rate = min(own, MAX_RATE) if varies else self.fps
        # Averages, and durations in whole milliseconds, are a little off the rate that was meant: 30, or 30000/1001.
        meant = (Fraction(max(round(rate), 1)), Fraction(max(round(rate * 1.001), 1) * 1000, 1001))
        near = min(meant, key=lambda candidate: abs(float(candidate) - rate))
        tolerance = 0.03 if varies else 0.002
        return near if abs(float(near) - rate) < tolerance * rate else Fraction(rate).limit_denominator(1001)

    @property
    def pace(self) -> float:
        """Frames per second that packing gives the video: those of `rate`, halved while they are more than 60."""
        pace = float(self.rate)
        while pace > MAX_RATE + 0.5:
            pace /= 2
        return pace

    def nearest(self, times: np.ndarray) -> np.ndarray:
        """When the frames nearest to `times` begin, all float64 [n] seconds; of a video of varying rate, where `rate`
        would have them."""
        first, rate = self._begin - self.origin, float(self.rate)
        moved: np.ndarray = first + np.floor((times - first) * rate + 0.5 + 1e-3) / rate
        return moved

    def frames_at(self, times: np.ndarray) -> Iterator[Tensor]:
        """The frames shown at `times` (seconds, ascending; clamped to the video): uint8 [3, H, W] each.

        Raises:
            DamagedVideo: a frame that cannot be decoded.
        """
        try:
            for time in times.tolist():
                yield self._colours(self._shown(min(max(time, 0.0), self.seconds)))
        except (RuntimeError, ValueError, IndexError) as error:
            raise DamagedVideo(f"{self.path}: damaged near second {time:.2f}: {decoder_reason(error)}") from error

    def _shown(self, time: float) -> Tensor:
        end = (self.decoder.metadata.end_stream_seconds or self.seconds) - _EPSILON
        wanted = min(max(time + self.origin + _EPSILON, self._begin), end)
        if self._starts is None:
            frame = self.decoder.get_frame_played_at(wanted)
            if frame.pts_seconds <= wanted:
                shown: Tensor = frame.data
                return shown
            # In a pause between two frames the decoder gives the one to come, where a player still shows the one
            # before. To know that one takes a pass over the video; most have no pauses.
            frames = (self.decoder.get_frame_at(number) for number in range(self.count))
            self._starts = np.array([frame.pts_seconds for frame in frames])
        number = int(np.searchsorted(self._starts, wanted, side="right")) - 1
        shown = self.decoder.get_frame_at(max(number, 0)).data
        return shown

    def steady(self) -> Iterator[tuple[float, Tensor]]:
        """(second, frame as uint8 [3, H, W]) at the constant `rate`, to the end or to the first damaged frame."""
        number, tick, end = 0, 0, self.seconds
        shown, following = self.decoder.get_frame_at(0), self._frame(1)
        while (time := float(tick / self.rate)) < end - _EPSILON:
            while following is not None and following.pts_seconds - self.origin <= time + _EPSILON:
                shown, number = following, number + 1
                following = self._frame(number + 1)
            if self.damage is not None:
                end = min(end, shown.pts_seconds + shown.duration_seconds - self.origin)
            yield time, self._colours(shown.data)
            tick += 1

    def _colours(self, frame: Tensor) -> Tensor:
        """uint8 [3, H, W] in the colours that are meant."""
        if not self._misread:
            return frame
        return torch.tensordot(_BT601_TO_BT709, frame.float(), dims=1).round().clamp(0, 255).to(torch.uint8)

    def _frame(self, number: int) -> Any:
        if number >= self.count:
            return None
        try:
            return self.decoder.get_frame_at(number)
        except (RuntimeError, ValueError, IndexError) as error:
            self.damage = f"{self.path}: frame {number + 1} of {self.count} cannot be decoded: {decoder_reason(error)}"
            return None


def _sound_begins(path: Path) -> float:
    """Second of the file's own time at which its sound begins; infinity where it has none."""
    from torchcodec.decoders import AudioDecoder

    try:
        begin = AudioDecoder(str(path)).metadata.begin_stream_seconds_from_header
    except (RuntimeError, ValueError):
        return math.inf
    return math.inf if begin is None else float(begin)


class VideoWriter:
    """Encodes images to H.264 as they come; the file takes its place when all of it is written.

    Args:
        path: ends in one of CONTAINERS.
        width, height: even.
        rate: frames per second.
        sound_of: a file whose sound is put under the pictures, if it has any.

    Raises:
        UserError: no ffmpeg, or what ffmpeg says when it fails.
    """

    def __init__(self, path: Path, width: int, height: int, rate: Fraction, sound_of: Path) -> None:
        self.path, self.partial = path, path.with_name(f".{path.stem}.partial{path.suffix}")
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "pipe:0"]
        # A playlist in a video's clothes must not make ffmpeg open addresses.
        command += ["-protocol_whitelist", "file", "-i", f"file:{sound_of.resolve()}"]
        command += ["-map", "0:v:0", "-map", "1:a:0?", "-c:v", "libx264", "-preset", "veryfast", "-crf", "20"]
        command += ["-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart", f"file:{self.partial.resolve()}"]
        require_encoder()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the encoder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._messages)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error

    def write(self, image: Image.Image) -> None:
        """Adds an RGB image of the size given."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(image.tobytes())
        except BrokenPipeError:
            raise UserError(f"{self.path} cannot be written: {self._told()}") from None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            kind = kind or BrokenPipeError
        failed = self._process.wait() != 0
        told = self._told() if failed else ""
        self._messages.close()
        if kind is None and not failed:
            self.partial.replace(self.path)
            return
        self.partial.unlink(missing_ok=True)
        if error is None:
            raise UserError(f"{self.path} cannot be written: {told}")

    def _told(self) -> str:
        self._process.wait()
        self._messages.seek(0)
        return " ".join(self._messages.read().decode(errors="replace").split())[-300:] or "ffmpeg failed"
