"""What real copies of the datasets have: files that are missing, broken, odd, and where they are planted.

missing     listed, but not there
empty       no bytes
text        the web page of a failed download, named like a video
no index    an mp4 that breaks off before its index: cannot be opened
truncated   opens, but breaks off before its end
short       three frames
rotated     stored lying on its side, with a display matrix that puts it upright
odd person  a row of the annotations whose person id is not a number (AVA)
"""

from pathlib import Path

import numpy as np
from PIL import Image

SHARE = 0.03
"""Part of a split that gets a fault: below the 5 % at which packing gives up."""
SHORT_FRAMES = 3

FAULTS: dict[str, tuple[str, ...]] = {
    "kinetics": ("missing", "truncated", "empty", "no index", "rotated", "short", "text"),
    "moments": ("text", "missing", "no index", "empty", "rotated", "short", "truncated"),
    "ssv2": ("missing", "empty", "truncated", "text", "short"),
}
"""Kinds in the order in which they are planted, as many as there are places for."""

_PAGE = "<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"


def choose_faults(dataset: str, clips: int, share: float, rng: np.random.Generator) -> dict[int, str]:
    """Which of a split's clips get a fault: index -> kind."""
    kinds = FAULTS[dataset]
    places = rng.choice(clips, size=int(clips * share), replace=False)
    return {int(place): kinds[i % len(kinds)] for i, place in enumerate(places)}


def lay_down(frame: Image.Image) -> Image.Image:
    """A frame as a camera that is held sideways stores it."""
    return frame.transpose(Image.Transpose.ROTATE_90)


def spoil(path: Path, kind: str) -> None:
    """Gives a whole video file, or for `empty` and `text` a new file, its fault."""
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text(_PAGE)
    elif kind in ("truncated", "no index"):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(0.7 * len(whole))])
    elif kind == "rotated":
        path.write_bytes(_turned(path.read_bytes()))


def _turned(mp4: bytes) -> bytes:
    """Has players turn the picture clockwise by a quarter (the matrix of `tkhd`, ISO/IEC 14496-12, section 8.3.2)."""
    header = mp4.index(b"tkhd", mp4.rindex(b"moov"))
    assert mp4[header + 4] == 0, "a long movie header"
    at = header + 44
    height = int.from_bytes(mp4[at + 40 : at + 44], "big")
    one, minus_one = 0x10000, 0xFFFF0000
    matrix = [0, one, 0, minus_one, 0, 0, height, 0, 0x40000000]
    return mp4[:at] + b"".join(value.to_bytes(4, "big") for value in matrix) + mp4[at + 36 :]
