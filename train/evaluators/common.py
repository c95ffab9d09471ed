"""What all evaluators share: their settings and result, the forward pass, and how far they are."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from tqdm import tqdm

from data.batch import PADDING, Batch, Substitute
from data.errors import UserError
from train.evaluators.keyframe_boxes import KeyframeBoxes
from train.evaluators.predictions import Predictions
from train.frame_map import FrameMap
from train.launch import Rank, Stopped, StopSignal
from train.run_log import duration

HEED_EVERY = 8
"""Batches after which ranks ask each other whether a signal has come."""
TELL_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""


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
        frame_map: localisation: AP and counts of the evaluated classes as in the metric mAP, on the first rank only.
        predictions: classification: what was said of every example, on the first rank only.
    """

    metrics: dict[str, float]
    chance: dict[str, float]
    counts: dict[str, int]
    per_class: dict[str, float | None]
    failures: list[Substitute] = field(default_factory=list)
    boxes: KeyframeBoxes | None = None
    frame_map: FrameMap | None = None
    predictions: Predictions | None = None


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches dropout and stochastic depth off inside of it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@dataclass(frozen=True)
class Settings:
    """How a task is evaluated.

    Attributes:
        batches: this rank's; over all ranks every view of every example that is left stands in them once, padding
            aside, and all views of an example on one rank.
        bf16: run under torch's autocast to bfloat16.
        chance: whether to work out what guessing would score, where that takes time.
        average: of several views' `softmax` or `logits`.
    """

    batches: Iterable[Batch]
    bf16: bool = False
    chance: bool = True
    average: str = "softmax"


def until_stopped(batches: Iterable[Batch], rank: Rank, stop: StopSignal | None) -> Iterator[Batch]:
    """The batches, of which all ranks have the same number.

    Raises:
        Stopped: on all ranks, after a signal to one of them.
    """
    for number, batch in enumerate(batches):
        if stop is not None and number % HEED_EVERY == 0 and (asked := max(rank.gather(stop.number))):
            raise Stopped(asked)
        yield batch


def progress(batches: Iterable[Batch], rank: Rank, name: str, examples: int, done: int, views: int) -> Iterator[Batch]:
    """The batches; the first rank tells how far all are, on stderr: by a bar on a terminal, else a line now and then.

    Args:
        examples: of the whole evaluation; `done` of them before it was taken up again.
        views: of each example.
    """
    told = time.monotonic()
    started, seen = told, 0
    # Ranks go in step but for the end, so that the first one's clips stand for everybody's.
    with tqdm(
        desc=f"evaluating {name}",
        unit="example",
        total=examples,
        initial=done,
        disable=not rank.first or not sys.stderr.isatty(),
        mininterval=1.0,
        leave=False,
    ) as bar:
        for batch in batches:
            yield batch
            seen += int((batch.examples != PADDING).sum())
            now = min(done + seen * rank.world // views, examples)
            bar.update(now - bar.n)
            if rank.first and bar.disable and time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                rate = (now - done) / (told - started)
                left = duration((examples - now) / rate) if rate else "?"
                text = f"evaluating {name}: {now} of {examples} examples, {rate:.1f} examples/s, {left} left"
                print(text, file=sys.stderr, flush=True)


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
