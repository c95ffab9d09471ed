"""Examples by number, for training and for evaluation; a bad sample is replaced or reported, never fatal."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data import augment, sampling
from data.batch import PADDING, Example, ExampleInfo, Substitute
from data.counters import count, timed
from data.decode import DecodeError, decode
from data.errors import UserError
from data.sample_json import Keyframe, SampleError, class_label, frame_count, read_keyframe, sample_key
from data.shards import Kind, ShardSet
from data.view import ViewConfig

ATTEMPTS = 8
"""How many substitutes are tried for one bad sample. All of them bad means that most of the set is."""

PROPOSAL_IOU = 0.5
"""The overlap that lets a proposal take a person's labels in training: what the evaluation takes for a match."""


class Order(Protocol):
    """Where a task's training examples come from, position by position."""

    def example(self, position: int) -> int: ...


@dataclass(frozen=True)
class TaskData:
    """The data of one task: where its shards are and how clips are cut from them."""

    name: str
    kind: Kind
    shards: ShardSet
    view: ViewConfig

    def __post_init__(self) -> None:
        if self.shards.manifest.kind != self.kind:
            raise UserError(
                f"{self.name}: is a {self.kind} task, {self.shards.prefix} holds {self.shards.manifest.kind}"
            )
        if not len(self.shards):
            raise UserError(f"{self.name}: {self.shards.prefix} holds no examples")


