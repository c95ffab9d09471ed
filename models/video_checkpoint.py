"""A pretrained video backbone in this project's names, and how it gets into a backbone, tensor by tensor."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from models.fit import check_fit, shapes_of
from models.load_report import LoadReport, allowed, check_patterns
from models.positions import resample_positions, sincos_positions
from models.vit import VideoViT, VideoViTConfig

POSITIONS, CLASS_TOKEN = "pos_embed", "cls_token"
NOT_IN_TENSORS: Final = ("num_heads", "act_layer", "norm_eps")
"""Options that change what a network computes without changing the shape of any tensor."""


@dataclass(frozen=True)
class VideoCheckpoint:
    """A checkpoint that was opened; nothing of its size is in memory but what its file maps.

    Attributes:
        what: its family, for messages: "Hugging Face ViViT".
        config: the network that it was trained as.
        state: the backbone's name -> tensor; positions on the meta device stand for the sine-cosine table.
        left_over: its tensors that belong to a head or decoder.
        unknown: its tensors that belong nowhere.
        fc_norm: "weight" and "bias" of the LayerNorm that a network without a final norm has behind the mean.
        normalisation: mean and std of the three channels that its clips had, for values in [0, 1]; None: not said.
        notes: what a user should know of it.
    """

    what: str
    config: VideoViTConfig
    state: dict[str, Tensor]
    left_over: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    fc_norm: dict[str, Tensor] | None = None
    normalisation: tuple[list[float], list[float]] | None = None
    notes: tuple[str, ...] = ()


def plan_load(
    checkpoint: VideoCheckpoint,
    backbone: VideoViT,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
) -> tuple[dict[str, Tensor], LoadReport]:
    """What to set in `backbone`, which may be on the meta device, and the report of it.

    Args:
        checkpoint: where from.
        backbone: where to; its clips may have other frames and sizes, for which positions are interpolated.
        allow_missing: names of the backbone's tensors (or what they begin with, or patterns with *) that the
            checkpoint need not have.
        allow_unexpected: likewise of the checkpoint's tensors that the backbone need not have.

    Raises:
        ValueError: another network; sums up what is missing, unexpected or of another shape.
    """
    allow_missing = check_patterns("allow_missing", allow_missing)
    allow_unexpected = check_patterns("allow_unexpected", allow_unexpected)
    trained, wanted = checkpoint.config, backbone.config
    _check_options(checkpoint, wanted)
    state, notes = dict(checkpoint.state), list(checkpoint.notes)
    if wanted.final_norm and not trained.final_norm and checkpoint.fc_norm:
        state |= {f"norm.{name}": tensor for name, tensor in checkpoint.fc_norm.items()}
        notes.append("its norm behind the mean (fc_norm) has become the final norm")
    expected = shapes_of(backbone)
    surplus = [name for name in state if name not in expected and allowed(name, allow_unexpected)]
    surplus += [name for name in checkpoint.unknown if allowed(name, allow_unexpected)]
    missing = tuple(name for name in expected if name not in state and allowed(name, allow_missing))
    found = {name: tuple(tensor.shape) for name, tensor in state.items() if name not in surplus}
    found |= {name: () for name in checkpoint.unknown if name not in surplus}
    if POSITIONS in found and POSITIONS in expected:  # of another grid, perhaps: looked at apart
        length = trained.class_token + math.prod(trained.grid)
        _check_positions(found.pop(POSITIONS), (1, length, trained.embed_dim), trained)
        del expected[POSITIONS]
    check_fit(
        f"the {checkpoint.what} does not fit the backbone",
        {name: shape for name, shape in expected.items() if name not in missing},
        found,
    )
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} holds {tensor.dtype}; weights are floating-point numbers")
    chosen = {name: tensor for name, tensor in state.items() if name in backbone.state_dict()}
    if POSITIONS in chosen:
        positions = chosen[POSITIONS]
        if positions.is_meta:
            positions = sincos_positions(positions.shape[1], positions.shape[2])
        chosen[POSITIONS] = _fit_positions(positions, trained, wanted)
    return chosen, LoadReport(
        loaded=tuple(chosen),
        interpolated=(POSITIONS,) if POSITIONS in chosen and trained.grid != wanted.grid else (),
        left_over=(*checkpoint.left_over, *surplus),
        missing=missing,
        notes=tuple(notes),
        normalisation=checkpoint.normalisation,
    )


def load_planned(backbone: VideoViT, state: dict[str, Tensor], report: LoadReport) -> None:
    """Carries out a plan of `plan_load`; `backbone` keeps what it has of the missing tensors."""
    backbone.load_state_dict(state, strict=False)
    backbone.load_report = report


def _check_options(checkpoint: VideoCheckpoint, wanted: VideoViTConfig) -> None:
    trained = checkpoint.config
    for key in NOT_IN_TENSORS:
        theirs: Any = getattr(trained, key)
        ours: Any = getattr(wanted, key)
        if theirs != ours:
            raise ValueError(f"the {checkpoint.what} has {key}={theirs}, the backbone {key}={ours}: give the former")
    if trained.pos_embed == "learned" and wanted.pos_embed == "sincos":
        raise ValueError(f"the {checkpoint.what} has learned positions: pos_embed=sincos cannot keep them")


def _check_positions(found: tuple[int, ...], expected: tuple[int, ...], config: VideoViTConfig) -> None:
    if found != expected:
        frames, height, width = config.clip_size
        raise ValueError(
            f"{POSITIONS} is {list(found)}, and clips of {frames} x {height} x {width} with tubelets of "
            f"{' x '.join(map(str, config.tubelet_size))} make it {list(expected)}"
        )


def _fit_positions(positions: Tensor, trained: VideoViTConfig, wanted: VideoViTConfig) -> Tensor:
    """[1, P + t h w, D] of the grid and class token that were trained -> of those that are wanted."""
    positions = positions.float()
    prefix, tubelets = positions[:, : trained.class_token], positions[:, trained.class_token :]
    fitted = resample_positions(tubelets, trained.grid, wanted.grid, num_prefix_tokens=0)
    if not wanted.class_token:
        return fitted
    return torch.cat((prefix if trained.class_token else torch.zeros_like(fitted[:, :1]), fitted), dim=1)
