"""Memory for time: what the backward pass computes anew instead of keeping it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

CHECKPOINTING: Final = ("none", "selective", "full")
"""What of a block is kept for the backward pass, from most memory to least.

none: the outputs of all matrix products and of attention. Norms and activations, a small share of the time, are
    computed anew from them.
selective: attention's output and those of its matrix products; the MLP is computed anew, but for its last product.
full: the block's input alone.
"""


@contextmanager
def recomputed(function: Callable[[Tensor], Tensor], x: Tensor, enabled: bool = True) -> Iterator[Tensor]:
    """Gives function(x); what is computed from it inside of the `with` keeps `x` for the backward pass in its place.

    For functions that are cheap beside a matrix product and need no random numbers: a norm or an activation, whose
    output would be kept only as a linear layer's input. The result and all gradients are the same bits. Under autocast
    function(x) comes in autocast's dtype, as the linear layer would make it.

    Args:
        function: [..., D] -> [..., D]; deterministic; `x` must not be changed in place afterwards.
        x: [..., D], kept for the function's own gradient anyway.
        enabled: False inside of a checkpoint, which keeps nothing of all this and must see it.
    """
    # A compiler sees the whole block and decides for itself.
    if not enabled or torch.compiler.is_compiling() or not torch.is_grad_enabled() or x.device.type == "meta":
        yield function(x)
        return
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    y = function(x)
    if autocast:
        y = y.to(torch.get_autocast_dtype(device))
    source, address, size, dtype = x.detach(), y.data_ptr(), y.numel(), y.dtype

    def again() -> Tensor:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(source).to(dtype)

    def pack(kept: Tensor) -> Tensor | tuple[torch.Size, tuple[int, ...]]:
        if kept.data_ptr() == address and kept.numel() == size and kept.dtype == dtype:
            return kept.size(), kept.stride()
        return kept.detach()  # without its graph, or an operation that keeps its output would keep itself alive

    def unpack(packed: Tensor | tuple[torch.Size, tuple[int, ...]]) -> Tensor:
        return packed if isinstance(packed, Tensor) else again().as_strided(*packed)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield y
