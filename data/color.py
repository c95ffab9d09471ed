"""Changes brightness, contrast and saturation of a clip, alike for all of its frames, in whole-number arithmetic."""

import numpy as np
import torch
from torch import Tensor

FRACTION_BITS = 14
_LUMA = [round(weight * 2**FRACTION_BITS) for weight in (0.299, 0.587, 0.114)]
"""Luma weights of ITU-R BT.601, in fixed point."""

_CACHED_FRAMES = 2
"""So many frames at a time stay in the processor's cache."""


def draw_color(strength: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Factors of brightness, contrast and saturation, each uniform in [1 - strength, 1 + strength]."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    return float(brightness), float(contrast), float(saturation)


def adjust_color(clip: Tensor, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Brightness, then contrast around the clip's mean luma, then saturation, alike for all frames of a clip.

    The three are linear, so they are one pass here, rounded and clamped once. Whole-number arithmetic makes the
    result the same on every machine and with any number of threads.

    Args:
        clip: uint8 [3, T, H, W], RGB.

    Returns:
        uint8 [3, T, H, W], another tensor, contiguous.
    """
    one = 2**FRACTION_BITS
    clip = clip.contiguous()
    sums = clip.numpy().sum(axis=(1, 2, 3), dtype=np.int64)
    mean = float(sums @ _LUMA) / one / clip[0].numel()
    own = round(brightness * contrast * saturation * one)
    shared = round(brightness * contrast * (1 - saturation) * one)
    offset = round((brightness * (1 - contrast) * mean + 0.5) * one)
    adjusted = torch.empty_like(clip)
    for source, target in zip(clip.split(_CACHED_FRAMES, 1), adjusted.split(_CACHED_FRAMES, 1), strict=True):
        pixels = source.to(torch.int32)
        luma = pixels[0] * _LUMA[0]
        luma.add_(pixels[1], alpha=_LUMA[1]).add_(pixels[2], alpha=_LUMA[2]).bitwise_right_shift_(FRACTION_BITS)
        luma.mul_(shared).add_(offset)
        target.copy_(torch.add(luma, pixels, alpha=own).bitwise_right_shift_(FRACTION_BITS).clamp_(0, 255))
    return adjusted


def adjust_sharpness(clip: Tensor, factor: float) -> Tensor:
    """Blends every frame with a smoothed copy: factor 0 is smooth, 1 changes nothing, 2 is sharp.

    Pillow's and torchvision's rule (a 3x3 mean with the centre five times, borders as they are), to a rounding; theirs
    in floating point takes ten times as long.

    Args:
        clip: uint8 [3, T, H, W].

    Returns:
        uint8 [3, T, H, W], another tensor, contiguous.
    """
    one, sharpened = 2**FRACTION_BITS, clip.clone(memory_format=torch.contiguous_format)
    if min(clip.shape[-2:]) < 3:
        return sharpened
    weight = round((1 - factor) * one)
    for source, target in zip(clip.split(_CACHED_FRAMES, 1), sharpened.split(_CACHED_FRAMES, 1), strict=True):
        pixels = source.to(torch.int32, memory_format=torch.contiguous_format)
        rows = pixels[..., :-2] + pixels[..., 1:-1] + pixels[..., 2:]
        total = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
        centre = pixels[..., 1:-1, 1:-1]
        total.add_(centre, alpha=4)
        # (2 n + 13) / 26 rounds n / 13 to the nearest; the factor is 2^20 / 26 rounded up, exact for such small n.
        smooth = total.mul_(2).add_(13).mul_(40330).bitwise_right_shift_(20)
        blend = smooth.sub_(centre).mul_(weight).add_(one // 2).bitwise_right_shift_(FRACTION_BITS).add_(centre)
        target[..., 1:-1, 1:-1].copy_(blend.clamp_(0, 255))
    return sharpened
