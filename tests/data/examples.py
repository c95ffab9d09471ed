"""Examples of small sets, asked for by address."""

from pathlib import Path

import torch

from data.dataset import EvalDataset, MixtureDataset, TaskData
from data.shards import ClassInfo, ShardSet
from data.view import ViewConfig
from tests.tiny_shards import video_record, write_set

VIEW = ViewConfig(num_frames=4, stride=3, image_size=64, color_jitter=0.2)
CLASSES = [ClassInfo(1, "stand"), ClassInfo(3, "sit"), ClassInfo(7, "run")]


class Counting:
    """The order in which position and example are the same."""

    def __init__(self, size: int) -> None:
        self.size = size

    def example(self, position: int) -> int:
        return position % self.size


def mixture(*tasks, seed=0):
    return MixtureDataset(tasks, [Counting(len(task.shards)) for task in tasks], seed)


def task(shards, name=None, **changes):
    return TaskData(
        name or shards.manifest.dataset, shards.manifest.kind, shards, ViewConfig(**{**vars(VIEW), **changes})
    )


def evaluated(task, example):
    return EvalDataset(task)[example]


def record(key, label=0, frames=38):
    return {"key": key, "label": label, "video": video_record(frames)}


def keyframe_set(folder: Path, video: bytes, **fields) -> ShardSet:
    """A set of one sample of one keyframe at frame 20, which `fields` change."""
    keyframe = {"timestamp": 902.0, "frame": 20, "boxes": [], "labels": [], "person_ids": [], "proposals": [], **fields}
    sample = {"key": "movie", "video_id": "movie", "video": video_record(38), "keyframes": [keyframe]}
    return write_set(folder, "ava", "train", "localisation", CLASSES, [(sample, video)])


def same(one, other) -> bool:
    boxes = (one.boxes is None and other.boxes is None) or torch.equal(one.boxes, other.boxes)
    named = (one.task, one.key, one.example, one.substitutes) == (
        other.task,
        other.key,
        other.example,
        other.substitutes,
    )
    return named and boxes and torch.equal(one.clip, other.clip) and torch.equal(one.labels, other.labels)
