"""Reads a video of any kind by time, and writes one frame by frame: rotated, of varying rate, of odd size."""

import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from torch import Tensor

from data.decode import require_ffmpeg
from data.errors import UserError

MAX_RATE = 60
"""Frames per second that a video of varying rate is written with at most."""

_EPSILON = 1e-4  # seconds: far below a frame, far above the rounding of timestamps


class VideoReader:
    """A video opened for reading; one frame is held at a time. Frames come out upright: rotation is applied.

    Attributes:
        width, height: of the upright frames, pixels.
        seconds: length.
        fps: average frames per second.

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
            raise UserError(f"{path} cannot be decoded: {_reason(error)}") from error
        self.height, self.width = first.data.shape[-2:]
        # Streams rarely begin at 0 sharp, and the sound begins with the file; only a late one is taken as cut out.
        self.origin = first.pts_seconds if first.pts_seconds > 0.5 else 0.0
        self.seconds = max(float(last or 0.0), first.pts_seconds + first.duration_seconds) - self.origin
        self.fps = self.count / self.seconds
        self._shortest = first.duration_seconds

    @property
    def rate(self) -> Fraction:
        """Frames per second to write with: the video's own, or for a varying rate that of its fast parts."""
        own = 1 / self._shortest if self._shortest > 0 else self.fps
        rate = min(own, MAX_RATE) if own > 1.05 * self.fps else self.fps
        return Fraction(rate).limit_denominator(1001)

    def frames_at(self, times: np.ndarray) -> Iterator[Tensor]:
        """The frames shown at `times` (seconds, ascending; clamped to the video): uint8 [3, H, W] each.

        Raises:
            UserError: a damaged frame.
        """
        try:
            for time in times.tolist():
                yield self._shown(min(max(time, 0.0), self.seconds))
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"{self.path}: damaged near second {time:.2f}: {_reason(error)}") from error

    def _shown(self, time: float) -> Tensor:
        metadata = self.decoder.metadata
        begin, end = metadata.begin_stream_seconds or 0.0, metadata.end_stream_seconds or self.seconds
        wanted = min(max(time + self.origin + _EPSILON, begin), end - _EPSILON)
        frame: Tensor = self.decoder.get_frame_played_at(wanted).data
        return frame

    def steady(self) -> Iterator[tuple[float, Tensor]]:
        """(second, frame as uint8 [3, H, W]) at the constant `rate`, from the beginning to the end.

        Raises:
            UserError: a damaged frame; those before it have come out.
        """
        number, tick = 0, 0
        try:
            shown = self.decoder.get_frame_at(0)
            following = self.decoder.get_frame_at(1) if self.count > 1 else None
            while (time := float(tick / self.rate)) < self.seconds - _EPSILON:
                while following is not None and following.pts_seconds - self.origin <= time + _EPSILON:
                    shown, number = following, number + 1
                    following = self.decoder.get_frame_at(number + 1) if number + 1 < self.count else None
                yield time, shown.data
                tick += 1
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"{self.path}: damaged at frame {number + 2} of {self.count}: {_reason(error)}") from error


class VideoWriter:
    """Encodes images to H.264 as they come; the file takes its place when all of it is written.

    Args:
        path: .mp4, .mov or .mkv.
        width, height: even.
        rate: frames per second.
        sound_of: a file whose sound is put under the pictures, if it has any.

    Raises:
        UserError: no ffmpeg, or what ffmpeg says when it fails.
    """

    def __init__(self, path: Path, width: int, height: int, rate: Fraction, sound_of: Path) -> None:
        if path.suffix.lower() not in (".mp4", ".mov", ".mkv"):
            raise UserError(f"{path}: give a name that ends in .mp4, .mov or .mkv")
        self.path, self.partial = path, path.with_name(f".{path.stem}.partial{path.suffix}")
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "pipe:0"]
        # A playlist in a video's clothes must not make ffmpeg open addresses.
        command += ["-protocol_whitelist", "file", "-i", f"file:{sound_of.resolve()}"]
        command += ["-map", "0:v:0", "-map", "1:a:0?", "-c:v", "libx264", "-preset", "veryfast", "-crf", "20"]
        command += ["-pix_fmt", "yuv420p", "-c:a", "aac", "-movflags", "+faststart", f"file:{self.partial.resolve()}"]
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the encoder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._messages)
        except FileNotFoundError:
            raise UserError("ffmpeg is not installed (Debian, Ubuntu: apt-get install ffmpeg)") from None
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


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[-200:] or type(error).__name__
