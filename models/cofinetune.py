"""The whole model: one backbone shared by the heads of all tasks, built from a plain JSON configuration."""

import contextlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

import torch
from torch import Tensor, nn

from models.heads import ClassificationHead, LocalisationHead
from models.options import check_choice, check_keys, check_mapping, check_number
from models.vit import CHANNELS, VideoViT, VideoViTConfig, create_backbone

REQUIRED_KEYS: Final = ("backbone", "heads", "mean", "std")
MODEL_KEYS: Final = (*REQUIRED_KEYS, "subtract_mean_frame")
HEADS: Final[dict[str, type[nn.Module]]] = {"classification": ClassificationHead, "localisation": LocalisationHead}
TASK_NAME: Final = re.compile(r"[A-Za-z0-9_-]+")


class CofinetuneModel(nn.Module):
    """Normalises clips, runs the backbone, then the head of one task. Parameters: `backbone.*`, `heads.{task}.*`.

    Args:
        backbone: float [B, 3, T, H, W] -> [B, P + t h w, D].
        heads: a module per task, called as head(tokens, grid, boxes, box_clip).
        mean: of the three colour channels, for values in [0, 1].
        std: likewise, positive.
        subtract_mean_frame: how much of each clip's mean frame is taken off, 0 to 1: at 1 a still background vanishes
            and motion stays, in between it fades. A small model that starts from random weights finds motion far
            sooner with it.

    Raises:
        ValueError: a task name that cannot name a module, no head, or a mean or std that is not three numbers.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: VideoViT,
        heads: Mapping[str, nn.Module],
        mean: Sequence[float],
        std: Sequence[float],
        subtract_mean_frame: float = 0.0,
    ) -> None:
        super().__init__()
        if not heads:
            raise ValueError("heads: at least one task is needed")
        self.backbone = backbone
        self.subtract_mean_frame = check_number("subtract_mean_frame", subtract_mean_frame, 0.0, 1.0)
        self.heads = nn.ModuleDict()
        for task, head in heads.items():
            if not TASK_NAME.fullmatch(task) or hasattr(self.heads, task):
                raise ValueError(f"heads: {task!r} cannot name a task; use letters, digits, '_' and '-'")
            self.heads[task] = head
        # Part of the configuration, not of the weights.
        self.register_buffer("mean", _per_channel("mean", mean, low=-1e3), persistent=False)
        self.register_buffer("std", _per_channel("std", std, low=1e-6), persistent=False)
        self._normalisation = (tuple(mean), tuple(std))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Sets every parameter and buffer, so a model built on the meta device is whole after
        `to_empty(device=...).reset_parameters()`.

        Raises:
            ValueError: a head of the caller's own that has parameters and no `reset_parameters`.
        """
        resets = []
        for task, head in self.heads.items():
            reset: Any = getattr(head, "reset_parameters", None)
            if callable(reset):
                resets.append(reset)
            elif next(head.parameters(), None) is not None:
                raise ValueError(f"heads.{task}: {type(head).__name__} has no reset_parameters to initialise it with")
        for reset in (self.backbone.reset_parameters, *resets):
            reset()
        for buffer, values in zip((self.mean, self.std), self._normalisation, strict=True):
            buffer.copy_(torch.tensor(values, device=buffer.device).view(buffer.shape))

    def forward(self, task: str, clips: Tensor, boxes: Tensor | None = None, box_clip: Tensor | None = None) -> Tensor:
        """Logits of one task.

        Args:
            task: whose head is run.
            clips: [B, 3, T, H, W], uint8, or floating point in [0, 1].
            boxes: float32 [K, 4], corners x1 y1 x2 y2 in [0, 1] of the view (localisation only).
            box_clip: int64 [K] in [0, B), the clip of each box (localisation only).

        Returns:
            Classification [B, C], localisation [K, C]; float32 also where the parameters are bfloat16 or under
            autocast, so that losses are computed in float32.

        Raises:
            ValueError: unknown task, clips of another type or shape, boxes missing where they are needed.
        """
        check_choice("task", task, self.heads.keys())
        tokens = self.backbone(self.normalise(clips))
        logits: Tensor = self.heads[task](tokens, self.backbone.grid, boxes, box_clip)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def normalise(self, clips: Tensor) -> Tensor:
        """uint8, or floating point in [0, 1], [B, 3, T, H, W] -> floating point, (value - mean) / std by channel,
        where `subtract_mean_frame` moves the mean towards the clip's own over time."""
        if clips.dtype != torch.uint8 and not clips.is_floating_point():
            raise ValueError(f"clips must be uint8 or floating point, not {clips.dtype}")
        dtype = torch.promote_types(self.mean.dtype, torch.float32)
        values = clips.to(dtype, copy=True)  # the caller's clips stay as they are; all else happens in place
        if clips.dtype == torch.uint8:
            values.div_(255)
        offset = self.mean
        if self.subtract_mean_frame:
            offset = torch.lerp(self.mean, values.mean(dim=2, keepdim=True), self.subtract_mean_frame)
        return values.sub_(offset).div_(self.std)


