"""Arithmetic of boxes: float64 [K, 4], x1 y1 x2 y2 with x1 < x2 and y1 < y2."""

import numpy as np


def area(boxes: np.ndarray) -> np.ndarray:
    """Area of every box: [K, 4] -> [K]."""
    size: np.ndarray = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return size


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that every pair shares: [N, 4], [M, 4] -> [N, M]."""
    corner1 = np.maximum(boxes[:, None, :2], others[None, :, :2])
    corner2 = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared: np.ndarray = (corner2 - corner1).clip(0).prod(axis=2)
    return shared


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: [N, 4], [M, 4] -> [N, M]. Boxes must have an area."""
    shared = overlap(boxes, others)
    share: np.ndarray = shared / (area(boxes)[:, None] + area(others)[None, :] - shared)
    return share


def mirror(boxes: np.ndarray) -> np.ndarray:
    """Boxes of a picture of width 1, left and right exchanged."""
    return np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)


def clip_to_view(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes cut off at the borders of the unit square, and the share of each one's area [K] that is left."""
    clipped = boxes.clip(0, 1)
    return clipped, area(clipped) / area(boxes)
