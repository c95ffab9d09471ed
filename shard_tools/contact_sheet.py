"""Draws a page of random examples with their labels and boxes, for a look at what was packed."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.decode import decode
from data.sample_json import class_label, frame_count, read_keyframe
from data.shards import ShardSet

WIDTH, HEIGHT, TEXT = 320, 240, 60
"""Pixels of a tile's picture, and of the lines under it."""
COLUMNS = 4
_GROUND, _INK, _PERSON, _PROPOSAL = "#181818", "#f0f0f0", "#ffb000", "#3a86ff"


def draw_sheet(sets: Sequence[ShardSet], out: Path, examples: int, seed: int) -> tuple[int, list[str]]:
    """Writes a PNG of some `examples` random examples, as many of each set, which hold one at least.

    Returns:
        how many are drawn, and what could not be, one line each; its tile stays dark.
    """
    rng = np.random.default_rng(seed)
    each = -(-examples // len(sets))
    picks = [(s, int(n)) for s in sets for n in rng.choice(len(s), min(each, len(s)), replace=False)]
    rows = max(-(-len(picks) // COLUMNS), 1)
    page = Image.new("RGB", (COLUMNS * WIDTH, rows * (HEIGHT + TEXT)), _GROUND)
    faults = []
    for place, (shards, example) in enumerate(picks):
        corner = (place % COLUMNS * WIDTH, place // COLUMNS * (HEIGHT + TEXT))
        try:
            page.paste(draw_example(shards, example), corner)
        except (OSError, ValueError) as error:
            faults.append(f"{Path(shards.prefix).name}: example {example} cannot be drawn: {error}")
    page.save(out, format="PNG")
    return len(picks) - len(faults), faults


def draw_example(shards: ShardSet, example: int) -> Image.Image:
    """A tile of WIDTH x (HEIGHT + TEXT) pixels: the middle frame and the class, or the keyframe with boxes (ground
    truth with numbers and labels, proposals thin).

    Raises:
        OSError, ValueError: the sample cannot be read or decoded.
    """
    sample, manifest = shards.read_json(example), shards.manifest
    frames = frame_count(sample)
    lines = [f"{manifest.dataset}-{manifest.split}  {sample.get('key')}"]
    boxes: list[tuple[np.ndarray, str, str]] = []
    number = frames // 2
    if manifest.kind == "classification":
        label = class_label(sample, len(manifest.classes))
        lines.append("no label" if label < 0 else manifest.classes[label].name)
    else:
        keyframe = read_keyframe(sample, int(shards.index["item"][example]), shards.dense)
        number = keyframe.frame
        lines[0] += f"  {keyframe.timestamp:g} s"
        boxes += [(box[:4], _PROPOSAL, "") for box in keyframe.proposals]
        for person, (box, ids) in enumerate(zip(keyframe.boxes, keyframe.labels, strict=True), 1):
            boxes.append((box, _PERSON, str(person)))
            lines.append(f"{person}: {', '.join(manifest.classes[i].name for i in ids)}")
    frame = decode(shards.read_video(example), np.array([number]), frames)[0]
    picture = Image.fromarray(frame.permute(1, 2, 0).numpy())
    picture.thumbnail((WIDTH, HEIGHT))
    if picture.width < WIDTH and picture.height < HEIGHT:
        scale = min(WIDTH / picture.width, HEIGHT / picture.height)
        picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    tile = Image.new("RGB", (WIDTH, HEIGHT + TEXT), _GROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for box, colour, name in boxes:
        x1, y1, x2, y2 = box * [picture.width, picture.height, picture.width, picture.height]
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=2 if name else 1)
        if name:
            draw.text((x1 + 4, y1 + 2), name, fill=colour, font=font)
    tile.paste(picture, ((WIDTH - picture.width) // 2, 0))
    wrapped = [part for line in lines for part in textwrap.wrap(line, 50) or [""]]
    ImageDraw.Draw(tile).text((6, HEIGHT + 2), "\n".join(wrapped[:4]), fill=_INK, font=font, spacing=2)
    return tile
