"""What an evaluation has seen so far: arrays in memory and, so that it can go on after an interruption, on disk."""

import sys
import time
import uuid
import zipfile
from pathlib import Path
from types import TracebackType

import numpy as np

from train.launch import Rank, file_problem
from train.whole_files import whole_file

Arrays = dict[str, np.ndarray]
"""Columns by name. `example` int64 has the numbers of the examples that they are about."""

FLUSH_SECONDS = 30.0
"""So much work is lost at most where a process is killed."""


class Collected:
    """One rank's results of one task, as arrays to which every batch adds. Leaving the context writes what is not yet
    written, whatever ended it.

    Files hold whole examples, whoever evaluated them, so that another number of ranks can go on with them. Nothing in
    them is pickled, and a file that does not read as it should is passed over: its examples are evaluated again.

    Args:
        columns: an array of no rows for each name, with dtype and trailing shape.
        folder: where files are kept, in a folder that only the same evaluation uses; None keeps nothing. The first
            rank takes in what lies there, so that it counts once.
    """

    def __init__(self, columns: Arrays, rank: Rank, folder: Path | None = None) -> None:
        self._columns, self._folder = columns, folder
        self._parts: list[Arrays] = [columns]
        self._unwritten: list[Arrays] = []
        self._written_at = time.monotonic()
        self.done = np.zeros(0, dtype=np.int64)
        if folder is not None:
            kept = rank.together(self._read if rank.first else list)
            self._parts += kept
            self.done = rank.gather(self._joined(self._parts)["example"])[0]

    def add(self, arrays: Arrays) -> None:
        """Takes the columns of some more examples."""
        self._parts.append(arrays)
        if self._folder is not None and len(arrays["example"]):
            self._unwritten.append(arrays)
            if time.monotonic() - self._written_at >= FLUSH_SECONDS:
                self.write()

    def all(self) -> Arrays:
        """Everything that this rank holds."""
        return self._joined(self._parts)

    def write(self) -> None:
        """Writes what came since the last time, as one file that is there whole or not at all."""
        if self._folder is None or not self._unwritten:
            return
        path = self._folder / f"{uuid.uuid4().hex}.npz"
        try:
            with whole_file(path) as partial, partial.open("wb") as file:
                np.savez(file, allow_pickle=False, **self._joined(self._unwritten))
        except OSError as error:
            # The evaluation itself needs none of it.
            print(f"note: what is done cannot be kept for an interruption: {file_problem(error)}", file=sys.stderr)
            self._folder = None
        self._unwritten, self._written_at = [], time.monotonic()

    def __enter__(self) -> "Collected":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.write()

    def _read(self) -> list[Arrays]:
        assert self._folder is not None
        parts: list[Arrays] = []
        seen: set[int] = set()
        for path in sorted(self._folder.glob("*.npz")):
            arrays = self._read_file(path)
            examples = [] if arrays is None else arrays["example"].tolist()
            if arrays is not None and len(set(examples)) == len(examples) and seen.isdisjoint(examples):
                parts.append(arrays)
                seen.update(examples)
        return parts

    def _read_file(self, path: Path) -> Arrays | None:
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            return None
        fits = arrays.keys() == self._columns.keys() and all(
            arrays[name].dtype.kind == column.dtype.kind and arrays[name].shape[1:] == column.shape[1:]
            for name, column in self._columns.items()
        )
        return arrays if fits else None

    def _joined(self, parts: list[Arrays]) -> Arrays:
        return {name: np.concatenate([part[name] for part in [self._columns, *parts]]) for name in self._columns}


def joined(parts: list[Arrays]) -> Arrays:
    """The columns of all ranks, one behind the other."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
