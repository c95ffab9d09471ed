"""Starts a video backbone from an image vision transformer with timm's parameter names."""

import difflib
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import timm
import torch
from timm.layers import GELU, GELUTanh, QuickGELU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.checkpoint_files import CONFIG_FILE, EMA_FIRST, FILE_SUFFIXES, find_weights_file, read_json, read_tensors
from models.fit import check_fit
from models.hf_layout import mlp_ratio
from models.load_report import LoadReport, allowed, check_patterns
from models.options import check_choice
from models.positions import resample_positions
from models.video_checkpoint import CLASS_TOKEN, NOT_IN_TENSORS, POSITIONS
from models.vit import VideoViT

KERNEL: Final = "patch_embed.proj.weight"
# Where a tensor without a place in the backbone means another architecture, and not merely another head.
TRUNK: Final = ("blocks.", "patch_embed.")
VARIANTS: Final = {
    "norm_pre.": "a norm before the blocks (pre_norm, as in CLIP)",
    "reg_token": "register tokens (reg_tokens)",
    ".attn.q_norm.": "norms of queries and keys (qk_norm)",
    ".attn.norm.": "a norm inside of attention (scale_attn_norm)",
    ".mlp.norm.": "a norm inside of the MLP (scale_mlp_norm)",
    "rel_pos": "relative positions",
    "patch_embed.backbone.": "a convolutional stem (a hybrid)",
    ".mlp.fc1_g.": "a gated MLP",
    ".mlp.w12.": "a gated MLP",
    ".attns.": "parallel blocks",
}
"""What a tensor's name tells of a variant -> the variant."""
ACT_LAYERS: Final[dict[type[nn.Module], str]] = {
    nn.GELU: "gelu",
    GELU: "gelu",
    GELUTanh: "gelu_tanh",
    QuickGELU: "quick_gelu",
    nn.ReLU: "relu",
    nn.SiLU: "silu",
}

ARGS_OF_ENDS: Final = frozenset({"num_classes", "in_chans", "global_pool", "img_size"})
"""Arguments of timm's models that change nothing between the patches and the last block."""


@dataclass(frozen=True)
class ImageViT:
    """An image model that was opened.

    Attributes:
        what: its name, for messages.
        state: timm's name -> tensor; on the meta device if only its network was asked for.
        options: what is known of its network, by VideoViTConfig's names.
        normalisation: mean and std of the three channels that its images had, for values in [0, 1]; None: not said.
    """

    what: str
    state: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    normalisation: tuple[list[float], list[float]] | None = None


