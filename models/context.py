"""Context for person boxes: a box's vector looks at all tokens of its clip through one layer of cross-attention.

Shapes: B clips of N tokens of width D; K boxes over all clips, M of them in the clip that has the most.
"""

import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.attention import scaled_dot_product_attention
from models.options import check_divisible


class ContextAttention(nn.Module):
    """Pre-norm cross-attention, added to its query: the boxes' vectors ask, the tokens of their clips answer.

    Args:
        dim: D.
        num_heads: divides D.

    Raises:
        ValueError: heads that do not divide the width.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_divisible("the width", dim, "context_heads", num_heads)
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets every parameter anew."""
        self.norm.reset_parameters()
        for layer in (self.q, self.kv, self.proj):
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, vectors: Tensor, tokens: Tensor, box_clip: Tensor) -> Tensor:
        """Vectors of boxes with what they found in their clips.

        Args:
            vectors: [K, D]; K may be 0.
            tokens: [B, N, D], normalised, as the backbone gives them; prefix tokens count.
            box_clip: int64 [K] in [0, B), in any order.

        Returns:
            [K, D].
        """
        clips = len(tokens)
        slots, most = _slots(box_clip, clips)
        query = self.q(self.norm(vectors))
        # Queries do not see each other, so a clip with fewer boxes is filled up with zeros and needs no mask.
        padded = query.new_zeros(clips * most, query.shape[1]).index_copy(0, slots, query)
        queries = padded.unflatten(0, (clips, most)).unflatten(-1, (self.num_heads, -1))
        key, value = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(dim=2)
        answers = scaled_dot_product_attention(queries, key, value).flatten(2).flatten(0, 1)
        found: Tensor = self.proj(answers.index_select(0, slots))
        return vectors + found

    def flops(self, tokens: int, boxes: float) -> float:
        """Operations of the forward pass over one clip of so many tokens and boxes, without what fills up."""
        dim = self.q.in_features
        return 4 * tokens * dim * dim + boxes * (4 * dim * dim + 4 * tokens * dim)


def _slots(box_clip: Tensor, clips: int) -> tuple[Tensor, int]:
    """Place of each box in a table of [clips, M] rows, int64 [K], and M, at least 1."""
    per_clip = F.one_hot(box_clip, clips)
    most = max(1, int(per_clip.sum(dim=0).max())) if len(box_clip) else 1
    rank = per_clip.cumsum(dim=0).gather(1, box_clip[:, None])[:, 0] - 1
    return box_clip * most + rank, most
