"""What all evaluators share: their result, the forward pass, and the place in the examples' order."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.batch import Batch, Substitute
from data.errors import UserError
from train.evaluators.keyframe_boxes import KeyframeBoxes
from train.launch import Rank


@dataclass(frozen=True)
class Result:
    """One task's evaluation, the same on every rank.

    Attributes:
        metrics: name -> value in [0, 1]; NaN where there was nothing to take a mean of.
        chance: what guessing would score, for the metrics that have such a level.
        counts: number of examples, and of what else the metrics were taken over.
        per_class: class name -> its own figure; None for a class without ground truth.
        failures: examples that could not be read. They are in no metric.
        boxes: localisation: detections and ground truth, on the first rank only.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    counts: dict[str, int]
    per_class: dict[str, float | None]
    failures: list[Substitute] = field(default_factory=list)
    boxes: KeyframeBoxes | None = None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches dropout and stochastic depth off inside of it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def progress(loader: Iterable[Batch], rank: Rank, name: str) -> Iterable[Batch]:
    """The loader's batches, with a bar on stderr of the first rank."""
    return tqdm(loader, desc=f"evaluating {name}", unit="batch", disable=not rank.first, mininterval=1.0, leave=False)


@torch.inference_mode()
def forward(model: nn.Module, batch: Batch, rank: Rank, bf16: bool) -> Tensor:
    """Logits of a batch, float32 on the CPU: [B, C] or [K, C].

    Args:
        bf16: run under torch's autocast to bfloat16, as training does where the recipe says so.

    Raises:
        UserError: a logit that is not finite, which no metric can rank.
    """
    moved = batch.to(rank.device, non_blocking=True)
    with torch.autocast(rank.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits: Tensor = model(batch.task, moved.clips, moved.boxes, moved.box_clip)
    logits = logits.float().cpu()
    if not bool(torch.isfinite(logits).all()):
        raise UserError(
            f"{batch.task}: the model's output is not finite (batch of {next(filter(None, batch.keys), '-')}): its"
            " training has diverged, or the checkpoint is damaged"
        )
    return logits