def init_from_image_vit(
    backbone: VideoViT,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    inflate: Literal["central_frame", "average"] = "central_frame",
    *,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
) -> LoadReport:
    """Copies an image ViT into `backbone`, so that each time step of a still video starts as the image.

    The patch kernel goes to the tubelet's centre frame with zeros elsewhere ("central_frame"), or to every frame,
    divided by their number ("average"); the position grid is interpolated to the backbone's and repeated over time
    (ViViT, arXiv 2103.15691). Without a class token the tokens of a still video are then exactly the image model's; a
    class token is one among t times as many tokens, and so attended to less. Normalise clips with the image model's
    mean and std. A class token that the backbone has no place for is left over, and so are heads.

    Args:
        backbone: changed in place, or left as it was if anything is raised.
        source: name of a pretrained timm model, a .safetensors, .bin, .pth or .pt file, a folder as timm's models lie
            on Hugging Face's hub, or a state dict.
        inflate: "central_frame" or "average".
        allow_missing: names of the backbone's tensors that the image model need not have (cls_token, say), what they
            begin with, or patterns with *. They keep the values that they have.
        allow_unexpected: likewise of the image model's tensors that the backbone need not have.

    Raises:
        ValueError: a source that cannot be read, or that is no plain ViT of the backbone's width, depth and patch size.
    """
    check_choice("inflate", inflate, ("central_frame", "average"))
    allow_missing = check_patterns("allow_missing", allow_missing)
    allow_unexpected = check_patterns("allow_unexpected", allow_unexpected)
    model = _opened("the state dict", dict(source), {}, {}) if isinstance(source, Mapping) else read_image_vit(source)
    what, image = model.what, dict(model.state)
    if POSITIONS not in image or getattr(image.get(KERNEL), "ndim", 0) != 4:
        raise ValueError(f"{what}: no vision transformer with timm's names ({KERNEL} [D, 3, h, w] and {POSITIONS})")
    _refuse_variants(what, image, allow_unexpected)
    for key in NOT_IN_TENSORS:
        theirs, ours = model.options.get(key), getattr(backbone.config, key)
        if theirs is not None and theirs != ours:
            raise ValueError(f"{what} has {key}={theirs}, the backbone {key}={ours}: give the former")
    if backbone.config.pos_embed != "learned":
        raise ValueError(f"{what} has learned positions: pos_embed={backbone.config.pos_embed} cannot keep them")
    target = dict(backbone.named_parameters())
    image[KERNEL] = _inflate_kernel(image[KERNEL], backbone.config.tubelet_size[0], inflate)
    image[POSITIONS], interpolated = _tile_positions(what, image[POSITIONS], backbone)
    left_over = tuple(
        name for name in image if name not in target and (not name.startswith(TRUNK) or allowed(name, allow_unexpected))
    )
    missing = tuple(name for name in target if name not in image and allowed(name, allow_missing))
    check_fit(
        f"{what} does not fit the backbone",
        {name: tuple(param.shape) for name, param in target.items() if name not in missing},
        {name: tuple(tensor.shape) for name, tensor in image.items() if name not in left_over},
    )
    loaded = tuple(name for name in target if name in image)
    with torch.no_grad():
        for name in loaded:
            target[name].copy_(image[name])
    notes = ("the class token's position is zero",) if CLASS_TOKEN in missing else ()
    report = LoadReport(loaded, (POSITIONS,) if interpolated else (), left_over, missing, notes, model.normalisation)
    backbone.load_report = report
    return report


def read_image_vit(source: str | os.PathLike[str], network_only: bool = False) -> ImageViT:
    """Opens an image ViT: a file, a folder as on Hugging Face's hub, or a pretrained timm model by its name.

    Args:
        network_only: of a name, build the network on the meta device and fetch no weights.

    Raises:
        ValueError: names the source: not there, unreadable, or not to be had.
    """
    path, what = Path(source), f"image model {os.fspath(source)!r}"
    if path.is_dir():
        file = find_weights_file(path)
        told = read_json(path / CONFIG_FILE) if (path / CONFIG_FILE).is_file() else {}
        architecture, cfg = told.get("architecture"), told.get("pretrained_cfg")
        known: dict[str, Any] = {}
        if isinstance(architecture, str) and timm.is_model(architecture) and _plain(told.get("model_args")):
            with torch.device("meta"):
                known = _describe(timm.create_model(architecture, pretrained=False, num_classes=0))
        return _opened(what, read_tensors(file, EMA_FIRST)[0], known, cfg if isinstance(cfg, dict) else {})
    if path.suffix in FILE_SUFFIXES or path.exists():
        return _opened(what, read_tensors(path, EMA_FIRST)[0], {}, {})
    name = os.fspath(source)
    if not name.startswith(("hf-hub:", "hf_hub:")) and not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(module="vision_transformer"), n=1, cutoff=0.0)
        raise ValueError(f"{name!r} is neither a file nor a timm model; the nearest timm model is {nearest[0]!r}")
    try:
        if network_only:
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False, num_classes=0)
        else:
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"the pretrained weights of timm model {name!r} cannot be had: {error}") from error
    return _opened(what, dict(model.state_dict()), _describe(model), getattr(model, "pretrained_cfg", None) or {})


def _refuse_variants(what: str, state: Mapping[str, Tensor], allow_unexpected: Collection[str]) -> None:
    """Raises ValueError, which says what it is, for a ViT with parts that the backbone does not have."""
    found = {
        variant: name
        for name in state
        for mark, variant in VARIANTS.items()
        if mark in name and not allowed(name, allow_unexpected)
    }
    if found:
        parts = "; ".join(f"{variant}: {name}" for variant, name in found.items())
        raise ValueError(f"{what} is a variant that the backbone is not: {parts}")


