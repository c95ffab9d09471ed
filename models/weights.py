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

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoint_files import CONFIG_FILE, naming, read_json
from models.cofinetune import MODEL_KEYS, CofinetuneModel, assemble, build_parts
from models.fit import Shapes, check_fit, shapes_of
from models.options import check_mapping

WEIGHTS_FILE: Final = "model.safetensors"
FORMAT: Final = "cofinetuning-model"
VERSION: Final = 1
FLOATING: Final = frozenset({"F64", "F32", "F16", "BF16"})
READABLE: Final = (
    f"readable are a folder with {CONFIG_FILE} and {WEIGHTS_FILE} as this project or Hugging Face's ViViT and VideoMAE "
    "write it, a run of this project, and a .pth file of the original VideoMAE"
)


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
    write_model(folder, model.state_dict(), model_document(shapes_of(model), config, extra))


def model_document(shapes: Shapes, config: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> str:
    """The text of config.json of a model with tensors of these `shapes`; else as `save_model`. Raises ValueError."""
    extra = extra or {}
    if hidden := sorted({"format", "version", *MODEL_KEYS} & extra.keys()):
        raise ValueError(f"extra: {hidden} are keys of the model's own configuration")
    described = _model_part(config)
    # What could not be loaded again is not written.
    expected = assemble(described, *build_parts(described, "meta"))
    check_fit("the model is not the one of its config", shapes_of(expected), shapes)
    try:
        document = {"format": FORMAT, "version": VERSION, **config, **extra}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"config and extra must be plain JSON: {error}") from error


def write_model(folder: str | os.PathLike[str], state: Mapping[str, Tensor], document: str) -> None:
    """Writes a model's state dict and what `model_document` gave, as `save_model` does. Raises OSError."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS_FILE) as temporary:
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        save_file(tensors, temporary, metadata={"format": "pt"})
    with replacing(folder / CONFIG_FILE) as temporary:
        temporary.write_text(document, encoding="utf-8")


def load_model(folder: str | os.PathLike[str], **execution: Any) -> tuple[CofinetuneModel, dict[str, Any]]:
    """Reads what `save_model` wrote.

    Args:
        folder: with model.safetensors and config.json.
        execution: how to run the backbone, which a checkpoint does not say: `attention`, `grad_checkpointing`,
            `compile`, as in VideoViTConfig.

    Returns:
        The model, float32, on the CPU and, as PyTorch makes modules, in training mode; and the configuration with all
        that was saved as `extra`.

    Raises:
        ValueError: names the file: not there, of another format, or tensors that do not fit the configuration.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    with naming(folder / CONFIG_FILE):
        check_version(config)
        described = _model_part(config)
        if execution:
            described["backbone"] = {**check_mapping("backbone", described.get("backbone")), **execution}
        backbone, heads = build_parts(described, "meta")
        model = assemble(described, backbone, heads)
    with open_weights(folder / WEIGHTS_FILE) as weights:
        found = shapes_in(weights)
        check_fit(f"does not fit {CONFIG_FILE}", shapes_of(model), found)
        for part in (backbone, *heads.values()):  # memory is taken only once all shapes are known to be right
            part.to_empty(device="cpu")
        model.load_state_dict({name: weights.get_tensor(name) for name in found})
    return model, {key: value for key, value in config.items() if key not in ("format", "version")}


def _model_part(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key in MODEL_KEYS}


def read_model_config(folder: Path) -> dict[str, Any]:
    """config.json as it is. Raises ValueError that names the file."""
    path = folder / CONFIG_FILE
    with naming(path):
        try:
            return read_json(path)
        except ValueError as error:
            raise ValueError(f"{error}; {READABLE}") from error


def check_version(config: Mapping[str, Any]) -> None:
    if config.get("format") != FORMAT:
        if "model_type" in config:
            raise ValueError(
                "is of Hugging Face's layout, as models.export writes it too: a backbone can start from it "
                "(model.init.source), but a whole model is read from a run or a checkpoint of this project"
            )
        raise ValueError(f'its "format" is not "{FORMAT}"; {READABLE}')
    if config.get("version") != VERSION:
        raise ValueError(f"is of version {config.get('version')!r}, this program reads version {VERSION}")


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """An open safetensors file; whatever is wrong with it or found wrong while it is open names it."""
    with naming(path):
        try:
            with safe_open(path, framework="pt", device="cpu") as weights:
                yield weights
        except (OSError, SafetensorError) as error:
            raise ValueError(f"not a safetensors file that can be read ({error}); {READABLE}") from error


def shapes_in(weights: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of an open safetensors file, from its header alone. Raises ValueError for integer tensors."""
    shapes = {}
    for name in weights.keys():  # noqa: SIM118 - no mapping
        tensor = weights.get_slice(name)
        if tensor.get_dtype() not in FLOATING:
            raise ValueError(f"{name} holds {tensor.get_dtype()}, weights are one of {', '.join(sorted(FLOATING))}")
        shapes[name] = tuple(tensor.get_shape())
    return shapes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; takes its place once it is written and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
