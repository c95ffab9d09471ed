"""How far tied scores can move the figure: the evaluators leave the order of equal scores to chance."""

import numpy as np

from train.frame_map import Matches, average_precision


def tie_range(matches: Matches) -> tuple[float, float]:
    """The lowest and the highest mAP in [0, 1] that any order of equal scores of a class gives; NaN without classes.

    How many of tied detections are true positives does not depend on their order, since each is compared with one box
    only. So the highest figure has them before the false positives of their score, the lowest behind. (Which of tied
    rows the cap keeps is another question, and settled: see `frame_map`.)
    """
    scores = matches.detections.scores
    assert scores is not None
    low: list[float] = []
    high: list[float] = []
    for own, instances in zip(matches.slices, matches.instances.tolist(), strict=True):
        if not instances:
            continue
        is_match = matches.is_match[own]
        level = np.cumsum(np.diff(scores[own], prepend=np.inf) != 0)
        for values, last in ((low, is_match), (high, ~is_match)):
            values.append(average_precision(is_match[np.lexsort((last, level))], instances))
    return (float(np.mean(low)), float(np.mean(high))) if low else (float("nan"), float("nan"))


def have_ties(matches: Matches) -> bool:
    """Whether a true and a false positive of one class have the same score."""
    scores, classes = matches.detections.scores, matches.detections.classes
    assert scores is not None
    # A tie of the two kinds has neighbours of either kind somewhere in it, for it is a run of equal scores.
    tied = (scores[1:] == scores[:-1]) & (classes[1:] == classes[:-1])
    return bool((tied & (matches.is_match[1:] != matches.is_match[:-1])).any())
