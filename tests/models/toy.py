"""A model small enough for tests, and inputs for it."""

from typing import Any

import torch
from torch import Tensor, nn

MEAN, STD = (0.45, 0.4, 0.35), (0.225, 0.25, 0.3)


def toy_backbone(**overrides: Any) -> dict[str, Any]:
    """Grid 2 x 2 x 3: all axes differ from another, so mixed-up axes show."""
    sizes = {"num_frames": 4, "image_size": [16, 24], "tubelet_size": [2, 8, 8]}
    return {"name": "vit_tiny", **sizes, "embed_dim": 16, "depth": 2, "num_heads": 2, **overrides}


def toy_config(**overrides: Any) -> dict[str, Any]:
    """A configuration for create_model, new at every call."""
    heads = {
        "clips": {"kind": "classification", "num_classes": 5},
        "persons": {"kind": "localisation", "num_classes": 7},
    }
    return {"backbone": toy_backbone(**overrides), "heads": heads, "mean": list(MEAN), "std": list(STD)}


def toy_clips(batch: int = 3, seed: int = 0) -> Tensor:
    """uint8 [B, 3, 4, 16, 24]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, 3, 4, 16, 24), dtype=torch.uint8, generator=generator)


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Moves every parameter off its initial value, so that zero biases and equal norms hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for param in module.parameters():
            param.add_(torch.empty_like(param).normal_(std=0.1, generator=generator))
