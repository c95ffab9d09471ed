"""Checkpoints of the original VideoMAE repository (and VideoMAE v2): .pth files that say little about their network.

Source of the layout: modeling_pretrain.py and modeling_finetune.py of github.com/MCG-NJU/VideoMAE. Its names are
timm's, but for the biases of queries and values and the layer scale. What tensors do not tell comes from the training
script's command line, where the file kept it, and else is what its published checkpoints have.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor

from models.hf_layout import Translated, mlp_ratio
from models.options import check_int
from models.vit import CHANNELS, MAX_SIZE, MAX_WIDTH, PRESETS, VideoViTConfig

KERNEL: Final = "patch_embed.proj.weight"
HEADS: Final = ("decoder.", "encoder_to_decoder.", "mask_token", "head.", "fc_norm.")
NUM_FRAMES, IMAGE_SIZE = 16, 224  # of every published checkpoint
NUM_HEADS: Final = {preset["embed_dim"]: preset["num_heads"] for preset in PRESETS.values()} | {1408: 16}
"""Heads by width; 1408 is VideoMAE v2's giant."""
_RENAMED: Final = ((re.compile(r"\.gamma_([12])$"), r".ls\1.gamma"),)


def is_videomae(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has a tubelet kernel under one of VideoMAE's two names for it."""
    return any(getattr(tensors.get(prefix + KERNEL), "ndim", 0) == 5 for prefix in ("", "encoder."))


def from_videomae(tensors: Mapping[str, Tensor]) -> Translated:
    """Tensors of a pretraining (encoder and decoder) or finetuned checkpoint in this project's names."""
    prefix = "encoder." if f"encoder.{KERNEL}" in tensors else ""
    found = Translated()
    for name, tensor in tensors.items():
        if name.startswith(HEADS):
            found.left_over.append(name)
            if name.startswith("fc_norm."):
                found.fc_norm[name.removeprefix("fc_norm.")] = tensor
        elif prefix and not name.startswith(prefix):
            found.unknown.append(name)
        else:
            ours = name.removeprefix(prefix)
            for pattern, replacement in _RENAMED:
                ours = pattern.sub(replacement, ours)
            found.state[ours] = tensor
    for name in [name for name in found.state if name.endswith(".attn.q_bias")]:
        stem = name.removesuffix("q_bias")
        query, value = found.state.pop(name), found.state.pop(f"{stem}v_bias", None)
        if value is None or value.shape != query.shape:
            raise ValueError(f"{stem}v_bias does not fit {name}")
        found.state[f"{stem}qkv.bias"] = torch.cat((query, torch.zeros_like(query), value))
    return found


def infer_config(
    state: Mapping[str, Tensor],
    args: Mapping[str, Any],
    num_heads: int | None = None,
    num_frames: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> tuple[VideoViTConfig, list[str]]:
    """The network of a state dict in this project's names, and what had to be assumed.

    Args:
        state: as `from_videomae` gives it.
        args: the training script's command line; empty where the file has none.
        num_heads: of the network; None: what VideoMAE has at that width.
        num_frames: that it was trained on; None: from `args`, else 16.
        image_size: likewise, else 224.

    Raises:
        ValueError: no such network, or a width whose number of heads has to be told.
    """
    kernel, notes = state[KERNEL], []
    if kernel.ndim != 5 or kernel.shape[1] != CHANNELS:
        raise ValueError(f"{KERNEL} is {list(kernel.shape)}: only clips of {CHANNELS} channels are supported")
    dim, _, *tubelet = kernel.shape
    if num_heads is None:
        if dim not in NUM_HEADS:
            raise ValueError(f"the file does not say how many heads a network of width {dim} has: give num_heads")
        num_heads = NUM_HEADS[dim]
    if num_frames is None:
        num_frames = _whole(args, "num_frames")
        if num_frames is not None:
            num_frames *= _whole(args, "num_segments") or 1
    if image_size is None:
        image_size = _whole(args, "input_size")
    if num_frames is None or image_size is None:
        num_frames, image_size = num_frames or NUM_FRAMES, image_size or IMAGE_SIZE
        notes.append(
            f"the file does not say which clips it was trained on: {num_frames} frames of {image_size} are assumed "
            "(source_num_frames and source_image_size say otherwise)"
        )
    fc1 = state.get("blocks.0.mlp.fc1.weight")
    if fc1 is None:
        raise ValueError("it has no blocks.0.mlp.fc1.weight")
    scale = state.get("blocks.0.ls1.gamma")
    return VideoViTConfig(
        num_frames=num_frames,
        image_size=image_size,
        tubelet_size=(tubelet[0], tubelet[1], tubelet[2]),
        embed_dim=check_int(f"the width of {KERNEL}", dim, 1, MAX_WIDTH),
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=num_heads,
        mlp_ratio=mlp_ratio(fc1.shape[0], dim),
        pos_embed="learned" if "pos_embed" in state else "sincos",
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        init_values=None if scale is None else 0.1 if scale.numel() == 0 else abs(_finite(float(scale.flatten()[0]))),
        final_norm="norm.weight" in state,
    ), notes


def _whole(args: Mapping[str, Any], key: str) -> int | None:
    value = args.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_SIZE else None


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
