"""Pretrained video backbones of every family: opened, checked against a backbone, loaded and reported."""

import logging
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from models.checkpoint_files import (
    CONFIG_FILE,
    FILE_SUFFIXES,
    find_weights_file,
    naming,
    read_json,
    read_tensors,
)
from models.cofinetune import build_backbone
from models.fit import check_fit, shapes_of
from models.hf_layout import FAMILIES, Translated, from_hf, read_config
from models.load_report import LoadReport
from models.options import check_keys, check_mapping, check_number
from models.video_checkpoint import POSITIONS, VideoCheckpoint, load_planned, plan_load
from models.videomae import from_videomae, infer_config, is_videomae
from models.vit import CHANNELS, VideoViT, VideoViTConfig
from models.weights import FORMAT, READABLE, WEIGHTS_FILE, check_version, open_weights, read_model_config, shapes_in

PREPROCESSOR_FILE: Final = "preprocessor_config.json"
log = logging.getLogger(__name__)


def read_checkpoint(
    path: str | os.PathLike[str],
    num_heads: int | None = None,
    source_num_frames: int | None = None,
    source_image_size: int | tuple[int, int] | None = None,
) -> VideoCheckpoint:
    """Opens a video backbone of any family that `backbone_from_checkpoint` reads; arguments as there.

    Raises:
        ValueError: names the file and says what is wrong with it, or which formats are read.
    """
    folder, file = locate(Path(path))
    if file is not None and file.name != WEIGHTS_FILE:
        tensors, args = read_tensors(file)
        if is_videomae(tensors):
            with naming(file):
                found = from_videomae(tensors)
                network, notes = infer_config(found.state, args, num_heads, source_num_frames, source_image_size)
            return _foreign("VideoMAE checkpoint", network, found, _imagenet(), notes)
        if not (folder / CONFIG_FILE).exists():
            raise ValueError(f"{file}: no video transformer, and no {CONFIG_FILE} beside it; {READABLE}")
    config = read_model_config(folder)
    if config.get("format") == FORMAT:
        return _read_own(folder, config)
    with naming(folder / CONFIG_FILE):
        family = config.get("model_type")
        if "architecture" in config and family is None:
            raise ValueError(f"is of an image model of timm: use init_from_image_vit; {READABLE}")
        if not isinstance(family, str) or family not in FAMILIES:
            raise ValueError(f'its "format" is not "{FORMAT}" and its model_type is {family!r}; {READABLE}')
        if source_num_frames is not None or source_image_size is not None:
            raise ValueError(
                "says which clips it was trained on: source_num_frames and source_image_size are for files that do not"
            )
        network, notes = read_config(config)
    file = file or find_weights_file(folder)
    tensors, _ = read_tensors(file)
    with naming(file):
        found = from_hf(tensors, family)
    return _foreign(FAMILIES[family], network, found, _read_normalisation(folder), notes)


def backbone_from_checkpoint(
    path: str | os.PathLike[str],
    *,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
    source_num_frames: int | None = None,
    source_image_size: int | tuple[int, int] | None = None,
    **overrides: Any,
) -> VideoViT:
    """A pretrained video backbone, if need be for other clips than it was trained on.

    In evaluation mode its tokens are the original's last hidden state. `load_report` of the result tells what became
    of every tensor; it is logged too.

    Args:
        path: one of
            - this project's: a run, a checkpoint, a folder that `save_model` wrote, or the model.safetensors in it;
            - Hugging Face's ViViT or VideoMAE (any of their classes): a folder with config.json and
              model.safetensors or pytorch_model.bin, sharded or not, or one of these files in it;
            - the original VideoMAE repository's: a .pth file, pretrained (with decoder) or finetuned (with head).
        allow_missing: names of the backbone's tensors that the checkpoint need not have, what they begin with, or
            patterns with *. They are initialised at random.
        allow_unexpected: likewise of the checkpoint's tensors that the backbone need not have.
        source_num_frames: frames that an original VideoMAE file was trained on, if neither it nor the default, 16,
            says so.
        source_image_size: likewise its height and width, one number if they are equal; default 224.
        overrides: any attribute of VideoViTConfig. Where num_frames or image_size differ from the checkpoint's, the
            positions are interpolated, fixed sine-cosine ones too; "pos_embed": "learned" lets these learn;
            "final_norm": True turns the norm that finetuned VideoMAE has behind the mean into the final norm. Those
            that ask for another network are errors. Where an original VideoMAE file has a width that VideoMAE does
            not have, num_heads has to be given.

    Returns:
        float32, on the CPU, in training mode: [B, 3, T, H, W] -> [B, tokens, D].

    Raises:
        ValueError: names the file and says which formats are read or what does not fit, or names the override.
    """
    for key, value in overrides.items():
        if isinstance(value, list):  # JSON and YAML know no tuples
            overrides[key] = tuple(value)
    check_keys("overrides", overrides, [field.name for field in fields(VideoViTConfig)])
    checkpoint = read_checkpoint(path, overrides.get("num_heads"), source_num_frames, source_image_size)
    config = replace(checkpoint.config, **overrides)
    with torch.device("meta"):
        backbone = VideoViT(config)
    try:
        state, report = plan_load(checkpoint, backbone, allow_missing, allow_unexpected)
    except ValueError as error:
        reason = f"overrides {overrides} ask for another network: " if overrides else ""
        raise ValueError(f"{os.fspath(path)}: {reason}{error}") from error
    backbone.to_empty(device="cpu")
    if report.missing:
        backbone.reset_parameters()
    load_planned(backbone, state, report)
    log.info("%s: %s", path, report)
    return backbone


