"""Crop, flip and resize move pixels and boxes alike; colour changes all frames alike."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional

from data.augment import Crop, adjust_color, centre_square, draw_color, iou, random_crop, whole_frame

SIDE = st.integers(8, 200)


@st.composite
def crops(draw):
    height, width = draw(SIDE), draw(SIDE)
    crop_height, crop_width = draw(st.integers(1, height)), draw(st.integers(1, width))
    top, left = draw(st.integers(0, height - crop_height)), draw(st.integers(0, width - crop_width))
    return Crop(height, width, top, left, crop_height, crop_width, draw(st.booleans()))


@st.composite
def boxes(draw):
    def span():
        low = draw(st.floats(0, 0.9))
        return low, low + draw(st.floats(0.01, 1 - low))

    rows = [(span(), span()) for _ in range(draw(st.integers(0, 4)))]
    return np.array([[x1, y1, x2, y2] for (x1, x2), (y1, y2) in rows]).reshape(-1, 4)


@given(crops(), boxes())
def test_boxes_stay_in_the_view_and_come_back(crop, rows):
    moved, visible = crop.boxes_to_view(rows)
    assert moved.shape == rows.shape and visible.shape == (len(rows),)
    assert ((moved >= 0) & (moved <= 1)).all() and (moved[:, 2:] >= moved[:, :2]).all()
    assert ((visible >= 0) & (visible <= 1 + 1e-9)).all()
    back = crop.boxes_to_frame(moved)
    view = crop.boxes_to_frame(np.array([[0.0, 0.0, 1.0, 1.0]]))[0]
    seen = np.concatenate([rows[:, :2].clip(view[:2], view[2:]), rows[:, 2:].clip(view[:2], view[2:])], axis=1)
    np.testing.assert_allclose(back, seen, atol=1e-9)


@given(crops(), boxes())
def test_visible_share_is_the_share_of_the_area(crop, rows):
    _, visible = crop.boxes_to_view(rows)
    view = crop.boxes_to_frame(np.array([[0.0, 0.0, 1.0, 1.0]]))[0]
    inside = np.maximum(np.minimum(rows[:, 2:], view[2:]) - np.maximum(rows[:, :2], view[:2]), 0).prod(axis=1)
    np.testing.assert_allclose(visible, inside / (rows[:, 2:] - rows[:, :2]).prod(axis=1), atol=1e-6)


def test_box_is_clipped_or_gone():
    crop = Crop(100, 200, top=0, left=100, height=100, width=100)
    moved, visible = crop.boxes_to_view(np.array([[0.4, 0.2, 0.6, 0.4], [0.0, 0.0, 0.4, 1.0], [0.5, 0.5, 1.0, 1.0]]))
    np.testing.assert_allclose(moved[[0, 2]], [[0, 0.2, 0.2, 0.4], [0, 0.5, 1, 1]], atol=1e-12)
    np.testing.assert_allclose(visible, [0.5, 0, 1], atol=1e-12)


@given(st.integers(0, 2**32), st.integers(60, 160), st.integers(60, 160), st.booleans(), st.booleans())
def test_a_drawn_box_is_found_where_the_box_went(seed, height, width, flip, keep_aspect):
    rng = np.random.default_rng(seed)
    x1, y1 = int(rng.integers(0, width - 30)), int(rng.integers(0, height - 30))
    x2, y2 = x1 + int(rng.integers(20, width - x1 + 1)), y1 + int(rng.integers(20, height - y1 + 1))
    frames = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    frames[:, :, y1:y2, x1:x2] = 255
    crop = random_crop(height, width, (0.3, 1.0), flip, keep_aspect, rng)
    moved, visible = crop.boxes_to_view(np.array([[x1 / width, y1 / height, x2 / width, y2 / height]]))
    assume(visible[0] > 0.1)
    size = 64
    lit = crop.apply(frames, size)[0, 0] > 127
    rows, columns = lit.any(dim=1).nonzero(), lit.any(dim=0).nonzero()
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(np.array(found, dtype=float), moved[0] * size, atol=1.0)


@given(st.integers(0, 2**32), SIDE, SIDE, st.floats(0.05, 1), st.floats(0, 1), st.booleans())
def test_random_crops_keep_the_rule(seed, height, width, smallest, more, keep_aspect):
    scale = (smallest, smallest + more * (1 - smallest))
    crop = random_crop(height, width, scale, False, keep_aspect, np.random.default_rng(seed))
    assert crop.top >= 0 and crop.left >= 0 and crop.height >= 1 and crop.width >= 1
    assert crop.top + crop.height <= height and crop.left + crop.width <= width
    assert not crop.flip
    # Rounding to whole pixels moves each side by up to half a pixel.
    aspect = width / height if keep_aspect else 1.0
    assert (crop.width - 0.5) / (crop.height + 0.5) <= aspect * 4 / 3 + 1e-9
    assert (crop.width + 0.5) / (crop.height - 0.5) >= aspect * 3 / 4 - 1e-9
    if keep_aspect:
        assert (crop.height + 0.5) * (crop.width + 0.5) >= smallest * height * width


def test_scale_of_one_leaves_the_whole_frame():
    crop = random_crop(96, 128, (1.0, 1.0), False, True, np.random.default_rng(0))
    assert crop == whole_frame(96, 128)


def test_flip_hits_half_of_the_views():
    rng = np.random.default_rng(0)
    flips = sum(random_crop(96, 128, (0.5, 1.0), True, True, rng).flip for _ in range(400))
    assert 150 < flips < 250


def test_later_draws_do_not_depend_on_the_frame_size():
    rngs = [np.random.default_rng(1), np.random.default_rng(1)]
    random_crop(96, 128, (0.05, 1.0), True, False, rngs[0])
    random_crop(300, 20, (0.9, 1.0), False, False, rngs[1])
    assert rngs[0].random() == rngs[1].random()


def test_evaluation_views():
    assert centre_square(96, 128) == Crop(96, 128, 0, 16, 96, 96)
    assert centre_square(129, 64) == Crop(129, 64, 32, 0, 64, 64)
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    view = whole_frame(16, 16).apply(frames, 16)
    assert torch.equal(view, frames.transpose(0, 1)) and view.is_contiguous()
    assert view.untyped_storage().data_ptr() != frames.untyped_storage().data_ptr()
    mirrored = Crop(16, 16, 0, 0, 16, 16, flip=True).apply(frames, 16)
    assert torch.equal(mirrored, view.flip(-1)) and mirrored.is_contiguous()


def test_color_of_factor_one_changes_nothing():
    clip = torch.randint(0, 256, (3, 5, 9, 11), dtype=torch.uint8)
    assert torch.equal(adjust_color(clip, 1.0, 1.0, 1.0), clip)


@pytest.mark.parametrize("factors", [(1.2, 1.0, 1.0), (1.0, 0.7, 1.0), (1.0, 1.0, 0.5), (0.8, 1.2, 1.3)])
def test_color_agrees_with_torchvision(factors):
    # Away from 0 and 255, where torchvision clamps after each of the three.
    clip = torch.randint(70, 150, (3, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = clip.transpose(0, 1).float() / 255
    expected = functional.adjust_brightness(expected, factors[0])
    expected = functional.adjust_contrast(expected, factors[1])
    expected = functional.adjust_saturation(expected, factors[2])
    difference = adjust_color(clip, *factors).float() - expected.transpose(0, 1) * 255
    assert difference.abs().max() <= 1.6


def test_color_is_clamped_and_alike_for_all_frames():
    frame = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    frame[:, 0, 0, 0], frame[:, 0, 0, 1] = 255, 0
    adjusted = adjust_color(frame.expand(3, 6, 8, 8).contiguous(), 1.9, 1.9, 1.9)
    assert adjusted[:, :, 0, 0].min() == 255 and adjusted[:, :, 0, 1].max() == 0
    assert all(torch.equal(adjusted[:, 0], adjusted[:, t]) for t in range(6))
    grey = adjust_color(frame, 1.0, 1.0, 0.0)
    assert torch.equal(grey[0], grey[1]) and torch.equal(grey[1], grey[2])


def test_color_factors_stay_in_range():
    factors = [draw_color(0.4, np.random.default_rng(seed)) for seed in range(50)]
    assert 0.6 <= np.min(factors) < 0.7 and 1.3 < np.max(factors) <= 1.4


@given(boxes(), boxes())
def test_iou(first, second):
    overlap = iou(first, second)
    assert overlap.shape == (len(first), len(second))
    assert ((overlap >= 0) & (overlap <= 1 + 1e-9)).all()
    np.testing.assert_allclose(np.diag(iou(first, first)), 1)
    np.testing.assert_allclose(overlap, iou(second, first).T)


def test_iou_of_halves():
    assert iou(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0.5, 1], [0.5, 0.5, 1, 1]])).tolist() == [[0.5, 0.25]]
