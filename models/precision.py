"""What is computed in full precision, whatever autocast says."""

import contextlib

import torch
from torch import Tensor


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which autocast leaves operations on the tensor's device alone. The meta device has no autocast."""
    device = tensor.device.type
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
