"""Draws persons with their labels, or a caption, on a frame: text inside of the frame, readable, never overlapping."""

import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from train.label_places import Rect, Spot, place
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
MOST_COVERED = 0.2
"""Of the frame, by labels; where all lines would cover more, each person gets fewer."""
ALL = 99
"""Lines of a label: more than there ever are."""
CALM = 25
"""Frames in a row that have room for more lines before they are shown, so that they do not come and go."""


def drawn_size(width: int, height: int) -> tuple[int, int]:
    """The (width, height) that a frame is drawn at: large enough to read, even as H.264 wants it."""
    scale = max(1.0, min(SHORT_SIDE / min(width, height), LONG_SIDE / max(width, height)))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


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
        self.before: dict[int, Spot] = {}
        self.lines, self.calm = ALL, 0  # lines of a label at most; frames in a row that have room for more
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
        self._choose_colors(persons)
        for person, box in zip(persons, boxes, strict=True):
            canvas.rectangle(
                (box.left, box.top, box.right - 1, box.bottom - 1), outline=self._color(person), width=self.stroke
            )
        told = [(person, box) for person, box in zip(persons, boxes, strict=True) if person.labels]
        # Of those that compete for room the surest goes first.
        told.sort(key=lambda item: (-_surety(item[0]), item[0].track))
        arranged = self._arrange(told, boxes, canvas)
        for person, box, rect, _ in arranged:
            self._connect(canvas, box, rect, self._color(person))
        for person, _, rect, lines in arranged:
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
        self, told: list[tuple[Person, Rect]], people: list[Rect], canvas: ImageDraw.ImageDraw
    ) -> list[tuple[Person, Rect, Rect, list[str]]]:
        """(person, box, place of the text, lines). In a crowd each person gets fewer lines, down to one."""
        if not told:
            return []
        limit = int(WIDEST * self.width)
        everything = [
            [
                self._shorten(canvas, tidy(name), "" if score is None else f" {score:.2f}", limit)
                for name, score in person.labels
            ]
            for person, _ in told
        ]
        boxes = [box for _, box in told]
        before = [self.before.get(person.track) for person, _ in told]

        def arrange(count: int) -> tuple[list[list[str]], list[Spot | None], bool]:
            texts = [lines[:count] for lines in everything]
            blocks = [self._size(canvas, lines) for lines in texts]
            fits = sum(w * h for w, h in blocks) <= MOST_COVERED * self.width * self.height
            if not fits and count > 1:
                return texts, [], False
            placed = place(boxes, blocks, people, self.width, self.height, before)
            return texts, placed, all(placed)

        most = count = max(map(len, everything))
        while not (arranged := arrange(count))[2] and count > 1:
            count -= 1
        wanted = self._steady(ALL if count == most else count)
        texts, placed, _ = arranged if wanted >= count else arrange(wanted)
        self.hidden = max(self.hidden, placed.count(None))
        self.before = {person.track: spot for (person, _), spot in zip(told, placed, strict=True) if spot is not None}
        return [
            (person, box, spot.rect, lines)
            for (person, box), spot, lines in zip(told, placed, texts, strict=True)
            if spot is not None
        ]

    def _steady(self, count: int) -> int:
        """The number of lines to show where there is room for `count`: fewer at once, more after a while."""
        self.calm = self.calm + 1 if count > self.lines else 0
        if count < self.lines or self.calm > CALM:
            self.lines, self.calm = count, 0
        return self.lines

    def _choose_colors(self, persons: Sequence[Person]) -> None:
        """A person keeps its colour while it is in sight; a new one gets the one that is farthest away."""
        middles = {person.track: (person.box[:2] + person.box[2:]) / 2 for person in persons}
        self.colors = {track: color for track, color in self.colors.items() if track in middles}
        for track, middle in middles.items():
            if track not in self.colors:
                away = [math.inf] * len(COLORS)
                for other, color in self.colors.items():
                    away[color] = min(away[color], math.dist(middle, middles[other]))
                self.colors[track] = max(range(len(COLORS)), key=lambda n: (away[n], -((n - track) % len(COLORS))))

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
