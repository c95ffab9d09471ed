"""Reads byte ranges of local files and of anything that fsspec opens."""

import os

import fsspec
from fsspec.core import url_to_fs


def is_remote(path: str) -> bool:
    """Whether `path` is a URL (`s3://...`, `https://...`) and not a path of this machine."""
    return "://" in path and not path.startswith("file://")


def read_range(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Reads `size` bytes from `offset` on (all that follow where `size` is None).

    Raises:
        FileNotFoundError: nothing there.
        OSError: fewer than `size` bytes could be read.
    """
    if is_remote(path):
        filesystem, name = url_to_fs(path)
        content: bytes = filesystem.cat_file(name, start=offset, end=None if size is None else offset + size)
    else:
        with open(path.removeprefix("file://"), "rb", buffering=0 if size is not None else -1) as file:
            file.seek(offset)
            content = file.read() if size is None else os.pread(file.fileno(), size, offset)
    if size is not None and len(content) != size:
        raise OSError(f"{path}: {len(content)} bytes at offset {offset}, expected {size}: the file is cut short")
    return content


def open_local(path: str) -> str:
    """A path of this machine that holds `path`'s content: itself, or fsspec's local copy of a remote file."""
    if not is_remote(path):
        return path.removeprefix("file://")
    with fsspec.open(f"filecache::{path}") as file:
        return str(file.name)
