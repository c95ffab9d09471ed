"""Random erasing (arXiv 1708.04896): a rectangle of a clip, the same in all frames, is replaced by noise."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.boxes import area, overlap

ATTEMPTS = 10
SCALE = (0.02, 1 / 3)
RATIO = (0.3, 1 / 0.3)
"""Share of the view and shape of the rectangle, as in the paper, torchvision and timm."""


@dataclass(frozen=True)
class Erasing:
    """A rectangle of the view, in whole pixels, and the seed of its noise."""

    top: int
    left: int
    height: int
    width: int
    seed: int

    def apply(self, clip: Tensor) -> Tensor:
        """uint8 [3, T, H, W] -> the same tensor, with the rectangle's pixels drawn uniformly from 0 to 255."""
        region = clip[..., self.top : self.top + self.height, self.left : self.left + self.width]
        noise = np.random.default_rng(self.seed).integers(256, size=tuple(region.shape), dtype=np.uint8)
        region.copy_(torch.from_numpy(noise))
        return clip

    def visible(self, boxes: np.ndarray, image_size: int) -> np.ndarray:
        """The share of each box's area that is not erased: float64 [K, 4] in [0, 1] of the view -> [K]."""
        corners = np.array([[self.left, self.top, self.left + self.width, self.top + self.height]]) / image_size
        whole = area(boxes)
        hidden = overlap(boxes, corners)[:, 0]
        return np.where(whole > 0, 1 - hidden / np.where(whole > 0, whole, 1), 0)


def draw_erasing(probability: float, image_size: int, rng: np.random.Generator) -> Erasing | None:
    """A rectangle with the given probability, by torchvision's rule; None where there is none or none fits."""
    chance, place_y, place_x = rng.random(3)
    areas = image_size**2 * rng.uniform(*SCALE, size=ATTEMPTS)
    ratios = np.exp(rng.uniform(math.log(RATIO[0]), math.log(RATIO[1]), size=ATTEMPTS))
    seed = int(rng.integers(2**63))
    heights, widths = np.rint(np.sqrt(areas * ratios)), np.rint(np.sqrt(areas / ratios))
    fits = (heights >= 1) & (heights < image_size) & (widths >= 1) & (widths < image_size)
    if chance >= probability or not fits.any():
        return None
    first = int(fits.argmax())
    height, width = int(heights[first]), int(widths[first])
    top, left = int(place_y * (image_size - height + 1)), int(place_x * (image_size - width + 1))
    return Erasing(top, left, height, width, seed)
