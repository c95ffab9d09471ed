"""Draws training clips as a picture: a row of frames for each, boxes on the keyframe, labels above."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.batch import Example

FRAMES = 8
"""Frames of a clip that are drawn, evenly spaced; the middle one, a keyframe's, is among them."""
TILE, LINE, MARGIN = 128, 15, 6
"""Pixels: least side of a drawn frame, height of a line of text, and space between clips."""
_GROUND, _INK = "#181818", "#f0f0f0"
# Okabe and Ito's palette, which colour-blind eyes can tell apart.
_PERSONS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def draw_clips(clips: Sequence[Example], captions: Sequence[str], labels: Sequence[Sequence[str]]) -> Image.Image:
    """One picture of all clips, as they go into the model.

    Args:
        labels: for each clip its class, or a text for each of its boxes.

    Returns:
        RGB image; persons and their texts share a colour.
    """
    strips = [draw_clip(*clip) for clip in zip(clips, captions, labels, strict=True)]
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height + MARGIN for s in strips)), _GROUND)
    top = 0
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height + MARGIN
    return page


def drawn_frames(num_frames: int) -> list[int]:
    """Up to FRAMES frame numbers of a clip, ascending, `num_frames // 2` among them."""
    step = max(num_frames // FRAMES, 1)
    return list(range(num_frames // 2 % step, num_frames, step))[:FRAMES]


def draw_clip(clip: Example, caption: str, labels: Sequence[str]) -> Image.Image:
    """A strip of frames under lines of text."""
    numbers = drawn_frames(clip.clip.shape[1])
    pixels = clip.clip[:, numbers].permute(1, 2, 3, 0).numpy()  # [frames, H, W, 3]
    side = max(TILE, pixels.shape[1])
    width = side * len(numbers)
    texts = [(caption, _INK)]
    boxes = None if clip.boxes is None else clip.boxes.numpy()
    for person, label in enumerate(labels):
        colour = _INK if boxes is None else _PERSONS[person % len(_PERSONS)]
        texts += [(line, colour) for line in textwrap.wrap(label, max(width // 7, 20)) or [""]]
    strip = Image.new("RGB", (width, side + LINE * len(texts) + 4), _GROUND)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(12)
    for row, (text, colour) in enumerate(texts):
        draw.text((4, LINE * row), text, fill=colour, font=font)
    for place, (number, frame) in enumerate(zip(numbers, pixels, strict=True)):
        picture = Image.fromarray(np.ascontiguousarray(frame)).resize((side, side))
        if boxes is not None and number == clip.clip.shape[1] // 2:
            canvas = ImageDraw.Draw(picture)
            for person, box in enumerate(boxes * side):
                canvas.rectangle(tuple(box), outline=_PERSONS[person % len(_PERSONS)], width=2)
        strip.paste(picture, (side * place, strip.height - side))
    return strip
