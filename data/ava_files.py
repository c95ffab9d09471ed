"""Reads the AVA tools' file formats: label map, annotations, detections, excluded timestamps, person proposals.

Formats (https://research.google.com/ava/download.html, the official evaluator in the activitynet repository, SlowFast
and mmaction2):

    label map    pbtxt of `label { name: "..." label_id: 1 ... }` or `item { name: "..." id: 1 }`
    annotations  video_id,timestamp,x1,y1,x2,y2,action_id[,person_id] ; `video_id,timestamp` alone is a keyframe without
                 a label (AVA-Kinetics). One row per (box, action)
    detections   video_id,timestamp,x1,y1,x2,y2,action_id[,score]
    excluded     video_id,timestamp
    proposals    CSV video_id,timestamp,x1,y1,x2,y2,anything,score (SlowFast; the seventh column is not read), or a
                 pickle of {"video_id,timestamp": array [N, 5]} (mmaction2)

No CSV has a header. Timestamps are seconds of the original video, kept to six decimals as in the official evaluator;
`0902` and `902.000000` are the same. Boxes are (x1, y1, x2, y2) as fractions of the frame, returned as they stand in
the file. Every function raises UserError, with file, line and column, for a file that is not what it should be.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.errors import UserError
from data.pickled_arrays import load_arrays
from data.plain_csv import Block
from data.shards import ClassInfo
from data.text_files import Lines, Rows, read_blocks, read_rows, read_text

Keyframe = tuple[str, float]
"""(video id, timestamp in seconds of the original video)."""

_END = 1e9
"""Seconds that no video has: more lose their fraction, and in the end their value, in a float."""

_COLUMNS = ("video_id", "timestamp", "x1", "y1", "x2", "y2", "action_id")


@dataclass(frozen=True)
class BoxRows:
    """The rows of an annotation or detection file as columns of N rows, in file order.

    Attributes:
        path: the file, for messages.
        videos: the distinct video ids, in the order in which they come.
        video_numbers: int64 [N], index of each row's video.
        timestamps: float64 [N], seconds.
        boxes: float64 [N, 4], (x1, y1, x2, y2).
        action_ids: int64 [N], as the dataset numbers them.
        person_ids: int64 [N], -1 where the file gives none; None for detections. Copies of AVA hold ids like `3_`:
            the digits in front count, and `odd_lines` names the line.
        scores: float64 [N], 1.0 where the file gives none; None for annotations.
        lines: int64 [N], line numbers in the file, from 1.
        unlabelled: keyframes that the file names in a row without a box, in file order.
        odd_lines: lines whose person id is not a whole number.
    """

    path: str
    videos: list[str]
    video_numbers: np.ndarray
    timestamps: np.ndarray
    boxes: np.ndarray
    action_ids: np.ndarray
    person_ids: np.ndarray | None
    scores: np.ndarray | None
    lines: np.ndarray
    unlabelled: list[Keyframe]
    odd_lines: list[int]

    def __len__(self) -> int:
        return len(self.video_numbers)

    @cached_property
    def video_ids(self) -> list[str]:
        """N ids; equal ones are one object."""
        return [self.videos[number] for number in self.video_numbers.tolist()]

    def keyframes(self) -> set[Keyframe]:
        """Every keyframe that the file names, with or without a box."""
        return set(self.keyframe_rows()[0]) | set(self.unlabelled)

    def keyframe_rows(self) -> tuple[list[Keyframe], np.ndarray]:
        """Runs of neighbouring rows of one keyframe: those keyframes, which may repeat, and int64 [N] which run a row
        belongs to."""
        is_first = np.ones(len(self), dtype=bool)
        is_first[1:] = np.diff(self.video_numbers) != 0
        is_first[1:] |= np.diff(self.timestamps) != 0
        heads = np.flatnonzero(is_first)
        names = [self.videos[number] for number in self.video_numbers[heads].tolist()]
        return list(zip(names, self.timestamps[heads].tolist(), strict=True)), np.cumsum(is_first) - 1


def read_annotations(path: str | os.PathLike[str]) -> BoxRows:
    """Reads ground truth: AVA (8 columns), AVA-Kinetics (7 columns) and rows of two columns."""
    return _read_boxes(os.fspath(path), detections=False)


def read_detections(path: str | os.PathLike[str]) -> BoxRows:
    """Reads detections in the official evaluator's format; a row of seven columns has score 1, as there."""
    return _read_boxes(os.fspath(path), detections=True)


def read_excluded(path: str | os.PathLike[str]) -> set[Keyframe]:
    """Reads the timestamps that the benchmark leaves out; an empty file is an empty set."""
    excluded: set[Keyframe] = set()
    for part in read_rows(path):
        part.check_widths({2}, "video_id,timestamp")
        excluded.update(_keyframes(part, {}))
    return excluded


