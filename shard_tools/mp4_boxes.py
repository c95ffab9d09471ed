"""Reads the tables of a small MP4 file in memory (ISO/IEC 14496-12)."""

from fractions import Fraction


def find_box(video: bytes, *path: bytes) -> memoryview | None:
    """Content of the first box at `path`, such as `b"moov", b"trak"`; None where there is none."""
    box = memoryview(video)
    for name in path:
        at = 0
        while at + 8 <= len(box) and bytes(box[at + 4 : at + 8]) != name:
            at += max(int.from_bytes(box[at : at + 4], "big"), 8)
        if at + 8 > len(box):
            return None
        box = box[at + 8 : at + int.from_bytes(box[at : at + 4], "big")]
    return box


def has_track(video: bytes) -> bool:
    """Whether there is anything in the file: FFmpeg writes a header without a track when it gets no frame."""
    return find_box(video, b"moov", b"trak") is not None


def key_frames(video: bytes, frames: int) -> list[int]:
    """Numbers of the key frames, in order of showing, of a file with one track and closed groups of pictures."""
    table = find_box(video, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stss")
    if table is None:
        return list(range(frames))  # without this table every frame is a key frame
    # Four bytes of version and flags, the number of entries, then sample numbers from 1 on.
    return [int.from_bytes(table[at : at + 4], "big") - 1 for at in range(8, len(table), 4)]


def constant_rate(video: bytes) -> Fraction | None:
    """Frames per second of a file with one track; None where frames do not come at one rate."""
    header = find_box(video, b"moov", b"trak", b"mdia", b"mdhd")
    table = find_box(video, b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stts")
    if header is None or table is None:
        return None
    at = 20 if header[0] else 12  # version 1 has longer dates in front of it
    units = int.from_bytes(header[at : at + 4], "big")
    # Four bytes of version and flags, the number of entries, then how many frames have which length.
    lengths = {int.from_bytes(table[at + 4 : at + 8], "big") for at in range(8, len(table), 8)}
    return Fraction(units, lengths.pop()) if len(lengths) == 1 and lengths != {0} else None
