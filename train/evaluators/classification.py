"""Evaluates a classification task: top-1, top-5 and mean per-class accuracy, over one or more views of each video."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from data.batch import PADDING, Substitute
from data.dataset import TaskData
from data.shards import ClassInfo
from train.breakdown import unique_names
from train.evaluators.collected import Arrays, Collected, joined
from train.evaluators.common import Result, Settings, evaluation_mode, forward
from train.evaluators.predictions import TOP, Predictions, calibration_error
from train.launch import Rank


def columns(data: TaskData) -> Arrays:
    """What is collected of each example: its number, label, key, how many classes go before the label, and its best
    classes with their probabilities."""
    top = min(TOP, len(data.shards.manifest.classes))
    return {
        "example": np.zeros(0, np.int64),
        "label": np.zeros(0, np.int64),
        "key": np.zeros(0, "<U1"),
        "place": np.zeros(0, np.int64),
        "classes": np.zeros((0, top), np.int64),
        "probabilities": np.zeros((0, top)),
    }


def evaluate(model: nn.Module, data: TaskData, collected: Collected, rank: Rank, settings: Settings) -> Result:
    """Runs `model` on this rank's batches, and takes the metrics over those of all ranks; called on every rank.

    Args:
        collected: with `columns`; examples that are in it already are in no batch.

    Returns:
        metrics top1, top5, mean_class (the mean over classes that have examples of their top-1 accuracy) and ece
        (expected calibration error of the best class's probability); examples without a label are in none of them.
        Where scores tie, the class of the lower index goes first. Scores are the logits, or with several views of an
        example the mean of their softmax or of their logits. An example of which any view cannot be read is a failure
        as a whole.
    """
    failures: dict[Substitute, None] = {}
    averages = ViewAverages(data.view.views, settings.average)
    keys: dict[int, str] = {}
    with evaluation_mode(model):
        for batch in settings.batches:
            logits = forward(model, batch, rank, settings.bf16)
            keys |= zip(batch.examples.tolist(), batch.keys, strict=True)
            collected.add(_rows(*averages.add(batch.examples, batch.labels, logits), keys, averages.are_shares, data))
            failures |= dict.fromkeys(batch.substitutes)
    collected.write()
    parts = rank.gather((collected.all(), list(failures)))
    return _score(joined([arrays for arrays, _ in parts]), [bad for _, own in parts for bad in own], data, rank)


def _rows(
    examples: Tensor, labels: Tensor, scores: Tensor, keys: dict[int, str], are_shares: bool, data: TaskData
) -> Arrays:
    top = min(TOP, scores.shape[1])
    best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :top]
    shares = scores.double() if are_shares else scores.double().softmax(1)
    names = [keys.pop(example) for example in examples.tolist()]
    return {
        **columns(data),
        "example": examples.numpy(),
        "label": labels.numpy(),
        "key": np.array(names, dtype=np.str_),
        "place": places(scores, labels).numpy(),
        "classes": best.numpy(),
        "probabilities": shares.gather(1, best).numpy(),
    }


def _score(rows: Arrays, failures: list[Substitute], data: TaskData, rank: Rank) -> Result:
    order = np.argsort(rows["example"])
    rows = {name: column[order] for name, column in rows.items()}
    labels, place = rows["label"], rows["place"]
    known = labels >= 0
    views = data.view.views
    counts = {"examples": len(labels), "labelled": int(known.sum())} | ({"views": views} if views > 1 else {})
    names = unique_names(data.shards.manifest.classes)
    metrics, per_class = accuracies(labels[known], place[known], names)
    metrics["ece"] = calibration_error(rows["probabilities"][known, 0], place[known] == 0)
    guess = {"top1": 1 / len(names), "top5": min(5 / len(names), 1.0), "mean_class": 1 / len(names)}
    predictions = Predictions(rows["key"], labels, rows["classes"], rows["probabilities"])
    return Result(metrics, guess, counts, per_class, failures=failures, predictions=predictions if rank.first else None)


class ViewAverages:
    """Averages the scores of several views of an example, and lets go of them as soon as all are there.

    Args:
        views: how many an example has.
        average: of their `softmax` or of their `logits`.
    """

    def __init__(self, views: int, average: str = "softmax") -> None:
        self.views, self.average = views, average
        self._sums: dict[int, Tensor] = {}
        self._seen: Counter[int] = Counter()

    @property
    def are_shares(self) -> bool:
        """Whether the scores that come out are probabilities."""
        return self.views > 1 and self.average == "softmax"

    def add(self, examples: Tensor, labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes the views of one batch in: int64 [B], int64 [B] and float32 [B, C].

        Returns:
            Of the N examples that are complete with it: int64 [N], int64 [N] and scores [N, C], the logits where an
            example has one view, else the mean softmax or the mean logits in float64.
        """
        there = examples != PADDING
        examples, labels, logits = examples[there], labels[there], logits[there]
        if self.views == 1:
            return examples, labels, logits
        complete: list[int] = []
        scores: list[Tensor] = []
        values = logits.double().softmax(1) if self.are_shares else logits.double()
        for row, (example, value) in enumerate(zip(examples.tolist(), values, strict=True)):
            self._sums[example] = self._sums.get(example, 0) + value
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
    """Names of the metrics of a set of these classes by which models can be chosen: more is better."""
    del classes
    return ("top1", "top5", "mean_class")


def accuracies(
    labels: np.ndarray, place: np.ndarray, names: Sequence[str]
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
