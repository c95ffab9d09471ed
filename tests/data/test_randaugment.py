"""RandAugment: torchvision's operations, alike for all frames, with boxes that move along."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandAugment, functional

from data.randaugment import CLASSIFICATION_OPS, LOCALISATION_OPS, TURNS, Op, draw_ops

SIZE = 48
GENERATOR = torch.Generator().manual_seed(0)
PICTURE = torch.nn.functional.interpolate(
    torch.randint(0, 256, (3, 1, 12, 12), dtype=torch.uint8, generator=GENERATOR), size=(SIZE, SIZE)
)
CLIP = PICTURE.expand(3, 4, SIZE, SIZE).contiguous()


def known(name: str, level: float) -> torch.Tensor:
    """What torchvision's own class makes of the picture."""
    signed = RandAugment._AUGMENTATION_SPACE[name]
    magnitudes = signed[0](31, SIZE, SIZE)
    magnitude = 0.0 if magnitudes is None else float(magnitudes[round(30 * abs(level))]) * (-1 if level < 0 else 1)
    if not signed[1]:
        magnitude = abs(magnitude)
    settings = {"interpolation": functional.InterpolationMode.NEAREST, "fill": {torch.Tensor: None}}
    # Histograms are those of the whole clip.
    picture = CLIP.reshape(1, 3, -1, SIZE) if name == "Equalize" else PICTURE.transpose(0, 1)
    return (
        RandAugment()
        ._apply_image_or_video_transform(picture, name, magnitude, **settings)[..., :SIZE, :]
        .transpose(0, 1)
    )


def test_the_operations_are_torchvisions():
    assert set(CLASSIFICATION_OPS) == set(RandAugment._AUGMENTATION_SPACE)
    assert set(LOCALISATION_OPS) == set(CLASSIFICATION_OPS) - set(TURNS)


@pytest.mark.parametrize("level", [-0.9, -0.3, 0.3, 0.9])
@pytest.mark.parametrize("name", CLASSIFICATION_OPS)
def test_pixels_are_torchvisions(name, level):
    changed = Op(name, level).apply(CLIP)
    assert changed.shape == CLIP.shape and changed.dtype == torch.uint8
    assert all(torch.equal(changed[:, 0], changed[:, frame]) for frame in range(4))
    difference = (changed[:, :1].int() - known(name, level).int()).abs()
    # Whole-number arithmetic rounds where torchvision cuts fractions off.
    assert difference.max() <= (2 if name in ("Brightness", "Color", "Contrast", "Sharpness") else 0)


@pytest.mark.parametrize("name", CLASSIFICATION_OPS)
def test_neither_threads_nor_memory_format_nor_the_callers_clip_matter(name):
    clip = torch.randint(0, 256, (3, 6, 57, 63), dtype=torch.uint8)
    before, threads = clip.clone(), torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(Op(name, 0.7).apply(clip))
    finally:
        torch.set_num_threads(threads)
    last = clip.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)
    assert all(torch.equal(results[0], other) for other in (*results[1:], Op(name, 0.7).apply(last)))
    assert torch.equal(clip, before)


@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(0, 30))
def test_draws(seed, count, magnitude):
    ops = draw_ops(LOCALISATION_OPS, count, magnitude, 1.0, np.random.default_rng(seed))
    assert len(ops) == count and all(abs(op.level) == magnitude / 30 for op in ops)
    assert ops == draw_ops(LOCALISATION_OPS, count, magnitude, 1.0, np.random.default_rng(seed))
    assert draw_ops(LOCALISATION_OPS, count, magnitude, 0.0, np.random.default_rng(seed)) == []


def test_draws_reach_every_operation_in_both_directions_at_their_rate():
    rng = np.random.default_rng(0)
    ops = [op for _ in range(2000) for op in draw_ops(CLASSIFICATION_OPS, 2, 15, 0.5, rng)]
    assert 1850 < len(ops) < 2150
    assert {(op.name, op.level > 0) for op in ops} == {(n, up) for n in CLASSIFICATION_OPS for up in (True, False)}


def test_a_box_that_is_pushed_out_is_invisible():
    boxes = np.array([[0.0, 0.0, 0.1, 1.0], [0.0, 0.0, 1.0, 1.0]])
    moved, visible = Op("TranslateX", -1.0).move_boxes(boxes, 100, 100)
    np.testing.assert_allclose(visible, [0, 0.55])
    np.testing.assert_allclose(moved[1], [0, 0, 0.55, 1])
    with pytest.raises(AssertionError):
        Op("Rotate", 0.5).move_boxes(boxes, 100, 100)
