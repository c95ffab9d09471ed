"""Evaluates a localisation task: AVA's frame mAP of the model's scores on the person boxes of each keyframe."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
from torch import nn

from data.ava_files import Keyframe
from data.batch import PADDING, Batch, ExampleInfo, Substitute
from data.dataset import TaskData
from train.ava_classes import group_masks, is_evaluated
from train.breakdown import number_or_null, unique_names
from train.evaluators.common import Result, evaluation_mode, forward, progress
from train.evaluators.keyframe_boxes import DECIMALS, KeyframeBoxes
from train.frame_map import DEFAULT_PROTOCOL, PROTOCOLS, FrameBoxes, FrameMap, frame_map
from train.launch import Rank

CHANCE_DRAWS = 5
"""Number of times that random scores are drawn for the chance level, which is the mean of their mAPs."""

_OFFICIAL = PROTOCOLS[DEFAULT_PROTOCOL]
_METRICS = {"mAP": _OFFICIAL, "mAP_no_cap": replace(_OFFICIAL, max_per_image=0)}


@dataclass
class Part:
    """What one rank has seen, by example."""

    examples: list[int] = field(default_factory=list)
    infos: list[ExampleInfo] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    failures: list[Substitute] = field(default_factory=list)


def evaluate(
    model: nn.Module, data: TaskData, loader: Iterable[Batch], rank: Rank, bf16: bool = False, chance: bool = True
) -> Result:
    """Runs `model` on this rank's batches, and takes the metrics over those of all ranks; called on every rank.

    Args:
        loader: batches in which every example of the set stands once over all ranks, padding aside.
        chance: whether to work out the chance level: random scores on the same boxes.

    Returns:
        metrics mAP (the official protocol of 2020, at most 50 rows of a keyframe), mAP_no_cap (all rows) and, for
        AVA's own classes, the mean over each group of classes. Of AVA's 80 classes the 60 of the benchmark count.
    """
    evaluated = np.flatnonzero(is_evaluated(data.shards.manifest.classes))
    part = Part()
    with evaluation_mode(model):
        for batch in progress(loader, rank, data.name):
            assert batch.box_clip is not None
            scores = forward(model, batch, rank, bf16).sigmoid().numpy()[:, evaluated]
            clips = np.bincount(batch.box_clip.numpy(), minlength=len(batch))
            for example, info, own in zip(
                batch.examples.tolist(), batch.infos, np.split(scores, np.cumsum(clips)[:-1]), strict=True
            ):
                if example != PADDING:
                    part.examples.append(example)
                    part.infos.append(info)
                    part.scores.append(own)
            part.failures += batch.substitutes
    parts = rank.gather(part)
    # Scoring takes a minute and a gigabyte for all of AVA, so one rank does it.
    result = rank.together(lambda: _score(parts, evaluated, data, chance) if rank.first else None)
    told = rank.gather(None if result is None else replace(result, boxes=None))[0]
    assert told is not None
    return result or told


def _score(parts: list[Part], evaluated: np.ndarray, data: TaskData, chance: bool) -> Result:
    boxes = merge(parts, evaluated)
    classes = [data.shards.manifest.classes[index] for index in evaluated]
    truth = boxes.groundtruth()

    def measure(detections: FrameBoxes) -> dict[str, FrameMap]:
        named = np.arange(len(boxes.keyframes))
        return {
            name: frame_map(truth, detections, len(classes), protocol, named=named)
            for name, protocol in _METRICS.items()
        }

    measured = measure(boxes.detections())
    metrics = {name: result.mean for name, result in measured.items()}
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
        failures=[bad for part in parts for bad in part.failures],
        boxes=boxes,
    )


def merge(parts: list[Part], evaluated: np.ndarray) -> KeyframeBoxes:
    """All ranks' keyframes in the order of the set's examples, whoever has seen them."""
    examples = np.array([example for part in parts for example in part.examples], dtype=np.int64)
    infos = [info for part in parts for info in part.infos]
    scores = [own for part in parts for own in part.scores]
    order = np.argsort(examples).tolist()
    numbers: dict[Keyframe, int] = {}
    frames = [numbers.setdefault(_keyframe(infos[i]), len(numbers)) for i in order]
    found = [infos[i].boxes for i in order]
    truth = [
        (frame, box, label)
        for frame, i in zip(frames, order, strict=True)
        for box, labels in zip(infos[i].gt_boxes, infos[i].gt_labels, strict=True)
        for label in labels
    ]
    return KeyframeBoxes(
        keyframes=list(numbers),
        frames=np.repeat(np.array(frames, dtype=np.int64), [len(boxes) for boxes in found]),
        boxes=np.round(np.concatenate([np.zeros((0, 4)), *found]), DECIMALS),
        scores=np.concatenate([np.zeros((0, len(evaluated)), np.float32), *(scores[i] for i in order)]),
        evaluated=evaluated,
        truth=FrameBoxes(
            frames=np.array([frame for frame, _, _ in truth], dtype=np.int64),
            boxes=np.round(np.array([box for _, box, _ in truth]).reshape(-1, 4), DECIMALS),
            classes=np.array([label for _, _, label in truth], dtype=np.int64),
        ),
    )


def _keyframe(info: ExampleInfo) -> Keyframe:
    return info.video_id, round(info.timestamp, 6)
