"""Reads a video of any kind by time: rotated, of varying rate, of odd size, with pixels that are not square."""

import math
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from data.decode import decoder_reason, require_ffmpeg
from data.errors import UserError
from train.frame_rate import MAX_RATE, steady_rate

_SEEK_TOLERANCE = 1.0
"""Seconds by which the first frame may come after the stream's stated beginning: less than a wrong seek is off."""

_HD = 720
"""Pictures of this short side and more are of ITU-R BT.709 where the file does not say, smaller ones of BT.601."""

_PICTURES = {"mjpeg", "png", "bmp", "webp", "tiff", "gif"}
"""Codecs of still pictures, as the covers of sound files are."""

_EPSILON = 1e-4  # seconds: far below a frame, far above the rounding of timestamps


STAND_INS = 3
"""Frames before one that cannot be decoded of which one may stand in for it in a clip."""

_FAILURES = (RuntimeError, ValueError, IndexError)
"""What the decoder raises."""


class DamagedVideo(UserError):
    """A frame that cannot be decoded, in a video that can be opened."""


@dataclass(frozen=True)
class Sound:
    """A file's sound: the number of its stream, and where on the file's clock the video's second 0 is."""

    path: Path
    stream: int
    origin: float


def _rgb_to_yuv(red: float, blue: float) -> np.ndarray:
    """float64 [3, 3]: R, G, B to Y, Cb, Cr, from the luma weights of red and blue."""
    luma = np.array([red, 1 - red - blue, blue])
    return np.stack([luma, ([0, 0, 1] - luma) / (2 - 2 * blue), ([1, 0, 0] - luma) / (2 - 2 * red)])


_BT601_TO_BT709 = torch.from_numpy(np.linalg.inv(_rgb_to_yuv(0.2126, 0.0722)) @ _rgb_to_yuv(0.299, 0.114)).float()
"""RGB that was read by BT.601 to what it is by BT.709."""


