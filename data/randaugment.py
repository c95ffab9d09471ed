"""RandAugment (arXiv 1909.13719) for clips and boxes: a few random operations of one strength on all frames alike."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from data.boxes import clip_to_view
from data.color import adjust_color, adjust_sharpness
from data.view import LEVELS

TRANSLATIONS = ("TranslateX", "TranslateY")
TURNS = ("ShearX", "ShearY", "Rotate")
"""Not for boxes: what a sheared or turned box becomes is no box, and its hull is larger than the person."""

COLORS = (
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
)
LOCALISATION_OPS = ("Identity", *TRANSLATIONS, *COLORS)
CLASSIFICATION_OPS = ("Identity", *TRANSLATIONS, *TURNS, *COLORS)
"""The operations of torchvision's RandAugment and its ranges."""


@dataclass(frozen=True)
class Op:
    """One operation with its strength, `level` in [-1, 1] of the operation's range. Operations without a direction
    take its absolute value."""

    name: str
    level: float

    def apply(self, clip: Tensor) -> Tensor:
        """uint8 [3, T, H, W] -> uint8 [3, T, H, W]. What a translation, shear or turn uncovers is black; contrast and
        histograms are those of the whole clip, so that nothing flickers."""
        height, width = clip.shape[-2:]
        match self.name:
            case "TranslateX" | "TranslateY":
                return _translated(clip, *self.shift(height, width))
            case "ShearX" | "ShearY":
                angle = math.degrees(math.atan(0.3 * self.level))
                shear = [angle, 0.0] if self.name == "ShearX" else [0.0, angle]
                return functional.affine(clip, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
            case "Rotate":
                return functional.rotate(clip, angle=30.0 * self.level)
            case "Brightness":
                return adjust_color(clip, 1 + 0.9 * self.level, 1, 1)
            case "Contrast":
                return adjust_color(clip, 1, 1 + 0.9 * self.level, 1)
            case "Color":
                return adjust_color(clip, 1, 1, 1 + 0.9 * self.level)
            case "Sharpness":
                return adjust_sharpness(clip, 1 + 0.9 * self.level)
            case "Posterize":
                return functional.posterize(clip, bits=8 - round(4 * abs(self.level)))
            case "Solarize":
                threshold = 255 * (1 - abs(self.level))
                # By way of a table of 256: torchvision's takes more than twice as long on all pixels.
                table = functional.solarize(torch.arange(256, dtype=torch.uint8)[None, None], threshold)
                return torch.from_numpy(np.take(table.numpy().ravel(), clip.numpy()))
            case "AutoContrast":
                return functional.autocontrast(_one_picture(clip)).view(clip.shape)
            case "Equalize":
                return functional.equalize(_one_picture(clip)).view(clip.shape)
            case _:
                return clip

    def shift(self, height: int, width: int) -> tuple[int, int]:
        """By how many pixels the picture moves, to the right and down."""
        side = {"TranslateX": width, "TranslateY": height}.get(self.name, 0)
        pixels = int(150 / 331 * side * self.level)
        return (pixels, 0) if self.name == "TranslateX" else (0, pixels)

    def move_boxes(self, boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Boxes float64 [K, 4] in [0, 1] of the view, moved with the pixels and clipped, and the share of each one's
        area [K] that is still there. Not for shears and turns."""
        assert self.name not in TURNS
        right, down = self.shift(height, width)
        return clip_to_view(boxes + np.array([right / width, down / height] * 2))


def draw_ops(
    names: tuple[str, ...], count: int, magnitude: int, probability: float, rng: np.random.Generator
) -> list[Op]:
    """Operations to apply one after the other.

    Args:
        names: the operations to choose from, each as likely as the other.
        count: how many are drawn.
        magnitude: their strength, 0 to LEVELS.
        probability: the chance of each drawn one to be applied.
    """
    chosen = rng.integers(len(names), size=count)
    signs, chances = rng.random((2, count))
    level = magnitude / LEVELS
    return [
        Op(names[place], -level if sign < 0.5 else level)
        for place, sign, chance in zip(chosen, signs, chances, strict=True)
        if chance < probability
    ]


def _translated(clip: Tensor, right: int, down: int) -> Tensor:
    """The clip moved by whole pixels; a copy is exact, torchvision's resampling of it ten times as slow."""
    height, width = clip.shape[-2:]
    moved = torch.zeros_like(clip)
    target = moved[..., max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    target.copy_(clip[..., max(-down, 0) : height + min(-down, 0), max(-right, 0) : width + min(-right, 0)])
    return moved


def _one_picture(clip: Tensor) -> Tensor:
    """[3, T, H, W] -> [3, T * H, W]: the frames one below the other."""
    return clip.reshape(3, -1, clip.shape[-1])
