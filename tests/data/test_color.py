"""Colour changes all frames alike, and as torchvision's."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from data.color import adjust_color, adjust_sharpness, draw_color


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


@pytest.mark.parametrize("factor", [0.1, 0.7, 1.0, 1.9])
def test_sharpness_agrees_with_torchvision(factor):
    clip = torch.randint(0, 256, (3, 5, 24, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = functional.adjust_sharpness(clip.transpose(0, 1), factor).transpose(0, 1)
    difference = adjust_sharpness(clip, factor).int() - expected.int()
    # torchvision cuts the fraction off, where this rounds.
    assert difference.abs().max() <= (0 if factor == 1.0 else 1)
    assert torch.equal(adjust_sharpness(clip[..., :2], factor), clip[..., :2])


@pytest.mark.parametrize(
    "change", [lambda clip: adjust_color(clip, 1.2, 0.7, 1.3), lambda clip: adjust_sharpness(clip, 1.5)]
)
def test_memory_format_does_not_matter(change):
    clip = torch.randint(0, 256, (5, 9, 8, 3), dtype=torch.uint8).permute(3, 0, 1, 2)
    before = clip.clone()
    assert torch.equal(change(clip), change(clip.contiguous())) and torch.equal(clip, before)