def _opened(what: str, state: dict[str, Tensor], known: dict[str, Any], cfg: Mapping[str, Any]) -> ImageViT:
    """Completes what is known of the network by what its tensors tell."""
    if "norm.weight" not in state:  # timm's name for the same norm where it follows the mean over tokens
        state = {("norm." + name[8:] if name.startswith("fc_norm.") else name): state[name] for name in state}
    kernel, fc1 = state.get(KERNEL), state.get("blocks.0.mlp.fc1.weight")
    options = dict(known)
    if kernel is not None and fc1 is not None and kernel.ndim == 4 and fc1.ndim == 2:
        options |= {
            "embed_dim": kernel.shape[0],
            "depth": len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            "mlp_ratio": mlp_ratio(fc1.shape[0], kernel.shape[0]),
            "qkv_bias": "blocks.0.attn.qkv.bias" in state,
            "pos_embed": "learned",
            "final_norm": True,
        }
        if "blocks.0.ls1.gamma" in state:
            options["init_values"] = 1e-5  # timm's; the values themselves are loaded
    mean, std = cfg.get("mean"), cfg.get("std")
    told = (list(mean), list(std)) if isinstance(mean, list | tuple) and isinstance(std, list | tuple) else None
    return ImageViT(what, state, options, told)


def _plain(model_args: Any) -> bool:
    """Whether a hub configuration's arguments leave the blocks as the architecture's name says."""
    return model_args is None or (isinstance(model_args, dict) and model_args.keys() <= ARGS_OF_ENDS)


def _describe(model: nn.Module) -> dict[str, Any]:
    """What the tensors of a timm model do not tell. Raises ValueError for a network that is no plain ViT."""
    name = type(model).__name__
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"it is a {name} of timm, and only VisionTransformer can be inflated")
    block: Any = model.blocks[0]
    act = ACT_LAYERS.get(type(block.mlp.act)) if hasattr(block, "mlp") and hasattr(block.mlp, "act") else None
    # Others may have the same tensors: with ResPostBlock norms come behind attention and MLP.
    odd = next((each for each in model.blocks if type(each) is not Block), None)
    if odd is not None or act is None or not isinstance(block.norm1, nn.LayerNorm):
        kind = type(block if odd is None else odd).__name__
        raise ValueError(f"its blocks are not those of a plain vision transformer: {kind}")
    return {"num_heads": block.attn.num_heads, "act_layer": act, "norm_eps": block.norm1.eps}


def _inflate_kernel(kernel: Tensor, frames: int, inflate: str) -> Tensor:
    """[D, 3, h, w] -> [D, 3, frames, h, w]."""
    if inflate == "average":
        return (kernel / frames).unsqueeze(2).expand(-1, -1, frames, -1, -1)
    inflated = kernel.new_zeros(*kernel.shape[:2], frames, *kernel.shape[2:])
    inflated[:, :, frames // 2] = kernel
    return inflated


def _tile_positions(what: str, positions: Tensor, backbone: VideoViT) -> tuple[Tensor, bool]:
    """[1, p + side^2, D] -> [1, P + t h w, D], and whether the grid had to be interpolated.

    timm counts the class token's position first, and only some models have one: p is what is left over of a square.
    """
    time, height, width = backbone.grid
    side = math.isqrt(positions.shape[1]) if positions.ndim == 3 else 0
    prefix = positions.shape[1] - side**2
    if side == 0 or prefix > 2:
        raise ValueError(f"{what}: {POSITIONS} {list(positions.shape)} is not of a square grid of patches")
    grid = resample_positions(positions[:, prefix:], (1, side, side), (1, height, width), num_prefix_tokens=0)
    tiled = grid.repeat(1, time, 1)
    if backbone.num_prefix_tokens:
        first = positions[:, :1] if prefix else torch.zeros_like(tiled[:, :1])
        tiled = torch.cat((first, tiled), dim=1)
    return tiled, (side, side) != (height, width)
