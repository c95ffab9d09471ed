"""Crop, flip and resize move pixels and boxes alike."""

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from data.crop import Crop, centre_square, random_crop, short_side_crop, square, whole_frame

SIDE = st.integers(8, 200)
RATIO = (3 / 4, 4 / 3)


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
    crop = random_crop((0.3, 1.0), RATIO, flip, keep_aspect, rng)(height, width)
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
    crop = random_crop(scale, RATIO, False, keep_aspect, np.random.default_rng(seed))(height, width)
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
    crop = random_crop((1.0, 1.0), RATIO, False, True, np.random.default_rng(0))(96, 128)
    assert crop == whole_frame(96, 128)


def test_flip_hits_half_of_the_views():
    rng = np.random.default_rng(0)
    flips = sum(random_crop((0.5, 1.0), RATIO, True, True, rng)(96, 128).flip for _ in range(400))
    assert 150 < flips < 250


def test_a_rule_gives_each_frame_size_its_own_crop_of_the_same_draw():
    rule = random_crop((0.5, 0.5), (1.0, 1.0), False, True, np.random.default_rng(1))
    small, large = rule(96, 128), rule(960, 1280)
    assert rule(96, 128) == small
    for side in ("top", "left", "height", "width"):
        assert abs(getattr(large, side) / 10 - getattr(small, side)) <= 1


@given(st.integers(0, 2**32), SIDE, SIDE, st.integers(8, 40), st.integers(0, 30), st.integers(0, 30))
def test_short_side_jitter_is_resize_and_cut(seed, height, width, image_size, more, most):
    lengths = (image_size + more, image_size + more + most)
    crop = short_side_crop(lengths, image_size, False, False, np.random.default_rng(seed))(height, width)
    assert crop.top >= 0 and crop.left >= 0
    assert crop.top + crop.height <= height and crop.left + crop.width <= width and crop.height == crop.width
    # As long as a cut of image_size after the resize, to half a pixel.
    short = min(height, width)
    assert short * image_size / lengths[1] - 0.5 <= crop.height <= short * image_size / lengths[0] + 0.5


def test_short_side_jitter_reaches_all_lengths_and_places():
    rng = np.random.default_rng(0)
    crops = [short_side_crop((256, 320), 224, True, False, rng)(256, 340) for _ in range(500)]
    assert {crop.width for crop in crops} == {round(256 * 224 / length) for length in range(256, 321)}
    assert min(crop.left for crop in crops) == 0 and max(crop.left + crop.width for crop in crops) == 340
    assert 180 < sum(crop.flip for crop in crops) < 320


@given(st.integers(0, 2**32), SIDE, SIDE, st.integers(8, 40), st.integers(0, 30), st.integers(0, 30))
def test_short_side_jitter_of_boxes_is_stretched_as_the_whole_frame_is(seed, height, width, image_size, more, most):
    lengths = (image_size + more, image_size + more + most)
    crop = short_side_crop(lengths, image_size, False, True, np.random.default_rng(seed))(height, width)
    assert crop.top >= 0 and crop.left >= 0
    assert crop.top + crop.height <= height and crop.left + crop.width <= width
    # The same share of either side, to half a pixel.
    for size, side in ((crop.height, height), (crop.width, width)):
        assert side * image_size / lengths[1] - 0.5 <= size <= side * image_size / lengths[0] + 0.5
    assert abs(crop.height / height - crop.width / width) <= 0.5 / height + 0.5 / width + 1e-9


@given(SIDE, SIDE, st.integers(1, 5))
def test_evaluation_squares_go_from_end_to_end(height, width, squares):
    crops = [square(number, squares)(height, width) for number in range(squares)]
    side = min(height, width)
    assert all((crop.height, crop.width, crop.flip) == (side, side, False) for crop in crops)
    places = [crop.top + crop.left for crop in crops]
    spare = max(height, width) - side
    if squares == 1:
        assert crops == [centre_square(height, width)]
    else:
        assert places[0] == 0 and places[-1] == spare
        assert max(np.diff(places)) - min(np.diff(places)) <= 1


@given(crops(), boxes())
def test_boxes_go_where_torchvision_moves_them(crop, rows):
    canvas = (crop.frame_height, crop.frame_width)
    pixels = torch.from_numpy(rows * np.array([crop.frame_width, crop.frame_height] * 2))
    known = tv_tensors.BoundingBoxes(pixels, format="XYXY", canvas_size=canvas, dtype=torch.float64)
    known = functional.resized_crop(known, crop.top, crop.left, crop.height, crop.width, size=[100, 100])
    known = functional.horizontal_flip(known) if crop.flip else known
    known = functional.clamp_bounding_boxes(known)
    moved, visible = crop.boxes_to_view(rows)
    seen = visible > 0
    np.testing.assert_allclose(moved[seen] * 100, known.numpy()[seen], atol=0.02)  # float32 inside


def test_evaluation_views():
    assert centre_square(96, 128) == Crop(96, 128, 0, 16, 96, 96)
    assert centre_square(129, 64) == Crop(129, 64, 32, 0, 64, 64)
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    view = whole_frame(16, 16).apply(frames, 16)
    assert torch.equal(view, frames.transpose(0, 1))
    assert view.untyped_storage().data_ptr() != frames.untyped_storage().data_ptr()
    mirrored = Crop(16, 16, 0, 0, 16, 16, flip=True).apply(frames, 16)
    assert torch.equal(mirrored, view.flip(-1))


def test_a_view_keeps_the_memory_format_and_the_pixels_do_not_depend_on_it():
    frames = torch.randint(0, 256, (4, 40, 50, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    crop = Crop(40, 50, 3, 5, 31, 29, flip=True)
    view = crop.apply(frames, 16)
    assert view.permute(1, 2, 3, 0).is_contiguous()
    assert torch.equal(view, crop.apply(frames.contiguous(), 16))
    # Nothing of the whole frames stays alive.
    assert view.untyped_storage().nbytes() == view.numel()