def init_from_checkpoint(
    backbone: VideoViT,
    path: str | os.PathLike[str],
    *,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
    source_num_frames: int | None = None,
    source_image_size: int | tuple[int, int] | None = None,
) -> LoadReport:
    """Loads a pretrained video backbone into one that is there, positions interpolated to its clips.

    Args:
        backbone: changed in place, or left as it was if anything is raised. Missing tensors that are allowed keep the
            values that they have.

    The other arguments and the errors are those of `backbone_from_checkpoint`.
    """
    checkpoint = read_checkpoint(path, backbone.config.num_heads, source_num_frames, source_image_size)
    with naming(path):
        state, report = plan_load(checkpoint, backbone, allow_missing, allow_unexpected)
    load_planned(backbone, state, report)
    log.info("%s: %s", path, report)
    return report


def locate(path: Path) -> tuple[Path, Path | None]:
    """The folder whose config.json describes `path`, if it is there, and the file of weights, if one was named.

    Raises:
        ValueError: neither a folder nor a file of a readable kind.
    """
    if path.is_dir():
        newest = None if (path / CONFIG_FILE).exists() else latest_checkpoint(path)
        return newest or path, None
    if not path.is_file() or not path.name.endswith((*FILE_SUFFIXES, ".index.json")):
        raise ValueError(f"{path}: not a checkpoint; {READABLE}")
    return path.parent, path


def latest_checkpoint(path: Path) -> Path | None:
    """The checkpoint that a run's folder, or the folder of its checkpoints, names as its newest."""
    for folder in (path / "checkpoints", path):
        try:
            name = (folder / "latest").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if Path(name).name == name and (folder / name / CONFIG_FILE).is_file():
            return folder / name
    return None


def _foreign(
    what: str,
    config: VideoViTConfig,
    found: Translated,
    normalisation: tuple[list[float], list[float]] | None,
    notes: list[str],
) -> VideoCheckpoint:
    if config.pos_embed == "sincos":  # computed there, not stored; here once all else is known to fit
        found.state[POSITIONS] = torch.empty(1, math.prod(config.grid), config.embed_dim, device="meta")
    return VideoCheckpoint(
        what,
        config,
        found.state,
        tuple(found.left_over),
        tuple(found.unknown),
        found.fc_norm or None,
        normalisation,
        tuple(notes),
    )


def _imagenet() -> tuple[list[float], list[float]]:
    return list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)


def _read_normalisation(folder: Path) -> tuple[list[float], list[float]] | None:
    """Mean and std that a Hugging Face folder's preprocessor_config.json amounts to, for values in [0, 1]."""
    path = folder / PREPROCESSOR_FILE
    if not path.is_file():
        return None
    with naming(path):
        told = read_json(path)
        mean, std = told.get("image_mean", [0.5] * CHANNELS), told.get("image_std", [0.5] * CHANNELS)
        scale, offset = told.get("rescale_factor", 1 / 255), bool(told.get("offset", False))
        if not told.get("do_normalize", True):
            mean, std = [0.0] * CHANNELS, [1.0] * CHANNELS
        mean, std = _triple("image_mean", mean), _triple("image_std", std)
        check_number("rescale_factor", scale, -1e6, 1e6)
    # value in [0, 1] -> (255 scale value - offset - mean) / std
    factor = 255 * scale
    if offset and factor == 2 and mean == std == [0.5] * CHANNELS:
        # VivitImageProcessor's defaults normalise to [-1, 1] twice. The weights that come with them were trained on
        # [-1, 1]: `zero_centering` of scenic's projects/vivit/configs, from which they were converted.
        mean, std = [0.0] * CHANNELS, [1.0] * CHANNELS
    if factor == 0 or 0 in std:
        return None
    return [(m + offset) / factor for m in mean], [s / factor for s in std]


def _triple(what: str, values: Any) -> list[float]:
    if not isinstance(values, list) or len(values) != CHANNELS:
        raise ValueError(f"{what} must be {CHANNELS} numbers, not {values!r}")
    return [float(check_number(what, value, -1e6, 1e6)) for value in values]


def _read_own(folder: Path, config: Mapping[str, Any]) -> VideoCheckpoint:
    with naming(folder / CONFIG_FILE), torch.device("meta"):
        check_version(config)
        saved = build_backbone(check_mapping("backbone", config.get("backbone")))
        normalisation = (_triple("mean", config.get("mean")), _triple("std", config.get("std")))
    prefix = "backbone."
    with open_weights(folder / WEIGHTS_FILE) as weights:
        found = {name.removeprefix(prefix): s for name, s in shapes_in(weights).items() if name.startswith(prefix)}
        check_fit(f"does not fit {CONFIG_FILE}", shapes_of(saved), found)
        state = {name: weights.get_tensor(prefix + name) for name in found}
        heads = tuple(name for name in weights.keys() if not name.startswith(prefix))  # noqa: SIM118 - no mapping
    return VideoCheckpoint("checkpoint of this project", saved.config, state, heads, normalisation=normalisation)
