"""Why a class fails: what each false positive is, what was missed, and what it would bring to mend each kind of error.

In the manner of TIDE (Bolya et al., arXiv 2008.08115) and of Alwassel et al. (arXiv 1807.10706), for boxes that carry
several labels. A false positive of class c is the first of these that fits:

    duplicate     its best box of class c has IoU >= 0.5, but another detection has matched it before
    wrong class   it lies on a person (IoU >= 0.5) that does not do c
    localisation  it lies beside a person that does c: IoU from 0.1 to 0.5
    both          it lies beside a person (IoU from 0.1 to 0.5), and none that does c is so near
    background    there is no person (IoU < 0.1)

and a ground-truth box of class c is

    missed        if no detection matches it, and none of c is a localisation error on it.

"Wrong class" goes before "localisation", other than in TIDE: a detection that lies on a person shows that person, and
that a neighbour who does c is touched too says nothing. What a kind costs is the AP that its repair would bring, each
kind repaired alone: a localisation error gets its box (and counts if it is the first of the highest score to find it),
the other false positives are left out, missed boxes are not asked for. TIDE gives a wrong class the right one; here a
person has a row for every class, the right ones too, so it is left out.
"""

from dataclasses import dataclass

import numpy as np

from train.frame_map import IOU_THRESHOLD, FrameBoxes, Matches, average_precision, best_groundtruth

BACKGROUND_IOU = 0.1
"""Below it a detection has nothing to do with a person (TIDE's and Alwassel's value)."""

FALSE_POSITIVES = ("duplicate", "wrong class", "localisation", "both", "background")
KINDS = (*FALSE_POSITIVES, "missed")
TRUE_POSITIVE = -1


@dataclass(frozen=True)
class ErrorKinds:
    """Errors of C classes; columns are KINDS.

    Attributes:
        top: int64 [C, 6], false positives among the G highest-scoring detections of a class, G being the number of its
            ground-truth boxes: as many as a perfect model would need. Missed boxes are counted over all detections.
        everywhere: int64 [C, 6], the same over all detections that count.
        gain: float64 [C, 6], AP that repairing a kind would bring; NaN for a class without ground truth.
        right: int64 [C], true positives among the G highest-scoring ones.
    """

    top: np.ndarray
    everywhere: np.ndarray
    gain: np.ndarray
    right: np.ndarray

    def mean_gain(self, classes: np.ndarray) -> np.ndarray:
        """float64 [6]: the mean gain of the classes of a mask that have ground truth; NaN where none has."""
        chosen = self.gain[classes]
        chosen = chosen[~np.isnan(chosen[:, 0])]
        return chosen.mean(axis=0) if len(chosen) else np.full(len(KINDS), np.nan)


def error_kinds(matches: Matches, people: FrameBoxes) -> ErrorKinds:
    """Sorts the errors of `matches`; `people` are the boxes of all persons annotated, of class 0."""
    kinds = kinds_of(matches, people)
    classes, count = matches.num_classes, len(KINDS)
    in_top = np.concatenate(
        [np.arange(n) < g for n, g in zip(matches.counts.tolist(), matches.instances.tolist(), strict=True)]
    )
    top, everywhere = (
        np.bincount(matches.detections.classes[chosen] * count + kinds[chosen], minlength=classes * count).reshape(
            classes, count
        )
        for chosen in ((kinds >= 0) & in_top, kinds >= 0)
    )
    on_missed = kinds == FALSE_POSITIVES.index("localisation")
    missed = ~matches.is_found
    missed[matches.best[on_missed]] = False
    top[:, -1] = everywhere[:, -1] = np.bincount(matches.groundtruth.classes[missed], minlength=classes)
    right = np.bincount(matches.detections.classes[matches.is_match & in_top], minlength=classes)
    return ErrorKinds(top, everywhere, _gains(matches, kinds, everywhere[:, -1]), right)


def kinds_of(matches: Matches, people: FrameBoxes) -> np.ndarray:
    """int64 [N]: the place in FALSE_POSITIVES of each detection of `matches`; TRUE_POSITIVE for one that is right."""
    found = matches.detections
    own = matches.overlap
    wrong = np.flatnonzero(~matches.is_match & (own < IOU_THRESHOLD))
    nearest = np.zeros(len(found))
    rows = FrameBoxes(found.frames[wrong], found.boxes[wrong], np.zeros(len(wrong), dtype=np.int64))
    _, nearest[wrong] = best_groundtruth(people, rows, 1)
    rules = [
        matches.is_match,
        own >= IOU_THRESHOLD,
        nearest >= IOU_THRESHOLD,
        own >= BACKGROUND_IOU,
        nearest >= BACKGROUND_IOU,
    ]
    return np.select(rules, range(TRUE_POSITIVE, len(FALSE_POSITIVES) - 1), default=len(FALSE_POSITIVES) - 1)


def _gains(matches: Matches, kinds: np.ndarray, missed: np.ndarray) -> np.ndarray:
    repaired = _relocated(matches, kinds)
    localisation = FALSE_POSITIVES.index("localisation")
    gains = np.full((matches.num_classes, len(KINDS)), np.nan)
    for number, (own, instances) in enumerate(zip(matches.slices, matches.instances.tolist(), strict=True)):
        if not instances:
            continue
        is_match, kind = matches.is_match[own], kinds[own]
        before = average_precision(is_match, instances)
        for place in range(len(FALSE_POSITIVES)):
            after = repaired[own] if place == localisation else is_match
            kept = (kind != place) | after if place == localisation else kind != place
            gains[number, place] = average_precision(after[kept], instances) - before
        asked = instances - int(missed[number])
        gains[number, -1] = (average_precision(is_match, asked) if asked else 1.0) - before
    return gains


def _relocated(matches: Matches, kinds: np.ndarray) -> np.ndarray:
    """bool [N]: `is_match` with localisation errors moved onto the box they were about; the first of a box counts."""
    errors = np.flatnonzero(kinds == FALSE_POSITIVES.index("localisation"))
    errors = errors[~matches.is_found[matches.best[errors]]]
    _, first = np.unique(matches.best[errors], return_index=True)
    repaired = matches.is_match.copy()
    repaired[errors[first]] = True
    return repaired
