"""Where a view lies in its frame, for pixels and boxes alike: random crops, and the views of an evaluation."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate

from data.boxes import clip_to_view, mirror

ATTEMPTS = 10
"""As in torchvision's RandomResizedCrop."""


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

    def cut(self, frames: Tensor) -> Tensor:
        """The rectangle of frames [T, 3, H, W] of this crop's frame size: a view, [T, 3, height, width]."""
        assert frames.shape[-2:] == (self.frame_height, self.frame_width)
        return frames[:, :, self.top : self.top + self.height, self.left : self.left + self.width]

    def resize(self, region: Tensor, image_size: int) -> Tensor:
        """Stretches the rectangle to the view, as uint8 with antialiasing, and mirrors it.

        Args:
            region: uint8 [T, 3, height, width]; fastest where channels are last in memory.

        Returns:
            uint8 [3, T, image_size, image_size], sharing no memory with `region`. Where the region's channels are last
            in memory, so are the view's: to put them first costs a third of the resize, and a device does it for
            nothing.
        """
        assert region.shape[-2:] == (self.height, self.width)
        view = interpolate(region, size=(image_size, image_size), mode="bilinear", antialias=True).transpose(0, 1)
        return view.flip(-1) if self.flip else view

    def apply(self, frames: Tensor, image_size: int) -> Tensor:
        """`resize` of `cut`: uint8 [T, 3, H, W] -> uint8 [3, T, image_size, image_size]."""
        return self.resize(self.cut(frames), image_size)

    def boxes_to_view(self, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Moves boxes along with the pixels.

        Args:
            boxes: float64 [K, 4], x1 y1 x2 y2 in [0, 1] of the frame, x1 < x2 and y1 < y2.

        Returns:
            float64 [K, 4] in [0, 1] of the view, clipped to it, and float64 [K]: the share of each box's area that
            the view shows.
        """
        moved = (boxes * self._frame_size - self._corner) / self._size
        return clip_to_view(mirror(moved) if self.flip else moved)

    def boxes_to_frame(self, boxes: np.ndarray) -> np.ndarray:
        """The inverse of `boxes_to_view` for boxes inside the view: [K, 4] of the view -> [K, 4] of the frame."""
        if self.flip:
            boxes = mirror(boxes)
        return (boxes * self._size + self._corner) / self._frame_size

    @property
    def whole(self) -> bool:
        """Whether the view shows all of the frame."""
        return (self.height, self.width) == (self.frame_height, self.frame_width)

    @property
    def _frame_size(self) -> np.ndarray:
        return np.array([self.frame_width, self.frame_height] * 2, dtype=np.float64)

    @property
    def _corner(self) -> np.ndarray:
        return np.array([self.left, self.top] * 2, dtype=np.float64)

    @property
    def _size(self) -> np.ndarray:
        return np.array([self.width, self.height] * 2, dtype=np.float64)


CropRule = Callable[[int, int], Crop]
"""A crop for frames of any height and width: what is random about it has been drawn already, and how much was drawn
does not depend on the frame."""


def random_crop(
    scale: tuple[float, float], ratio: tuple[float, float], flip: bool, keep_aspect: bool, rng: np.random.Generator
) -> CropRule:
    """A training view: a rectangle of random area, shape and place, by torchvision's RandomResizedCrop rule.

    Args:
        scale: smallest and largest share of the frame's area.
        ratio: narrowest and widest shape, as a factor of the shape that `keep_aspect` says.
        flip: whether one view in two is mirrored.
        keep_aspect: the rectangle has the frame's aspect ratio, else a square's; either is jittered by `ratio`.
    """
    shares = rng.uniform(*scale, size=ATTEMPTS)
    low, high = (math.log(jitter) for jitter in ratio)
    jitters = np.exp(rng.uniform(low, high, size=ATTEMPTS))
    place_y, place_x, mirrored = rng.random(3)

    def rule(height: int, width: int) -> Crop:
        aspect = width / height if keep_aspect else 1.0
        areas, ratios = height * width * shares, aspect * jitters
        heights, widths = np.rint(np.sqrt(areas / ratios)), np.rint(np.sqrt(areas * ratios))
        fits = (heights >= 1) & (heights <= height) & (widths >= 1) & (widths <= width)
        if fits.any():
            first = int(fits.argmax())
            return _place(height, width, int(heights[first]), int(widths[first]), place_y, place_x, flip, mirrored)
        return _place(height, width, *_largest(height, width, aspect, ratio), 0.5, 0.5, flip, mirrored)

    return rule


def short_side_crop(
    short_side: tuple[int, int], image_size: int, flip: bool, keep_aspect: bool, rng: np.random.Generator
) -> CropRule:
    """A training view by SlowFast's scale jitter: as if the frame's short side were first resized to a length drawn
    from `short_side` (both included), and a square of `image_size` pixels then cut out of a random place.

    Here the square is cut out first, rounded to whole pixels of the frame, and resized once.

    Args:
        keep_aspect: as if the whole frame were resized to a square of that length instead, so that the view is
            stretched as `whole_frame` is: evaluation shows people in the shape that training did.
    """
    length = int(rng.integers(short_side[0], short_side[1] + 1))
    place_y, place_x, mirrored = rng.random(3)

    def rule(height: int, width: int) -> Crop:
        short = min(height, width)
        sides = (height, width) if keep_aspect else (short, short)
        crop_height, crop_width = (min(max(round(side * image_size / length), 1), side) for side in sides)
        return _place(height, width, crop_height, crop_width, place_y, place_x, flip, mirrored)

    return rule


def _place(
    height: int,
    width: int,
    crop_height: int,
    crop_width: int,
    place_y: float,
    place_x: float,
    flip: bool,
    mirrored: float,
) -> Crop:
    return Crop(
        height,
        width,
        top=int(place_y * (height - crop_height + 1)),
        left=int(place_x * (width - crop_width + 1)),
        height=crop_height,
        width=crop_width,
        flip=flip and bool(mirrored < 0.5),
    )


def _largest(height: int, width: int, aspect: float, ratio: tuple[float, float]) -> tuple[int, int]:
    """Height and width of the largest rectangle of nearly the given shape that the frame holds."""
    narrowest, widest = (aspect * jitter for jitter in ratio)
    return min(height, max(round(width / narrowest), 1)), min(width, max(round(height * widest), 1))


def whole_frame(height: int, width: int) -> Crop:
    """The evaluation view of localisation: all of the frame, stretched, so that no person is lost."""
    return Crop(height, width, 0, 0, height, width)


def centre_square(height: int, width: int) -> Crop:
    """The evaluation view of classification: the centre square, as wide as the frame's short side."""
    return square(0, 1)(height, width)


def square(number: int, squares: int) -> CropRule:
    """Evaluation view `number` of `squares` squares as wide as the frame's short side, spread evenly over its long
    side from end to end (SlowFast's three spatial crops are 3 squares); a single one is the centre."""

    def rule(height: int, width: int) -> Crop:
        side = min(height, width)

        def start(length: int) -> int:
            return (length - side) // 2 if squares == 1 else (length - side) * number // (squares - 1)

        return Crop(height, width, start(height), start(width), side, side)

    return rule
