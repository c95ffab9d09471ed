"""Columns of a plain CSV file straight from its bytes: several times as fast as row by row, for millions of rows.

Plain is what programs write: no quotes, no blank lines, as many cells in each line, numbers of digits. Everything else
is left to the reader that goes row by row and names the line (`data/text_files.py`).
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

_COMMA, _DOT, _MINUS, _ZERO, _NEWLINE = b",.-0\n"
_LONGEST = 24
"""Bytes of a number that is read here; others go through Python's float."""
_EXACT = 2**53
_POWERS = 10.0 ** np.arange(23)
_POWERS_DOWN = 10.0 ** np.arange(_LONGEST - 1, -1, -1)


class Block:
    """The lines of a block of bytes that ends with a newline, each of the same number of cells.

    Attributes:
        rows: number of lines.
        width: cells of each line.
    """

    def __init__(self, data: bytes, raw: np.ndarray, ends: np.ndarray) -> None:
        self.data, self._bytes, self._ends = data, raw, ends
        self.rows, self.width = ends.shape

    @classmethod
    def parse(cls, data: bytes) -> "Block | None":
        """Finds the cells; None where the lines are not plain."""
        if b'"' in data or b"\r" in data or b"\0" in data or b"\n\n" in data or data.startswith(b"\n"):
            return None
        raw = np.frombuffer(data, dtype=np.uint8)
        ends = np.flatnonzero((raw == _COMMA) | (raw == _NEWLINE))
        rows = data.count(b"\n")
        width, rest = divmod(len(ends), rows)
        if rest or not (raw[ends[width - 1 :: width]] == _NEWLINE).all():
            return None
        return cls(data, raw, ends.reshape(rows, width))

    def _cells(self, column: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the cells of a column start and end, int64 [rows] each."""
        if column:
            return self._ends[:, column - 1] + 1, self._ends[:, column]
        return np.concatenate([[0], self._ends[:-1, -1] + 1]), self._ends[:, 0]

    def text(self, row: int, column: int) -> str:
        """One cell. Raises UnicodeDecodeError."""
        starts, ends = self._cells(column)
        return self.data[starts[row] : ends[row]].decode()

    def texts(self, column: int) -> tuple[list[str], np.ndarray]:
        """A column of few different texts: those, and int64 [rows] which of them stands where.

        Raises:
            UnicodeDecodeError: not UTF-8.
        """
        starts, ends = self._cells(column)
        lengths = ends - starts
        same = np.zeros(self.rows, dtype=bool)
        same[1:] = lengths[1:] == lengths[:-1]
        # Neighbours are mostly equal, and only those that differ from the row before are looked at as text.
        for place in range(int(lengths.max())):
            cell = self._bytes[np.minimum(starts + place, len(self._bytes) - 1)]
            same[1:] &= (cell[1:] == cell[:-1]) | (place >= lengths[1:])
        heads = np.flatnonzero(~same)
        known: dict[bytes, int] = {}
        numbers = [
            known.setdefault(self.data[start:end], len(known))
            for start, end in zip(starts[heads].tolist(), ends[heads].tolist(), strict=True)
        ]
        return [text.decode() for text in known], np.repeat(numbers, np.diff(heads, append=self.rows))

    def floats(self, column: int) -> np.ndarray | None:
        """A column as float64 [rows], each exactly what Python's float gives; None where a cell is no number."""
        values, fraction, plain = self._decimals(column)
        # An integer below 2^53 over a power of ten up to 10^22 is two exact numbers and one rounding (Clinger, "How to
        # read floating point numbers accurately", 1990).
        odd = np.flatnonzero(~(plain & (fraction <= 22)))
        values /= _POWERS[np.clip(fraction, 0, 22)]
        for row in odd.tolist():
            try:
                values[row] = float(self.text(row, column))
            except ValueError:
                return None
        return values

    def ints(self, column: int) -> np.ndarray | None:
        """A column as int64 [rows]; None where a cell is anything but some digits, perhaps behind a minus."""
        values, fraction, plain = self._decimals(column)
        return values.astype(np.int64) if (plain & (fraction < 0)).all() else None

    def _decimals(self, column: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each number its digits without the dot as a whole number (float64 [rows]), how many of them stand behind
        the dot (-1: there is no dot), and whether the cell is of this form and the whole number exact."""
        starts, ends = self._cells(column)
        negative = self._bytes[starts] == _MINUS
        starts = starts + negative
        lengths = ends - starts
        values, fraction = np.zeros(self.rows), np.full(self.rows, -1)
        plain = np.zeros(self.rows, dtype=bool)
        # Cells of one length with the dot in one place are a matrix of digits.
        for length in np.flatnonzero(np.bincount(np.clip(lengths, 0, _LONGEST + 1))[: _LONGEST + 1]).tolist():
            rows = np.flatnonzero(lengths == length)
            cells = (
                sliding_window_view(self._bytes, length)[starts[rows]] if length else np.zeros((len(rows), 0), np.uint8)
            )
            dots = np.concatenate([cells == _DOT, np.ones((len(rows), 1), dtype=bool)], axis=1).argmax(axis=1)
            for dot in np.flatnonzero(np.bincount(dots)).tolist():
                alike = dots == dot
                own, group = (rows, cells) if alike.all() else (rows[alike], cells[alike])
                # Below the code of 0 it wraps around, so that only digits are below 10.
                digits = np.delete(group, dot, axis=1) - np.uint8(_ZERO) if dot < length else group - np.uint8(_ZERO)
                number = digits.astype(np.float64) @ _POWERS_DOWN[_LONGEST - digits.shape[1] :]
                values[own] = number
                fraction[own] = length - dot - 1
                are_digits = digits.max(initial=0) < 10 or (digits < 10).all(axis=1)
                plain[own] = are_digits & (number < _EXACT) & (digits.shape[1] > 0)
        return np.where(negative, -values, values), fraction, plain
