"""Records: a JSON file per finished run, all that the report is made of, and how the trainer's own files become one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.reproduce.protocol import HEAD, TAIL
from data.errors import UserError
from train.ava_classes import frequency_masks
from train.ava_inputs import read_files
from train.compare import draw_videos, resampled
from train.frame_map import DEFAULT_PROTOCOL, PROTOCOLS, match

RESAMPLES = 500
"""Draws of the test movies, the same ones for every run, so that two runs can be compared draw by draw."""
PARTS = ("head", "mid", "tail")

Record = dict[str, Any]
Curves = dict[str, list[list[float]]]


def read_record(path: Path) -> Record:
    """Raises UserError where the file is no record."""
    try:
        record: Record = json.loads(path.read_text())
        if not {"identity", "regime", "seed", "trial", "setting"} <= record.keys():
            raise ValueError("keys are missing")
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no record of a run ({error}): delete it, and the call that made it makes it again"
        ) from error
    return record


def read_curves(training: Path) -> Curves:
    """Name -> [step, value] points of a training: losses, evaluations on `tune`, gradients where a recipe asks."""
    events = EventAccumulator(str(training / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [[event.step, float(f"{event.value:.5g}")] for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if tag.startswith(("loss/", "gradients/")) or tag.endswith(("/mAP", "/top1"))
    }


def read_test(training: Path) -> dict[str, dict[str, Any]]:
    """What train/evaluate.py wrote of each task, less what no report needs."""
    tasks = json.loads((training / "eval" / "metrics.json").read_text())["tasks"]
    kept = ("metrics", "chance", "per_class", "training_counts", "counts")
    return {task: {key: own[key] for key in kept if key in own} for task, own in tasks.items()}


def read_resamples(training: Path, task: str, counts: Mapping[str, int], cutoffs: tuple[int, int]) -> dict[str, Any]:
    """mAP of a localisation task, over all classes and over head, mid and tail, in each of RESAMPLES draws of movies.

    Args:
        counts: class id (as text) -> labelled boxes in training.
    """
    folder = training / "eval"
    names = ("groundtruth.csv", "detections.csv", "labelmap.pbtxt")
    files = read_files(*(str(folder / f"{task}_{name}") for name in names))
    matches = match(
        files.groundtruth, files.detections, len(files.classes), PROTOCOLS[DEFAULT_PROTOCOL], named=files.named
    )
    chosen = np.unique(files.videos[files.named])
    number = np.full(len(files.videos), -1)
    number[chosen] = np.arange(len(chosen))
    aps = resampled(matches, number[files.videos], draw_videos(len(chosen), RESAMPLES, seed=0))
    trained = np.array([counts.get(str(c.id), 0) for c in files.classes])
    masks = dict(zip(PARTS, frequency_masks(trained, cutoffs).values(), strict=True))
    masks["all"] = np.ones(len(files.classes), dtype=bool)
    means = {}
    for name, mask in masks.items():
        own = aps[:, mask]
        there = ~np.isnan(own)
        mean = np.where(there, own, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        means[name] = [float(f"{value:.5f}") for value in mean] if mask.any() else []
    return {"movies": len(chosen), "mAP": means}


def tuned_score(record: Record) -> float:
    """What a trial is chosen by: AVA's mAP on `tune`, or for a regime without AVA its top-1 accuracy."""
    ends = {name: points[-1][1] for name, points in record["curves"][-1].items()}
    return ends["ava/mAP"] if "ava/mAP" in ends else next(v for name, v in ends.items() if name.endswith("/top1"))


def final_metric(record: Record, task: str, metric: str) -> float:
    """A figure of the final model on `heldout`, a share; NaN where it has none. `metric` may be head, mid or tail."""
    metrics = record["test"].get(task, {}).get("metrics", {})
    if metric in PARTS:
        metric = next((name for name in metrics if name.startswith(f"mAP/{metric} ")), metric)
    value = metrics.get(metric)
    return float("nan") if value is None else float(value)


def before_transfer(record: Record) -> Record:
    """The record with the test of the training before its last one, if there is one: the last has no upstream heads."""
    return {**record, "test": record["test_before_transfer"]} if len(record["steps"]) > 1 else record


def part_masks(record: Record) -> dict[str, list[str]]:
    """head, mid and tail -> names of AVA's classes that have ground truth in the test, and all of them as `all`."""
    own = record["test"]["ava"]
    # training_counts goes by class id, per_class by name; both in the order of the classes.
    counts = dict(zip(own["per_class"], own["training_counts"].values(), strict=True))
    names = np.array([name for name, ap in own["per_class"].items() if ap is not None])
    masks = frequency_masks(np.array([counts[name] for name in names]), (TAIL, HEAD)).values()
    return {part: names[mask].tolist() for part, mask in zip(PARTS, masks, strict=True)} | {"all": names.tolist()}


def mean_ap(record: Record, names: list[str]) -> float:
    """The mean AP of some of AVA's classes."""
    per_class = record["test"]["ava"]["per_class"]
    return sum(per_class[name] for name in names) / len(names) if names else float("nan")


def headline(record: Record) -> str:
    """A run's own score in words."""
    if record["trial"]:
        return f"{100 * tuned_score(record):.1f} on tune"
    task = "ava" if "ava" in record["test"] else next(iter(record["test"]))
    metric = "mAP" if task == "ava" else "top1"
    return f"{task} {metric} {100 * final_metric(record, task, metric):.1f}"
