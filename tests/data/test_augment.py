"""Whole augmentations: a box that is drawn into the frames is found again where the augmented box says."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from data.augment import Augmentation, draw_augmentation
from data.color import draw_color
from data.crop import Crop
from data.randaugment import LOCALISATION_OPS, Op
from data.view import ViewConfig

SIZE = 64


def scene(height: int, width: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[int]]:
    """Four frames [4, 3, H, W] of a still picture, but for a box (x1 y1 x2 y2 in pixels) that blinks: what changes all
    frames alike leaves it the one thing that differs between two of them."""
    x1, y1 = int(rng.integers(0, width - 30)), int(rng.integers(0, height - 30))
    x2, y2 = x1 + int(rng.integers(20, width - x1 + 1)), y1 + int(rng.integers(20, height - y1 + 1))
    frames = torch.full((4, height, width, 3), 40, dtype=torch.uint8)
    frames[::2, y1:y2, x1:x2] = 190
    return frames.permute(0, 3, 1, 2), [x1, y1, x2, y2]


def blinking(clip: torch.Tensor) -> list[int]:
    """The box that differs between two frames."""
    change = (clip[0, 0].int() - clip[0, 1].int()).abs()
    lit = change * 2 > change.max()
    rows, columns = lit.any(dim=1).nonzero(), lit.any(dim=0).nonzero()
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def check(drawn: Augmentation, frames: torch.Tensor, box: list[int]) -> None:
    """Without a resize the box is found exactly. A resize blurs its border, which is found in the middle of the blur,
    to a pixel; changes of colours that are not even may show all of the blur as box, or none of it, and with it the
    pixel beyond that Sharpness has mixed in."""
    height, width = frames.shape[-2:]
    crop, names = drawn.crop(height, width), {op.name for op in drawn.ops}
    rows = np.array([box]) / [width, height, width, height]
    moved, visible = drawn.boxes(rows, crop, SIZE)
    assume(visible[0] > 0.1)
    clip = drawn.clip(crop.cut(frames), crop, SIZE)
    blur = 1.0
    if "Equalize" in names:
        blur += SIZE / min(crop.height, crop.width) + ("Sharpness" in names)
    tolerance = 1e-6 if (crop.height, crop.width) == (SIZE, SIZE) else blur
    np.testing.assert_allclose(np.array(blinking(clip), dtype=float), moved[0] * SIZE, atol=tolerance)


@pytest.mark.parametrize("level", [-1.0, -0.4, 0.4, 1.0])
@pytest.mark.parametrize("name", LOCALISATION_OPS)
def test_every_operation_leaves_the_box_on_its_pixels(name, level):
    frames = torch.full((4, 3, 96, 128), 40, dtype=torch.uint8)
    frames[::2, :, 30:70, 40:70] = 190
    for flip in (False, True):
        crop = Crop(96, 128, 10, 20, SIZE, SIZE, flip)
        drawn = Augmentation(lambda height, width, crop=crop: crop, None, [Op(name, level)], None)  # type: ignore[misc]
        check(drawn, frames, [40, 30, 70, 70])


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(60, 160), st.integers(60, 160), st.booleans(), st.integers(0, 20))
@example(139, 83, 159, False, 4)
def test_all_together_leave_the_box_on_its_pixels(seed, height, width, jitter, magnitude):
    rng = np.random.default_rng(seed)
    frames, box = scene(height, width, rng)
    changes: dict[str, Any] = {"short_side": (SIZE, 2 * SIZE)} if jitter else {"scale": (0.3, 1.0), "ratio": (0.5, 2.0)}
    view = ViewConfig(
        num_frames=4,
        stride=1,
        image_size=SIZE,
        color_jitter=0.3,
        randaugment_ops=2,
        randaugment_magnitude=magnitude,
        **changes,
    )
    drawn = draw_augmentation(view, "localisation", rng)
    # It may turn the box into the colour of the picture, and only the blur between them stands out.
    assume("Solarize" not in {op.name for op in drawn.ops})
    check(drawn, frames, box)


def test_an_erased_person_counts_as_hidden():
    view = ViewConfig(num_frames=4, stride=1, image_size=SIZE, scale=(1.0, 1.0), random_erasing=1.0)
    seen = set()
    for seed in range(60):
        drawn = draw_augmentation(view, "localisation", np.random.default_rng(seed))
        crop = drawn.crop(SIZE, SIZE)
        boxes = np.array([[0.4, 0.4, 0.55, 0.55]])
        _, visible = drawn.boxes(boxes, crop, SIZE)
        clip = drawn.clip(torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8), crop, SIZE)
        mirrored = np.array([[0.45, 0.4, 0.6, 0.55]]) if crop.flip else boxes
        x1, y1, x2, y2 = np.rint(mirrored[0] * SIZE).astype(int)
        left = float((clip[:, 0, y1:y2, x1:x2] == 0).all(dim=0).float().mean())
        assert abs(left - visible[0]) < 0.15
        seen.add(round(float(visible[0]), 2))
    assert 0.0 in seen and 1.0 in seen and len(seen) > 5


def test_what_is_off_draws_nothing():
    off = draw_augmentation(
        ViewConfig(num_frames=4, stride=1, image_size=SIZE), "classification", np.random.default_rng(3)
    )
    assert (off.color, off.ops, off.erasing) == (None, [], None)
    rng = np.random.default_rng(3)
    jittered = draw_augmentation(
        ViewConfig(num_frames=4, stride=1, image_size=SIZE, color_jitter=0.2), "classification", rng
    )
    assert jittered.crop(90, 120) == off.crop(90, 120)
    again = np.random.default_rng(3)
    draw_augmentation(ViewConfig(num_frames=4, stride=1, image_size=SIZE), "classification", again)
    assert jittered.color == draw_color(0.2, again)


def test_localisation_has_no_turns_and_keeps_the_frames_shape():
    view = ViewConfig(num_frames=4, stride=1, image_size=SIZE, scale=(1.0, 1.0), ratio=(1.0, 1.0), randaugment_ops=8)
    drawn = [draw_augmentation(view, "localisation", np.random.default_rng(seed)) for seed in range(40)]
    assert {op.name for one in drawn for op in one.ops} == set(LOCALISATION_OPS)
    assert all(one.crop(90, 120).whole for one in drawn)
    drawn = [draw_augmentation(view, "classification", np.random.default_rng(seed)) for seed in range(40)]
    assert "Rotate" in {op.name for one in drawn for op in one.ops}
