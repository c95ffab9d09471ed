"""Self-attention over all tokens, and the backends that compute its core.

A backend maps queries, keys and values, each [B, N, H, d] (B clips, N tokens, H heads of width d), to the attended
values [B, N, H, d]: softmax(q k^T / sqrt(d)) v per head. Tokens come before heads because that is how one projection
lays them out in memory: a backend gets views and nothing is copied.
"""

from collections.abc import Callable
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

from models.options import check_choice

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's fused attention, which chooses the kernel for the device. [B, N, H, d] each -> [B, N, H, d]."""
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def eager_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The formula written out, the reference for all others: holds [B, H, N, N]. [B, N, H, d] each -> [B, N, H, d]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


ATTENTION_BACKENDS: Final[dict[str, AttentionFunction]] = {
    "auto": scaled_dot_product_attention,
    "sdpa": scaled_dot_product_attention,
    "eager": eager_attention,
}
"""Name -> backend; `auto` is the fastest that works everywhere."""


class Attention(nn.Module):
    """Multi-head self-attention with timm's parameter names and layout (`qkv`, `proj`).

    Args:
        dim: width D of a token.
        num_heads: number of heads H; divides `dim`.
        backend: a name of ATTENTION_BACKENDS.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: unknown backend.
    """

    def __init__(self, dim: int, num_heads: int, backend: str = "auto", qkv_bias: bool = True) -> None:
        super().__init__()
        check_choice("attention", backend, ATTENTION_BACKENDS)
        self.num_heads = num_heads
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, D]."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)
        attended = ATTENTION_BACKENDS[self.backend](query, key, value)
        projected: Tensor = self.proj(attended.flatten(2))
        return projected

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, backend={self.backend}"
