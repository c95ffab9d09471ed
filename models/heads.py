"""Heads: a backbone's tokens to one task's logits.

A head is a module called as head(tokens, grid, boxes, box_clip), whatever it needs of these.
Shapes: B clips; P prefix tokens, then t x h x w tubelet tokens of width D; K boxes over all clips; C classes.
"""

from typing import Final, Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.options import check_bool, check_choice, check_int, check_number

Grid = tuple[int, int, int]
MAX_CLASSES: Final = 1_000_000
MAX_ROI_SIZE: Final = 64
# Two samples a bin and axis see every cell of a 14-cell map through 7 bins. torchvision's adaptive rule (0) takes no
# sample at all of a box without area, and jumps as a box grows past a multiple of the bins.
SAMPLES_PER_BIN: Final = 2


class ClassificationHead(nn.Module):
    """Clip-level logits: pool, norm if asked for, dropout, linear.

    Args:
        dim: D.
        num_classes: C.
        dropout: probability in [0, 1).
        pool: "mean" of the tubelet tokens, or the "class_token".
        fc_norm: whether a LayerNorm follows the pooling, as in finetuned VideoMAE, whose backbone has no final norm.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        dropout: float = 0.0,
        pool: Literal["mean", "class_token"] = "mean",
        fc_norm: bool = False,
    ) -> None:
        super().__init__()
        check_choice("pool", pool, ("mean", "class_token"))
        self.pool = pool
        self.fc_norm = nn.LayerNorm(dim) if check_bool("fc_norm", fc_norm) else nn.Identity()
        self.dropout = _dropout(dropout)
        self.fc = _linear(dim, num_classes)

    def forward(
        self, tokens: Tensor, grid: Grid, boxes: Tensor | None = None, box_clip: Tensor | None = None
    ) -> Tensor:
        """[B, P + t h w, D] -> [B, C]; boxes are not looked at.

        Raises:
            ValueError: the class token is asked for and the backbone has none.
        """
        prefix, tubelets = split_tokens(tokens, grid)
        if self.pool == "mean":
            pooled = tubelets.mean(dim=1)
        elif prefix.shape[1]:
            pooled = prefix[:, 0]
        else:
            raise ValueError('pool "class_token" needs a backbone with class_token=True; use pool "mean"')
        logits: Tensor = self.fc(self.dropout(self.fc_norm(pooled)))
        return logits


class LocalisationHead(nn.Module):
    """Logits per person box: temporal mean, RoIAlign, spatial pool, dropout, linear.

    Args:
        dim: D.
        num_classes: C.
        roi_size: bins of RoIAlign per axis.
        dropout: probability in [0, 1).
        pool: how the bins become one vector; "max" as published, "mean" is linear in the tokens.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        roi_size: int = 7,
        dropout: float = 0.0,
        pool: Literal["max", "mean"] = "max",
    ) -> None:
        super().__init__()
        check_choice("pool", pool, ("max", "mean"))
        self.roi_size = check_int("roi_size", roi_size, 1, MAX_ROI_SIZE)
        self.pool = pool
        self.dropout = _dropout(dropout)
        self.fc = _linear(dim, num_classes)

    def forward(
        self, tokens: Tensor, grid: Grid, boxes: Tensor | None = None, box_clip: Tensor | None = None
    ) -> Tensor:
        """Logits of boxes.

        Args:
            tokens: [B, P + t h w, D].
            grid: (t, h, w).
            boxes: float32 [K, 4], corners x1 y1 x2 y2 in [0, 1] of the view; K may be 0.
            box_clip: int64 [K] in [0, B): the clip that each box lies in.

        Returns:
            [K, C]. With K = 0 it is empty and still part of the graph: all parameters get gradients, of zeros.

        Raises:
            ValueError: boxes missing or of another shape.
        """
        if boxes is None or box_clip is None:
            raise ValueError("a localisation head needs boxes and box_clip; pass boxes of [0, 4] where there are none")
        if boxes.ndim != 2 or boxes.shape[1] != 4 or box_clip.shape != boxes.shape[:1]:
            raise ValueError(
                f"boxes must be [K, 4] and box_clip [K], not {list(boxes.shape)} and {list(box_clip.shape)}"
            )
        pooled = self.pool_boxes(tokens, grid, boxes, box_clip)
        logits: Tensor = self.fc(self.dropout(pooled))
        return logits

    def pool_boxes(self, tokens: Tensor, grid: Grid, boxes: Tensor, box_clip: Tensor) -> Tensor:
        """Vectors of boxes, [K, D], arguments as in `forward`.

        Cell (i, j) of the map stands for the point ((j + 0.5) / w, (i + 0.5) / h) of the view. Between these points the
        map is interpolated linearly; in the half cell along the border, beyond them all, it continues as a constant.
        """
        _, height, width = grid
        _, tubelets = split_tokens(tokens, grid)
        feature_map = tubelets.unflatten(1, grid).mean(dim=1).permute(0, 3, 1, 2)  # [B, D, h, w]
        # Box corners carry sub-cell information that bfloat16 cannot hold, so the sampling runs in float32 at least.
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        x1, y1, x2, y2 = boxes.to(dtype).unbind(dim=1)
        rois = torch.stack((box_clip.to(dtype), x1 * width, y1 * height, x2 * width, y2 * height), dim=1)
        with torch.autocast(tokens.device.type, enabled=False):
            regions = roi_align(
                feature_map.to(dtype), rois, self.roi_size, sampling_ratio=SAMPLES_PER_BIN, aligned=True
            )
        pooled = regions.amax(dim=(2, 3)) if self.pool == "max" else regions.mean(dim=(2, 3))  # of [K, D, bins, bins]
        return pooled.to(tokens.dtype)

    def extra_repr(self) -> str:
        return f"roi_size={self.roi_size}, pool={self.pool}"


def split_tokens(tokens: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """[B, P + t h w, D] -> prefix tokens [B, P, D] and tubelet tokens [B, t h w, D]."""
    tubelets = grid[0] * grid[1] * grid[2]
    return tokens[:, :-tubelets], tokens[:, -tubelets:]


def _dropout(probability: float) -> nn.Dropout:
    return nn.Dropout(check_number("dropout", probability, 0.0, 0.99))


def _linear(dim: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(dim, check_int("num_classes", num_classes, 1, MAX_CLASSES))
    trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
