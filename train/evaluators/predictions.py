"""What a classifier said of every example: a file of its best classes, and how far its confidence can be trusted."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.shards import ClassInfo
from train.breakdown import unique_names
from train.whole_files import whole_text

TOP = 5
BINS = 15
"""Of equal width over (0, 1], for the expected calibration error: as many as Guo et al. (arXiv 1706.04599) take."""


@dataclass(frozen=True)
class Predictions:
    """N examples in the order of the set, each with its TOP best classes (fewer where there are fewer).

    Attributes:
        keys: [N] of str, the samples' keys.
        labels: int64 [N], logit indices; -1 for an example without a label.
        classes: int64 [N, k], logit indices, the best first.
        probabilities: float64 [N, k], theirs.
    """

    keys: np.ndarray
    labels: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray

    def write(self, path: Path, classes: Sequence[ClassInfo]) -> None:
        """Writes a CSV with the header key,label,top1,score1,... of class names; no label is an empty cell."""
        names = unique_names(classes)
        with whole_text(path) as file:
            writer = csv.writer(file, lineterminator="\n")
            count = self.classes.shape[1]
            writer.writerow(["key", "label", *(f"{part}{n}" for n in range(1, count + 1) for part in ("top", "score"))])
            for key, label, best, scores in zip(
                self.keys.tolist(),
                self.labels.tolist(),
                self.classes.tolist(),
                self.probabilities.tolist(),
                strict=True,
            ):
                cells = [cell for c, s in zip(best, scores, strict=True) for cell in (names[c], f"{s:.6f}")]
                writer.writerow([key, names[label] if label >= 0 else "", *cells])


def calibration_error(confidence: np.ndarray, is_right: np.ndarray) -> float:
    """Expected calibration error: the mean over examples of |accuracy - mean confidence| of their bin of confidence.

    Args:
        confidence: float64 [N] in (0, 1], probability of the best class.
        is_right: bool [N], whether that class is the label.

    Returns:
        ECE in [0, 1] with BINS bins (lower, upper]; NaN without examples.
    """
    if not len(confidence):
        return float("nan")
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    right = np.bincount(place, weights=is_right, minlength=BINS)
    total = np.bincount(place, weights=confidence, minlength=BINS)
    return float(np.abs(right - total).sum() / len(confidence))
