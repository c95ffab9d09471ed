"""Reads a pickled dictionary of numpy arrays without letting the pickle run anything."""

import pickle
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy._core import multiarray

from data.errors import UserError


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 spells bytes; the real `_codecs.encode` would look up any codec that the file names."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 spells empty bytes; the real `bytes` would fill memory on demand."""
    return b""


def _frombuffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray:
    """How protocol 5 spells an array."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


# Everything that a pickle of builtin containers and numeric arrays refers to, under numpy 1 and numpy 2.
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1_bytes,
    ("__builtin__", "bytes"): _no_bytes,
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = multiarray._reconstruct
    _ALLOWED[f"{_package}.multiarray", "scalar"] = multiarray.scalar
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _frombuffer


# What a damaged pickle makes of calls that are let in; the last is numpy's, for the state of a type.
_MALFORMED = (
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    SystemError,
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}") from None


def load_arrays(path: str) -> dict[str, np.ndarray]:
    """Reads {text: numeric array} from a pickle of any protocol, Python 2's included.

    Only builtin containers, text, numbers and plain numpy arrays are let in; a file that names anything else (a
    pickle can name any function to call) is refused before anything of it is called.

    Raises:
        UserError: the file cannot be read, is not a pickle, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, only a pickled dictionary of arrays is read ({error})") from error
    except _MALFORMED as error:
        raise UserError(f"{path}: not a pickled dictionary of arrays ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dictionary of arrays")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            raise UserError(f"{path}: entry {name!r} is not a numeric array under a text key")
    return content