def create_model(config: Mapping[str, Any]) -> CofinetuneModel:
    """A randomly initialised model from a configuration of plain JSON values.

    Args:
        config: {"backbone": {"name", "num_frames", "image_size", and optionally "tubelet_size" and any override of
            `create_backbone`}, "heads": {task: {"kind": "classification" | "localisation", "num_classes", and
            optionally any argument of that head}}, "mean": [3 numbers], "std": [3 numbers], and optionally
            "subtract_mean_frame": share}.

    Raises:
        ValueError: a key that is unknown (names the nearest) or missing, or a value out of range.
    """
    return assemble(config, *build_parts(config))


def build_parts(
    config: Mapping[str, Any], device: torch.device | str | None = None
) -> tuple[VideoViT, dict[str, nn.Module]]:
    """Backbone and heads of `config`, on `device`: "meta" gives names and shapes without memory. Raises ValueError."""
    check_keys("model", check_mapping("model", config), MODEL_KEYS, required=REQUIRED_KEYS)
    with torch.device(device) if device is not None else contextlib.nullcontext():
        backbone = build_backbone(config["backbone"])
        heads = {
            task: _build_head(f"heads.{task}", options, backbone)
            for task, options in check_mapping("heads", config["heads"]).items()
        }
    return backbone, heads


def build_backbone(options: Mapping[str, Any]) -> VideoViT:
    """The backbone of a configuration's "backbone" part. Raises ValueError."""
    valid = ("name", *(field.name for field in fields(VideoViTConfig)))
    check_keys("backbone", check_mapping("backbone", options), valid, required=("name", "num_frames", "image_size"))
    try:
        return create_backbone(**options)
    except ValueError as error:
        raise ValueError(f"backbone: {error}") from error


def assemble(config: Mapping[str, Any], backbone: VideoViT, heads: Mapping[str, nn.Module]) -> CofinetuneModel:
    """The model of `config` from its parts. Raises ValueError."""
    return CofinetuneModel(backbone, heads, config["mean"], config["std"], config.get("subtract_mean_frame", 0.0))


def _build_head(where: str, options: Mapping[str, Any], backbone: VideoViT) -> nn.Module:
    arguments = dict(check_mapping(where, options))
    kind = check_choice(f"{where}: kind", arguments.pop("kind", None), HEADS)
    valid = [name for name in inspect.signature(HEADS[kind]).parameters if name != "dim"]
    check_keys(where, arguments, valid, required=("num_classes",))
    if arguments.get("pool") == "class_token" and not backbone.num_prefix_tokens:
        raise ValueError(f'{where}: pool "class_token" needs "class_token": true in the backbone')
    try:
        return HEADS[kind](backbone.embed_dim, **arguments)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _per_channel(what: str, values: Sequence[float], low: float) -> Tensor:
    """[3, 1, 1, 1], which broadcasts over [B, 3, T, H, W]."""
    if not isinstance(values, list | tuple) or len(values) != CHANNELS:
        raise ValueError(f"{what} must be {CHANNELS} numbers, not {values!r}")
    return torch.tensor([float(check_number(what, value, low, 1e3)) for value in values]).view(CHANNELS, 1, 1, 1)
