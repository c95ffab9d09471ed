"""Random erasing: a rectangle of noise, and what is left of a box."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.erasing import Erasing, draw_erasing
from tests.data.test_crop import boxes


@given(st.integers(0, 2**32), st.integers(4, 64))
def test_the_rectangle_keeps_the_rule_and_the_rest_of_the_clip_is_left_alone(seed, size):
    erasing = draw_erasing(1.0, size, np.random.default_rng(seed))
    assert draw_erasing(0.0, size, np.random.default_rng(seed)) is None
    if erasing is None:
        assert size < 8  # no rectangle of the smallest area fits
        return
    assert 0 <= erasing.top < erasing.top + erasing.height <= size
    assert 0 <= erasing.left < erasing.left + erasing.width <= size
    assert (erasing.height + 0.5) * (erasing.width + 0.5) >= 0.02 * size**2
    clip = torch.full((3, 2, size, size), 7, dtype=torch.uint8)
    erased = erasing.apply(clip.clone())
    inside = torch.zeros(size, size, dtype=torch.bool)
    inside[erasing.top : erasing.top + erasing.height, erasing.left : erasing.left + erasing.width] = True
    assert (erased[..., ~inside] == 7).all()
    assert torch.equal(erased, erasing.apply(clip.clone()))


def test_noise_is_uniform_and_of_every_frame_its_own():
    clip = Erasing(8, 8, 40, 40, seed=3).apply(torch.zeros(3, 2, 64, 64, dtype=torch.uint8))[..., 8:48, 8:48]
    assert not torch.equal(clip[:, 0], clip[:, 1])
    assert abs(clip.float().mean() - 127.5) < 3 and clip.min() == 0 and clip.max() == 255


def test_it_happens_at_its_rate():
    rng = np.random.default_rng(0)
    assert 200 < sum(draw_erasing(0.25, 64, rng) is not None for _ in range(1000)) < 300


@given(st.integers(0, 2**32), boxes())
def test_what_is_left_of_a_box_is_what_is_not_erased(seed, rows):
    erasing = draw_erasing(1.0, 64, np.random.default_rng(seed))
    assert erasing is not None
    share = erasing.visible(rows, 64)
    top, left = erasing.top / 64, erasing.left / 64
    bottom, right = top + erasing.height / 64, left + erasing.width / 64
    for box, left_over in zip(rows, share, strict=True):
        x = np.clip(np.linspace(box[0], box[2], 401)[:-1] + (box[2] - box[0]) / 800, 0, 1)
        y = np.clip(np.linspace(box[1], box[3], 401)[:-1] + (box[3] - box[1]) / 800, 0, 1)
        hidden = ((x >= left) & (x < right)).mean() * ((y >= top) & (y < bottom)).mean()
        assert abs(1 - hidden - left_over) < 0.01
