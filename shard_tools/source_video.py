"""Looks at a source video before it is transcoded: is it a video, how large, how long, at which frame rate."""

import os
import re
from dataclasses import dataclass
from fractions import Fraction

from shard_tools.failures import Unpackable
from shard_tools.storage import stop_for_storage

MAX_RATE = 60.5
_STANDARD_RATES = [Fraction(r) for r in (8, 10, 12, 15, 16, 20, 24, 25, 30, 48, 50, 60)] + [
    Fraction(r * 1000, 1001) for r in (15, 24, 30, 60)
]
_ISO_BOXES = {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_SIGNATURES = {
    b"\x1aE\xdf\xa3": "matroska",
    b"FLV\x01": "flv",
    b"OggS": "ogg",
    b"0&\xb2u\x8ef\xcf\x11": "asf",
    b"\x00\x00\x01": "mpeg",
    b"GIF8": "gif",
}
_BARE_STREAM = b"\x00\x00\x00\x01"
_STILLS = {"mjpeg", "png", "bmp", "webp", "tiff"}
_HDR = {"smpte2084", "arib-std-b67"}
_MATRICES = {
    "bt709": "bt709",
    "smpte170m": "bt601",
    "bt470bg": "bt601",
    "fcc": "fcc",
    "smpte240m": "smpte240m",
    "bt2020nc": "bt2020",
    "bt2020c": "bt2020",
}
_AVI_FRAME_BYTES = 8  # that a frame takes in an AVI file at least


@dataclass(frozen=True)
class Source:
    """A source video as its header describes it.

    Attributes:
        width, height: pixels as shown: rotation applied, pixels made square.
        fps: frames per second on a constant grid that holds the source's frames.
        seconds: length of the video; None where the file does not say.
        slack: by how many seconds the true length may fall short of `seconds` without a fault.
        matrix: the YUV matrix of the pixels, as FFmpeg's filter colormatrix names it; `rgb` for RGB pixels.
        stream: number of the stream in the file.
        still: whether its codec is one of pictures, as covers of sound files have.
        hdr: whether its light is coded for HDR screens (PQ or HLG).
    """

    width: int
    height: int
    fps: Fraction
    seconds: float | None
    slack: float
    matrix: str
    stream: int = 0
    still: bool = False
    hdr: bool = False


def probe(path: str, max_pixels: int) -> Source:
    """Reads the header of a video file.

    Raises:
        Unpackable: missing, empty file, unreadable, no video stream, or too large.
        StopRunError: the storage fails that it is on.
    """
    # Here and not above: torch takes seconds to import, and `--help` does not need it.
    from torchcodec.decoders import VideoDecoder

    container = check_container(path)
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
    seconds, count = meta.duration_seconds, meta.num_frames_from_header
    if container == "avi" and count:
        # AVI counts its frames; a length estimated from the bytes that are left would hide that it is cut short. Where
        # it was written to a pipe, the count is a number too large for any file.
        possible = count * _AVI_FRAME_BYTES <= os.path.getsize(path)
        seconds = max(seconds or 0.0, count / rate) if possible else None
    # Without a length of the video stream, that of the file counts, whose sound may go on longer.
    exact = meta.duration_seconds_from_header is not None
    if not exact and container in ("matroska", "flv", "asf"):
        exact = not _has_sound(path)
    return Source(
        width=max(round(width * (aspect if 0.25 <= aspect <= 4 else 1)), 1),
        height=height,
        fps=snap_rate(rate),
        seconds=seconds,
        slack=2 / rate + 0.02 * (seconds or 0) if exact else 1 + 0.1 * (seconds or 0),
        matrix=_matrix(meta.color_space, meta.pixel_format or "", min(width, height)),
        stream=meta.stream_index or 0,
        still=meta.codec in _STILLS,
        hdr=meta.color_transfer_characteristic in _HDR,
    )


def _matrix(tag: str | None, pixel_format: str, short_side: int) -> str:
    if any(order in pixel_format for order in ("rgb", "bgr", "gbr", "pal8")):
        return "rgb"
    # What players do without a tag: SD is BT.601, HD is BT.709.
    return _MATRICES.get(tag or "", "bt709" if short_side >= 720 else "bt601")


def _has_sound(path: str) -> bool:
    from torchcodec.decoders import AudioDecoder

    try:
        AudioDecoder(path)
    except (RuntimeError, ValueError):
        return False
    return True


def check_container(path: str) -> str:
    """Looks at a file's first bytes, so that no playlist (which names other files) or web page gets to a decoder.

    Returns:
        its family: iso (MP4, QuickTime), matroska, flv, ogg, asf, mpeg, gif, avi.

    Raises:
        Unpackable: missing, empty file, unreadable.
        StopRunError: the storage fails that it is on.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(197)
    except FileNotFoundError:
        raise Unpackable("missing", "the file has gone") from None
    except OSError as error:
        stop_for_storage(path, error)
        raise Unpackable("unreadable", error.strerror or type(error).__name__) from None
    if not head:
        raise Unpackable("empty file")
    if head[4:8] in _ISO_BOXES:
        return "iso"
    for signature, family in _SIGNATURES.items():
        if head.startswith(signature):
            return family
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    for at, packet in ((0, 188), (4, 192)):  # transport streams
        if head[at : at + 1] == head[at + packet : at + packet + 1] == b"G":
            return "mpeg"
    if head.startswith(_BARE_STREAM):
        raise Unpackable("unreadable", "a bare H.264 or HEVC stream, without times: ffmpeg -i IN -c copy OUT.mkv")
    raise Unpackable("unreadable", f"no video container that is read here: it begins with {head[:12]!r}")


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
