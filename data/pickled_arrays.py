"""Reads a pickled dictionary of numpy arrays without letting the pickle run anything."""

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from data.errors import UserError

_NUMERIC = re.compile(r"[<>|=]?([iu][1248]|f[248])")
_ORDERS = ("<", ">", "|", "=")
_NO_EXTRAS = (None, None, None, -1, -1, 0)
"""The rest of a plain number type's state: no parts, no fields, size and alignment of its own, no flags."""
_MOST_DIMENSIONS = 64


class _Type:
    """Stands for a numpy number type. Of its state only the byte order is taken: the real one believes any flags, and
    some make it use the bytes of an array as pointers."""

    __slots__ = ("dtype",)

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or not _NUMERIC.fullmatch(code):
            raise pickle.UnpicklingError("it holds something other than whole numbers and floats")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, order, *extras = state
        if version != 3 or order not in _ORDERS or tuple(extras) != _NO_EXTRAS:
            raise pickle.UnpicklingError("it holds something other than whole numbers and floats")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands for a numpy array, which comes with its state: the real one believes what it says of its memory."""

    __slots__ = ("array",)

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, content = state
        self.array = _checked_array(content, kind, shape, "F" if fortran else "C")


def _checked_array(content: object, kind: object, shape: object, order: object) -> np.ndarray:
    # Python 2's bytes come as text.
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, (bytes, bytearray)) or not isinstance(kind, _Type):
        raise pickle.UnpicklingError("it holds something other than whole numbers and floats")
    if not isinstance(shape, tuple) or len(shape) > _MOST_DIMENSIONS:
        raise pickle.UnpicklingError("the shape of an array is none")
    # Sides first: the product of a million large ones would take long.
    if not all(type(side) is int and 0 <= side < 2**63 for side in shape):
        raise pickle.UnpicklingError("an array has a side that is not a size")
    if math.prod(shape) * kind.dtype.itemsize != len(content):
        raise pickle.UnpicklingError("the bytes of an array are not those of its shape")
    if order == "C":
        return np.frombuffer(content, kind.dtype).reshape(shape)
    if order == "F":
        return np.frombuffer(content, kind.dtype).reshape(shape, order="F")
    raise pickle.UnpicklingError("an array is neither in C's nor in Fortran's order")


def _latin1_bytes(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 spells bytes; the real `_codecs.encode` would look up any codec that the file names."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 spells empty bytes; the real `bytes` would fill memory on demand."""
    return b""


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    """How protocols below 5 begin an array, always with the same arguments: all that counts is in its state."""
    return _Array()


def _frombuffer(content: object, kind: object, shape: object, order: object) -> _Array:
    """How protocol 5 spells an array."""
    whole = _Array()
    whole.array = _checked_array(content, kind, shape, order)
    return whole


def _scalar(kind: object, content: object) -> float:
    return _checked_array(content, kind, (), "C").item()


class _Function:
    """A function that a pickle may call but not write to, as it may to the attributes of a bare one."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it sets attributes of a function")


# Everything that a pickle of builtin containers and numeric arrays refers to, under numpy 1 and numpy 2. The type of
# arrays is only ever named, never called.
_ALLOWED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): object(),
    ("numpy", "dtype"): _Function(_Type),
    ("_codecs", "encode"): _Function(_latin1_bytes),
    ("__builtin__", "bytes"): _Function(_no_bytes),
}
for _package in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_package}.multiarray", "_reconstruct"] = _Function(_reconstruct)
    _ALLOWED[f"{_package}.multiarray", "scalar"] = _Function(_scalar)
    _ALLOWED[f"{_package}.numeric", "_frombuffer"] = _Function(_frombuffer)


# What a damaged pickle makes of calls that are let in; the last where it adds to the bytes of an array.
_MALFORMED = (ValueError, TypeError, EOFError, LookupError, AttributeError, ArithmeticError, MemoryError, BufferError)


def _argument(code: pickletools.OpcodeInfo) -> tuple[int, int, int]:
    """What follows an opcode: bytes, and bytes of a length and lines after them."""
    if code.arg is None:
        return 0, 0, 0
    if code.arg.n >= 0:
        return code.arg.n, 0, 0
    if code.arg.n == pickletools.UP_TO_NEWLINE:
        return 0, 0, 2 if code.arg.name == "stringnl_noescape_pair" else 1
    return 0, {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT8U: 8}.get(code.arg.n, 4), 0


_ARGUMENTS = {ord(code.code): _argument(code) for code in pickletools.opcodes}
_PUTS = {pickle.PUT[0], pickle.BINPUT[0], pickle.LONG_BINPUT[0]}
# Bytes of the opcodes that are never looked into; the others have 0.
_STEPS = [0] * 256
for _code, (_size, _prefix, _lines) in _ARGUMENTS.items():
    if not _prefix and not _lines and _code not in _PUTS and _code != pickle.STOP[0]:
        _STEPS[_code] = 1 + _size


def _check_memo(content: bytes) -> None:
    """Refuses a pickle that numbers its objects other than one after the other, since C's unpickler makes a table of
    the size that the largest number asks for.

    It ends where the unpickler cannot get past. `pickletools.genops` is slower, and refuses Python 2's bytes.

    Raises:
        pickle.UnpicklingError: an object's number is larger than the number of opcodes before it.
    """
    at, before, length = 0, -1, len(content)
    while at < length:
        code = content[at]
        before += 1
        if step := _STEPS[code]:
            at += step
            continue
        if code == pickle.STOP[0] or code not in _ARGUMENTS:
            return
        size, prefix, lines = _ARGUMENTS[code]
        start = at + 1
        at = start + size
        if prefix:
            at = start + prefix + int.from_bytes(content[start : start + prefix], "little")
        for _ in range(lines):
            at = content.find(b"\n", at) + 1
            if not at:
                return
        if code in _PUTS:
            argument = content[start:at]
            try:
                number = int(argument) if lines else int.from_bytes(argument, "little")
            except ValueError:
                number = length
            if number > before:
                raise pickle.UnpicklingError(f"an object's place in its memo is {argument!r} after {before} opcodes")


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}") from None


def load_arrays(path: str) -> dict[str, np.ndarray]:
    """Reads {text: numeric array} from a pickle of any protocol, Python 2's included.

    Only builtin containers, text, numbers and plain numpy arrays are let in; a file that names anything else (a
    pickle can name any function to call) is refused before anything of it is called. Nothing of numpy gets to see what
    the file says of types and memory: arrays are made here, of bytes whose number is that of their shape. They may be
    read-only, and of any byte order.

    Raises:
        UserError: the file cannot be read, is not a pickle, or holds anything else.
    """
    try:
        with open(path, "rb") as file:
            written = file.read()
        _check_memo(written)
        content = _ArrayUnpickler(io.BytesIO(written), encoding="latin1").load()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, only a pickled dictionary of arrays is read ({error})") from error
    except _MALFORMED as error:
        raise UserError(f"{path}: not a pickled dictionary of arrays ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dictionary of arrays")
    arrays = {}
    for name, value in content.items():
        if not isinstance(name, str):
            raise UserError(f"{path}: a key is a {type(name).__name__}, expected text")
        if not isinstance(value, _Array) or value.array is None:
            raise UserError(f"{path}: entry {name!r} is not a numeric array")
        arrays[name] = value.array
    return arrays
