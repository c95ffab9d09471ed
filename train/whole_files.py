"""Result files that are there whole or not at all. What must outlast a power cut is for `write_atomically`."""

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
