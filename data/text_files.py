"""Reads text and large CSV files, saying file, line and column of whatever does not fit."""

import codecs
import csv
import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, islice
from typing import Any, TextIO

import numpy as np

from data.errors import UserError

_CHUNK = 10_000  # rows at a time: few enough that their text stays in the processor's cache
_BLOCK = 1 << 20  # bytes at a time, for the same reason
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Rows:
    """Some rows of a CSV file as text, with their line numbers (from 1)."""

    path: str
    lines: Sequence[int]
    rows: list[list[str]]

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, keep: list[bool]) -> "Rows":
        return Rows(self.path, list(compress(self.lines, keep)), list(compress(self.rows, keep)))

    def check_widths(self, widths: set[int], expected: str) -> None:
        """Raises UserError for the first row whose number of columns is not among `widths`."""
        if set(map(len, self.rows)) <= widths:
            return
        bad = next(i for i, row in enumerate(self.rows) if len(row) not in widths)
        raise UserError(f"{self.path}, line {self.lines[bad]}: {len(self.rows[bad])} columns, expected {expected}")

    @cached_property
    def _columns(self) -> list[tuple[str, ...]]:
        """The columns that every row has."""
        return list(zip(*self.rows, strict=False))

    def texts(self, column: int, default: str = "") -> Sequence[str]:
        """A column as text; `default` stands where a row is too short or the cell is empty."""
        if column < len(self._columns):
            texts = self._columns[column]
            return [text or default for text in texts] if default and "" in texts else texts
        return [(row[column] if column < len(row) else "") or default for row in self.rows]

    def floats(self, column: int, name: str, default: str = "") -> np.ndarray:
        """A column as float64 [rows]. Raises UserError for text that is no finite number."""
        texts = self.texts(column, default)
        values = self._convert(texts, name, float, np.float64, "a number")
        if not np.isfinite(values).all():
            bad = int(np.argmin(np.isfinite(values)))
            raise self.error(bad, name, texts[bad], "a finite number")
        return values

    def ints(self, column: int, name: str, default: str = "", parse: Callable[[str], int] = int) -> np.ndarray:
        """A column as int64 [rows]. Raises UserError for text that `parse` takes for no whole number."""
        return self._convert(self.texts(column, default), name, parse, np.int64, "a whole number")

    def error(self, row: int, name: str, text: str, expected: str) -> UserError:
        return UserError(f"{self.path}, line {self.lines[row]}, column {name}: {text!r}, expected {expected}")

    def _convert(
        self, texts: Sequence[str], name: str, parse: Callable[[str], Any], dtype: type, expected: str
    ) -> np.ndarray:
        try:
            return np.fromiter(map(parse, texts), dtype, len(texts))
        except (ValueError, OverflowError):
            for row, text in enumerate(texts):
                try:
                    np.array(parse(text), dtype)
                except (ValueError, OverflowError):
                    raise self.error(row, name, text, expected) from None
            raise


def read_text(path: str | os.PathLike[str]) -> str:
    """The whole of a UTF-8 file. Raises UserError where it cannot be read or is no text."""
    try:
        with open(path, "rb") as file:
            data = file.read().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{os.fspath(path)} cannot be read: {error.strerror}") from error
    return io.StringIO(_decode(os.fspath(path), 1, data), newline=None).getvalue()  # line ends are \n


def _decode(path: str, first: int, data: bytes) -> str:
    """The text of `data`, which begins with line `first` of a file. Raises UserError with the line that is no UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = first + data.count(b"\n", 0, error.start)
        packed = ", but gzip: unpack it" if data.startswith(_GZIP) else f" (byte 0x{data[error.start]:02x})"
        raise UserError(f"{path}, line {line}: not UTF-8 text{packed}") from error


@dataclass(frozen=True)
class Lines:
    """Some whole lines of a file, the last one ended too, as bytes; `first` is the number of the first (from 1)."""

    path: str
    first: int
    data: bytes

    def rows(self) -> Iterator[Rows]:
        """The rows that are not blank, in CSV, some thousands at a time. Raises UserError where they are not that."""
        text = _decode(self.path, self.first, self.data)
        yield from _csv_rows(self.path, io.StringIO(text, newline=""), self.first)


def read_blocks(path: str | os.PathLike[str]) -> Iterator[Lines]:
    """Yields the lines of a file, some thousands at a time and without a byte order mark.

    Raises:
        UserError: the file cannot be read.
    """
    where = os.fspath(path)
    try:
        with open(where, "rb") as file:
            first, rest = 1, file.read(3)
            rest = rest.removeprefix(codecs.BOM_UTF8)
            while data := file.read(_BLOCK):
                whole, newline, rest = (rest + data).rpartition(b"\n")
                if newline:
                    yield Lines(where, first, whole + newline)
                    first += whole.count(b"\n") + 1
                elif len(rest) >= _BLOCK:
                    raise UserError(f"{where}, line {first}: has no end within {_BLOCK} bytes: not a CSV text file")
            if rest:
                yield Lines(where, first, rest if rest.endswith(b"\n") else rest + b"\n")
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}") from error


def read_rows(path: str | os.PathLike[str]) -> Iterator[Rows]:
    """Yields the rows that are not blank, some thousands at a time.

    Raises:
        UserError: the file cannot be read or is not CSV in UTF-8.
    """
    for block in read_blocks(path):
        yield from block.rows()


def _csv_rows(where: str, file: TextIO, first: int) -> Iterator[Rows]:
    reader = csv.reader(file)
    before = first - 1
    while rows := _next_rows(reader, where, before):
        if before + reader.line_num != first + len(rows) - 1:
            raise UserError(f"{where}, line {first} or after: a quoted cell runs over the end of its line")
        part = Rows(where, range(first, first + len(rows)), rows)
        part = part if all(rows) else part.select(list(map(bool, rows)))
        if len(part):
            yield part
        first += len(rows)


def _next_rows(reader: Any, where: str, before: int) -> list[list[str]]:
    try:
        return list(islice(reader, _CHUNK))
    except csv.Error as error:
        raise UserError(f"{where}, line {before + reader.line_num}: not a CSV text file ({error})") from error