class BadSample(Exception):
    """A sample that cannot be used."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.substitute = Substitute(key, reason)


class MixtureDataset(Dataset[Example]):
    """The training examples of all tasks, addressed by (task index, position in the task's order).

    What an address holds is a function of it, the seed and the task's name alone: not of the other tasks, nor of
    which process asks, nor of what was asked before.

    Args:
        tasks: with distinct names.
        orders: one for each task.
        seed: at least 0.
    """

    def __init__(self, tasks: Sequence[TaskData], orders: Sequence[Order], seed: int) -> None:
        assert len(tasks) == len(orders)
        if len({task.name for task in tasks}) < len(tasks):
            raise UserError(f"tasks need distinct names, not {[task.name for task in tasks]}")
        if seed < 0:
            raise UserError(f"seed: must be at least 0, not {seed}")
        self.tasks = list(tasks)
        self.orders = list(orders)
        self.seed = seed

    def __getitem__(self, index: tuple[int, int]) -> Example:
        """The example at an address, or its substitute, the same one each time.

        Raises:
            UserError: neither the sample nor any of ATTEMPTS substitutes can be used.
        """
        number, position = index
        task = self.tasks[number]
        example = self.orders[number].example(position)
        substitutes: list[Substitute] = []
        for attempt in range(ATTEMPTS + 1):
            rng = self._rng(task.name, position, attempt)
            if attempt:
                example = int(rng.integers(len(task.shards)))
            try:
                loaded = load_example(task, example, rng)
            except BadSample as bad:
                substitutes.append(bad.substitute)
            else:
                loaded.substitutes = substitutes
                return loaded
        raise UserError(
            f"{task.name}: {len(substitutes)} samples of {task.shards.prefix} in a row could not be used, the last one"
            f" is {substitutes[-1].key}: {substitutes[-1].reason}; check the shards with shard_tools/verify.py --decode"
        )

    def _rng(self, task: str, position: int, attempt: int) -> np.random.Generator:
        entropy = (self.seed, zlib.crc32(task.encode()), position)
        return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(attempt,)))


class EvalDataset(Dataset[Example]):
    """The examples of one task by number, with the evaluation's view; PADDING gives an example that counts nowhere."""

    def __init__(self, task: TaskData) -> None:
        self.task = task

    def __len__(self) -> int:
        return len(self.task.shards)

    def __getitem__(self, example: int) -> Example:
        """Example number `example`. A bad sample comes back as padding that carries the reason in `substitutes`."""
        if example == PADDING:
            return self._padding()
        try:
            return load_example(self.task, example)
        except BadSample as bad:
            return self._padding(bad.substitute)

    def _padding(self, *substitutes: Substitute) -> Example:
        view, classes = self.task.view, len(self.task.shards.manifest.classes)
        localised = self.task.kind == "localisation"
        return Example(
            task=self.task.name,
            key="",
            example=PADDING,
            clip=torch.zeros(3, view.num_frames, view.image_size, view.image_size, dtype=torch.uint8),
            labels=torch.zeros(0, classes) if localised else torch.tensor(-1),
            boxes=torch.zeros(0, 4) if localised else None,
            info=ExampleInfo.padding() if localised else None,
            substitutes=list(substitutes),
        )


def load_example(task: TaskData, example: int, rng: np.random.Generator | None = None) -> Example:
    """Reads, decodes and cuts one example: a random training view where `rng` is given, else the evaluation's.

    Raises:
        BadSample: the sample cannot be read, its record or video is bad, or it has no label to train on.
    """
    key = f"example {example}"
    try:
        sample = _read_json(task.shards, example)
        key = sample_key(sample)
        if task.kind == "localisation":
            item = int(task.shards.index[example]["item"])
            return _localise(task, example, key, sample, read_keyframe(sample, item, task.shards.dense), rng)
        return _classify(task, example, key, sample, rng)
    except (SampleError, DecodeError, OSError, RecursionError) as error:
        raise BadSample(key, " ".join(str(error).split())) from error


@timed("read_s")
def _read_video(shards: ShardSet, example: int) -> bytes:
    video = shards.read_video(example)
    count(read_bytes=len(video))
    return video


@timed("read_s")
def _read_json(shards: ShardSet, example: int) -> dict[str, Any]:
    try:
        return shards.read_json(example)
    except UserError:
        raise
    except ValueError as error:
        raise SampleError(f"its record is not JSON: {error}") from error


def _classify(
    task: TaskData, example: int, key: str, sample: Mapping[str, Any], rng: np.random.Generator | None
) -> Example:
    view, frames = task.view, frame_count(sample)
    label = class_label(sample, len(task.shards.manifest.classes))
    if rng is not None and label < 0:
        raise SampleError("has no label to train on")
    if view.sampling == "segments":
        indices = sampling.segments(frames, view.num_frames, rng)
    else:
        indices = sampling.dense(frames, view.num_frames, view.stride, rng)
    pixels = decode(_read_video(task.shards, example), indices, frames)
    _count_padding(indices, 1 if view.sampling == "segments" else view.stride)
    height, width = pixels.shape[-2:]
    if rng is None:
        crop = augment.centre_square(height, width)
    else:
        crop = augment.random_crop(height, width, view.scale, view.flip, keep_aspect=False, rng=rng)
    return Example(task.name, key, example, _cut(pixels, crop, view, rng), labels=torch.tensor(label))


def _localise(
    task: TaskData,
    example: int,
    key: str,
    sample: Mapping[str, Any],
    keyframe: Keyframe,
    rng: np.random.Generator | None,
) -> Example:
    view, frames, classes = task.view, frame_count(sample), len(task.shards.manifest.classes)
    indices = sampling.around_keyframe(frames, keyframe.frame, view.num_frames, view.stride)
    pixels = decode(_read_video(task.shards, example), indices, frames)
    _count_padding(indices, view.stride)
    height, width = pixels.shape[-2:]
    if rng is None:
        crop = augment.whole_frame(height, width)
        info = _evaluated(keyframe, view)
        boxes, _ = crop.boxes_to_view(info.boxes)
        if view.eval_boxes == "groundtruth":
            labels = _multi_hot(keyframe.labels, classes)
        else:
            labels = torch.full((len(boxes), classes), torch.nan)
    else:
        crop = augment.random_crop(height, width, view.scale, view.flip, keep_aspect=True, rng=rng)
        info = None
        boxes, box_labels = _trained(keyframe, view)
        boxes, visible = crop.boxes_to_view(boxes)
        kept = np.flatnonzero(visible >= augment.MIN_VISIBLE)
        boxes, labels = boxes[kept], _multi_hot([box_labels[row] for row in kept], classes)
    return Example(
        task.name,
        key,
        example,
        _cut(pixels, crop, view, rng),
        labels=labels,
        boxes=torch.from_numpy(boxes.astype(np.float32)),
        info=info,
    )


def _count_padding(indices: np.ndarray, step: int) -> None:
    """Counts a clip whose frames are somewhere closer to each other than `step`: its video was too short."""
    count(padded_clips=bool((np.diff(indices) < step).any()))


@timed("view_s")
def _cut(pixels: Tensor, crop: augment.Crop, view: ViewConfig, rng: np.random.Generator | None) -> Tensor:
    """uint8 [T, 3, H, W] -> uint8 [3, T, image_size, image_size]."""
    clip = crop.apply(pixels, view.image_size)
    if rng is None or not view.color_jitter:
        return clip
    return augment.adjust_color(clip, *augment.draw_color(view.color_jitter, rng))


def _evaluated(keyframe: Keyframe, view: ViewConfig) -> ExampleInfo:
    if view.eval_boxes == "groundtruth":
        boxes, scores = keyframe.boxes, np.ones(len(keyframe.boxes))
    else:
        chosen = keyframe.proposals[keyframe.proposals[:, 4] >= view.proposal_score_threshold]
        boxes, scores = chosen[:, :4], chosen[:, 4]
    return ExampleInfo(keyframe.video_id, keyframe.timestamp, boxes, scores, keyframe.boxes, keyframe.labels)


def _trained(keyframe: Keyframe, view: ViewConfig) -> tuple[np.ndarray, list[list[int]]]:
    """Boxes [k, 4] of the frame and their labels: ground truth, then the proposals that share a person's labels."""
    if view.train_proposals is None or not len(keyframe.boxes):
        return keyframe.boxes, keyframe.labels
    proposals = keyframe.proposals[keyframe.proposals[:, 4] >= view.train_proposals][:, :4]
    overlaps = augment.iou(proposals, keyframe.boxes)
    person = overlaps.argmax(axis=1)
    matched = np.flatnonzero(overlaps.max(axis=1) >= PROPOSAL_IOU)
    labels = keyframe.labels + [keyframe.labels[person[row]] for row in matched]
    return np.concatenate([keyframe.boxes, proposals[matched]]), labels


def _multi_hot(labels: Sequence[Sequence[int]], classes: int) -> Tensor:
    """float32 [len(labels), classes]"""
    hot = torch.zeros(len(labels), classes)
    for row, indices in enumerate(labels):
        hot[row, list(indices)] = 1
    return hot
