"""What a classifier takes for what: the confusion matrix as its cells that are not 0, and as a CSV."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.shards import ClassInfo
from train.breakdown import unique_names
from train.evaluators.predictions import Predictions
from train.whole_files import whole_text


@dataclass(frozen=True)
class Confusion:
    """N cells of the matrix of C classes, ascending by true and then by predicted class.

    Attributes:
        names: the C classes' names, all different.
        true: int64 [N], logit indices of the labels; examples without a label are in no cell.
        predicted: int64 [N], of the classes with the highest score.
        count: int64 [N], examples, at least 1.
    """

    names: list[str]
    true: np.ndarray
    predicted: np.ndarray
    count: np.ndarray

    @classmethod
    def of(cls, predictions: Predictions, classes: Sequence[ClassInfo]) -> "Confusion":
        known = predictions.labels >= 0
        cells = predictions.labels[known] * len(classes) + predictions.classes[known, 0]
        found, count = np.unique(cells, return_counts=True)
        true, predicted = np.divmod(found, len(classes))
        return cls(unique_names(classes), true, predicted, count)

    @cached_property
    def totals(self) -> np.ndarray:
        """int64 [C], examples of each class."""
        return np.bincount(self.true, weights=self.count, minlength=len(self.names)).astype(np.int64)

    @property
    def examples(self) -> int:
        return int(self.count.sum())

    @property
    def right(self) -> int:
        """Examples whose class was recognised."""
        return int(self.count[self.true == self.predicted].sum())

    @cached_property
    def mistakes(self) -> np.ndarray:
        """int64 [M], the cells of one class taken for another: the most examples first, of equal counts the greater
        share of the true class."""
        wrong = np.flatnonzero(self.true != self.predicted)
        total = self.totals[self.true[wrong]]
        return wrong[np.lexsort((total, -self.count[wrong]))]

    def rows(self, classes: np.ndarray) -> np.ndarray:
        """float64 [n, n + 1]: what each of n classes was taken for, among them and last for any other class, as shares
        that sum to 1; NaN for a class without examples."""
        place = np.full(len(self.names), len(classes))
        place[classes] = np.arange(len(classes))
        table = np.zeros((len(classes) + 1, len(classes) + 1))
        np.add.at(table, (place[self.true], place[self.predicted]), self.count)
        total = self.totals[classes][:, None]
        return np.divide(table[:-1], total, out=np.full_like(table[:-1], np.nan), where=total > 0)

    def write(self, path: Path) -> None:
        """Writes a CSV with the header true,predicted,count of class names; cells of 0 are left out."""
        with whole_text(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["true", "predicted", "count"])
            for true, predicted, count in zip(
                self.true.tolist(), self.predicted.tolist(), self.count.tolist(), strict=True
            ):
                writer.writerow([self.names[true], self.names[predicted], count])
