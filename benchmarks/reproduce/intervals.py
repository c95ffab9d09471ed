"""Means over seeds with their intervals, and paired differences of regimes: over seeds, and over the test movies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.reproduce.records import Record


@dataclass(frozen=True)
class Mean:
    """A mean of n values with its t interval; the ends are NaN for fewer than two values."""

    value: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """Regime less baseline, of runs with the same seed.

    Attributes:
        over_seeds: mean of the paired differences with its t interval: what differs by initial weights and order.
        p: of the paired t test; NaN for fewer than two seeds.
        over_both: (low, high), the interval for other runs and another test set: Student's, with the variance of the
            mean over draws of the test movies added to that over seeds (a bootstrap of so few seeds is too narrow: of
            five its 95 % interval covers 84 %). NaN where there are no draws, or one seed.
        each: the difference of every seed.
    """

    over_seeds: Mean
    p: float
    over_both: tuple[float, float]
    each: tuple[float, ...]


def mean_of(values: Sequence[float], confidence: float = 0.95) -> Mean:
    """The mean and Student's interval of values that are taken for independent draws of a normal distribution."""
    n = len(values)
    if not n:
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = float(np.mean(values))
    if n == 1 or math.isnan(mean):
        return Mean(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Mean(mean, mean - half, mean + half, n)


def difference(
    regime: Sequence[float],
    baseline: Sequence[float],
    draws: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]] = ((), ()),
    confidence: float = 0.95,
) -> Difference:
    """Compares two regimes by runs of the same seeds, in the same order.

    Args:
        draws: of each run of either side, its score in every draw of the test movies, the same draws for all.

    Raises:
        ValueError: not as many runs on both sides.
    """
    if len(regime) != len(baseline):
        raise ValueError(f"{len(regime)} runs against {len(baseline)}")
    each = tuple(float(a - b) for a, b in zip(regime, baseline, strict=True))
    over_seeds = mean_of(each, confidence)
    p = math.nan
    if len(each) > 1 and np.std(each) > 1e-9:  # a t value of nothing but rounding says nothing
        p = float(stats.ttest_rel(regime, baseline).pvalue)
    over_both = (math.nan, math.nan)
    if draws[0] and all(map(len, (*draws[0], *draws[1]))):
        movies = float((np.asarray(draws[0]) - np.asarray(draws[1])).mean(axis=0).var(ddof=1))  # of [seeds, draws]
        quantile = float(stats.t.ppf((1 + confidence) / 2, len(each) - 1)) if len(each) > 1 else math.nan
        half = math.hypot(over_seeds.half, quantile * math.sqrt(movies))
        over_both = (over_seeds.value - half, over_seeds.value + half)
    return Difference(over_seeds, p, over_both, each)


def holm(values: Sequence[float], comparisons: int | None = None) -> list[float]:
    """p values corrected for `comparisons`, or as many as there are numbers among them (Holm, 1979); NaN stays."""
    known = [index for index in np.argsort(values).tolist() if not math.isnan(values[index])]
    comparisons = max(len(known), comparisons or 0)
    result, highest = [math.nan] * len(values), 0.0
    for place, index in enumerate(known):
        highest = max(highest, min(1.0, values[index] * (comparisons - place)))
        result[index] = highest
    return result


def by_seed(records: Sequence[Record]) -> dict[int, Record]:
    return {record["seed"]: record for record in sorted(records, key=lambda record: record["seed"])}


def paired(regime: Sequence[Record], baseline: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """The runs of either side whose seed the other side has too, in the order of their seeds."""
    ours, theirs = by_seed(regime), by_seed(baseline)
    seeds = [seed for seed in ours if seed in theirs]
    return [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