def read_proposals(path: str | os.PathLike[str]) -> dict[Keyframe, np.ndarray]:
    """Reads person boxes of a detector: SlowFast's CSV, or mmaction2's pickle where the name ends in .pkl or .pickle.

    Rows of a keyframe that repeat a box and its score (files with one row per box and label) are taken once.

    Returns:
        float64 [k, 5] per keyframe: x1, y1, x2, y2, score. Nothing is clipped and no score is left out.
    """
    where = os.fspath(path)
    if where.endswith((".pkl", ".pickle")):
        return _read_pickled_proposals(where)
    boxes: list[np.ndarray] = []
    order: dict[Keyframe, int] = {}
    groups: list[int] = []
    names: dict[str, str] = {}
    for part in read_rows(where):
        part.check_widths({8}, "video_id,timestamp,x1,y1,x2,y2,anything,score")
        groups += [order.setdefault(key, len(order)) for key in _keyframes(part, names)]
        boxes.append(np.column_stack([_boxes(part), part.floats(7, "score")]))
    if not order:
        raise UserError(f"{where}: no proposals in it (expected rows of video_id,timestamp,x1,y1,x2,y2,,score)")
    group = np.array(groups, dtype=np.int64)
    ends = np.cumsum(np.bincount(group, minlength=len(order)))
    parts = np.split(np.concatenate(boxes)[np.argsort(group, kind="stable")], ends[:-1])
    return {key: _unique_rows(rows) for key, rows in zip(order, parts, strict=True)}


def read_labelmap(path: str | os.PathLike[str]) -> list[ClassInfo]:
    """Reads a label map, the official 80 classes (`label_id`) or the 60 evaluated ones (`id`); sorted by id."""
    where = os.fspath(path)
    classes: dict[int, str] = {}
    for line, fields in _pbtxt_blocks(where, read_text(where)):
        number, name = fields.get("label_id", fields.get("id", "")), fields.get("name", "")
        if not number.isdecimal() or len(number) > 9 or not name:
            raise UserError(f"{where}, line {line}: a class needs a name and a whole number as label_id or id")
        if int(number) in classes:
            raise UserError(f"{where}, line {line}: class id {number} is there twice")
        classes[int(number)] = name
    if not classes:
        raise UserError(f'{where}: no classes in it (expected blocks like label {{ name: "stand" label_id: 12 }})')
    return [ClassInfo(number, classes[number]) for number in sorted(classes)]


