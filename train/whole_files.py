"""Files that are there whole or not at all: results, and with `write_atomically` what must outlast a power cut too."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place once that is done; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_text(path: Path) -> Iterator[TextIO]:
    """A file of UTF-8 text that takes its place once all of it is written; line ends are written as they are given."""
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield file


def write_atomically(path: Path, text: str) -> None:
    """Writes a file of UTF-8 text that is there whole or not at all, also after a power cut."""
    with whole_text(path) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk, where its file system knows how to."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
