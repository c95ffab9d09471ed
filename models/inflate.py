"""Starts a video backbone from an image vision transformer with timm's parameter names."""

import difflib
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Literal

import timm
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.fit import check_fit
from models.load_report import LoadReport
from models.options import check_choice
from models.positions import resample_positions
from models.vit import VideoViT

KERNEL, POSITIONS, CLASS_TOKEN = "patch_embed.proj.weight", "pos_embed", "cls_token"
FILE_SUFFIXES: Final = (".safetensors", ".bin", ".pth", ".pt")
# Where a tensor without a place in the backbone means another architecture, and not merely another head.
TRUNK: Final = ("blocks.", "patch_embed.", "norm_pre.")
# What torch.load, safetensors and timm raise for a file that is damaged or holds something else.
UNREADABLE: Final = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    SafetensorError,
)
OPTIONAL: Final = frozenset({CLASS_TOKEN, "norm.weight", "norm.bias"})


def init_from_image_vit(
    backbone: VideoViT,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    inflate: Literal["central_frame", "average"] = "central_frame",
) -> LoadReport:
    """Copies an image ViT into `backbone`, so that each time step of a still video starts as the image.

    The patch kernel goes to the tubelet's centre frame with zeros elsewhere ("central_frame"), or to every frame,
    divided by their number ("average"); the position grid is interpolated to the backbone's and repeated over time
    (ViViT, arXiv 2103.15691). Without a class token the tokens of a still video are then exactly the image model's; a
    class token is one among t times as many tokens, and so attended to less. Normalise clips with the image model's
    mean and std.

    Args:
        backbone: changed in place, or left as it was if anything is raised.
        source: name of a pretrained timm model, a .safetensors, .bin, .pth or .pt file, or a state dict.
        inflate: "central_frame" or "average".

    Raises:
        ValueError: a source that cannot be read, or that is no plain ViT of the backbone's width, depth and patch size.
    """
    check_choice("inflate", inflate, ("central_frame", "average"))
    image = dict(source) if isinstance(source, Mapping) else _read_image_model(source)
    what = "the state dict" if isinstance(source, Mapping) else f"image model {os.fspath(source)!r}"
    if POSITIONS not in image or getattr(image.get(KERNEL), "ndim", 0) != 4:
        raise ValueError(f"{what}: no vision transformer with timm's names ({KERNEL} [D, 3, h, w] and {POSITIONS})")
    if "norm.weight" not in image:  # timm's name for the same norm where it follows the mean over tokens
        image = {("norm." + name[8:] if name.startswith("fc_norm.") else name): image[name] for name in image}
    target = dict(backbone.named_parameters())
    image[KERNEL] = _inflate_kernel(image[KERNEL], backbone.config.tubelet_size[0], inflate)
    image[POSITIONS], interpolated = _tile_positions(what, image[POSITIONS], backbone)
    left_over = tuple(name for name in image if name not in target and not name.startswith(TRUNK))
    missing = tuple(name for name in target if name not in image and name in OPTIONAL)
    check_fit(
        f"{what} does not fit the backbone",
        {name: tuple(param.shape) for name, param in target.items() if name not in missing},
        {name: tuple(tensor.shape) for name, tensor in image.items() if name not in left_over},
    )
    loaded = tuple(name for name in target if name in image)
    with torch.no_grad():
        for name in loaded:
            target[name].copy_(image[name])
    return LoadReport(loaded, (POSITIONS,) if interpolated else (), left_over, missing)


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


def _read_image_model(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state dict of a file or of a pretrained timm model. Raises ValueError."""
    path = Path(source)
    if path.suffix in FILE_SUFFIXES or path.exists():
        return _read_file(path)
    name = os.fspath(source)
    if not name.startswith(("hf-hub:", "hf_hub:")) and not timm.is_model(name):
        nearest = difflib.get_close_matches(name, timm.list_models(module="vision_transformer"), n=1, cutoff=0.0)
        raise ValueError(f"{name!r} is neither a file nor a timm model; the nearest timm model is {nearest[0]!r}")
    try:
        return dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"the pretrained weights of timm model {name!r} cannot be had: {error}") from error


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix not in FILE_SUFFIXES or not path.is_file():
        raise ValueError(f"{path}: no such file, or not one of {', '.join(FILE_SUFFIXES)}")
    try:  # unpickles tensors and plain containers alone, and unwraps what trainers put around a state dict
        state = timm.models.load_state_dict(os.fspath(path), weights_only=True)
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a state dict that can be read: {error}") from error
    if not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path}: not a state dict: it holds other things than tensors")
    return state
