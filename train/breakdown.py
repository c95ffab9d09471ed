"""Frame mAP broken down: by class with its counts, by groups of classes, against what the detector's boxes allow."""

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.shards import ClassInfo
from train.ava_classes import group_masks
from train.compare import Comparison, Interval
from train.error_kinds import FALSE_POSITIVES, KINDS, ErrorKinds
from train.frame_map import IOU_THRESHOLD, FrameBoxes, FrameMap, best_groundtruth, mean_known
from train.whole_files import whole_text


@dataclass(frozen=True)
class Breakdown:
    """One evaluation's figures for C classes, and what is known besides.

    Attributes:
        classes: the C classes.
        result: their average precision and counts.
        parts: name -> bool [C], the classes that are averaged apart: by frequency in training, by kind of action.
        recall: float64 [C], share of each class's boxes that some detection's box covers (see `box_recall`): no scores
            on these boxes can give a higher AP. NaN without ground truth.
        person_recall: the same share of all persons annotated, in [0, 1].
        training: int64 [C], labelled boxes in the training set; None where they are not known.
        errors: None where they were not asked for; likewise `comparison`.
    """

    classes: list[ClassInfo]
    result: FrameMap
    parts: dict[str, np.ndarray]
    recall: np.ndarray
    person_recall: float
    training: np.ndarray | None = None
    errors: ErrorKinds | None = None
    comparison: Comparison | None = None

    @cached_property
    def names(self) -> list[str]:
        return unique_names(self.classes)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The parts, and last all classes as `mAP`."""
        return {**self.parts, "mAP": np.ones(len(self.classes), dtype=bool)}

    @property
    def ceiling(self) -> float:
        """The mean of `recall`: the mAP that these boxes allow at most."""
        return mean_known(self.recall)

    def group_of(self, number: int) -> str:
        """AVA's kind of action that a class belongs to; empty for other lists of classes."""
        return next((name for name, mask in group_masks(self.classes).items() if mask[number]), "")


def box_recall(groundtruth: FrameBoxes, detections: FrameBoxes) -> np.ndarray:
    """bool [rows of `groundtruth`]: whether a detection of the keyframe, of any class, has IoU >= 0.5 with it.

    Each pair of a keyframe is looked at, so that `detections.distinct()` in place of rows of many classes saves memory.
    """
    rows, boxes = (
        FrameBoxes(part.frames, part.boxes, np.zeros(len(part), dtype=np.int64)) for part in (groundtruth, detections)
    )
    return best_groundtruth(boxes, rows, 1)[1] >= IOU_THRESHOLD


def class_recall(groundtruth: FrameBoxes, covered: np.ndarray, num_classes: int) -> np.ndarray:
    """float64 [C]: the share of each class's boxes that are covered; NaN for a class without boxes."""
    total = np.bincount(groundtruth.classes, minlength=num_classes)
    found = np.bincount(groundtruth.classes[covered], minlength=num_classes)
    return np.divide(found, total, out=np.full(num_classes, np.nan), where=total > 0)


def unique_names(classes: Sequence[ClassInfo]) -> list[str]:
    """The classes' names; where several share one, their ids are added."""
    names = [c.name for c in classes]
    for _ in range(3):  # with its id a name may be that of a third class
        count = Counter(names)
        names = [name if count[name] == 1 else f"{name} ({c.id})" for name, c in zip(names, classes, strict=True)]
    return names


def number_or_null(value: float) -> float | None:
    """`value`, with None for NaN: JSON has no NaN."""
    return None if math.isnan(value) else value


def percent(value: float, sign: str = "") -> str:
    """A share as a percentage of two decimals, `-` for NaN; sign `+` shows the sign always."""
    return "-" if math.isnan(value) else f"{100 * value:{sign}.2f}"


def table(b: Breakdown) -> str:
    """A line per class and per part, then the mean; AP and recall of the boxes as percentages."""
    head = ["id", "class", "AP, %", "boxes", "detections", "box recall, %"]
    head[3:3] = ["training"] if b.training is not None else []
    rows = []
    for number, (c, name) in enumerate(zip(b.classes, b.names, strict=True)):
        rows.append(_row(b, str(c.id), name, b.result.per_class[number], b.recall[number], np.array([number])))
    for name, mask in b.masks.items():
        rows.append(_row(b, "", name, b.result.mean_of(mask), mean_known(b.recall[mask]), mask))
    return aligned(head, rows, left=(1,))


