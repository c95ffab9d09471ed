"""Stochastic depth whose rate is a tensor, so that blocks of other rates run as one compiled graph.

Source of the method: Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382.
"""

import torch
from timm.layers import DropPath
from torch import Tensor


class TensorDropPath(DropPath):
    """timm's DropPath: in training each example's branch is left out with `drop_prob`, or else scaled up by what that
    leaves, so that its mean stays.

    torch.compile takes a Python number as a constant: every block of a backbone would be a graph of its own, of which
    it makes eight and runs all others as they are.

    Args:
        drop_prob: probability in (0, 1).
    """

    keep: Tensor

    def __init__(self, drop_prob: float) -> None:
        super().__init__(drop_prob)
        self.register_buffer("keep", torch.tensor(1 - drop_prob), persistent=False)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets the rate anew, as after `to_empty`."""
        self.keep.fill_(1 - self.drop_prob)

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]."""
        if not self.training:
            return x
        draws = torch.rand((len(x), *[1] * (x.ndim - 1)), device=x.device)
        return x * ((draws < self.keep) / self.keep).to(x.dtype)
