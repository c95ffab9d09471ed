"""One example and a micro-batch of them, as the training loop and the evaluators get them.

Shapes: B clips, T frames of H x W, K boxes in all clips together, C classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, UntypedStorage

from data.shared_buffers import Slot, free_when_unused

PADDING = -1
"""The example number of a clip that stands for no example."""


@dataclass(frozen=True)
class Substitute:
    """A sample that could not be used: its key (or `example N` where its record is unreadable), and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class ExampleInfo:
    """What an evaluator needs to know of one keyframe, in the terms of the dataset's files.

    `boxes` float64 [k, 4] are x1 y1 x2 y2 in [0, 1] of the whole frame, in the order of the clip's rows in
    `Batch.boxes`, with `scores` float64 [k] (1 for ground truth). `gt_boxes` float64 [g, 4] and `gt_labels` (logit
    indices per box) are the ground truth. `timestamp` is the keyframe's second in the whole video.
    """

    video_id: str
    timestamp: float
    boxes: np.ndarray
    scores: np.ndarray
    gt_boxes: np.ndarray
    gt_labels: list[list[int]]

    @classmethod
    def padding(cls) -> "ExampleInfo":
        return cls("", float("nan"), np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)), [])


@dataclass
class Example:
    """One clip with its labels.

    `clip` is uint8 [3, T, H, W], in any memory format. `labels` is int64 [] for classification, or float32 [C] where
    clips are mixed; float32 [k, C] for localisation, where `boxes` is float32 [k, 4] in [0, 1] of the view; k may be 0.
    The rest is as in `Batch`.
    """

    task: str
    key: str
    example: int
    clip: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    info: ExampleInfo | None = None
    substitutes: list[Substitute] = field(default_factory=list)
    padded: int = 0


@dataclass
class Batch:
    """Clips of one task.

    Args:
        task: name of the task.
        clips: uint8 [B, 3, T, H, W], RGB. Straight from the loader channels are last in memory, as the decoder lays
            them out; `to` puts them first, which is for a device to do.
        keys: keys of the B samples, empty for padding.
        examples: int64 [B], example numbers; PADDING where a clip stands for no example.
        labels: classification: int64 [B], logit index, -1 where there is none; float32 [B, C] that sum to 1 for a task
            whose clips are mixed in training. Localisation: float32 multi-hot [K, C]; NaN where unknown, which is so
            for the proposals of an evaluation.
        boxes: localisation: float32 [K, 4], x1 y1 x2 y2 in [0, 1] of the view, clip by clip.
        box_clip: localisation: int64 [K], which of the B clips a box belongs to, ascending.
        infos: localisation in evaluation: one for each clip; otherwise empty.
        substitutes: samples that could not be used while this batch was put together.
        counts: what loading this batch cost (see data/counters.py).
        slot: while a worker sends the batch, the shared buffer that `clips` lies in.
    """

    task: str
    clips: Tensor
    keys: list[str]
    examples: Tensor
    labels: Tensor
    boxes: Tensor | None = None
    box_clip: Tensor | None = None
    infos: list[ExampleInfo] = field(default_factory=list)
    substitutes: list[Substitute] = field(default_factory=list)
    counts: dict[str, float] = field(default_factory=dict)
    slot: Slot | None = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.slot is not None:
            free_when_unused(self.clips, self.slot)
            self.slot = None

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.keys)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with all its tensors on `device`, contiguous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking).contiguous())

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory; torch's DataLoader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def share_memory_(self) -> "Batch":
        """Moves the tensors to shared memory. Raises RuntimeError where there is no room."""
        return self._map(lambda tensor: tensor.share_memory_())

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            clips=change(self.clips),
            examples=change(self.examples),
            labels=change(self.labels),
            boxes=None if self.boxes is None else change(self.boxes),
            box_clip=None if self.box_clip is None else change(self.box_clip),
        )


def collate(examples: Sequence[Example], storage: UntypedStorage | None = None) -> Batch:
    """Puts at least one example, all of one task, together.

    Args:
        storage: `clip_bytes(examples)` bytes of memory to put the clips into; shared memory for a process that will
            send them.
    """
    first = examples[0]
    assert all(example.task == first.task for example in examples)
    boxes = [example.boxes for example in examples if example.boxes is not None]
    labels = [example.labels for example in examples]
    batch = Batch(
        task=first.task,
        clips=_stack([example.clip for example in examples], storage),
        keys=[example.key for example in examples],
        examples=torch.tensor([example.example for example in examples]),
        labels=torch.cat(labels) if boxes else torch.stack(labels),
        infos=[example.info for example in examples if example.info is not None],
        substitutes=[substitute for example in examples for substitute in example.substitutes],
    )
    if boxes:
        counts = torch.tensor([len(rows) for rows in boxes])
        batch.boxes = torch.cat(boxes)
        batch.box_clip = torch.repeat_interleave(torch.arange(len(boxes)), counts)
    return batch


def clip_bytes(examples: Sequence[Example]) -> int:
    """Bytes that the clips take."""
    return sum(example.clip.numel() for example in examples)


def _stack(clips: Sequence[Tensor], storage: UntypedStorage | None) -> Tensor:
    """[3, T, H, W] each -> [B, 3, T, H, W], channels last in memory: clips that lie so are copied as they lie."""
    rows = [clip.permute(1, 2, 3, 0) for clip in clips]
    shape = (len(rows), *rows[0].shape)
    stacked = torch.empty(shape if storage is None else 0, dtype=torch.uint8)
    if storage is not None:
        stacked = stacked.set_(storage, 0, shape)  # type: ignore[call-overload]
    return torch.stack(rows, out=stacked).permute(0, 4, 1, 2, 3)
