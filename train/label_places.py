"""Where the labels of persons go: inside of the frame, never on each other, and as little on people as can be."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HEAD = 1 / 3
"""Of a box, from its top: where a face may be, which counts three times."""

STAY = 0.6
"""Share of a label's area that it may hide more than elsewhere, before it leaves the side where it was."""

ELSEWHERE = 8
"""The number of the side of a label that found no room at its box."""


@dataclass(frozen=True)
class Rect:
    """A rectangle in whole pixels, right and bottom not included."""

    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: "Rect") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )


@dataclass(frozen=True)
class Spot:
    """A label's place, and which side of its box that is: a number below ELSEWHERE, or this."""

    rect: Rect
    side: int


def place(
    boxes: Sequence[Rect],
    blocks: Sequence[tuple[int, int]],
    people: Sequence[Rect],
    width: int,
    height: int,
    before: Sequence[Spot | None],
) -> list[Spot | None]:
    """Finds room for a block of text near each box.

    Args:
        boxes: a rectangle per label, those first that have the first choice.
        blocks: (width, height) of each one's text.
        people: rectangles that had better not be hidden.
        before: for each its place in the frame before, which it keeps where that is nearly as good; None if it is new.

    Returns:
        For each a place inside of the frame and free of all others; None where no room is left.
    """
    hidden = _array(people)
    heads = hidden.copy()
    heads[:, 3] = heads[:, 1] + np.ceil(HEAD * (hidden[:, 3] - hidden[:, 1])).astype(np.int64)
    shy = np.vstack([hidden, heads, heads])
    placed: list[Spot | None] = []
    taken = np.zeros((0, 4), dtype=np.int64)
    for box, (w, h), old in zip(boxes, blocks, before, strict=True):
        spot = None
        if w <= width and h <= height:
            spot = _beside(box, w, h, width, height, shy, taken, old)
            spot = spot or _elsewhere(box, w, h, width, height, shy, taken, old)
        if spot is not None:
            taken = np.vstack([taken, _array([spot.rect])])
        placed.append(spot)
    return placed


def _beside(
    box: Rect, w: int, h: int, width: int, height: int, shy: np.ndarray, taken: np.ndarray, old: Spot | None
) -> Spot | None:
    """The free place at the box that hides least of the rectangles `shy`; of equal ones the first of `_sides`."""
    corners = _sides(box, w, h)
    inside = np.clip(corners, 0, (width - w, height - h))
    rects = np.hstack([inside, inside + (w, h)])
    costs = _shared(rects, shy).sum(axis=1) / (w * h)
    costs += 0.02 * np.arange(len(costs)) + 0.1 * (corners != inside).any(axis=1)
    if old is not None and old.side < ELSEWHERE:
        costs[old.side] -= STAY
    costs[(_shared(rects, taken) > 0).any(axis=1)] = np.inf
    best = int(costs.argmin())
    return None if np.isinf(costs[best]) else Spot(Rect(*rects[best].tolist()), best)


def _sides(box: Rect, w: int, h: int) -> np.ndarray:
    """int64 [ELSEWHERE, 2]: top left corners of a block around a box, best first; inside of the box last."""
    return np.array(
        [
            (box.left, box.top - h),
            (box.right - w, box.top - h),
            (box.left, box.bottom),
            (box.right - w, box.bottom),
            (box.right, box.top),
            (box.left - w, box.top),
            (box.left, box.bottom - h),
            (box.left, box.top),
        ]
    )


def _elsewhere(
    box: Rect, w: int, h: int, width: int, height: int, shy: np.ndarray, taken: np.ndarray, old: Spot | None
) -> Spot | None:
    """The free place of a grid all over the frame that is near to the box and hides little; where it was, if free."""
    xs = np.append(np.arange(0, width - w, max(w // 4, 1)), width - w)
    ys = np.append(np.arange(0, height - h, max(h // 2, 1)), height - h)
    corners = np.stack([grid.ravel() for grid in np.meshgrid(xs, ys)], axis=1)
    middle = np.array([box.left + box.right, box.top + box.bottom]) / 2
    if old is not None and old.side == ELSEWHERE:
        corners = np.vstack([np.minimum((old.rect.left, old.rect.top), (width - w, height - h)), corners])
    rects = np.hstack([corners, corners + (w, h)])
    # To hide a whole body is as bad as to be two lines further away.
    costs = np.linalg.norm(corners + np.array([w, h]) / 2 - middle, axis=1) / h
    costs += 2 * _shared(rects, shy).sum(axis=1) / (w * h)
    if len(corners) > len(xs) * len(ys):
        costs[0] = -1
    costs[(_shared(rects, taken) > 0).any(axis=1)] = np.inf
    best = int(costs.argmin())
    return None if np.isinf(costs[best]) else Spot(Rect(*rects[best].tolist()), ELSEWHERE)


def _array(rects: Sequence[Rect]) -> np.ndarray:
    """int64 [n, 4]: left, top, right, bottom."""
    return np.array([(r.left, r.top, r.right, r.bottom) for r in rects], dtype=np.int64).reshape(-1, 4)


def _shared(rects: np.ndarray, others: np.ndarray) -> np.ndarray:
    """int64 [n, m]: pixels that rectangles [n, 4] and others [m, 4] (left, top, right, bottom) have in common."""
    low = np.maximum(rects[:, None, :2], others[None, :, :2])
    high = np.minimum(rects[:, None, 2:], others[None, :, 2:])
    sizes: np.ndarray = np.maximum(high - low, 0).prod(axis=2)
    return sizes
