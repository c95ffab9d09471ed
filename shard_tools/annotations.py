"""Reads the annotation files of Kinetics, Moments in Time and Something-Something v2.

Every function returns the labelled clips that the file names, in its order; nothing here looks for videos. All raise
UserError, with file and line, for a file that is not what it should be.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from data.shards import ClassInfo
from data.text_files import read_rows, read_text

SPLIT_WORDS = ({"train", "training"}, {"val", "validate", "validation", "valid"}, {"test", "testing"})
_KINETICS_COLUMNS = "label,youtube_id,time_start,time_end,split"


@dataclass(frozen=True, slots=True)
class LabelledClip:
    """A clip that an annotation file names.

    Attributes:
        name: what its key is made of.
        stems: file names without extension that it may have, the likeliest first.
        folders: names of folders that it may lie in, to choose among several files of one name.
        label: place in the list of classes, None for an unlabelled test clip.
        listed: how failures name it.
        uncut: stem of the file of the whole video, and the seconds of it at which the clip begins and ends; None where
            clips come as files of their own only.
    """

    name: str
    stems: tuple[str, ...]
    folders: tuple[str, ...]
    label: int | None
    listed: str
    uncut: tuple[str, float, float] | None = None


def read_kinetics(
    path: str, split: str, class_names: list[str] | None = None
) -> tuple[list[LabelledClip], list[ClassInfo], dict[str, int]]:
    """Reads a Kinetics CSV with a header: label, youtube_id, time_start, time_end, split (in any order; test files
    have no label).

    Rows of another split than `split` are left out where the file names splits; `val`, `validate` and `validation` are
    one. A name of one's own, such as `train_mini`, takes all rows of a file of one split, and of several is an error.
    Classes are `class_names`, else the sorted labels of the whole file: both usual files hold all classes.

    Returns:
        clips, classes, and counts of rows left out.
    """
    rows: list[tuple[int, str, str, float, float, str]] = []
    columns: dict[str, int] = {}
    for part in read_rows(path):
        lines, cells = part.lines, part.rows
        if not columns:
            columns = {name.strip().lower(): number for number, name in enumerate(cells[0])}
            if not {"youtube_id", "time_start", "time_end"} <= columns.keys():
                raise UserError(
                    f"{path}, line {lines[0]}: {','.join(cells[0])!r} is no header, expected {_KINETICS_COLUMNS}"
                )
            part = part.select([number > 0 for number in range(len(part))])
        part.check_widths({len(columns)}, ",".join(columns))
        starts = part.floats(columns["time_start"], "time_start").tolist()
        ends = part.floats(columns["time_end"], "time_end").tolist()
        labels = part.texts(columns["label"]) if "label" in columns else [""] * len(part)
        splits = part.texts(columns["split"]) if "split" in columns else [""] * len(part)
        rows += zip(part.lines, labels, part.texts(columns["youtube_id"]), starts, ends, splits, strict=True)
    if not rows:
        raise UserError(f"{path}: no rows in it, expected {_KINETICS_COLUMNS} and one row per clip")
    labelled = {label for _, label, *_ in rows if label}
    names = class_names or sorted(labelled)
    number_of = {name: number for number, name in enumerate(names)}
    wanted, left_out = _rows_of_split(path, split, [row[5] for row in rows])
    clips = []
    for line, label, video, start, end, _ in (rows[number] for number in wanted):
        if not video or not 0 <= start <= end < 1e6:
            raise UserError(f"{path}, line {line}: {video!r} from {start:g} to {end:g} s is no clip")
        if labelled and label not in number_of:
            raise UserError(f"{path}, line {line}: label {label!r} is not among the {len(names)} classes given")
        times = f"{int(start):06d}_{int(end):06d}"
        stems = (f"{video}_{times}", video, f"{video}_{int(start)}_{int(end)}")
        listed = "/".join(filter(None, (label, f"{video}_{times}")))
        folders, uncut = (label, split), (video, start, end)
        clips.append(LabelledClip(f"{video}_{times}", stems, folders, number_of.get(label), listed, uncut))
    return clips, [ClassInfo(number, name) for name, number in number_of.items()], left_out


def _rows_of_split(path: str, split: str, splits: list[str]) -> tuple[list[int], dict[str, int]]:
    """Numbers of the rows of `split`, and how many rows of other splits there are. Raises UserError where none is."""
    there = sorted(set(filter(None, splits)))
    if not there:
        return list(range(len(splits))), {}
    alias = _alias(split)
    wanted = [number for number, word in enumerate(splits) if word.lower() in alias]
    if wanted:
        others = len(splits) - len(wanted)
        return wanted, {"rows of other splits": others} if others else {}
    none = f"{path}: no row of split {split!r}; its column split says {', '.join(there)}"
    if alias in SPLIT_WORDS:
        raise UserError(none)
    # A name of the user's own, such as train_mini, is right for a file of one split; of several, it would train on the
    # rows that are to be evaluated.
    if len({min(_alias(word)) for word in there}) > 1:
        raise UserError(f"{none}: give --split one of these, or --annotations a file with the rows of one split")
    return list(range(len(splits))), {}


def _alias(split: str) -> set[str]:
    """All words for a split, in small letters."""
    return next((words for words in SPLIT_WORDS if split.lower() in words), {split.lower()})


def read_moments(path: str, categories: str) -> tuple[list[LabelledClip], list[ClassInfo], dict[str, int]]:
    """Reads a Moments in Time CSV: `label/file.mp4` first, then columns that are not read; no header.

    `categories` holds rows `name,index`, or names alone, numbered by line. Returned as by `read_kinetics`.
    """
    number_of = _read_categories(categories)
    clips = []
    for part in read_rows(path):
        for line, row in zip(part.lines, part.rows, strict=True):
            label, _, file = row[0].rpartition("/")
            label = label.rpartition("/")[2]
            stem = file.rpartition(".")[0] or file
            if not label or not stem:
                raise UserError(f"{path}, line {line}, column 1: {row[0]!r}, expected label/file.mp4")
            if label not in number_of:
                raise UserError(f"{path}, line {line}: label {label!r} is not in {categories}")
            clips.append(LabelledClip(stem, (stem,), (label,), number_of[label], f"{label}/{file}"))
    if not clips:
        raise UserError(f"{path}: no rows in it, expected rows that begin with label/file.mp4")
    return clips, [ClassInfo(number, name) for name, number in number_of.items()], {}


def _read_categories(path: str) -> dict[str, int]:
    number_of: dict[str, int] = {}
    for part in read_rows(path):
        for line, row in zip(part.lines, part.rows, strict=True):
            name, number = row[0].strip(), row[1].strip() if len(row) > 1 else str(len(number_of))
            if not name or name in number_of or not _is_index(number):
                raise UserError(f"{path}, line {line}: {','.join(row)!r}, expected name,index with each name once")
            number_of[name] = int(number)
    return _dense(path, number_of)


def read_ssv2(path: str, labels: str) -> tuple[list[LabelledClip], list[ClassInfo], dict[str, int]]:
    """Reads a Something-Something v2 JSON list of `id` and `template` (test files have ids only) and its labels JSON
    of {template without brackets: index}. Returned as by `read_kinetics`."""
    raw = _read_json(labels)
    if not isinstance(raw, dict) or not all(_is_index(str(number)) for number in raw.values()):
        raise UserError(f'{labels}: expected an object like {{"Bending something until it breaks": "3"}}')
    number_of = _dense(labels, {name: int(number) for name, number in raw.items()})
    items = _read_json(path)
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: expected a list of objects with id and template")
    clips = []
    for place, item in enumerate(items, 1):
        video = str(item.get("id", "")) if isinstance(item, dict) else ""
        if not video:
            raise UserError(f"{path}, entry {place}: has no id, expected an object with id and template")
        template = str(item.get("template", "")).replace("[", "").replace("]", "")
        if template and template not in number_of:
            raise UserError(f"{path}, entry {place} (id {video}): template {template!r} is not in {labels}")
        label, folders = (number_of[template], (template,)) if template else (None, ())
        clips.append(LabelledClip(video, (video,), folders, label, video))
    return clips, [ClassInfo(number, name) for name, number in number_of.items()], {}


def read_class_names(path: str) -> list[str]:
    """Reads one class name a line."""
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names or len(set(names)) != len(names):
        raise UserError(f"{path}: expected one class name a line, each once")
    return names


def _is_index(text: str) -> bool:
    return text.isdecimal() and len(text) < 10  # Python converts no text of thousands of digits


def _dense(path: str, number_of: Mapping[str, int]) -> dict[str, int]:
    """Sorted by index. Raises UserError where the indices are not 0 to n - 1."""
    if sorted(number_of.values()) != list(range(len(number_of))) or not number_of:
        raise UserError(f"{path}: the class indices are not 0 to {len(number_of) - 1}, each once")
    return dict(sorted(number_of.items(), key=lambda pair: pair[1]))


def _read_json(path: str) -> Any:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from error
    except (RecursionError, ValueError) as error:  # nested too deep; a number of thousands of digits
        raise UserError(f"{path}: not JSON of a dataset ({error})") from None
