"""The toy world, packed: training sets, and the validation sets in two parts: `tune` to choose by, `heldout` to test.

The packers are run as a user runs them. Which part a row belongs to is decided before anything is trained: every fourth
row of a classification set, as the file has them, and every fourth movie of AVA, in the order of names, tunes.
"""

import csv
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.reproduce.protocol import DOWNSTREAM, TASKS
from data.errors import UserError
from data.recipe_files import PROJECT
from shard_tools.toy.build import VERSION

PARTS = ("tune", "heldout")
TUNE_EVERY = 4
SHORT_SIDE = "96"
MAX_FAILURES = "0.15"
"""Of a part of a set: planted faults fall on parts by chance."""
T = TypeVar("T")


def in_part(number: int, part: str) -> bool:
    """Whether row or movie `number` (from 0) belongs to `part` of the validation set."""
    return (number % TUNE_EVERY == 0) == (part == "tune")


def world_identity(size: str, seed: int) -> dict[str, Any]:
    """What names a world, for `protocol.identity`."""
    return {"size": size, "seed": seed, "version": VERSION, "tune_every": TUNE_EVERY, "short_side": SHORT_SIDE}


def make_world(folder: Path, size: str, seed: int) -> Path:
    """Makes and packs the world in `folder`, and goes on where an earlier call was cut off; returns the shards' folder.

    Raises:
        UserError: a command failed; it has said why.
    """
    raw, shards = folder / "raw", folder / "shards"
    _command("make_toy.py", "--out", raw, "--size", size, "--seed", seed)
    for part in PARTS:
        _split(raw, part)
    for arguments in (*(_train_arguments(raw, task) for task in TASKS), *_part_arguments(raw)):
        _command(
            str(arguments[0]),
            *arguments[1:],
            "--short-side",
            SHORT_SIDE,
            "--max-failures",
            MAX_FAILURES,
            "--out",
            shards,
        )
    return shards


def _command(script: str, *arguments: object) -> None:
    line = [sys.executable, str(PROJECT / "shard_tools" / script), *map(str, arguments)]
    done = subprocess.run(line, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise UserError(f"shard_tools/{script} ended with exit code {done.returncode}; the same command goes on")


def _train_arguments(raw: Path, task: str) -> list[object]:
    return _arguments(raw, task, "train", raw / task / TRAIN_FILES[task])


def _part_arguments(raw: Path) -> list[list[object]]:
    return [_arguments(raw, task, part, _part_file(raw, task, part)) for task in TASKS for part in PARTS]


TRAIN_FILES = {
    "kinetics": "annotations/train.csv",
    "moments": "trainingSet.csv",
    "ssv2": "train.json",
    "ava": "ava_train_v2.2.csv",
}
VALIDATION_FILES = {
    "kinetics": "annotations/validate.csv",
    "moments": "validationSet.csv",
    "ssv2": "validation.json",
    "ava": "ava_val_v2.2.csv",
}


def _part_file(raw: Path, task: str, part: str) -> Path:
    whole = raw / task / VALIDATION_FILES[task]
    return whole.with_name(f"{part}_of_{whole.name}")


def _arguments(raw: Path, task: str, split: str, annotations: Path) -> list[object]:
    """The packer's command for the annotations of one split."""
    folder, trains = raw / task, split == "train"
    common: list[object] = ["--annotations", annotations, "--split", split]
    if task == "kinetics":
        videos = folder / "videos" / ("train" if trains else "validate")
        return ["pack_kinetics.py", *common, "--videos", videos, *_class_list(folder, annotations)]
    if task == "moments":
        videos = folder / ("training" if trains else "validation")
        return ["pack_moments.py", *common, "--categories", folder / "moments_categories.txt", "--videos", videos]
    if task == "ssv2":
        return ["pack_ssv2.py", *common, "--labels", folder / "labels.json", "--videos", folder / "videos"]
    word = "train" if trains else "val"
    return [
        *("pack_ava.py", *common, "--videos", folder / "videos"),
        *("--labelmap", folder / "ava_action_list_v2.2.pbtxt"),
        *("--excluded", folder / f"ava_{word}_excluded_timestamps_v2.2.csv"),
        *("--proposals", folder / f"ava_{word}_predicted_boxes.csv"),
    ]


def _class_list(folder: Path, annotations: Path) -> list[object]:
    """Names the training set's classes where a small part has not all of them: the packer takes them from its rows."""
    every, own = (_labels(path) for path in (folder / TRAIN_FILES["kinetics"], annotations))
    if own == every:
        return []
    names = folder / "annotations" / "classes.txt"
    names.write_text("".join(f"{name}\n" for name in sorted(every)))
    return ["--classes", names]


def _labels(annotations: Path) -> set[str]:
    with annotations.open(newline="") as file:
        return {row["label"] for row in csv.DictReader(file)}


def _split(raw: Path, part: str) -> None:
    """Writes the annotations of one part of every validation set."""
    for task in TASKS:
        whole, own = raw / task / VALIDATION_FILES[task], _part_file(raw, task, part)
        text = whole.read_text()
        if task == DOWNSTREAM:
            text = _rows_of_movies(text, part)
        elif task == "ssv2":
            text = json.dumps(_chosen(json.loads(text), part), indent=0) + "\n"
        else:
            lines = text.splitlines(keepends=True)
            head = 1 if task == "kinetics" else 0
            text = "".join(lines[:head] + _chosen(lines[head:], part))
        if not own.exists() or own.read_text() != text:
            own.write_text(text)


def _chosen(rows: Sequence[T], part: str) -> list[T]:
    return [row for number, row in enumerate(rows) if in_part(number, part)]


def _rows_of_movies(text: str, part: str) -> str:
    lines = text.splitlines(keepends=True)
    names = [next(csv.reader([line]))[0] for line in lines]
    movies = set(_chosen(sorted(set(names)), part))
    return "".join(line for line, name in zip(lines, names, strict=True) if name in movies)
