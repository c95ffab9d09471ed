"""One example, from its shard to its clip: read, decode, cut, and what its boxes and labels are."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from data import sampling
from data.augment import draw_augmentation
from data.batch import Example, ExampleInfo, Substitute
from data.boxes import iou
from data.counters import timed
from data.crop import square, whole_frame
from data.decode import DecodeError, decode, decode_region
from data.errors import UserError
from data.sample_json import Keyframe, SampleError, class_label, frame_count, frame_size, read_keyframe, sample_key
from data.shards import Kind, ShardSet
from data.view import ViewConfig

T = TypeVar("T")

OUTAGES = (
    *(errno.EACCES, errno.EPERM),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN),
)
"""Errors of a file that say nothing about it: a substitute for its clips would change what is learned."""
PROPOSAL_IOU = 0.5
"""The overlap that lets a proposal take a person's labels in training: what the evaluation takes for a match."""


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
        try:
            self.view.check_kind(self.kind)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error


class BadSample(Exception):
    """A sample that cannot be used."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.substitute = Substitute(key, reason)


def load_example(task: TaskData, example: int, rng: np.random.Generator) -> Example:
    """Reads, decodes and cuts a random training view of one example.

    Raises:
        BadSample: the sample cannot be read, its record or video is bad, or it has no label to train on.
        UserError: the machine or the file system is at fault, here and below.
    """
    return _Source(task, example).load(lambda source: [source.train(rng)])[0]


def load_views(task: TaskData, example: int, time: int, spaces: Sequence[int]) -> list[Example]:
    """Evaluation views of one example: number `time` in time, numbers `spaces` in space.

    Raises:
        BadSample: the sample cannot be read, or its record or video is bad.
    """
    return _Source(task, example).load(lambda source: source.evaluate(time, spaces))


def load_record(task: TaskData, example: int) -> Keyframe:
    """The keyframe of one example of a localisation task; no video is read.

    Raises:
        BadSample: the sample cannot be read, or its record is bad.
    """
    return _Source(task, example).load(lambda source: source.record())


def load_keyframe(task: TaskData, example: int) -> tuple[Keyframe, np.ndarray]:
    """The keyframe of one example of a localisation task, and its frame as it was packed: uint8 [H, W, 3], RGB.

    Raises:
        BadSample: the sample cannot be read, or its record or video is bad.
    """
    return _Source(task, example).load(lambda source: source.keyframe())


class _Source:
    """One example's record, and what is made of it."""

    def __init__(self, task: TaskData, example: int) -> None:
        self.task, self.example, self.view = task, example, task.view
        self.classes = len(task.shards.manifest.classes)
        self.key = f"example {example}"

    def load(self, make: Callable[["_Source"], T]) -> T:
        try:
            self.sample = _read_json(self.task.shards, self.example)
            self.key = sample_key(self.sample)
            self.frames = frame_count(self.sample)
            return make(self)
        except (SampleError, DecodeError, OSError, RecursionError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno in OUTAGES:
                raise UserError(
                    f"{error.filename or self.task.shards.prefix}: {error.strerror}: this is the machine's or the file"
                    " system's doing, not the clip's, so the run stops here and can be resumed later"
                ) from error
            raise BadSample(self.key, " ".join(str(error).split())) from error

    def train(self, rng: np.random.Generator) -> Example:
        localised = self.task.kind == "localisation"
        keyframe = self.record() if localised else None
        label = -1 if localised else class_label(self.sample, self.classes)
        if keyframe is None and label < 0:
            raise SampleError("has no label to train on")
        indices = self._indices(keyframe, rng)
        drawn = draw_augmentation(self.view, self.task.kind, rng)
        region, crop = decode_region(self._video(), indices, self.frames, drawn.crop, frame_size(self.sample))
        with timed("view_s"):
            clip = drawn.clip(region, crop, self.view.image_size)
        example = self._example(clip, torch.tensor(label), indices)
        if keyframe is not None:
            boxes, box_labels = _trained(keyframe, self.view)
            boxes, visible = drawn.boxes(boxes, crop, self.view.image_size)
            kept = np.flatnonzero((visible >= self.view.min_visible) & (visible > 0))
            example.labels = _multi_hot([box_labels[row] for row in kept], self.classes)
            example.boxes = torch.from_numpy(boxes[kept].astype(np.float32))
        return example

    def evaluate(self, time: int, spaces: Sequence[int]) -> list[Example]:
        localised = self.task.kind == "localisation"
        keyframe = self.record() if localised else None
        label = torch.tensor(-1 if localised else class_label(self.sample, self.classes))
        indices = self._indices(keyframe, None, time)
        # One view alone may be cut in the decoder; several come from the same frames.
        video, size = self._video(), frame_size(self.sample)
        rules = [whole_frame if localised else square(space, self.view.eval_views[1]) for space in spaces]
        if len(rules) == 1:
            parts = [decode_region(video, indices, self.frames, rules[0], size)]
        else:
            whole = decode(video, indices, self.frames)
            crops = [rule(*whole.shape[-2:]) for rule in rules]
            parts = [(crop.cut(whole), crop) for crop in crops]
        with timed("view_s"):
            clips = [crop.resize(region, self.view.image_size) for region, crop in parts]
        examples = [self._example(clip, label, indices) for clip in clips]
        if keyframe is not None:
            for example, (_, crop) in zip(examples, parts, strict=True):
                example.info = info = _evaluated(keyframe, self.view)
                boxes, _ = crop.boxes_to_view(info.boxes)
                example.boxes = torch.from_numpy(boxes.astype(np.float32))
                if self.view.eval_boxes == "groundtruth":
                    example.labels = _multi_hot(keyframe.labels, self.classes)
                else:
                    example.labels = torch.full((len(boxes), self.classes), torch.nan)
        return examples

    def keyframe(self) -> tuple[Keyframe, np.ndarray]:
        found = self.record()
        frames = decode(self._video(), np.array([found.frame]), self.frames)
        return found, frames[0].permute(1, 2, 0).contiguous().numpy()

    def record(self) -> Keyframe:
        item = int(self.task.shards.index[self.example]["item"])
        return read_keyframe(self.sample, item, self.task.shards.dense)

    def _indices(self, keyframe: Keyframe | None, rng: np.random.Generator | None, time: int = 0) -> np.ndarray:
        view, times = self.view, (time, self.view.eval_views[0])
        if keyframe is not None:
            return sampling.around_keyframe(self.frames, keyframe.frame, view.num_frames, view.stride)
        if view.sampling == "segments":
            return sampling.segments(self.frames, view.num_frames, rng, times)
        return sampling.dense(self.frames, view.num_frames, view.stride, rng, times)

    @timed("read_s")
    def _video(self) -> bytes:
        return self.task.shards.read_video(self.example)

    def _example(self, clip: Tensor, labels: Tensor, indices: np.ndarray) -> Example:
        localised, segments = self.task.kind == "localisation", self.view.sampling == "segments"
        padded = sampling.padded(indices, 1 if segments and not localised else self.view.stride)
        return Example(self.task.name, self.key, self.example, clip, labels, padded=padded)


@timed("read_s")
def _read_json(shards: ShardSet, example: int) -> dict[str, Any]:
    try:
        return shards.read_json(example)
    except UserError:
        raise
    except ValueError as error:
        raise SampleError(f"its record is not JSON: {error}") from error


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
    overlaps = iou(proposals, keyframe.boxes)
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
