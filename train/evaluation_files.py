"""What an evaluation leaves behind: metrics.json, detections and predictions, and the table on the screen."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.shards import ShardSet
from train.ava_inputs import manifest_counts
from train.breakdown import number_or_null
from train.checkpoint_files import read_state, write_atomically
from train.evaluators import Result
from train.frame_map import DEFAULT_PROTOCOL
from train.tasks import Task

SHOWN_FAILURES = 5


def write(folder: Path, weights: Path, digest: str, tasks: Sequence[Task], results: dict[str, Result]) -> list[str]:
    """Writes metrics.json, predictions of classification tasks, and for localisation what `train/ava_map.py` reads.

    What metrics.json says of other tasks stays where it is of the same weights, of this SHA-256.

    Returns:
        Notes on what is left of other weights.

    Raises:
        UserError: the folder cannot be written.
    """
    new = {task.name: describe(task, results[task.name]) for task in tasks}
    before, told = _earlier(folder / "metrics.json")
    others = [name for name in told if name not in new]
    same = before == digest
    summary: dict[str, Any] = {
        "checkpoint": str(weights),
        "sha256": digest,
        "step": read_state(weights).step if (weights / "state.json").is_file() else None,
        "tasks": {**(told if same else {}), **new},
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for task in tasks:
            boxes = results[task.name].boxes
            if boxes is not None:
                boxes.write_detections(folder / f"{task.name}_detections.csv", task.classes)
                boxes.write_groundtruth(folder / f"{task.name}_groundtruth.csv", task.classes)
                boxes.write_labelmap(folder / f"{task.name}_labelmap.pbtxt", task.classes)
            predictions = results[task.name].predictions
            if predictions is not None:
                predictions.write(folder / f"{task.name}_predictions.csv", task.classes)
        write_atomically(folder / "metrics.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    if same or not others:
        return []
    return [
        f"note: the CSV files of {', '.join(others)} in {folder} are of other weights, and no longer in metrics.json"
    ]


def _earlier(path: Path) -> tuple[str | None, dict[str, Any]]:
    """The weights' SHA-256 and the tasks of a metrics.json; nothing where there is none that can be read."""
    try:
        raw = json.loads(path.read_text())
        return raw.get("sha256"), dict(raw["tasks"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, {}


def describe(task: Task, result: Result) -> dict[str, Any]:
    """A task's part of metrics.json."""
    return {
        "kind": task.recipe.kind,
        "shards": task.recipe.val_shards,
        "metrics": {name: number_or_null(value) for name, value in result.metrics.items()},
        "chance": {name: number_or_null(value) for name, value in result.chance.items()},
        "counts": {**result.counts, "failed": len(result.failures)},
        "lost_at_packing": task.val.shards.manifest.failures if task.val is not None else {},
        "failures": [{"key": bad.key, "reason": bad.reason} for bad in result.failures],
        "per_class": result.per_class,
        "training_counts": training_counts(task),
        **({"protocol": DEFAULT_PROTOCOL} if task.recipe.kind == "localisation" else {}),
    }


def table(results: dict[str, Result]) -> str:
    """A line per task and metric, in percent, and what could not be read."""
    rows = [("task", "metric", "value, %", "chance, %")]
    for task, result in results.items():
        for name, value in result.metrics.items():
            rows.append((task, name, _percent(value), _percent(result.chance.get(name, math.nan))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    for task, result in results.items():
        count = len(result.failures)
        if count:
            lines.append(f"{task}: {count} of {count + result.counts['examples']} examples could not be read:")
            lines += [f"  {bad.key}: {bad.reason}" for bad in result.failures[:SHOWN_FAILURES]]
            lines += ["  and so on: see metrics.json"] if count > SHOWN_FAILURES else []
    return "\n".join(lines)


def lost_at_packing(tasks: Sequence[Task]) -> list[str]:
    """A note per task whose validation set was not packed whole: what is not in the shards is in no figure."""
    notes = []
    for task in tasks:
        assert task.val is not None
        manifest = task.val.shards.manifest
        lost, unit = sum(manifest.failures.values()), "keyframes" if manifest.kind == "localisation" else "clips"
        if not lost:
            continue
        reasons = ", ".join(f"{name} {count}" for name, count in manifest.failures.items())
        remedy = (
            f"; train/ava_map.py on {task.name}_detections.csv and the original annotations counts them as missed"
            if manifest.kind == "localisation"
            else ""
        )
        notes.append(
            f"note: {task.name}: {lost} of {lost + manifest.examples} {unit} were lost at packing ({reasons}) and are"
            f" in no figure{remedy}"
        )
    return notes


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def training_counts(task: Task) -> dict[int, int] | None:
    """Class id -> labels in the training shards, by their manifest; None where it cannot be read or does not say."""
    try:
        return manifest_counts(ShardSet(task.recipe.shards).manifest)
    except UserError:
        return None
