"""A training view, drawn once, then carried out on pixels and boxes: crop, flip, colour, RandAugment, erasing."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from data.color import adjust_color, draw_color
from data.crop import Crop, CropRule, random_crop, short_side_crop
from data.erasing import Erasing, draw_erasing
from data.randaugment import CLASSIFICATION_OPS, LOCALISATION_OPS, Op, draw_ops
from data.shards import Kind
from data.view import ViewConfig


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for one clip. It is carried out in the order of the fields."""

    crop: CropRule
    color: tuple[float, float, float] | None
    ops: list[Op]
    erasing: Erasing | None

    def clip(self, region: Tensor, crop: Crop, image_size: int) -> Tensor:
        """uint8 [T, 3, h, w], the crop's rectangle of the frames -> uint8 [3, T, image_size, image_size]."""
        clip = crop.resize(region, image_size)
        if self.color is not None:
            clip = adjust_color(clip, *self.color)
        for op in self.ops:
            clip = op.apply(clip)
        return clip if self.erasing is None else self.erasing.apply(clip)

    def boxes(self, boxes: np.ndarray, crop: Crop, image_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Moves boxes along with the pixels.

        Args:
            boxes: float64 [K, 4], x1 y1 x2 y2 in [0, 1] of the frame, x1 < x2 and y1 < y2.

        Returns:
            float64 [K, 4] in [0, 1] of the view, clipped to it, and float64 [K]: the share of each box's area that
            can still be seen. Boxes of a share of 0 mean nothing.
        """
        boxes, visible = crop.boxes_to_view(boxes)
        for op in self.ops:
            there = visible > 0
            boxes[there], share = op.move_boxes(boxes[there], image_size, image_size)
            visible[there] *= share
        if self.erasing is not None:
            visible = visible * self.erasing.visible(boxes, image_size)
        return boxes, visible


def draw_augmentation(view: ViewConfig, kind: Kind, rng: np.random.Generator) -> Augmentation:
    """Draws everything that is random about a training clip, in a fixed order. What is off draws nothing."""
    keep_aspect = kind == "localisation"  # evaluation stretches the whole frame
    if view.short_side is not None:
        crop = short_side_crop(view.short_side, view.image_size, view.flip, keep_aspect, rng)
    else:
        crop = random_crop(view.scale, view.ratio, view.flip, keep_aspect, rng)
    color = draw_color(view.color_jitter, rng) if view.color_jitter else None
    names = LOCALISATION_OPS if kind == "localisation" else CLASSIFICATION_OPS
    drawn = view.randaugment_ops
    ops = draw_ops(names, drawn, view.randaugment_magnitude, view.randaugment_prob, rng) if drawn else []
    erasing = draw_erasing(view.random_erasing, view.image_size, rng) if view.random_erasing else None
    return Augmentation(crop, color, ops, erasing)
