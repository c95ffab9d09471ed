"""Models on disk: a folder of model.safetensors and config.json, each written whole or not at all.

config.json is the configuration that `create_model` takes, with "format" and "version" in front and whatever the caller
adds (class names, views) behind.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from models.cofinetune import MODEL_KEYS, CofinetuneModel, assemble, build_backbone, build_parts
from models.fit import check_fit, shapes_of
from models.options import check_mapping
from models.positions import resample_positions
from models.vit import VideoViT

WEIGHTS_FILE: Final = "model.safetensors"
CONFIG_FILE: Final = "config.json"
FORMAT: Final = "cofinetuning-model"
VERSION: Final = 1
MAX_CONFIG_BYTES: Final = 16 << 20
FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
READABLE: Final = f"readable is a folder with {WEIGHTS_FILE} and {CONFIG_FILE} as this project's save_model writes it"


def save_model(
    folder: str | os.PathLike[str],
    model: CofinetuneModel,
    config: Mapping[str, Any],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model` into `folder`, made if need be. Each file appears whole or not at all, config.json last.

    Args:
        folder: where to; the files of an earlier model there are replaced.
        model: written in its parameters' own dtypes.
        config: what `create_model` built it from, or what `load_model` returned with it.
        extra: further JSON values for config.json, for example {"tasks": ...}; they replace those in `config`.

    Raises:
        ValueError: a config that does not describe the model, an `extra` that hides a part of it, values that are no
            plain JSON.
        OSError: the folder cannot be written.
    """
    folder, extra = Path(folder), extra or {}
    if hidden := sorted({"format", "version", *MODEL_KEYS} & extra.keys()):
        raise ValueError(f"extra: {hidden} are keys of the model's own configuration")
    described = _model_part(config)
    # What could not be loaded again is not written.
    expected = assemble(described, *build_parts(described, "meta"))
    check_fit("the model is not the one of its config", shapes_of(expected), shapes_of(model))
    try:
        document = {"format": FORMAT, "version": VERSION, **config, **extra}
        text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"config and extra must be plain JSON: {error}") from error
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder / WEIGHTS_FILE) as temporary:
        save_file(state, temporary, metadata={"format": "pt"})
    with _replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_model(folder: str | os.PathLike[str]) -> tuple[CofinetuneModel, dict[str, Any]]:
    """Reads what `save_model` wrote.

    Args:
        folder: with model.safetensors and config.json.

    Returns:
        The model, float32, on the CPU and, as PyTorch makes modules, in training mode; and the configuration with all
        that was saved as `extra`.

    Raises:
        ValueError: names the file: not there, of another format, or tensors that do not fit the configuration.
    """
    folder = Path(folder)
    config = _read_config(folder)
    with _naming(folder / CONFIG_FILE):
        described = _model_part(config)
        backbone, heads = build_parts(described, "meta")
        model = assemble(described, backbone, heads)
    with _open_weights(folder / WEIGHTS_FILE) as weights:
        found = _shapes_in(weights)
        check_fit(f"does not fit {CONFIG_FILE}", shapes_of(model), found)
        for part in (backbone, *heads.values()):  # memory is taken only once all shapes are known to be right
            part.to_empty(device="cpu")
        model.load_state_dict({name: weights.get_tensor(name) for name in found})
    return model, config


def backbone_from_checkpoint(path: str | os.PathLike[str], **overrides: Any) -> VideoViT:
    """The backbone of a saved model, if need be for other clips than it was trained on.

    Args:
        path: a folder that `save_model` wrote, or the model.safetensors in it.
        overrides: of `create_backbone`. Where num_frames or image_size differ from the checkpoint's, the position
            embedding is interpolated; overrides that change any other tensor are errors.

    Returns:
        float32, on the CPU, in training mode: [B, 3, T, H, W] -> [B, tokens, D].

    Raises:
        ValueError: names the file and says which formats are read, or names the override.
    """
    path = Path(path)
    if path.is_file() and path.name != WEIGHTS_FILE:
        raise ValueError(f"{path}: not a checkpoint; {READABLE}")
    folder = path.parent if path.is_file() else path
    config = _read_config(folder)
    with _naming(folder / CONFIG_FILE), torch.device("meta"):
        options = check_mapping("backbone", config.get("backbone"))
        saved = build_backbone(options)
    with torch.device("meta"):
        backbone = build_backbone({**options, **overrides})
    prefix, positions = "backbone.", "pos_embed"
    with _open_weights(folder / WEIGHTS_FILE) as weights:
        found = {name.removeprefix(prefix): s for name, s in _shapes_in(weights).items() if name.startswith(prefix)}
        check_fit(f"does not fit {CONFIG_FILE}", shapes_of(saved), found)
        other = {name: shape for name, shape in shapes_of(backbone).items() if name != positions}
        check_fit(
            f"overrides {overrides} ask for another network",
            other,
            {name: shape for name, shape in found.items() if name != positions},
        )
        state = {name: weights.get_tensor(prefix + name) for name in found}
    state[positions] = resample_positions(state[positions], saved.grid, backbone.grid, saved.num_prefix_tokens)
    backbone.to_empty(device="cpu").load_state_dict(state)
    return backbone


def _model_part(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in MODEL_KEYS}


def _read_config(folder: Path) -> dict[str, Any]:
    """config.json without "format" and "version". Raises ValueError that names the file."""
    path = folder / CONFIG_FILE
    with _naming(path):
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_CONFIG_BYTES + 1)
        except OSError as error:
            raise ValueError(f"cannot be read ({error.strerror}); {READABLE}") from error
        if len(raw) > MAX_CONFIG_BYTES:
            raise ValueError(f"more than {MAX_CONFIG_BYTES} bytes; {READABLE}")
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from error
        if not isinstance(document, dict) or document.pop("format", None) != FORMAT:
            raise ValueError(f'its "format" is not "{FORMAT}"; {READABLE}')
        if (version := document.pop("version", None)) != VERSION:
            raise ValueError(f"is of version {version!r}, this program reads version {VERSION}")
    return document


@contextmanager
def _open_weights(path: Path) -> Iterator[Any]:
    """An open safetensors file; whatever is wrong with it or found wrong while it is open names it."""
    with _naming(path):
        try:
            with safe_open(path, framework="pt", device="cpu") as weights:
                yield weights
        except (OSError, SafetensorError) as error:
            raise ValueError(f"not a safetensors file that can be read ({error}); {READABLE}") from error


def _shapes_in(weights: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an open safetensors file, from its header alone. Raises ValueError for integer tensors."""
    shapes = {}
    for name in weights.keys():  # noqa: SIM118 - no mapping
        tensor = weights.get_slice(name)
        if tensor.get_dtype() not in FLOATING:
            raise ValueError(f"{name} holds {tensor.get_dtype()}, weights are one of {', '.join(sorted(FLOATING))}")
        shapes[name] = tuple(tensor.get_shape())
    return shapes


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts `path` in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; takes its place once it is written and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
