"""Draws persons with their labels, or a caption, on a frame: text inside of the frame, readable, never overlapping."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.tracks import Person

SHORT_SIDE = 480
"""A smaller frame is enlarged to this short side (pixels), below which a line of text is too coarse to read."""

LONG_SIDE = 3840
"""No frame is enlarged beyond this."""

# Okabe and Ito's palette, which colour-blind eyes can tell apart.
COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
CAPTION_COLOR = (25, 25, 25)
WIDEST = 0.6
"""Of the frame's width; longer lines are shortened."""


@dataclass(frozen=True)
class Rect:
    """A rectangle in whole pixels, right and bottom not included."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: "Rect") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


def drawn_size(width: int, height: int) -> tuple[int, int]:
    """The (width, height) that a frame is drawn at: large enough to read, even as H.264 wants it."""
    scale = max(1.0, min(SHORT_SIDE / min(width, height), LONG_SIDE / max(width, height)))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def place(
    boxes: Sequence[Rect], blocks: Sequence[tuple[int, int]], width: int, height: int, preferred: Sequence[int | None]
) -> list[tuple[Rect, int] | None]:
    """Finds room for a block of text near each box.

    Args:
        boxes: a rectangle per person.
        blocks: (width, height) of each one's text.
        preferred: for each the side that it had in the frame before, tried first; None if it is new.

    Returns:
        For each the rectangle of its text, inside of the frame and free of all others, and the side that it lies on;
        None where no room is left.
    """
    placed: list[tuple[Rect, int] | None] = []
    taken: list[Rect] = []
    for box, (w, h), before in zip(boxes, blocks, preferred, strict=True):
        found = None
        for side, x, y in _spots(box, w, h, width, height, before):
            rect = Rect(x, y, x + w, y + h)
            if not any(rect.overlaps(other) for other in taken):
                found = (rect, side)
                taken.append(rect)
                break
        placed.append(found)
    return placed


def _spots(box: Rect, w: int, h: int, width: int, height: int, before: int | None) -> Iterator[tuple[int, int, int]]:
    """(side, left, top) of the places for a block that lie inside of the frame, best first."""
    if w > width or h > height:
        return
    sides = list(enumerate(_sides(box, w, h)))
    for side, (x, y) in sorted(sides, key=lambda item: item[0] != before):
        if 0 <= x <= width - w and 0 <= y <= height - h:
            yield side, x, y
    for side, (x, y) in sides:
        yield side, min(max(x, 0), width - w), min(max(y, 0), height - h)
    for x, y in _anywhere(box, w, h, width, height):
        yield len(sides), x, y


def _sides(box: Rect, w: int, h: int) -> list[tuple[int, int]]:
    """Top left corners of a block around a box, best first; inside of the box, where a head may be, last."""
    return [
        (box.left, box.top - h),
        (box.right - w, box.top - h),
        (box.left, box.bottom),
        (box.right - w, box.bottom),
        (box.right, box.top),
        (box.left - w, box.top),
        (box.left, box.bottom - h),
        (box.left, box.top),
    ]


def _anywhere(box: Rect, w: int, h: int, width: int, height: int) -> list[tuple[int, int]]:
    """Corners all over the frame, nearest to the box first."""
    xs = np.append(np.arange(0, width - w, max(w // 4, 1)), width - w)
    ys = np.append(np.arange(0, height - h, max(h // 2, 1)), height - h)
    x, y = (grid.ravel() for grid in np.meshgrid(xs, ys))
    distance = (x + w / 2 - (box.left + box.right) / 2) ** 2 + (y + h / 2 - (box.top + box.bottom) / 2) ** 2
    order = np.argsort(distance, kind="stable")
    return list(zip(x[order].tolist(), y[order].tolist(), strict=True))


class Painter:
    """Draws the frames of one video, keeping each person's label where it was.

    Args:
        width, height: of the frames that come in.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = drawn_size(width, height)
        short = min(self.width, self.height)
        self.font = ImageFont.load_default(max(15, round(short / 32)))
        ascent, descent = self.font.getmetrics()  # type: ignore[union-attr]
        self.pad = max(2, short // 160)
        self.line = ascent + descent
        self.stroke = max(2, short // 240)
        self.before: dict[int, int] = {}
        self.colors: dict[int, int] = {}
        self.hidden = 0
        """Most persons of one frame whose label found no room."""

    def paint(
        self, frame: np.ndarray, persons: Sequence[Person] = (), caption: Sequence[tuple[str, str]] = ()
    ) -> Image.Image:
        """Draws boxes with labels, and a caption in the lower left.

        Args:
            frame: uint8 [H, W, 3], RGB, of the size given above.
            caption: lines of (text, ending); a line that is too long loses the end of its text, not the ending.

        Returns:
            An RGB image of `self.width` x `self.height`.
        """
        image = Image.fromarray(frame)
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        canvas = ImageDraw.Draw(image)
        boxes = [self._pixels(person.box) for person in persons]
        self._choose_colors([person.track for person in persons])
        for person, box in zip(persons, boxes, strict=True):
            canvas.rectangle(
                (box.left, box.top, box.right - 1, box.bottom - 1), outline=self._color(person), width=self.stroke
            )
        told = [(person, box) for person, box in zip(persons, boxes, strict=True) if person.labels]
        # Of those that compete for room the surest goes first.
        told.sort(key=lambda item: (-_surety(item[0]), item[0].track))
        for person, box, rect, lines in self._arrange(told, canvas):
            self._connect(canvas, box, rect, self._color(person))
            self._write(canvas, rect, lines, self._color(person))
        if caption:
            lines = [self._shorten(canvas, text, ending, self.width) for text, ending in caption]
            lines = lines[: max(1, self.height // self.line)]
            w, h = self._size(canvas, lines)
            self._write(canvas, Rect(0, self.height - h, w, self.height), lines, CAPTION_COLOR)
        return image

    def titled(self, image: Image.Image, text: str) -> Image.Image:
        """The image under a line of text, which loses its end where it is too long."""
        page = Image.new("RGB", (image.width, image.height + self.line + self.pad), CAPTION_COLOR)
        page.paste(image, (0, self.line + self.pad))
        canvas = ImageDraw.Draw(page)
        line = self._shorten(canvas, text, "", image.width)
        self._write(canvas, Rect(0, 0, image.width, self.line + self.pad), [line], CAPTION_COLOR)
        return page

    def _arrange(
        self, told: list[tuple[Person, Rect]], canvas: ImageDraw.ImageDraw
    ) -> list[tuple[Person, Rect, Rect, list[str]]]:
        """(person, box, place of the text, lines). In a crowd without room for all lines, each person gets one."""
        limit = int(WIDEST * self.width)
        everything = [
            [
                self._shorten(canvas, tidy(name), "" if score is None else f" {score:.2f}", limit)
                for name, score in person.labels
            ]
            for person, _ in told
        ]
        preferred = [self.before.get(person.track) for person, _ in told]
        for texts in (everything, [lines[:1] for lines in everything]):
            blocks = [self._size(canvas, lines) for lines in texts]
            placed = place([box for _, box in told], blocks, self.width, self.height, preferred)
            if all(placed):
                break
        self.hidden = max(self.hidden, placed.count(None))
        self.before = {
            person.track: spot[1] for (person, _), spot in zip(told, placed, strict=True) if spot is not None
        }
        return [
            (person, box, spot[0], lines)
            for (person, box), spot, lines in zip(told, placed, texts, strict=True)
            if spot is not None
        ]

    def _choose_colors(self, tracks: Sequence[int]) -> None:
        """A person keeps its colour while it is in sight; a new one gets that which the fewest others have."""
        self.colors = {track: self.colors[track] for track in tracks if track in self.colors}
        for track in tracks:
            if track not in self.colors:
                used = list(self.colors.values())
                self.colors[track] = min(range(len(COLORS)), key=lambda n: (used.count(n), (n - track) % len(COLORS)))

    def _color(self, person: Person) -> tuple[int, int, int]:
        return COLORS[self.colors[person.track]]

    def _pixels(self, box: np.ndarray) -> Rect:
        x1, y1, x2, y2 = np.clip(box, 0, 1) * (self.width, self.height, self.width, self.height)
        left, top = min(int(x1), self.width - 2), min(int(y1), self.height - 2)
        return Rect(left, top, max(left + 2, round(x2)), max(top + 2, round(y2)))

    def _shorten(self, canvas: ImageDraw.ImageDraw, text: str, ending: str, limit: int) -> str:
        """`text` + `ending`, with as much of `text` as fits `limit` pixels."""
        room = limit - 2 * self.pad
        if canvas.textlength(text + ending, font=self.font) <= room:
            return text + ending
        while text and canvas.textlength(f"{text}…{ending}", font=self.font) > room:
            text = text[:-1]
        return f"{text.rstrip()}…{ending}"

    def _size(self, canvas: ImageDraw.ImageDraw, lines: Sequence[str]) -> tuple[int, int]:
        widest = max(canvas.textlength(line, font=self.font) for line in lines)
        return int(widest) + 1 + 2 * self.pad, len(lines) * self.line + self.pad

    def _write(
        self, canvas: ImageDraw.ImageDraw, rect: Rect, lines: Sequence[str], color: tuple[int, int, int]
    ) -> None:
        canvas.rectangle((rect.left, rect.top, rect.right - 1, rect.bottom - 1), fill=color)
        # Luma of ITU-R BT.601: dark text on light ground, light text on dark.
        light = np.dot(color, (0.299, 0.587, 0.114)) > 110
        for number, line in enumerate(lines):
            middle = (rect.left + self.pad, rect.top + self.pad // 2 + (number + 0.5) * self.line)
            canvas.text(middle, line, font=self.font, fill=(0, 0, 0) if light else (255, 255, 255), anchor="lm")

    def _connect(self, canvas: ImageDraw.ImageDraw, box: Rect, rect: Rect, color: tuple[int, int, int]) -> None:
        """A line from a text to its box where they do not touch."""
        grown = Rect(box.left - 1, box.top - 1, box.right + 1, box.bottom + 1)
        if not grown.overlaps(rect):
            x, y = (rect.left + rect.right) // 2, (rect.top + rect.bottom) // 2
            end = (min(max(x, box.left), box.right), min(max(y, box.top), box.bottom))
            canvas.line((x, y, *end), fill=color, width=self.stroke)


def _surety(person: Person) -> float:
    score = person.labels[0][1]
    return math.inf if score is None else score


def tidy(name: str) -> str:
    """A class name without AVA's examples in brackets, which take the room of the rest."""
    return re.sub(r"\s*\(e\.g\.[^)]*\)", "", name)
