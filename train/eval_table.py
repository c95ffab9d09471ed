"""What an evaluation prints: a table of its figures, and notes on what they are not."""

import math
from collections.abc import Sequence

from train.evaluators import Result
from train.tasks import Task

SHOWN_FAILURES = 5


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


def not_comparable(tasks: Sequence[Task], limit: int | None) -> list[str]:
    """Notes on figures that are not those of the whole set and of detected boxes."""
    notes = [] if limit is None else [f"note: of each task {limit} examples at most, as --limit says"]
    for task in tasks:
        assert task.val is not None
        if task.recipe.kind == "localisation" and task.val.view.eval_boxes == "groundtruth":
            notes.append(f"note: {task.name}: on the ground truth's boxes, what a perfect detector would give")
    return notes


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
