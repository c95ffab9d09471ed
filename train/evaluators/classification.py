"""Evaluates a classification task: top-1, top-5 and mean per-class accuracy of one centred clip per video."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from data.batch import PADDING, Batch, Substitute
from data.dataset import TaskData
from train.evaluators.common import Result, evaluation_mode, forward, progress
from train.launch import Rank


def evaluate(
    model: nn.Module, data: TaskData, loader: Iterable[Batch], rank: Rank, bf16: bool = False, chance: bool = True
) -> Result:
    """Runs `model` on this rank's batches, and takes the metrics over those of all ranks; called on every rank.

    Args:
        loader: batches in which every example of the set stands once over all ranks, padding aside.
        chance: unused, the level of guessing costs nothing here.

    Returns:
        metrics top1, top5 and mean_class (the mean over classes that have examples of their top-1 accuracy); examples
        without a label are in none of them. Where logits tie, the class of the lower index goes first.
    """
    del chance
    own: list[np.ndarray] = []
    failures: list[Substitute] = []
    with evaluation_mode(model):
        for batch in progress(loader, rank, data.name):
            logits = forward(model, batch, rank, bf16)
            rows = torch.stack([batch.examples, batch.labels, places(logits, batch.labels)], dim=1)
            own.append(rows[batch.examples != PADDING].numpy())
            failures += batch.substitutes
    parts = rank.gather((np.concatenate(own or [np.zeros((0, 3), np.int64)]), failures))
    labels, place = np.concatenate([rows for rows, _ in parts])[:, 1:].T
    known = labels >= 0
    counts = {"examples": len(labels), "labelled": int(known.sum())}
    names = [c.name for c in data.shards.manifest.classes]
    metrics, per_class = accuracies(labels[known], place[known], names)
    guess = {"top1": 1 / len(names), "top5": min(5 / len(names), 1.0), "mean_class": 1 / len(names)}
    return Result(metrics, guess, counts, per_class, failures=[bad for _, part in parts for bad in part])


def places(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes go before the label's: int64 [B] of logits [B, C] and labels int64 [B]; of no use for -1."""
    own = logits.gather(1, labels.clamp(min=0)[:, None])
    earlier = torch.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)


def accuracies(
    labels: np.ndarray, place: np.ndarray, names: list[str]
) -> tuple[dict[str, float], dict[str, float | None]]:
    """Metrics, and each class's top-1 accuracy, of N examples with their labels int64 [N] and `places` int64 [N]."""
    total = np.bincount(labels, minlength=len(names))
    right = np.bincount(labels[place == 0], minlength=len(names))
    own = [int(r) / int(t) if t else None for r, t in zip(right, total, strict=True)]
    some = [value for value in own if value is not None]
    metrics = {
        "top1": float((place < 1).mean()) if len(place) else float("nan"),
        "top5": float((place < 5).mean()) if len(place) else float("nan"),
        "mean_class": sum(some) / len(some) if some else float("nan"),
    }
    return metrics, dict(zip(names, own, strict=True))
