"""Evaluates a localisation task: AVA's frame mAP of the model's scores on the person boxes of each keyframe."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from data.ava_files import Keyframe
from data.batch import PADDING, ExampleInfo, Substitute
from data.dataset import TaskData
from data.shards import ClassInfo
from train.ava_classes import group_masks, is_evaluated
from train.breakdown import box_recall, number_or_null, unique_names
from train.evaluators.collected import Arrays, Collected, joined
from train.evaluators.common import Result, Settings, evaluation_mode, forward
from train.evaluators.keyframe_boxes import DECIMALS, KeyframeBoxes
from train.frame_map import DEFAULT_PROTOCOL, PROTOCOLS, FrameBoxes, FrameMap, frame_map
from train.launch import Rank

CHANCE_DRAWS = 5
"""Number of times that random scores are drawn for the chance level, which is the mean of their mAPs."""

_OFFICIAL = PROTOCOLS[DEFAULT_PROTOCOL]
_METRICS = {"mAP": _OFFICIAL, "mAP_no_cap": replace(_OFFICIAL, max_per_image=0)}


def evaluated_classes(data: TaskData) -> np.ndarray:
    """int64 [E]: logit indices of the classes that are averaged."""
    return np.flatnonzero(is_evaluated(data.shards.manifest.classes))


def columns(data: TaskData) -> Arrays:
    """What is collected: per example its number, keyframe and counts; then per evaluated box, per person, per label."""
    whole = np.zeros(0, np.int64)
    return {
        "example": whole,
        "video": np.zeros(0, "<U1"),
        "timestamp": np.zeros(0),
        "box_count": whole,
        "person_count": whole,
        "boxes": np.zeros((0, 4)),
        "scores": np.zeros((0, len(evaluated_classes(data))), np.float32),
        "person_boxes": np.zeros((0, 4)),
        "label_count": whole,
        "labels": whole,
    }


def evaluate(model: nn.Module, data: TaskData, collected: Collected, rank: Rank, settings: Settings) -> Result:
    """Runs `model` on this rank's batches, and takes the metrics over those of all ranks; called on every rank.

    Args:
        collected: with `columns`; examples that are in it already are in no batch.

    Returns:
        metrics mAP (the official protocol of 2020, at most 50 rows of a keyframe), mAP_no_cap (all rows), box_recall
        (the share of persons that an evaluated box covers with IoU >= 0.5) and, for AVA's own classes, the mean over
        each group of classes. Of AVA's 80 classes the 60 of the benchmark count. The chance level is that of random
        scores on the same boxes.
    """
    evaluated = evaluated_classes(data)
    failures: list[Substitute] = []
    with evaluation_mode(model):
        for batch in settings.batches:
            assert batch.box_clip is not None
            scores = forward(model, batch, rank, settings.bf16).sigmoid().numpy()[:, evaluated]
            clips = np.bincount(batch.box_clip.numpy(), minlength=len(batch))
            there = np.flatnonzero(batch.examples.numpy() != PADDING)
            of_clip = np.split(scores, np.cumsum(clips)[:-1])
            infos, own = [batch.infos[i] for i in there], [of_clip[i] for i in there]
            collected.add(_columns_of(batch.examples.numpy()[there], infos, own, columns(data)))
            failures += batch.substitutes
    collected.write()
    parts = rank.gather((collected.all(), failures))
    lost = [bad for _, own in parts for bad in own]
    # Scoring takes a gigabyte for all of AVA, so one rank does it.
    result = rank.together(
        lambda: (
            _score(merge(joined([arrays for arrays, _ in parts]), evaluated), lost, data, settings.chance)
            if rank.first
            else None
        )
    )
    told = rank.gather(None if result is None else replace(result, boxes=None, frame_map=None))[0]
    assert told is not None
    return result or told


def metric_names(classes: Sequence[ClassInfo]) -> tuple[str, ...]:
    """Names of the metrics of a set of these classes by which models can be chosen: more is better."""
    evaluated = [c for c, counts in zip(classes, is_evaluated(classes), strict=True) if counts]
    return (*_METRICS, *(f"mAP/{name}" for name in group_masks(evaluated)))


def _columns_of(examples: np.ndarray, infos: list[ExampleInfo], scores: list[np.ndarray], none: Arrays) -> Arrays:
    people = [labels for info in infos for labels in info.gt_labels]
    return {
        "example": examples,
        "video": np.array([info.video_id for info in infos], dtype=np.str_),
        "timestamp": np.array([info.timestamp for info in infos], dtype=np.float64),
        "box_count": np.array([len(info.boxes) for info in infos], dtype=np.int64),
        "person_count": np.array([len(info.gt_boxes) for info in infos], dtype=np.int64),
        "boxes": np.concatenate([none["boxes"], *(info.boxes for info in infos)]),
        "scores": np.concatenate([none["scores"], *scores]),
        "person_boxes": np.concatenate([none["person_boxes"], *(info.gt_boxes for info in infos)]),
        "label_count": np.array([len(labels) for labels in people], dtype=np.int64),
        "labels": np.array([label for labels in people for label in labels], dtype=np.int64),
    }


def _score(boxes: KeyframeBoxes, failures: list[Substitute], data: TaskData, chance: bool) -> Result:
    classes = [data.shards.manifest.classes[index] for index in boxes.evaluated]
    truth = boxes.groundtruth()

    def measure(detections: FrameBoxes) -> dict[str, FrameMap]:
        named = np.arange(len(boxes.keyframes))
        return {
            name: frame_map(truth, detections, len(classes), protocol, named=named)
            for name, protocol in _METRICS.items()
        }

    measured = measure(boxes.detections())
    metrics = {name: result.mean for name, result in measured.items()}
    covered = box_recall(boxes.truth.distinct(), boxes.plain_boxes())
    metrics["box_recall"] = float(covered.mean()) if len(covered) else float("nan")
    metrics |= {f"mAP/{name}": measured["mAP"].mean_of(mask) for name, mask in group_masks(classes).items()}
    draws = []
    for seed in range(CHANCE_DRAWS if chance else 0):
        scores = np.random.default_rng(seed).random(boxes.scores.shape)
        draws.append({name: result.mean for name, result in measure(boxes.detections(scores)).items()})
    per_class = map(number_or_null, measured["mAP"].per_class.tolist())
    return Result(
        metrics=metrics,
        chance={name: float(np.mean([draw[name] for draw in draws])) for name in _METRICS if draws},
        counts={
            "examples": len(boxes.keyframes),
            "boxes": len(boxes.boxes),
            "groundtruth_rows": len(truth),
            "classes": int((measured["mAP"].instances > 0).sum()),
        },
        per_class=dict(zip(unique_names(classes), per_class, strict=True)),
        failures=failures,
        boxes=boxes,
        frame_map=measured["mAP"],
    )


def merge(rows: Arrays, evaluated: np.ndarray) -> KeyframeBoxes:
    """All ranks' keyframes in the order of the set's examples, whoever has seen them."""
    order = np.argsort(rows["example"], kind="stable")
    numbers: dict[Keyframe, int] = {}
    names, times = rows["video"][order].tolist(), np.round(rows["timestamp"][order], 6).tolist()
    frames = np.array([numbers.setdefault(key, len(numbers)) for key in zip(names, times, strict=True)], np.int64)
    of_box = _runs(rows["box_count"], order)
    of_person = _runs(rows["person_count"], order)
    labels = rows["label_count"][of_person]
    of_label = _runs(rows["label_count"], of_person)
    person_frames = np.repeat(frames, rows["person_count"][order])
    return KeyframeBoxes(
        keyframes=list(numbers),
        frames=np.repeat(frames, rows["box_count"][order]),
        boxes=np.round(rows["boxes"][of_box], DECIMALS),
        scores=rows["scores"][of_box],
        evaluated=evaluated,
        truth=FrameBoxes(
            frames=np.repeat(person_frames, labels),
            boxes=np.round(np.repeat(rows["person_boxes"][of_person], labels, axis=0), DECIMALS),
            classes=rows["labels"][of_label],
        ),
    )


def _runs(counts: np.ndarray, order: np.ndarray) -> np.ndarray:
    """int64: the rows of the groups in `order`, where group g has counts[g] rows and groups lie one after the other."""
    starts, sizes = (np.cumsum(counts) - counts)[order], counts[order]
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
