"""Looks at a source video before it is transcoded: is it a video, how large, how long, at which frame rate."""

import os
import re
from dataclasses import dataclass
from fractions import Fraction

from shard_tools.failures import Unpackable

MAX_RATE = 60.5
_STANDARD_RATES = [Fraction(r) for r in (8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60)] + [
    Fraction(r * 1000, 1001) for r in (15, 24, 30, 60)
]
_ISO_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_SIGNATURES = (
    b"\x1aE\xdf\xa3",
    b"FLV\x01",
    b"OggS",
    b"0&\xb2u\x8ef\xcf\x11",
    b"\x00\x00\x01",
    b"\x00\x00\x00\x01",
    b"GIF8",
)


@dataclass(frozen=True)
class Source:
    """A source video as its header describes it.

    Attributes:
        width, height: pixels as shown: rotation applied, pixels made square.
        fps: frames per second on a constant grid that holds the source's frames.
        seconds: length of the video; None where the file does not say.
        slack: by how many seconds the true length may fall short of `seconds` without a fault.
        matrix: the YUV matrix to read the pixels with, FFmpeg's name for it; `auto` where the file says.
    """

    width: int
    height: int
    fps: Fraction
    seconds: float | None
    slack: float
    matrix: str


def probe(path: str, max_pixels: int) -> Source:
    """Reads the header of a video file.

    Raises:
        Unpackable: empty file, unreadable, no video stream, or too large.
    """
    # Here and not above: torch takes seconds to import, and `--help` does not need it.
    from torchcodec.decoders import VideoDecoder

    iso = check_container(path)
    try:
        try:
            meta = VideoDecoder(path, seek_mode="approximate", num_ffmpeg_threads=1).metadata
        except ValueError:  # no duration in the header
            meta = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1).metadata
    except (RuntimeError, ValueError, OSError) as error:
        text = one_line(str(error), path)
        if "best video stream" in text:
            raise Unpackable("no video stream") from None
        raise Unpackable("unreadable", text) from None
    width, height, rate = meta.width or 0, meta.height or 0, float(meta.average_fps_from_header or 0)
    if width * height == 0 or not rate > 0:
        raise Unpackable("unreadable", f"its header says {width}x{height} pixels at {rate:g} frames a second")
    if width * height > max_pixels:
        raise Unpackable("too large", f"{width}x{height} is more than {max_pixels} pixels")
    aspect = float(meta.pixel_aspect_ratio or 1)
    if meta.rotation and round(meta.rotation) % 180:
        aspect = 1 / aspect  # width and height are those of the rotated picture, the pixels' shape is not
    seconds = meta.duration_seconds
    if seconds is not None and not iso and meta.num_frames_from_header:
        # AVI counts its frames; a length estimated from the bytes that are left would hide that it is cut short.
        seconds = max(seconds, meta.num_frames_from_header / rate)
    # Without a length of the video stream, that of the file counts, whose sound may go on longer.
    exact = meta.duration_seconds_from_header is not None
    return Source(
        width=max(round(width * (aspect if 0.25 <= aspect <= 4 else 1)), 1),
        height=height,
        fps=snap_rate(rate),
        seconds=seconds,
        slack=2 / rate + 0.02 * (seconds or 0) if exact else 1 + 0.1 * (seconds or 0),
        # What players do without a tag: SD is BT.601, HD is BT.709.
        matrix="auto" if meta.color_space else "bt709" if min(width, height) >= 720 else "bt601",
    )


def check_container(path: str) -> bool:
    """Looks at a file's first bytes, so that no playlist (which names other files) or web page gets to a decoder.

    Returns:
        whether it is of the MP4 and QuickTime family.

    Raises:
        Unpackable: missing, empty file, unreadable.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(197)
    except FileNotFoundError:
        raise Unpackable("missing", "the file has gone") from None
    except OSError as error:
        raise Unpackable("unreadable", error.strerror or type(error).__name__) from None
    if not head:
        raise Unpackable("empty file")
    if head[4:8] in _ISO_BOXES:
        return True
    transport = any(
        head[at : at + 1] == head[at + packet : at + packet + 1] == b"G" for at, packet in ((0, 188), (4, 192))
    )
    avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    if not (head.startswith(_SIGNATURES) or avi or transport):
        raise Unpackable("unreadable", f"no known video container: it begins with {head[:12]!r}")
    return False


def count_decodable(path: str) -> int:
    """Frames that decode one after the other before the first that does not."""
    from torchcodec.decoders import VideoDecoder

    number = 0
    try:
        decoder = VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1)
        for number in range(len(decoder)):
            decoder.get_frame_at(number)
    except (RuntimeError, IndexError, ValueError):
        return number
    return len(decoder)


def snap_rate(rate: float) -> Fraction:
    """The standard frame rate within 0.5 % of `rate`, else `rate` itself; halved while it is above 60."""
    while rate > MAX_RATE:
        rate /= 2
    nearest = min(_STANDARD_RATES, key=lambda standard: abs(standard - rate))
    return nearest if abs(nearest - rate) <= 0.005 * rate else Fraction(rate).limit_denominator(1001)


def one_line(message: str, path: str) -> str:
    """A tool's message without what changes from run to run or machine to machine: addresses and folders."""
    text = re.sub(r"\[[^\[\]]* @ 0x[0-9a-f]+\] ?", "", message).replace(path, os.path.basename(path))
    text = re.sub(r"^\w+, \S+:\d+, ", "", " ".join(text.split()))
    return text[:200]