def _pbtxt_blocks(where: str, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The (line, fields) of each `name { field: value ... }`; blocks do not nest in a label map."""
    token = re.compile(
        r'\s+|#[^\n]*|(?P<open>\w+\s*\{)|(?P<close>\})|(?P<field>\w+)\s*:\s*(?P<value>"[^"\n]*"|[\w.+-]+)'
    )
    fields: dict[str, str] | None = None
    at = start = 0
    while at < len(text):
        match = token.match(text, at)
        kind = match.lastgroup if match else "unknown"
        if match is None or (kind is not None and (kind == "open") != (fields is None)):
            line = text.count("\n", 0, at) + 1
            raise UserError(f'{where}, line {line}: not a label map (expected label {{ name: "..." label_id: N }})')
        if kind == "open":
            fields, start = {}, at
        elif kind == "close" and fields is not None:
            yield text.count("\n", 0, start) + 1, fields
            fields = None
        elif kind == "value" and fields is not None:
            fields[match["field"]] = match["value"].strip('"')
        at = match.end()
    if fields is not None:
        raise UserError(f"{where}: the last block is not closed: the file is cut short")


def _read_boxes(where: str, detections: bool) -> BoxRows:
    expected = ",".join(_COLUMNS) + ("[,score]" if detections else "[,person_id]")
    unlabelled: list[Keyframe] = []
    odd_lines: list[int] = []
    videos: dict[str, int] = {}
    parts: list[_Columns] = [_no_rows(detections)]
    for block in read_blocks(where):
        columns = _read_plain(block, detections, videos)
        if columns is not None:
            parts.append(columns)
            continue
        for part in block.rows():
            part.check_widths({2, 7, 8}, expected)
            boxed = [any(row[2:]) for row in part.rows]
            if not all(boxed):
                unlabelled += _keyframes(part.select([not b for b in boxed]), {})
                part = part.select(boxed)
            seconds = _seconds(part)
            numbers = np.fromiter((videos.setdefault(name, len(videos)) for name in _videos(part, {})), np.int64)
            if detections:
                eighth = part.floats(7, "score", default="1")
            else:
                eighth = part.ints(7, "person_id", default="-1", parse=_person_id)
                odd_lines += [line for line, text in zip(part.lines, part.texts(7), strict=True) if _is_odd(text)]
            lines = np.array(part.lines, dtype=np.int64)
            parts.append((numbers, seconds, _boxes(part), part.ints(6, "action_id"), eighth, lines))
    if len(parts) == 1 and not unlabelled and not detections:
        raise UserError(f"{where}: no rows in it (expected {expected})")
    video_numbers, timestamps, boxes, action_ids, eighth, lines = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    return BoxRows(
        path=where,
        videos=list(videos),
        video_numbers=video_numbers,
        timestamps=timestamps,
        boxes=boxes,
        action_ids=action_ids,
        person_ids=None if detections else eighth,
        scores=eighth if detections else None,
        lines=lines,
        unlabelled=unlabelled,
        odd_lines=odd_lines,
    )


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Video numbers, seconds, boxes, action ids, scores or person ids, and line numbers of some rows."""


def _no_rows(detections: bool) -> _Columns:
    whole = np.empty(0, np.int64)
    return whole, np.empty(0), np.empty((0, 4)), whole, np.empty(0, np.float64 if detections else np.int64), whole


def _read_plain(block: Lines, detections: bool, videos: dict[str, int]) -> _Columns | None:
    """The columns of lines as programs write them; None for all others, wrong ones among them, which are read row by
    row."""
    plain = Block.parse(block.data)
    if plain is None or plain.width not in (7, 8):
        return None
    seconds = plain.floats(1)
    corners = [plain.floats(column) for column in range(2, 6)]
    actions = plain.ints(6)
    if plain.width == 8:
        eighth = plain.floats(7) if detections else plain.ints(7)
    else:
        eighth = np.ones(plain.rows) if detections else np.full(plain.rows, -1)
    try:
        names, which = plain.texts(0)
    except UnicodeDecodeError:
        return None
    if seconds is None or actions is None or eighth is None or "" in names:
        return None
    boxes = np.empty((plain.rows, 4))
    for place, corner in enumerate(corners):
        if corner is None:
            return None
        boxes[:, place] = corner
    if not (np.isfinite(boxes).all() and np.isfinite(eighth).all() and (seconds >= 0).all() and (seconds < _END).all()):
        return None
    seconds = np.round(seconds, 6)
    numbers = np.array([videos.setdefault(name, len(videos)) for name in names], dtype=np.int64)[which]
    return numbers, seconds, boxes, actions, eighth, block.first + np.arange(plain.rows)


def _read_pickled_proposals(where: str) -> dict[Keyframe, np.ndarray]:
    proposals: dict[Keyframe, np.ndarray] = {}
    for name, value in load_arrays(where).items():
        video, _, stamp = name.rpartition(",")
        try:
            key = (video, round(float(stamp), 6))
        except ValueError:
            key = ("", 0.0)
        if not key[0]:
            raise UserError(f"{where}: key {name!r} is not 'video_id,timestamp' (like '1j20qq1JyX4,0902')")
        if value.ndim != 2 or value.shape[1] not in (4, 5) or not np.isfinite(value).all():
            raise UserError(
                f"{where}: key {name!r} holds an array of shape {list(value.shape)}, expected finite numbers of shape"
                " [N, 5] (x1, y1, x2, y2, score)"
            )
        scores = value[:, 4:] if value.shape[1] == 5 else np.ones((len(value), 1))
        proposals[key] = _unique_rows(np.column_stack([value[:, :4], scores]).astype(np.float64))
    if not proposals:
        raise UserError(f"{where}: no proposals in it (expected a dictionary of 'video_id,timestamp' to [N, 5] arrays)")
    return proposals


def _unique_rows(rows: np.ndarray) -> np.ndarray:
    """Drops repeated rows, keeping the order of the first ones."""
    if len(rows) < 2:
        return rows
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    return rows if len(first) == len(rows) else rows[first]


def _keyframes(part: Rows, names: dict[str, str]) -> list[Keyframe]:
    return list(zip(_videos(part, names), _seconds(part).tolist(), strict=True))


def _videos(part: Rows, names: dict[str, str]) -> list[str]:
    """Column 1; `names` makes equal ids one object, so that millions of rows hold few strings."""
    videos = [names.setdefault(text, text) for text in part.texts(0)]
    if "" in names:
        raise part.error(videos.index(""), "video_id", "", "the id of a video")
    return videos


def _seconds(part: Rows) -> np.ndarray:
    if part.lines and part.lines[0] == 1 and not re.search(r"\d", part.rows[0][1]):
        header = ",".join(part.rows[0])
        raise UserError(f"{part.path}, line 1: {header!r} looks like a header; the format has none: delete it")
    seconds = np.round(part.floats(1, "timestamp"), 6)
    if len(seconds) and seconds.min() < 0:
        bad = int(np.argmin(seconds))
        raise part.error(bad, "timestamp", part.rows[bad][1], "seconds, 0 or more")
    if len(seconds) and seconds.max() >= _END:
        bad = int(np.argmax(seconds))
        raise part.error(bad, "timestamp", part.rows[bad][1], f"seconds, less than {_END:g}")
    return seconds


def _boxes(part: Rows) -> np.ndarray:
    return np.column_stack([part.floats(column, _COLUMNS[column]) for column in range(2, 6)])


def _is_odd(text: str) -> bool:
    return bool(text) and not text.removeprefix("-").isdecimal()


def _person_id(text: str) -> int:
    """An id like `3_` is 3, one without digits in front is -1; a fraction raises ValueError: that is a score."""
    if not _is_odd(text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        digits = re.match(r"\d{1,18}", text)
        return int(digits[0]) if digits else -1
    if not number.is_integer():
        raise ValueError("a fraction")
    return int(number)
