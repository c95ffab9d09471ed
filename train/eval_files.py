"""What an evaluation leaves in RUN/eval: metrics.json, a file for each thing that can be looked up, and figures."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.errors import UserError
from data.shards import ShardSet
from train.ava_classes import frequency_masks, group_masks
from train.ava_inputs import manifest_counts
from train.breakdown import Breakdown, box_recall, class_recall, number_or_null
from train.confusion import Confusion
from train.evaluators import Result
from train.frame_map import DEFAULT_PROTOCOL
from train.tasks import Task
from train.whole_files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write(
    folder: Path,
    evaluated: tuple[Path, str, int | None],
    tasks: Sequence[Task],
    results: dict[str, Result],
    cutoffs: Sequence[int],
    settings: Mapping[str, Any],
) -> list[str]:
    """Writes metrics.json; predictions and confusion of classification tasks; for localisation what `train/ava_map.py`
    reads; and figures.

    What metrics.json says of other tasks stays where it is of the same weights, of this SHA-256.

    Args:
        evaluated: folder of the weights, their SHA-256, and the step of the run, where they are of one.
        settings: what was the same for all tasks and decides their figures; a task's own is its view.

    Returns:
        Notes on what is left of other weights.

    Raises:
        UserError: the folder cannot be written.
    """
    weights, digest, step = evaluated
    new = {task.name: describe(task, results[task.name], settings) for task in tasks}
    before, told = _earlier(folder / "metrics.json")
    others = [name for name in told if name not in new]
    same = before == digest
    summary: dict[str, Any] = {
        "checkpoint": str(weights),
        "sha256": digest,
        "step": step,
        "tasks": {**(told if same else {}), **new},
    }
    from train.figures import save  # takes a second to import

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
                Confusion.of(predictions, task.classes).write(folder / f"{task.name}_confusion.csv")
        write_atomically(folder / "metrics.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        for task in tasks:
            for name, figure in draw(task, results[task.name], cutoffs).items():
                save(figure, folder / f"{task.name}_{name}.png")
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


def describe(task: Task, result: Result, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's part of metrics.json."""
    assert task.val is not None
    return {
        "kind": task.recipe.kind,
        "shards": task.recipe.val_shards,
        "metrics": {name: number_or_null(value) for name, value in result.metrics.items()},
        "chance": {name: number_or_null(value) for name, value in result.chance.items()},
        "counts": {**result.counts, "failed": len(result.failures)},
        "settings": {**settings, "view": asdict(task.val.view)},
        "lost_at_packing": task.val.shards.manifest.failures,
        "failures": [{"key": bad.key, "reason": bad.reason} for bad in result.failures],
        "per_class": result.per_class,
        "training_counts": training_counts(task),
        **({"protocol": DEFAULT_PROTOCOL} if task.recipe.kind == "localisation" else {}),
    }


def frequency_metrics(task: Task, result: Result, cutoffs: Sequence[int]) -> dict[str, float]:
    """mAP of head, mid and tail classes of a localisation task; nothing where its training shards are not here, or
    their manifest has no counts."""
    if result.boxes is None:
        return {}
    counts = training_counts(task)
    if counts is None:
        what = "mAP of rare and frequent classes is left out"
        print(f"note: {task.name}: no counts per class at {task.recipe.shards}: {what}", file=sys.stderr)
        return {}
    assert result.frame_map is not None
    trained = np.array([counts.get(task.classes[index].id, 0) for index in result.boxes.evaluated], dtype=np.int64)
    return {f"mAP/{name}": result.frame_map.mean_of(mask) for name, mask in frequency_masks(trained, cutoffs).items()}


def training_counts(task: Task) -> dict[int, int] | None:
    """Class id -> labels in the training shards, by their manifest; None where it cannot be read or does not say."""
    try:
        shards = ShardSet(task.recipe.shards) if task.train is None else task.train.shards
        return manifest_counts(shards.manifest)
    except UserError:
        return None


def draw(task: Task, result: Result, cutoffs: Sequence[int]) -> "dict[str, Figure]":
    """Figures of a task's result on the first rank, by name: `confusion`, or `ap_by_frequency` with the borders of head
    and tail; none where there is nothing to see."""
    from train.confusion_picture import confusion_picture  # takes a second to import
    from train.frequency_picture import ap_by_frequency

    if result.predictions is not None:
        confusion = Confusion.of(result.predictions, task.classes)
        return {"confusion": confusion_picture(confusion)} if confusion.examples else {}
    b = break_down(task, result, cutoffs)
    return {"ap_by_frequency": ap_by_frequency(b, cutoffs)} if (b.result.instances > 0).any() else {}


def break_down(task: Task, result: Result, cutoffs: Sequence[int]) -> Breakdown:
    """The AP of each class of a localisation task, with what goes with it."""
    boxes, frame_map = result.boxes, result.frame_map
    assert boxes is not None and frame_map is not None
    classes = [task.classes[index] for index in boxes.evaluated]
    counts, parts, training = training_counts(task), group_masks(classes), None
    if counts is not None:
        training = np.array([counts.get(c.id, 0) for c in classes], dtype=np.int64)
        parts |= frequency_masks(training, cutoffs)
    truth = boxes.groundtruth()
    recall = class_recall(truth, box_recall(truth, boxes.plain_boxes()), len(classes))
    return Breakdown(classes, frame_map, parts, recall, result.metrics["box_recall"], training)
