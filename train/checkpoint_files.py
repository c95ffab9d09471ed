"""The files of a checkpoint: writing a process's part, state.json, what is damaged, and which checkpoints there are."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from data.errors import UserError
from models import write_model
from train.launch import file_problem
from train.optim_state import OPTIMIZER_FILES, WEIGHTS_FILE

CONFIG_FILE = "config.json"
FORMAT_VERSION = 2
"""1 kept the optimizer's state in files of DeepSpeed or torch, which only the same engine and number of ranks read."""


@dataclass(frozen=True)
class File:
    """Size in bytes and SHA-256 in hex of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class State:
    """A checkpoint's state.json.

    Attributes:
        step: optimizer steps done.
        world: number of processes that wrote it.
        recipe: as YAML.
        files: all other files by name.
        metrics: what it scored, {task}/{metric}; None where it has not been evaluated.
        val_sets: fingerprints of the validation sets that `metrics` are of, by task.
        version: of the format.
    """

    step: int
    world: int
    recipe: str
    files: dict[str, File] = field(default_factory=dict)
    metrics: dict[str, float] | None = None
    val_sets: dict[str, str] = field(default_factory=dict)
    version: int = FORMAT_VERSION

    def scored(self, metrics: Mapping[str, float], val_sets: Mapping[str, str]) -> "State":
        """With these metrics of these validation sets; those that are not a number are left out."""
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        return dataclasses.replace(self, metrics=finite, val_sets=dict(val_sets))

    def to_json(self) -> str:
        """With its own SHA-256 in it, under "state"."""
        raw = dataclasses.asdict(self)
        return json.dumps({**raw, "state": _own_digest(raw)}, indent=1) + "\n"


def read_state(folder: Path) -> State:
    """The checkpoint's state.json.

    Raises:
        UserError: not such a file.
    """
    path = folder / "state.json"
    try:
        raw = json.loads(path.read_text())
        metrics, version = raw.get("metrics"), int(raw.get("version", 1))
        if version == FORMAT_VERSION and raw.pop("state") != _own_digest(raw):
            raise ValueError("it is not what was written")
        return State(
            step=int(raw["step"]),
            world=int(raw["world"]),
            recipe=str(raw["recipe"]),
            files={str(name): File(int(f["size"]), str(f["sha256"])) for name, f in raw.get("files", {}).items()},
            metrics=None if metrics is None else {str(name): float(value) for name, value in metrics.items()},
            val_sets={str(task): str(told) for task, told in raw.get("val_sets", {}).items()},
            version=version,
        )
    except OSError as error:
        raise UserError(f"{file_problem(error)}: the checkpoint is not whole") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}): the checkpoint is not whole") from error


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, by size and SHA-256; None where all are as they were written.

    Raises:
        UserError: a checkpoint of another format, or files that this user may not read.
    """
    try:
        state = read_state(folder)
    except UserError as error:
        return str(error)
    if state.version != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format {state.version} of checkpoints, and this program goes on from format "
            f"{FORMAT_VERSION}: resume with the program that wrote it. Its weights can be evaluated, and another run "
            f"(out=FOLDER) can start from them with model.init.source={folder}"
        )
    if folder.name != f"step-{state.step:06d}":
        return f"state.json is that of step {state.step}"
    written = sum(Path(name).match(OPTIMIZER_FILES) for name in state.files)
    if WEIGHTS_FILE not in state.files or CONFIG_FILE not in state.files or written != state.world:
        return "state.json does not list all files"
    try:
        for name, file in state.files.items():
            size = (folder / name).stat().st_size
            if size != file.size:
                return f"{name} has {size} bytes, not {file.size}"
        for name, file in state.files.items():
            if digest(folder / name) != file:
                return f"{name} is not what was written: its SHA-256 differs"
    except PermissionError as error:
        raise UserError(file_problem(error)) from error
    except OSError as error:
        return file_problem(error)
    return None


def write_part(
    folder: Path, files: Mapping[str, Mapping[str, Tensor]], model: tuple[Mapping[str, Tensor], str] | None
) -> dict[str, File]:
    """Writes safetensors files, by name, and the model, if given: its state dict and the text of its config.json.

    Returns:
        The files, all of them on the disk.

    Raises:
        OSError, SafetensorError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)  # it is there; but a network file system may not show it here yet
    for name, tensors in files.items():
        save_file(dict(tensors), folder / name)
    if model is not None:
        write_model(folder, *model)
    names = [*files, *([WEIGHTS_FILE, CONFIG_FILE] if model is not None else [])]
    return {name: digest(folder / name, sync=True) for name in names}


def digest(path: Path, sync: bool = False) -> File:
    """Size and SHA-256 of a file, which is first brought to the disk where `sync` says so."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return File(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _own_digest(raw: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()


def step_folders(folder: Path) -> list[Path]:
    """All step-NNNNNN of RUN/checkpoints, oldest first, whole or not."""
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit() and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def whole_checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints of RUN/checkpoints, oldest first."""
    return [path for path in step_folders(folder) if (path / "state.json").exists()]


def find_weights(path: str | Path) -> Path:
    """The folder with model.safetensors that `path` names: a run's newest checkpoint, `path` itself, or the one that
    holds this file.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if path.name == WEIGHTS_FILE and path.is_file():
        path = path.parent
    if (path / WEIGHTS_FILE).exists():
        return path
    for folder in (path, path / "checkpoints"):
        whole = whole_checkpoints(folder)
        if whole:
            return whole[-1]
    raise UserError(f"no checkpoint at {path}: give a run's folder, or a folder that holds model.safetensors")