def _row(b: Breakdown, number: str, name: str, ap: float, recall: float, classes: np.ndarray) -> list[str]:
    counts = [b.result.instances, b.result.detections]
    counts = [b.training, *counts] if b.training is not None else counts
    return [number, name, percent(ap), *(str(count[classes].sum()) for count in counts), percent(recall)]


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int]) -> str:
    """Lines with columns under each other, to the right but for the places in `left`."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            f"{cell:<{width}}" if place in left else f"{cell:>{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, *rows)
    ]
    return "\n".join(line.rstrip() for line in lines)


def error_table(errors: ErrorKinds) -> str:
    """A line per kind of error: counts among the highest-scoring detections and in all, and what mending it brings."""
    everything = np.ones(len(errors.gain), dtype=bool)
    gain, asked = errors.mean_gain(everything), int(errors.top[:, :-1].sum() + errors.right.sum())
    rows = [["right", str(errors.right.sum()), _share(errors.right.sum(), asked), "", ""]]
    for place, kind in enumerate(KINDS):
        top, total = int(errors.top[:, place].sum()), int(errors.everywhere[:, place].sum())
        among = [str(top), _share(top, asked)] if kind in FALSE_POSITIVES else ["", ""]
        rows.append([kind, *among, str(total), percent(float(gain[place]), "+")])
    return aligned(["detections that are", "of the top", "%", "of all", "mAP if mended"], rows, left=(0,))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}" if whole else "-"


def comparison_table(b: Breakdown) -> str:
    """A line per class from the greatest gain to the greatest loss, then the parts and the mean."""
    c = b.comparison
    assert c is not None
    known = [number for number in range(len(b.classes)) if not math.isnan(c.this[number])]
    known.sort(key=lambda number: c.other[number] - c.this[number])
    rows = [[b.names[n], percent(c.this[n]), percent(c.other[n]), *_interval(c.of_class(n))] for n in known]
    for name, mask in b.masks.items():
        this, other = (mean_known(ap[mask]) for ap in (c.this, c.other))
        rows.append([name, percent(this), percent(other), *_interval(c.of_mean(mask))])
    title = f"{c.confidence:.0%} interval"
    return aligned(["class", "AP, %", "other, %", "difference", title, ""], rows, left=(0,))


def _interval(interval: Interval) -> list[str]:
    span = f"{percent(interval.low, '+')} to {percent(interval.high, '+')}"
    return [percent(interval.value, "+"), span, "*" if interval.is_clear else ""]


def summary(b: Breakdown) -> dict[str, Any]:
    """What the JSON line says of it: shares in [0, 1], null for what does not exist."""
    result: dict[str, Any] = {
        "mAP": number_or_null(b.result.mean),
        "per_class": dict(zip(b.names, map(number_or_null, b.result.per_class.tolist()), strict=True)),
        "parts": {name: number_or_null(b.result.mean_of(mask)) for name, mask in b.parts.items()},
        "box_recall": {"mAP_ceiling": number_or_null(b.ceiling), "persons": number_or_null(b.person_recall)},
    }
    if b.errors is not None:
        result["errors"] = {name: _error_summary(b.errors, mask) for name, mask in b.masks.items()}
    if b.comparison is not None:
        c = b.comparison
        result["comparison"] = {
            "confidence": c.confidence,
            "resamples": len(c.draws),
            "videos": c.videos,
            "parts": {name: _plain(c.of_mean(mask)) for name, mask in b.masks.items()},
            "per_class": {name: _plain(c.of_class(number)) for number, name in enumerate(b.names)},
        }
    return result


def _error_summary(errors: ErrorKinds, mask: np.ndarray) -> dict[str, dict[str, float | None]]:
    gain = errors.mean_gain(mask).tolist()
    return {
        kind: {
            "top": int(errors.top[mask, place].sum()),
            "all": int(errors.everywhere[mask, place].sum()),
            "gain": number_or_null(gain[place]),
        }
        for place, kind in enumerate(KINDS)
    }


def _plain(interval: Interval) -> dict[str, float | None]:
    ends = {"difference": interval.value, "low": interval.low, "high": interval.high}
    return {name: number_or_null(value) for name, value in ends.items()}


def write_csv(path: Path, b: Breakdown) -> None:
    """Writes one row per class with all that is known of it; shares in [0, 1], empty cells for what does not exist."""
    frequency = {name: mask for name, mask in b.parts.items() if name not in group_masks(b.classes)}
    with whole_text(path) as file:
        writer: csv.DictWriter[str] | None = None
        for number, c in enumerate(b.classes):
            row: dict[str, Any] = {
                "id": c.id,
                "class": b.names[number],
                "group": b.group_of(number),
                "frequency": next((name for name, mask in frequency.items() if mask[number]), ""),
                "training_boxes": "" if b.training is None else int(b.training[number]),
                "boxes": int(b.result.instances[number]),
                "detections": int(b.result.detections[number]),
                "ap": _cell(b.result.per_class[number]),
                "box_recall": _cell(b.recall[number]),
                **_error_cells(b.errors, number),
                **_comparison_cells(b.comparison, number),
            }
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)


def _error_cells(errors: ErrorKinds | None, number: int) -> Mapping[str, Any]:
    if errors is None:
        return {}
    cells: dict[str, Any] = {"top_right": int(errors.right[number])}
    for place, kind in enumerate(KINDS):
        name = kind.replace(" ", "_")
        if kind in FALSE_POSITIVES:
            cells[f"top_{name}"] = int(errors.top[number, place])
        cells[f"all_{name}"] = int(errors.everywhere[number, place])
        cells[f"gain_{name}"] = _cell(errors.gain[number, place])
    return cells


def _comparison_cells(comparison: Comparison | None, number: int) -> Mapping[str, Any]:
    if comparison is None:
        return {}
    interval = comparison.of_class(number)
    return {
        "other_ap": _cell(comparison.other[number]),
        "difference": _cell(interval.value),
        "difference_low": _cell(interval.low),
        "difference_high": _cell(interval.high),
    }


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))
