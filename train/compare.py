"""Two runs on the same ground truth: the difference of every class, with a bootstrap confidence interval over videos.

Videos are drawn with replacement, as many as there are, and AP is computed anew on what was drawn; a video that is
drawn twice counts twice, with its ground truth and its detections. Both runs are computed on the same draws, so that
what is hard in a video cancels out. Keyframes of one movie are no independent draws, movies are: that is why whole
videos are drawn. The interval is the percentile interval (Efron and Tibshirani, 1993).
"""

from dataclasses import dataclass

import numpy as np

from train.frame_map import Matches

RESAMPLES = 1000
_CELLS = 1 << 20  # of the largest arrays: resamples are worked on so many at a time that these stay in the cache
_FEW_VIDEOS = 512  # up to so many a table of their detections is smaller than the detections


@dataclass(frozen=True)
class Interval:
    """An estimate in the unit of AP, and the ends of its confidence interval; NaN without ground truth."""

    value: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval does not hold 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """Differences, this run less the other one, of C classes.

    Attributes:
        this: float64 [C], AP of this run; NaN without ground truth. `other` likewise.
        draws: float64 [R, C], the difference in each of R resamples; NaN where no box of the class was drawn.
        confidence: of the intervals, such as 0.95.
        videos: number of videos that are drawn from.
    """

    this: np.ndarray
    other: np.ndarray
    draws: np.ndarray
    confidence: float
    videos: int

    def of_class(self, number: int) -> Interval:
        return self._interval(float(self.this[number] - self.other[number]), self.draws[:, number])

    def of_mean(self, classes: np.ndarray) -> Interval:
        """The mean over the classes of a mask that have ground truth."""
        chosen = classes & ~np.isnan(self.this)
        if not chosen.any():
            return Interval(*[float("nan")] * 3)
        draws = self.draws[:, chosen]
        there = ~np.isnan(draws)
        means = np.where(there, draws, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1)
        difference = float(self.this[chosen].mean() - self.other[chosen].mean())
        return self._interval(difference, np.where(there.any(axis=1), means, np.nan))

    def _interval(self, value: float, draws: np.ndarray) -> Interval:
        draws = draws[~np.isnan(draws)]
        if not len(draws):
            return Interval(value, float("nan"), float("nan"))
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail]).tolist()
        return Interval(value, low, high)


def compare(
    this: Matches,
    other: Matches,
    videos: np.ndarray,
    named: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Compares two runs that were matched with the same ground truth.

    Args:
        videos: int64 [F], the number of each keyframe's video.
        named: int64 [any], keyframes that were scored; their videos are drawn from.
        resamples: R, at least 1.
        confidence: between 0 and 1.
        seed: of the draws.
    """
    chosen = np.unique(videos[named])
    number = np.full(int(videos.max(initial=-1)) + 1, -1)
    number[chosen] = np.arange(len(chosen))
    weights = draw_videos(len(chosen), resamples, seed)
    own = [resampled(matches, number[videos], weights) for matches in (this, other)]
    aps = [matches.frame_map().per_class for matches in (this, other)]
    return Comparison(aps[0], aps[1], own[0] - own[1], confidence, len(chosen))


def draw_videos(videos: int, resamples: int, seed: int) -> np.ndarray:
    """float64 [R, V]: how often each of V videos is drawn in each resample; rows sum to V."""
    if not videos:
        return np.zeros((resamples, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(videos, np.full(videos, 1 / videos), size=resamples).astype(np.float64)


def resampled(matches: Matches, videos: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float64 [R, C]: the AP of each class where each video counts as often as `weights` [R, V] say.

    Exactly what evaluation gives on files in which a video's rows stand so many times, neighbours in the ranking; NaN
    where no ground truth is drawn. `videos` int64 [F] has the number of each keyframe's video, -1 for one that is not
    drawn from, whose detections are false positives in every resample.
    """
    of_truth, of_found = videos[matches.groundtruth.frames], videos[matches.detections.frames]
    result = np.full((len(weights), matches.num_classes), np.nan)
    for number, own in enumerate(matches.slices):
        instances = np.bincount(of_truth[matches.groundtruth.classes == number], minlength=weights.shape[1]).astype(
            np.float64
        )
        if not instances.any():
            continue
        ranking = _Ranking(of_found[own], np.flatnonzero(matches.is_match[own]), weights.shape[1])
        chunk = max(1, _CELLS // max(1, ranking.size))
        for start in range(0, len(weights), chunk):
            drawn = weights[start : start + chunk].T
            total = instances @ drawn
            result[start : start + chunk, number] = np.divide(
                ranking.area(drawn), total, out=np.full(len(total), np.nan), where=total > 0
            )
    return result


class _Ranking:
    """A class's detections from the highest score down, ready to be drawn many times.

    Args:
        videos: int64 [N], video of each; -1 counts once in every resample.
        hits: int64 [T], which of them are true positives.
        num_videos: V.
    """

    def __init__(self, videos: np.ndarray, hits: np.ndarray, num_videos: int) -> None:
        # Recall rises and precision has its peaks at true positives: what stands before each of them is only counted.
        self.videos = videos[: hits[-1] + 1] if len(hits) else videos[:0]
        self.hits, self.starts = hits, np.concatenate([[0], hits[:-1] + 1]) if len(hits) else hits
        self.table: np.ndarray | None = None
        if num_videos <= _FEW_VIDEOS:
            segment = np.searchsorted(hits, np.arange(len(self.videos)))
            cells = segment * (num_videos + 1) + self.videos % (num_videos + 1)  # -1 is the last column
            counts = np.bincount(cells, minlength=len(hits) * (num_videos + 1))
            self.table = counts.reshape(len(hits), num_videos + 1).astype(np.float64)
        self.size = len(hits) if self.table is not None else len(self.videos)

    def area(self, drawn: np.ndarray) -> np.ndarray:
        """float64 [r]: the sum of the precision envelope over the true positives, each as often as its video is drawn;
        `drawn` is float64 [V, r]."""
        if not len(self.hits):
            return np.zeros(drawn.shape[1])
        rows = np.concatenate([drawn, np.ones((1, drawn.shape[1]))])
        if self.table is not None:
            ranked = self.table @ rows
        else:
            ranked = np.add.reduceat(rows[self.videos], self.starts, axis=0)
        np.cumsum(ranked, axis=0, out=ranked)
        weight = rows[self.videos[self.hits]]
        precision = np.cumsum(weight, axis=0)
        np.divide(precision, ranked, out=precision, where=ranked > 0)
        np.maximum.accumulate(precision[::-1], axis=0, out=precision[::-1])
        return np.einsum("tr,tr->r", weight, precision)
