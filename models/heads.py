"""Heads: a backbone's tokens to one task's logits.

A head is a module called as head(tokens, grid, boxes, box_clip), whatever it needs of these.
Shapes: B clips; P prefix tokens, then t x h x w tubelet tokens of width D; K boxes over all clips; C classes.
"""

from typing import Final, Literal

from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.context import ContextAttention
from models.options import check_bool, check_choice, check_int, check_number
from models.precision import without_autocast
from models.regions import Grid, enlarge_boxes, pool_regions, split_tokens

MAX_CLASSES: Final = 1_000_000
MAX_ROI_SIZE: Final = 64
MAX_BOX_SCALE: Final = 10.0


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

    def reset_parameters(self) -> None:
        """Sets every parameter anew."""
        if isinstance(self.fc_norm, nn.LayerNorm):
            self.fc_norm.reset_parameters()
        _reset_linear(self.fc)

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
        return _logits(self.fc, self.dropout(self.fc_norm(pooled)))

    def flops(self, tokens: int, boxes: float) -> float:
        """Operations of the forward pass over one clip of so many tokens, as `models.flops` counts them."""
        return 2 * self.fc.in_features * self.fc.out_features


class LocalisationHead(nn.Module):
    """Logits per person box: RoIAlign and pooling over space and time, context attention, dropout, linear.

    Args:
        dim: D.
        num_classes: C.
        roi_size: bins of RoIAlign per axis.
        dropout: probability in [0, 1).
        pool: how a region's bins become one vector; "max" as published, "mean" is linear in the tokens.
        temporal: "mean" or "max" over time of each cell of the token map, before RoIAlign; or "roi": RoIAlign at every
            time step, then `pool` over time as well (a 3-D region of interest).
        box_scale: sides of the region over those of the box, from 1 on: 1.2 takes in a tenth of the box's width on its
            left and on its right. The region is cut off at the view's border.
        context_heads: heads of a layer of cross-attention, through which the box's vector looks at all tokens of its
            clip; they divide D. 0: no such layer.

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
        temporal: Literal["mean", "max", "roi"] = "mean",
        box_scale: float = 1.0,
        context_heads: int = 0,
    ) -> None:
        super().__init__()
        check_choice("pool", pool, ("max", "mean"))
        check_choice("temporal", temporal, ("mean", "max", "roi"))
        self.roi_size = check_int("roi_size", roi_size, 1, MAX_ROI_SIZE)
        self.pool = pool
        self.temporal = temporal
        self.box_scale = check_number("box_scale", box_scale, 1.0, MAX_BOX_SCALE)
        check_int("context_heads", context_heads, 0, dim)
        self.context = ContextAttention(dim, context_heads) if context_heads else None
        self.dropout = _dropout(dropout)
        self.fc = _linear(dim, num_classes)

    def reset_parameters(self) -> None:
        """Sets every parameter anew."""
        if self.context is not None:
            self.context.reset_parameters()
        _reset_linear(self.fc)

    def forward(
        self, tokens: Tensor, grid: Grid, boxes: Tensor | None = None, box_clip: Tensor | None = None
    ) -> Tensor:
        """Logits of boxes.

        Args:
            tokens: [B, P + t h w, D].
            grid: (t, h, w).
            boxes: float32 [K, 4], corners x1 y1 x2 y2 in [0, 1] of the view; K may be 0.
            box_clip: int64 [K] in [0, B): the clip that each box lies in; in any order.

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
        if self.context is not None:
            pooled = self.context(pooled, tokens, box_clip)
        return _logits(self.fc, self.dropout(pooled))

    def pool_boxes(self, tokens: Tensor, grid: Grid, boxes: Tensor, box_clip: Tensor) -> Tensor:
        """Vectors of boxes, [K, D], before context and dropout; arguments as in `forward`."""
        regions = enlarge_boxes(boxes, self.box_scale)
        return pool_regions(tokens, grid, regions, box_clip, self.roi_size, self.temporal, self.pool)

    def flops(self, tokens: int, boxes: float) -> float:
        """Operations of the forward pass over one clip of so many tokens and boxes, as `models.flops` counts them."""
        context = self.context.flops(tokens, boxes) if self.context is not None else 0.0
        return context + 2 * boxes * self.fc.in_features * self.fc.out_features

    def extra_repr(self) -> str:
        return f"roi_size={self.roi_size}, temporal={self.temporal}, pool={self.pool}, box_scale={self.box_scale}"


def _dropout(probability: float) -> nn.Dropout:
    return nn.Dropout(check_number("dropout", probability, 0.0, 0.99))


def _linear(dim: int, num_classes: int) -> nn.Linear:
    layer = nn.Linear(dim, check_int("num_classes", num_classes, 1, MAX_CLASSES))
    _reset_linear(layer)
    return layer


def _logits(layer: nn.Linear, vectors: Tensor) -> Tensor:
    """[K, D] -> [K, C] in the dtype of the layer's weights, also under autocast: bfloat16 has 8 significant bits, so
    that many of the scores that an evaluation ranks would be the same."""
    with without_autocast(vectors):
        logits: Tensor = layer(vectors.to(layer.weight.dtype))
    return logits


def _reset_linear(layer: nn.Linear) -> None:
    trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
