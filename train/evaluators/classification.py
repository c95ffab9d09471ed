"""Evaluates a classification task: top-1, top-5 and mean per-class accuracy, over one or more views of each video."""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from data.batch import PADDING, Batch, Substitute
from data.dataset import TaskData
from data.shards import ClassInfo
from train.evaluators.common import Result, evaluation_mode, forward, progress
from train.launch import Rank


def evaluate(
    model: nn.Module, data: TaskData, loader: Iterable[Batch], rank: Rank, bf16: bool = False, chance: bool = True
) -> Result:
    """Runs `model` on this rank's batches, and takes the metrics over those of all ranks; called on every rank.

    Args:
        loader: batches in which every view of every example of the set stands once over all ranks, padding aside, and
            all views of an example on one rank.
        chance: unused, the level of guessing costs nothing here.

    Returns:
        metrics top1, top5 and mean_class (the mean over classes that have examples of their top-1 accuracy); examples
        without a label are in none of them. Where scores tie, the class of the lower index goes first. Scores are the
        logits, or with several views of an example the mean of their softmax. An example of which any view cannot be
        read is a failure as a whole.
    """
    del chance
    views = data.view.views
    own: list[np.ndarray] = []
    failures: dict[Substitute, None] = {}
    averages = ViewAverages(views)
    with evaluation_mode(model):
        for batch in progress(loader, rank, data.name):
            logits = forward(model, batch, rank, bf16)
            examples, labels, scores = averages.add(batch.examples, batch.labels, logits)
            own.append(torch.stack([examples, labels, places(scores, labels)], dim=1).numpy())
            failures |= dict.fromkeys(batch.substitutes)
    parts = rank.gather((np.concatenate(own or [np.zeros((0, 3), np.int64)]), list(failures)))
    labels, place = np.concatenate([rows for rows, _ in parts])[:, 1:].T
    known = labels >= 0
    counts = {"examples": len(labels), "labelled": int(known.sum())} | ({"views": views} if views > 1 else {})
    names = [c.name for c in data.shards.manifest.classes]
    metrics, per_class = accuracies(labels[known], place[known], names)
    guess = {"top1": 1 / len(names), "top5": min(5 / len(names), 1.0), "mean_class": 1 / len(names)}
    return Result(metrics, guess, counts, per_class, failures=[bad for _, part in parts for bad in part])


class ViewAverages:
    """Averages the scores of several views of an example, and lets go of them as soon as all are there.

    Args:
        views: how many an example has.
    """

    def __init__(self, views: int) -> None:
        self.views = views
        self._sums: dict[int, Tensor] = {}
        self._seen: Counter[int] = Counter()

    def add(self, examples: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes the views of one batch in: int64 [B], int64 [B] and float32 [B, C].

        Returns:
            Of the N examples that are complete with it: int64 [N], int64 [N] and scores [N, C], the logits where an
            example has one view, else the mean softmax in float64.
        """
        there = examples != PADDING
        examples, labels, logits = examples[there], labels[there], logits[there]
        if self.views == 1:
            return examples, labels, logits
        complete: list[int] = []
        scores: list[Tensor] = []
        for row, (example, probabilities) in enumerate(zip(examples.tolist(), logits.double().softmax(1), strict=True)):
            self._sums[example] = self._sums.get(example, 0) + probabilities
            self._seen[example] += 1
            if self._seen[example] == self.views:
                del self._seen[example]
                complete.append(row)
                scores.append(self._sums.pop(example) / self.views)
        none = logits.new_zeros(0, logits.shape[1], dtype=torch.float64)
        return examples[complete], labels[complete], torch.stack(scores) if scores else none


def places(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes go before the label's: int64 [B] of logits [B, C] and labels int64 [B]; of no use for -1."""
    own = logits.gather(1, labels.clamp(min=0)[:, None])
    earlier = torch.arange(logits.shape[1]) < labels[:, None]
    return ((logits > own) | ((logits == own) & earlier)).sum(dim=1)


def metric_names(classes: Sequence[ClassInfo]) -> tuple[str, ...]:
    """Names of the metrics that `evaluate` gives for a set of these classes."""
    del classes
    return ("top1", "top5", "mean_class")


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
