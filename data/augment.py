"""Cuts the view out of the frames and moves boxes along: crop, flip, resize, colour."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

ATTEMPTS = 10
ASPECT_JITTER = (3 / 4, 4 / 3)
"""Both as in torchvision's RandomResizedCrop."""

MIN_VISIBLE = 0.25
"""A person of whom a smaller share of the box than this is left in the view is dropped, labels and all."""

_FRACTION_BITS = 14
_LUMA = [round(weight * 2**_FRACTION_BITS) for weight in (0.299, 0.587, 0.114)]
"""Luma weights of ITU-R BT.601, in fixed point."""


@dataclass(frozen=True)
class Crop:
    """Where a view lies in its frame: a rectangle in whole pixels, stretched to the square view, mirrored or not."""

    frame_height: int
    frame_width: int
    top: int
    left: int
    height: int
    width: int
    flip: bool = False

    def apply(self, frames: Tensor, image_size: int) -> Tensor:
        """Cuts the view out of pixels.

        Args:
            frames: uint8 [T, 3, H, W] of this crop's frame size; fastest where channels are last in memory.

        Returns:
            uint8 [3, T, image_size, image_size], contiguous, sharing no memory with `frames`.
        """
        assert frames.shape[-2:] == (self.frame_height, self.frame_width)
        region = frames[:, :, self.top : self.top + self.height, self.left : self.left + self.width]
        view = interpolate(region, size=(image_size, image_size), mode="bilinear", antialias=True).transpose(0, 1)
        return view.flip(-1).contiguous() if self.flip else view.contiguous()

    def boxes_to_view(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves boxes along with the pixels.

        Args:
            boxes: float64 [K, 4], x1 y1 x2 y2 in [0, 1] of the frame, x1 < x2 and y1 < y2.

        Returns:
            float64 [K, 4] in [0, 1] of the view, clipped to it, and float64 [K]: the share of each box's area that
            the view shows.
        """
        moved = (boxes * self._frame_size - self._corner) / self._size
        if self.flip:
            moved = _mirror(moved)
        clipped = moved.clip(0, 1)
        return clipped, _area(clipped) / _area(moved)

    def boxes_to_frame(self, boxes: np.ndarray) -> np.ndarray:
        """The inverse of `boxes_to_view` for boxes inside the view: [K, 4] of the view -> [K, 4] of the frame."""
        if self.flip:
            boxes = _mirror(boxes)
        return (boxes * self._size + self._corner) / self._frame_size

    @property
    def _frame_size(self) -> np.ndarray:
        return np.array([self.frame_width, self.frame_height] * 2, dtype=np.float64)

    @property
    def _corner(self) -> np.ndarray:
        return np.array([self.left, self.top] * 2, dtype=np.float64)

    @property
    def _size(self) -> np.ndarray:
        return np.array([self.width, self.height] * 2, dtype=np.float64)


def random_crop(
    height: int, width: int, scale: tuple[float, float], flip: bool, keep_aspect: bool, rng: np.random.Generator
) -> Crop:
    """A training view: a rectangle of random area, shape and place, by torchvision's RandomResizedCrop rule.

    Args:
        height, width: size of the frame in pixels.
        scale: smallest and largest share of the frame's area.
        flip: whether one view in two is mirrored.
        keep_aspect: the rectangle has the frame's aspect ratio, else a square's; either is jittered by 3/4 to 4/3.
    """
    aspect = width / height if keep_aspect else 1.0
    areas = height * width * rng.uniform(*scale, size=ATTEMPTS)
    low, high = (math.log(jitter) for jitter in ASPECT_JITTER)
    ratios = aspect * np.exp(rng.uniform(low, high, size=ATTEMPTS))
    # All draws are made whether they are needed or not, so that no later draw depends on the size of the frame.
    place_y, place_x, mirror = rng.random(3)
    heights, widths = np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))
    fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
    if fits.any():
        first = int(fits.argmax())
        crop_height, crop_width = int(heights[first]), int(widths[first])
    else:
        crop_height, crop_width = _largest(height, width, aspect)
        place_y = place_x = 0.5
    return Crop(
        height,
        width,
        top=int(place_y * (height - crop_height + 1)),
        left=int(place_x * (width - crop_width + 1)),
        height=crop_height,
        width=crop_width,
        flip=flip and bool(mirror < 0.5),
    )


def _largest(height: int, width: int, aspect: float) -> tuple[int, int]:
    """Height and width of the largest rectangle of nearly the given shape that the frame holds."""
    narrowest, widest = (aspect * jitter for jitter in ASPECT_JITTER)
    return min(height, max(round(width / narrowest), 1)), min(width, max(round(height * widest), 1))


def whole_frame(height: int, width: int) -> Crop:
    """The evaluation view of localisation: all of the frame, stretched, so that no person is lost."""
    return Crop(height, width, 0, 0, height, width)


def centre_square(height: int, width: int) -> Crop:
    """The evaluation view of classification: the centre square, as wide as the frame's short side."""
    side = min(height, width)
    return Crop(height, width, (height - side) // 2, (width - side) // 2, side, side)


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
        uint8 [3, T, H, W], another tensor.
    """
    one = 2**_FRACTION_BITS
    sums = clip.numpy().sum(axis=(1, 2, 3), dtype=np.int64)
    mean = float(sums @ _LUMA) / one / clip[0].numel()
    own = round(brightness * contrast * saturation * one)
    shared = round(brightness * contrast * (1 - saturation) * one)
    offset = round((brightness * (1 - contrast) * mean + 0.5) * one)
    adjusted = torch.empty_like(clip)
    # A few frames at a time stay in the processor's cache.
    for source, target in zip(clip.split(4, dim=1), adjusted.split(4, dim=1), strict=True):
        pixels = source.to(torch.int32)
        luma = pixels[0] * _LUMA[0]
        luma.add_(pixels[1] * _LUMA[1]).add_(pixels[2] * _LUMA[2]).bitwise_right_shift_(_FRACTION_BITS)
        pixels.mul_(own).add_(luma.mul_(shared).add_(offset)).bitwise_right_shift_(_FRACTION_BITS)
        target.copy_(pixels.clamp_(0, 255))
    return adjusted


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: float64 [N, 4], [M, 4] -> [N, M]. Boxes must have an area."""
    corner1 = np.maximum(boxes[:, None, :2], others[None, :, :2])
    corner2 = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (corner2 - corner1).clip(0).prod(axis=2)
    overlap: np.ndarray = shared / (_area(boxes)[:, None] + _area(others)[None, :] - shared)
    return overlap


def _mirror(boxes: np.ndarray) -> np.ndarray:
    return np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    area: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return area