class VideoReader:
    """A video opened for reading; one frame is held at a time. Frames come out as a player shows them: rotation is
    applied, and pixels are made square. So they are in packed clips, and so time counts there: from the beginning of
    the file's first stream, pictures or sound.

    Attributes:
        width, height: of the frames, pixels.
        seconds: length.
        fps: average frames per second.
        rate: frames per second to write with.
        sound: None where the file has none that can be decoded.
        has_sound: also where it cannot be decoded.

    Raises:
        UserError: no such file, no video, or none that can be decoded.
    """

    def __init__(self, path: Path) -> None:
        require_ffmpeg()
        self.path = path
        check_file(path)
        first = self._open(path)
        if self._is_lost(first):
            self._remuxed = tempfile.TemporaryDirectory()  # gone with this object
            path = _remux(path, Path(self._remuxed.name))
            first = self._open(path)
            if self._is_lost(first):
                raise UserError(f"{self.path}: frames of this file cannot be found by time")
        meta = self.decoder.metadata
        self.height, self.width = first.data.shape[-2:]
        # The decoder takes every file without a tag for BT.601, players and packing go by the size.
        self._misread = meta.color_space is None and min(self.height, self.width) >= _HD
        shape = float(meta.pixel_aspect_ratio or 1)
        if meta.rotation and round(meta.rotation) % 180:
            shape = 1 / shape  # frames come out rotated, the shape of the pixels is told as it was before
        if 0.25 <= shape <= 4:  # else it is a mistake, as in packing
            self.width = max(round(self.width * shape), 1)
        stream, begins = _sound(path)
        told = meta.begin_stream_seconds_from_header
        self.origin = min(first.pts_seconds if told is None else told, begins)
        self.sound = None if stream is None else Sound(path, stream, self.origin)
        self.has_sound = stream is not None or _has_sound(path)
        end = max(meta.end_stream_seconds or 0.0, first.pts_seconds + first.duration_seconds)
        self.seconds = end - self.origin
        stated = meta.begin_stream_seconds
        self.fps = self.count / (end - (first.pts_seconds if stated is None else stated))
        self.rate = steady_rate(path, meta.stream_index, self.fps, first.duration_seconds)
        self._begin = first.pts_seconds
        self._starts: np.ndarray | None = None  # float64 [count], seconds

    def _open(self, path: Path) -> Any:
        """The first frame; sets the decoder. Raises UserError."""
        from torchcodec.decoders import VideoDecoder

        self._lost, self._problem = 0, ""
        try:
            # Exact: the approximate mode goes wrong where the frame rate varies.
            self.decoder = VideoDecoder(str(path), seek_mode="exact")
        except _FAILURES as error:
            raise UserError(f"{self.path} cannot be decoded: {self._reason(error)}") from error
        self.count = len(self.decoder)
        found = self._next(0)
        if found is None:
            codec = self.decoder.metadata.codec
            picture = f"a picture ({codec}) and no video" if codec in _PICTURES else self._problem
            raise UserError(f"{self.path} cannot be decoded: {picture}")
        return found[1]

    def _is_lost(self, first: Any) -> bool:
        """Whether the decoder's seeks end seconds late, as in MPEG transport streams: then its first frame is not the
        video's first."""
        stated = self.decoder.metadata.begin_stream_seconds
        return stated is not None and not self._lost and first.pts_seconds > stated + _SEEK_TOLERANCE

    @property
    def damage(self) -> str | None:
        """What `steady` could not decode so far; None for nothing."""
        if not self._lost:
            return None
        return f"{self.path}: {self._lost} of {self.count} frames cannot be decoded ({self._problem})"

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
        """The frames shown at `times` (seconds, ascending; clamped to the video): uint8 [3, H, W] each. For one that
        cannot be decoded stands, as in players, one before it.

        Raises:
            DamagedVideo: more than STAND_INS frames on end that cannot be decoded.
        """
        for time in times.tolist():
            for before in range(STAND_INS + 1):
                try:
                    shown = self._shown(min(max(time - before / float(self.rate), 0.0), self.seconds))
                    break
                except _FAILURES as error:
                    if before == STAND_INS:
                        where = f"damaged near second {time:.2f}"
                        raise DamagedVideo(f"{self.path}: {where}: {decoder_reason(error)}") from error
            yield self._as_meant(shown)

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
            self._starts = self._all_starts()
        number = int(np.searchsorted(self._starts, wanted, side="right")) - 1
        shown = self.decoder.get_frame_at(max(number, 0)).data
        return shown

    def steady(self) -> Iterator[tuple[float, Tensor]]:
        """(second, frame as uint8 [3, H, W]) at the constant `rate`: of all frames the one that begins nearest, or the
        last before it. For frames that cannot be decoded stands the one before; after the last good one it ends."""
        self._lost, self._problem = 0, ""
        following = self._next(0)
        assert following is not None
        number, shown = following
        tick, end, half = 0, self.seconds, 0.5 / float(self.rate)
        while (time := float(tick / self.rate)) < end - _EPSILON:
            while following is not None and following[1].pts_seconds - self.origin <= time + half - _EPSILON:
                number, shown = following
                following = self._next(number + 1)
            if following is None and self._lost:
                end = min(end, shown.pts_seconds + shown.duration_seconds - self.origin)
            yield time, self._as_meant(shown.data)
            tick += 1

    def _as_meant(self, frame: Tensor) -> Tensor:
        """uint8 [3, H, W] in the colours and the shape that are meant."""
        if self._misread:
            frame = torch.tensordot(_BT601_TO_BT709, frame.float(), dims=1).round().clamp(0, 255).to(torch.uint8)
        if frame.shape[-2:] != (self.height, self.width):
            frame = interpolate(frame[None], size=(self.height, self.width), mode="bilinear", antialias=True)[0]
        return frame

    def _next(self, number: int) -> tuple[int, Any] | None:
        """The first frame from `number` on that can be decoded, and its number; None if there is none. Looked for in
        growing steps: behind a damaged frame there are often many more, and each costs a seek."""
        start = number
        while number < self.count:
            try:
                frame = self.decoder.get_frame_at(number)
            except _FAILURES as error:
                if "no more frames left" in str(error):  # some packets, as of AVI files, hold no frame
                    break
                self._problem = self._problem or f"frame {number + 1}: {self._reason(error)}"
                number += max((number - start) // 2, 1)
            else:
                self._lost += number - start
                return number, frame
        self._lost += min(number, self.count) - start
        return None

    def _all_starts(self) -> np.ndarray:
        """float64 [count]: when each frame begins, seconds; one that cannot be decoded with the one before."""
        starts = [self._begin]
        for number in range(1, self.count):
            try:
                starts.append(self.decoder.get_frame_at(number).pts_seconds)
            except _FAILURES:
                starts.append(starts[-1])
        return np.array(starts)

    def _reason(self, error: Exception) -> str:
        """What the decoder says, in words for what it has none for."""
        message = decoder_reason(error)
        return "no video in it" if "best video stream" in message else message.replace(str(self.path), self.path.name)


def check_file(path: Path) -> None:
    """Raises UserError where there is no file or nothing in it."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a video file")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    if not path.stat().st_size:
        raise UserError(f"{path} is empty: the file has 0 bytes")


def _remux(path: Path, folder: Path) -> Path:
    """The same streams in a container whose frames can be found by time. Raises UserError."""
    copy = folder / "copy.mkv"
    command = ["ffmpeg", "-v", "error", "-nostdin", "-protocol_whitelist", "file", "-i", f"file:{path.resolve()}"]
    command += ["-map", "0:V:0", "-map", "0:a?", "-c", "copy", f"file:{copy}"]
    done = subprocess.run(command, stderr=subprocess.PIPE)
    if done.returncode:
        told = " ".join(done.stderr.decode(errors="replace").split())[-200:]
        raise UserError(f"{path}: cannot be put into a container in which frames are found by time: {told}")
    return copy


def _sound(path: Path) -> tuple[int | None, float]:
    """The number of the stream of sound, and the second of the file's clock at which it begins; None and infinity where
    there is none that can be decoded."""
    from torchcodec.decoders import AudioDecoder

    try:
        meta = AudioDecoder(str(path)).metadata
    except (RuntimeError, ValueError):
        return None, math.inf
    begin = meta.begin_stream_seconds_from_header
    return meta.stream_index, math.inf if begin is None else float(begin)


def _has_sound(path: Path) -> bool:
    """Whether a file has a stream of sound of whatever codec; to the decoder one that it cannot read is none."""
    command = ["ffmpeg", "-v", "quiet", "-nostdin", "-protocol_whitelist", "file", "-i", f"file:{path.resolve()}"]
    return subprocess.run([*command, "-map", "0:a", "-c", "copy", "-t", "0", "-f", "null", "-"]).returncode == 0
