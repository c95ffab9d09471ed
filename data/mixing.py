"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of two clips, and the soft labels that go with it."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PARTS = 256
"""Shares of mixup are multiples of 1/256, so that pixels are mixed in whole numbers and labels to the same share."""


@dataclass(frozen=True)
class Mix:
    """How a clip is mixed with another one: `share` of it stays, overall by mixup, or outside of `box`, a rectangle
    (top, left, bottom, right) in pixels that shows the other clip, by CutMix."""

    share: float
    box: tuple[int, int, int, int] | None = None

    def clips(self, clip: Tensor, other: Tensor) -> Tensor:
        """uint8 [3, T, H, W] of both -> uint8 [3, T, H, W], another tensor."""
        if self.box is None:
            return _blend(clip, other, round(self.share * PARTS))
        top, left, bottom, right = self.box
        mixed = clip.clone()
        mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
        return mixed

    def labels(self, label: Tensor, other: Tensor) -> Tensor:
        """float32 [C] of both -> float32 [C] with the same sum."""
        return label * self.share + other * (1 - self.share)


def draw_mix(
    mixup: float, cutmix: float, probability: float, switch: float, image_size: int, rng: np.random.Generator
) -> Mix | None:
    """How a pair of clips is mixed; None where it stays as it is.

    Args:
        mixup, cutmix: alpha of the Beta(alpha, alpha) that the share is drawn from; 0 switches one off.
        probability: the chance of a pair to be mixed.
        switch: the chance of CutMix where both are on.
    """
    chance, turn, place_y, place_x = rng.random(4)
    if chance >= probability or not (mixup or cutmix):
        return None
    cut = bool(cutmix) and (not mixup or turn < switch)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    if not cut:
        return Mix(round(share * PARTS) / PARTS)
    side = image_size * math.sqrt(1 - share)
    # A rectangle around a uniform centre, cut off at the borders; what is left of it is the other clip's share.
    edges = [(place * image_size - side / 2, place * image_size + side / 2) for place in (place_y, place_x)]
    (top, bottom), (left, right) = ([min(max(round(edge), 0), image_size) for edge in pair] for pair in edges)
    return Mix(1 - (bottom - top) * (right - left) / image_size**2, (top, left, bottom, right))


def _blend(clip: Tensor, other: Tensor, parts: int) -> Tensor:
    mixed = np.multiply(clip.numpy(), np.uint16(parts), dtype=np.uint16)
    mixed += np.multiply(other.numpy(), np.uint16(PARTS - parts), dtype=np.uint16)
    # The largest sum, 255 * 256 + 128, still fits.
    mixed += np.uint16(PARTS // 2)
    mixed >>= np.uint16(8)
    return torch.from_numpy(mixed.astype(np.uint8))
