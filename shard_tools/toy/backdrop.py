"""What people act before: rooms, parks, streets, stages, brick walls and blurred noise, painted once per scene."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from shard_tools.toy.figure import Colour, lit


@dataclass(frozen=True)
class Backdrop:
    """A painted background.

    Attributes:
        image: RGB, larger than the frame by `margin` pixels on each side.
        margin: pixels.
        ground: mean colour of the floor, float64 [3] in 0..255.
        behind: mean colour of what stands behind people, float64 [3].
        light: the scene's light by channel, float64 [3], about 1.
        outdoors: whether it is a park or a street.
    """

    image: Image.Image
    margin: int
    ground: np.ndarray
    behind: np.ndarray
    light: np.ndarray
    outdoors: bool


@dataclass(frozen=True)
class _Canvas:
    """What the painters share: `floor` is where the ground begins, in pixels from the top of the image."""

    image: Image.Image
    draw: ImageDraw.ImageDraw
    rng: np.random.Generator
    width: int
    height: int
    floor: int

    def pick(self, *colours: Colour) -> Colour:
        """One of the colours, a little changed."""
        return lit(colours[self.rng.integers(len(colours))], self.rng.uniform(0.85, 1.12, 3))

    def fade(self, top: int, bottom: int, first: Colour, last: Colour) -> None:
        """Fills the rows top..bottom with a gradient."""
        rows = np.linspace(first, last, max(bottom - top, 1)).astype(np.uint8)
        self.image.paste(Image.fromarray(rows[:, None]).resize((self.width, len(rows))), (0, top))

    def x(self) -> float:
        return float(self.rng.uniform(0, self.width))


def paint(rng: np.random.Generator, width: int, height: int, ground: float) -> Backdrop:
    """Paints a background for a frame of width x height pixels where people stand at `ground` pixels from the top."""
    margin = max(width, height) // 8
    size = (width + 2 * margin, height + 2 * margin)
    image = Image.new("RGB", size)
    floor = margin + int(ground - height * rng.uniform(0.1, 0.26))
    canvas = _Canvas(image, ImageDraw.Draw(image), rng, *size, floor)
    painter = _PAINTERS[rng.choice(len(_PAINTERS), p=_SHARES)]
    painter(canvas)
    light = rng.uniform(0.72, 1.06) * rng.uniform(0.93, 1.06, 3)
    grain = _noise(rng, size, cells=24)[..., None] * rng.uniform(4, 14)
    pixels = np.clip((np.asarray(image, np.float32) + grain.astype(np.float32)) * light.astype(np.float32), 0, 255)
    return Backdrop(
        Image.fromarray(pixels.astype(np.uint8)),
        margin,
        pixels[floor + 2 :: 4, ::4].mean(axis=(0, 1), dtype=np.float64),
        pixels[margin : margin + int(ground) : 4, ::4].mean(axis=(0, 1), dtype=np.float64),
        light,
        outdoors=painter in (_park, _street),
    )


def _noise(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise in about [-1, 1], float32 [height, width]."""
    small = rng.standard_normal((max(cells * size[1] // size[0], 2), cells)).astype(np.float32) / 2
    return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC))


def _room(c: _Canvas) -> None:
    wall = c.pick((206, 196, 176), (150, 176, 178), (196, 160, 140), (176, 184, 150), (120, 130, 156))
    c.fade(0, c.floor, lit(wall, 1.06), lit(wall, 0.9))
    board = c.pick((140, 100, 66), (96, 72, 52), (150, 140, 128), (86, 96, 90))
    c.fade(c.floor, c.height, lit(board, 0.85), lit(board, 1.1))
    if c.rng.random() < 0.5:
        gap = int(c.rng.integers(24, 44))
        for x in range(-c.width, 2 * c.width, gap):  # floorboards that run towards us
            c.draw.line((c.width / 2 + (x - c.width / 2) * 0.6, c.floor, x, c.height), fill=lit(board, 0.75), width=2)
    c.draw.rectangle((0, c.floor - 5, c.width, c.floor), fill=lit(wall, 0.66))
    for _ in range(c.rng.integers(1, 4)):
        _PIECES[c.rng.integers(len(_PIECES))](c)


def _window(c: _Canvas) -> None:
    w, h = c.rng.uniform(0.16, 0.26) * c.width, c.rng.uniform(0.3, 0.42) * c.floor
    x, y = c.x(), c.rng.uniform(0.18, 0.3) * c.floor
    c.draw.rectangle((x - 4, y - 4, x + w + 4, y + h + 4), fill=(232, 228, 218))
    c.draw.rectangle((x, y, x + w, y + h), fill=c.pick((150, 196, 226), (40, 50, 84), (210, 220, 226)))
    c.draw.line((x + w / 2, y, x + w / 2, y + h), fill=(232, 228, 218), width=3)
    c.draw.line((x, y + h / 2, x + w, y + h / 2), fill=(232, 228, 218), width=3)


def _picture(c: _Canvas) -> None:
    w, h = c.rng.uniform(0.08, 0.18) * c.width, c.rng.uniform(0.14, 0.26) * c.floor
    x, y = c.x(), c.rng.uniform(0.2, 0.4) * c.floor
    c.draw.rectangle((x - 3, y - 3, x + w + 3, y + h + 3), fill=c.pick((70, 50, 34), (216, 190, 120)))
    c.draw.rectangle((x, y, x + w, y + h), fill=c.pick((180, 90, 70), (70, 120, 150), (200, 180, 90), (100, 140, 90)))
    c.draw.ellipse((x + w * 0.2, y + h * 0.3, x + w * 0.7, y + h * 0.9), fill=c.pick((230, 220, 190), (60, 60, 80)))


def _door(c: _Canvas) -> None:
    w, x = c.rng.uniform(0.11, 0.15) * c.width, c.x()
    colour = c.pick((120, 84, 56), (190, 184, 170), (84, 104, 112))
    c.draw.rectangle((x, c.floor * 0.28, x + w, c.floor), fill=colour, outline=lit(colour, 0.7), width=3)
    c.draw.ellipse((x + w * 0.82, c.floor * 0.65, x + w * 0.9, c.floor * 0.65 + w * 0.08), fill=(220, 196, 110))


def _shelf(c: _Canvas) -> None:
    w, x, top = c.rng.uniform(0.16, 0.24) * c.width, c.x(), c.floor * c.rng.uniform(0.35, 0.55)
    wood = c.pick((104, 74, 48), (150, 116, 80))
    c.draw.rectangle((x, top, x + w, c.floor + 4), fill=wood)
    row = (c.floor - top) / 3
    for i in range(3):
        y, at = top + i * row + 4, x + 4
        while at < x + w - 10:
            book = c.rng.uniform(5, 10)
            high = row * c.rng.uniform(0.55, 0.85)
            colour = c.pick((170, 70, 60), (70, 100, 140), (200, 180, 120), (80, 120, 80))
            c.draw.rectangle((at, y + row - 8 - high, at + book, y + row - 8), fill=colour)
            at += book + 1


_PIECES: tuple[Callable[[_Canvas], None], ...] = (_window, _picture, _picture, _door, _shelf)


def _park(c: _Canvas) -> None:
    c.fade(
        0, c.floor, c.pick((110, 170, 226), (150, 190, 220), (230, 170, 130)), c.pick((214, 230, 236), (246, 220, 180))
    )
    far = c.pick((110, 146, 130), (120, 140, 160))
    for _ in range(3):
        x, w = c.x(), c.rng.uniform(0.3, 0.7) * c.width
        c.draw.ellipse(
            (x - w / 2, c.floor - w * 0.16, x + w / 2, c.floor + w * 0.2), fill=lit(far, c.rng.uniform(0.85, 1.1))
        )
    for _ in range(c.rng.integers(0, 4)):
        x, y, w = c.x(), c.rng.uniform(0.1, 0.4) * c.floor, c.rng.uniform(20, 50)
        for shift, scale in ((-0.4, 0.7), (0, 1), (0.45, 0.65)):
            c.draw.ellipse(
                (x + w * (shift - scale / 2), y - w * scale / 4, x + w * (shift + scale / 2), y + w * scale / 4),
                fill=(240, 244, 246),
            )
    grass = c.pick((104, 150, 72), (130, 156, 84), (168, 158, 96))
    c.fade(c.floor, c.height, lit(grass, 0.85), lit(grass, 1.08))
    for _ in range(c.rng.integers(1, 6)):
        x, h = c.x(), c.rng.uniform(0.3, 0.7) * c.floor
        trunk, leaf = c.pick((96, 70, 46), (120, 96, 70)), c.pick((60, 110, 60), (90, 130, 60), (170, 120, 50))
        c.draw.rectangle((x - h * 0.04, c.floor - h * 0.5, x + h * 0.04, c.floor + 4), fill=trunk)
        for dx, dy, r in ((0, 0.72, 0.26), (-0.16, 0.55, 0.2), (0.16, 0.56, 0.2)):
            box = (x + h * (dx - r), c.floor - h * (dy + r), x + h * (dx + r), c.floor - h * (dy - r))
            c.draw.ellipse(box, fill=lit(leaf, 0.8 + dy * 0.4))


def _street(c: _Canvas) -> None:
    c.fade(0, c.floor, c.pick((140, 170, 200), (60, 70, 104), (220, 190, 170)), (206, 210, 214))
    x = -10.0
    while x < c.width:
        w, top = c.rng.uniform(0.14, 0.3) * c.width, c.rng.uniform(0.1, 0.5) * c.floor
        house = c.pick((150, 110, 96), (168, 160, 146), (110, 120, 132), (190, 170, 130), (130, 90, 80))
        c.draw.rectangle((x, top, x + w, c.floor), fill=house)
        pane = c.pick((206, 216, 220), (246, 222, 150), (70, 84, 100))
        for row in np.arange(top + 10, c.floor - 18, 26):
            for column in np.arange(x + 8, x + w - 12, 24):
                c.draw.rectangle((column, row, column + 11, row + 14), fill=pane)
        x += w + c.rng.uniform(0, 8)
    road = c.pick((104, 104, 108), (130, 126, 122))
    c.fade(c.floor, c.height, lit(road, 1.1), lit(road, 0.88))
    c.draw.rectangle((0, c.floor, c.width, c.floor + 5), fill=(178, 176, 170))


def _stage(c: _Canvas) -> None:
    cloth = c.pick((130, 36, 44), (44, 54, 110), (50, 90, 74), (90, 50, 100))
    for x in range(0, c.width, 14):
        c.draw.rectangle((x, 0, x + 14, c.floor), fill=lit(cloth, 0.75 + 0.35 * abs(np.sin(x * 0.13))))
    board = c.pick((150, 108, 70), (110, 84, 66))
    c.fade(c.floor, c.height, lit(board, 0.8), lit(board, 1.1))
    for y in range(c.floor, c.height, 12):
        c.draw.line((0, y, c.width, y), fill=lit(board, 0.78), width=1)


def _bricks(c: _Canvas) -> None:
    brick = c.pick((158, 92, 72), (140, 132, 124), (176, 150, 116))
    c.image.paste(lit(brick, 0.72), (0, 0, c.width, c.floor))
    for row, y in enumerate(range(0, c.floor, 15)):
        for x in range(-30 + 15 * (row % 2), c.width, 31):
            c.draw.rectangle((x, y, x + 28, y + 12), fill=lit(brick, c.rng.uniform(0.9, 1.08)))
    slab = c.pick((150, 148, 144), (120, 116, 108))
    c.fade(c.floor, c.height, lit(slab, 0.9), lit(slab, 1.05))


def _blur(c: _Canvas) -> None:
    """Out of focus, or no place at all."""
    tone = np.array(c.pick((130, 130, 140), (170, 150, 120), (100, 130, 120), (150, 120, 140)))
    size = (c.width, c.height)
    grey = _noise(c.rng, size, cells=7)
    layers = np.stack([grey + 0.45 * _noise(c.rng, size, cells=5) for _ in range(3)], axis=-1)
    shade = np.linspace(1.1, 0.8, c.height)[:, None, None]
    c.image.paste(Image.fromarray(np.clip((tone + 46 * layers) * shade, 0, 255).astype(np.uint8)))


_PAINTERS: tuple[Callable[[_Canvas], None], ...] = (_room, _park, _street, _stage, _bricks, _blur)
_SHARES = (0.3, 0.2, 0.15, 0.1, 0.1, 0.15)
