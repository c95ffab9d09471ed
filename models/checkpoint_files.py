"""Tensors in files: safetensors, PyTorch's pickles read without running anything in them, and sharded folders.

Files come from anywhere, so nothing is unpickled but tensors, plain containers and the command line that trainers keep
beside them; and an index names files of its own folder alone.
"""

import argparse
import json
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

PICKLE_SUFFIXES: Final = (".bin", ".pth", ".pt")
FILE_SUFFIXES: Final = (".safetensors", *PICKLE_SUFFIXES)
CONFIG_FILE: Final = "config.json"
WEIGHT_FILES: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of weights in a folder of Hugging Face's layout, in the order of preference."""
WRAPPERS: Final = ("model", "module", "state_dict")
"""Keys under which trainers keep the state dict: VideoMAE's and timm's scripts, DeepSpeed, Lightning."""
EMA_FIRST: Final = ("state_dict_ema", "model_ema", *WRAPPERS)
"""timm's order: weights averaged over training first."""
MAX_JSON_BYTES: Final = 16 << 20
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


class _Unused:
    """Stands for a NumPy value in a pickle (a best accuracy, say), which nobody needs: takes all, keeps nothing."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


_NUMPY: Final = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")
_DTYPES: Final = ("Float64DType", "Float32DType", "Float16DType", "Int64DType", "Int32DType", "BoolDType")


@contextmanager
def harmless_globals() -> Iterator[None]:
    """Lets `torch.load(weights_only=True)` pass over what training scripts keep beside the weights.

    `argparse.Namespace` only ever holds attributes; NumPy's scalars are replaced by nothing at all. All other names
    stay forbidden.
    """
    stand_ins = [(_Unused, name) for name in (*_NUMPY, *(f"numpy.dtypes.{name}" for name in _DTYPES))]
    with torch.serialization.safe_globals([argparse.Namespace, *stand_ins]):
        yield


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Puts `path` in front of the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of at most MAX_JSON_BYTES. Raises ValueError, which does not name the file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from error
    if len(raw) > MAX_JSON_BYTES:
        raise ValueError(f"more than {MAX_JSON_BYTES} bytes")
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def find_weights_file(folder: Path) -> Path:
    """The weights in a folder. Raises ValueError that names it."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder}: none of {', '.join(WEIGHT_FILES)} is there")


def read_tensors(path: Path, wrappers: Sequence[str] = WRAPPERS) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in a file, or in all the files that an index names.

    Args:
        path: .safetensors, .bin, .pth, .pt, or an index (.index.json).
        wrappers: keys under which the state dict may be, in the order of preference.

    Returns:
        Name -> tensor on the CPU, without what DDP and torch.compile put in front of names; and the command line of
        the training script (`args`) where the file has one.

    Raises:
        ValueError: names the file: not there, damaged, objects that are no tensors, or an index that does not fit.
    """
    if path.name.endswith(".index.json"):
        return _read_sharded(path), {}
    if path.suffix not in FILE_SUFFIXES or not path.is_file():
        raise ValueError(f"{path}: no such file, or not one of {', '.join(FILE_SUFFIXES)}")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _unpickle(path)
    except pickle.UnpicklingError as error:
        # torch's own message goes on to recommend unpickling all of it.
        found = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {found[1]}, and only tensors and plain values are unpickled" if found else "damaged"
        raise ValueError(f"{path}: not a state dict that can be read: {reason}; nothing in it was run") from error
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a state dict that can be read: {str(error) or type(error).__name__}") from error
    args: dict[str, Any] = {}
    if isinstance(content, Mapping):
        kept = content.get("args")
        args = dict(vars(kept)) if isinstance(kept, argparse.Namespace) else {}
        wrapper = next((key for key in wrappers if isinstance(content.get(key), Mapping)), None)
        content = content if wrapper is None else content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: not a state dict")
    state = {}
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: not a state dict: {name!r} is {type(tensor).__name__} and no tensor")
        if tensor.layout != torch.strided or tensor.is_meta or _bytes(tensor) > tensor.untyped_storage().nbytes():
            raise ValueError(f"{path}: {name} is no dense tensor whose numbers are all in the file")
        state[_bare(name)] = tensor
    return state, args


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _unpickle(path: Path) -> Any:
    with harmless_globals():
        try:  # the zip format of today is mapped, so that tensors nobody asks for are never read
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _read_sharded(index: Path) -> dict[str, Tensor]:
    with naming(index):
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise ValueError('its "weight_map" must name a file for every tensor')
        for name in set(places.values()):
            if Path(name).name != name or Path(name).suffix not in FILE_SUFFIXES:
                raise ValueError(f"{name!r} is not the name of a weights file in the same folder")
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard, _ = read_tensors(index.parent / name)
        state |= {tensor: value for tensor, value in shard.items() if places.get(tensor) == name}
    if lost := [tensor for tensor in places if tensor not in state]:
        raise ValueError(f"{index}: {len(lost)} tensors are in none of its files, {lost[0]} for one")
    return state


def _bare(name: str) -> str:
    while name.startswith(("module.", "_orig_mod.")):
        name = name.partition(".")[2]
    return name
