"""Boxes of a view to vectors of a token map: RoIAlign, exactly aligned, and pooling over space and time.

Shapes: B clips; P prefix tokens, then t x h x w tubelet tokens of width D; K boxes over all clips.
Cell (i, j) of the map stands for the point ((j + 0.5) / w, (i + 0.5) / h) of the view. Between these points the map is
interpolated linearly; in the half cell along the border, beyond them all, it continues as a constant. So a map that
holds its own coordinates gives a box's centre back, unless the region reaches into that half cell.
"""

from typing import Final

import torch
from torch import Tensor
from torchvision.ops import roi_align

from models.precision import without_autocast

Grid = tuple[int, int, int]
# Two samples a bin and axis see every cell of a 14-cell map through 7 bins. torchvision's adaptive rule (0) takes no
# sample at all of a box without area, and jumps as a box grows past a multiple of the bins.
SAMPLES_PER_BIN: Final = 2


def split_tokens(tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """[B, P + t h w, D] -> prefix tokens [B, P, D] and tubelet tokens [B, t h w, D]."""
    tubelets = grid[0] * grid[1] * grid[2]
    return tokens[:, :-tubelets], tokens[:, -tubelets:]


def enlarge_boxes(boxes: Tensor, scale: float) -> Tensor:
    """Boxes with sides `scale` times as long about the same centres, cut off at the view's border.

    Args:
        boxes: floating point [K, 4], corners x1 y1 x2 y2 in [0, 1].
        scale: 1 gives the boxes themselves.

    Returns:
        [K, 4] like `boxes`.
    """
    if scale == 1:
        return boxes
    low, high = boxes[:, :2], boxes[:, 2:]
    grown = (high - low) * ((scale - 1) / 2)
    return torch.cat((low - grown, high + grown), dim=1).clamp(0, 1)


def pool_regions(
    tokens: Tensor, grid: Grid, boxes: Tensor, box_clip: Tensor, roi_size: int, temporal: str, pool: str
) -> Tensor:
    """One vector per box.

    Args:
        tokens: [B, P + t h w, D].
        grid: (t, h, w).
        boxes: float32 [K, 4], corners x1 y1 x2 y2 in [0, 1] of the view; K may be 0.
        box_clip: int64 [K] in [0, B).
        roi_size: bins per axis.
        temporal: "mean" or "max" over time before RoIAlign, "roi": RoIAlign at each time step.
        pool: "mean" or "max" over the bins, and over time where `temporal` is "roi".

    Returns:
        [K, D], in the dtype of `tokens`.
    """
    maps = split_tokens(tokens, grid)[1].unflatten(1, grid)  # [B, t, h, w, D]
    if temporal == "max":
        maps = maps.amax(dim=1, keepdim=True)
    elif temporal == "mean" or pool == "mean":  # the mean of regions is the region of the mean
        maps = maps.mean(dim=1, keepdim=True)
    # One time step after the other: the bins of all boxes at all times can be more than the backbone's activations.
    steps = [_pool_map(step, boxes, box_clip, roi_size, pool) for step in maps.unbind(dim=1)]
    pooled = steps[0] if len(steps) == 1 else torch.stack(steps).amax(dim=0)
    return pooled.to(tokens.dtype)


def _pool_map(feature_map: Tensor, boxes: Tensor, box_clip: Tensor, roi_size: int, pool: str) -> Tensor:
    """[B, h, w, D], boxes [K, 4] -> [K, D], float32 at least."""
    _, height, width, _ = feature_map.shape
    # Box corners carry sub-cell information that bfloat16 cannot hold, so the sampling runs in float32 at least.
    dtype = torch.promote_types(feature_map.dtype, torch.float32)
    x1, y1, x2, y2 = boxes.to(dtype).unbind(dim=1)
    rois = torch.stack((box_clip.to(dtype), x1 * width, y1 * height, x2 * width, y2 * height), dim=1)
    planes = feature_map.permute(0, 3, 1, 2).to(dtype)
    with without_autocast(feature_map):
        bins = roi_align(planes, rois, roi_size, sampling_ratio=SAMPLES_PER_BIN, aligned=True)  # [K, D, bins, bins]
    return bins.amax(dim=(2, 3)) if pool == "max" else bins.mean(dim=(2, 3))
