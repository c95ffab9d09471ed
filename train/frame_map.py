"""AVA's metric on arrays: frame mAP at IoU 0.5, by the rules of the official evaluator and of its best-known copies.

The rules, the same for all protocols (activitynet/ActivityNet, Evaluation/get_ava_performance.py and Evaluation/ava):

1. A detection is compared with one ground-truth box only: the one of its class and keyframe that it overlaps most.
2. It is a true positive if that IoU is at least 0.5 and no detection before it took the box; else a false positive.
3. Average precision is the area under the precision-recall curve of all detections of a class, highest score first,
   where precision is replaced by the highest precision at any higher recall (all points, no 11-point sampling).
4. mAP is the mean over the classes that have ground truth. A class that is never detected has AP 0.
5. A detection whose box has no area is dropped (after the cap); a ground-truth box without area stays, and is missed.

Where the cap cuts through tied scores, the rows that the official evaluator keeps are kept (`_capped`). Else, where
scores tie, the detection that comes first in the arrays goes first: the programs copied here leave these ties to an
unstable sort, so that their own figure depends on the machine.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

IOU_THRESHOLD = 0.5
_CHUNK = 1 << 19  # detections whose overlaps are computed at a time: bounds memory


@dataclass(frozen=True)
class Protocol:
    """What differs between the evaluators.

    Attributes:
        max_per_image: rows of a keyframe that count, the highest-scoring ones over all evaluated classes; 0 = all.
        only_named_keyframes: whether detections on keyframes that the ground truth does not name are left out; if not,
            they are false positives.
        drops_excluded: whether keyframes of the exclusion list are left out.
        matches_in_file_order: whether rule 2's "before it" means earlier in the arrays, instead of a higher score.
    """

    max_per_image: int
    only_named_keyframes: bool
    drops_excluded: bool
    matches_in_file_order: bool = False


PROTOCOLS = {
    "activitynet-2020": Protocol(50, only_named_keyframes=True, drops_excluded=False),
    "activitynet-2019": Protocol(50, only_named_keyframes=False, drops_excluded=True),
    # slowfast/utils/ava_eval_helper.py does not sort a keyframe's rows before it matches them.
    "slowfast": Protocol(0, only_named_keyframes=False, drops_excluded=True, matches_in_file_order=True),
    "mmaction2": Protocol(0, only_named_keyframes=False, drops_excluded=True),
}
DEFAULT_PROTOCOL = "activitynet-2020"


@dataclass(frozen=True)
class FrameBoxes:
    """N labelled boxes as columns. Boxes of ground truth and detections on one keyframe share its number.

    Attributes:
        frames: int64 [N], number of the keyframe, 0 or more.
        boxes: float64 [N, 4], (x1, y1, x2, y2) in any unit that both sides share.
        classes: int64 [N], index of the class, 0 or more.
        scores: float64 [N], finite; None for ground truth.
    """

    frames: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows = len(self.frames)
        columns = {"boxes": self.boxes.shape == (rows, 4), "classes": self.classes.shape == (rows,)}
        if self.scores is not None:
            columns["scores"] = self.scores.shape == (rows,) and bool(np.isfinite(self.scores).all())
        for name, fits in columns.items():
            if not fits:
                raise ValueError(f"{name}: wrong shape for {rows} rows, or not finite")

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, rows: np.ndarray) -> "FrameBoxes":
        """The rows that a mask or an index array chooses."""
        scores = None if self.scores is None else self.scores[rows]
        return FrameBoxes(self.frames[rows], self.boxes[rows], self.classes[rows], scores)

    def distinct(self) -> "FrameBoxes":
        """The boxes that differ by keyframe or corners, as boxes of class 0; a few may still be there twice."""
        # The rows of a box are mostly neighbours in the file, so that few are left to be sorted.
        rows = np.flatnonzero(_differs_from_before(self.frames, self.boxes))
        rows = rows[np.argsort(self.boxes[rows, 0], kind="stable")]
        rows = rows[_stable_order(self.frames[rows])]
        # Equal boxes are neighbours now, unless another box of the keyframe that begins at the same x1 is between them.
        rows = np.sort(rows[_differs_from_before(self.frames[rows], self.boxes[rows])])
        return FrameBoxes(self.frames[rows], self.boxes[rows], np.zeros(len(rows), dtype=np.int64))


@dataclass(frozen=True)
class FrameMap:
    """The result for C classes.

    Attributes:
        per_class: float64 [C], average precision in [0, 1]; NaN for a class without ground truth.
        instances: int64 [C], ground-truth boxes that counted.
        detections: int64 [C], detections that counted.
    """

    per_class: np.ndarray
    instances: np.ndarray
    detections: np.ndarray

    @property
    def mean(self) -> float:
        """mAP in [0, 1]: the mean over classes that have ground truth; NaN where none has."""
        return self.mean_of(np.ones(len(self.per_class), dtype=bool))

    def mean_of(self, classes: np.ndarray) -> float:
        """The mean over the classes of a mask or index array that have ground truth; NaN where none has."""
        return mean_known(self.per_class[classes])


@dataclass(frozen=True)
class Matches:
    """What became of the detections: those that count, class by class, in each class from the highest score down.

    Attributes:
        groundtruth: the boxes that count.
        detections: the N detections that count.
        is_match: bool [N], whether each is a true positive.
        best: int64 [N], row of `groundtruth`: the box of its class and keyframe that it overlaps most.
        overlap: float64 [N], that IoU; 0 where there is no such box, and `best` then means nothing.
        num_classes: C.
    """

    groundtruth: FrameBoxes
    detections: FrameBoxes
    is_match: np.ndarray
    best: np.ndarray
    overlap: np.ndarray
    num_classes: int

    @cached_property
    def instances(self) -> np.ndarray:
        """int64 [C], ground-truth boxes of each class."""
        return np.bincount(self.groundtruth.classes, minlength=self.num_classes)

    @cached_property
    def counts(self) -> np.ndarray:
        """int64 [C], detections of each class."""
        return np.bincount(self.detections.classes, minlength=self.num_classes)

    @cached_property
    def slices(self) -> list[slice]:
        """Where the detections of each class stand."""
        ends = np.cumsum(self.counts).tolist()
        return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]

    @cached_property
    def is_found(self) -> np.ndarray:
        """bool [rows of `groundtruth`]: whether a detection matches the box."""
        found = np.zeros(len(self.groundtruth), dtype=bool)
        found[self.best[self.is_match]] = True
        return found

    def frame_map(self) -> FrameMap:
        """The average precision of every class."""
        per_class = [
            average_precision(self.is_match[own], count)
            for own, count in zip(self.slices, self.instances.tolist(), strict=True)
        ]
        return FrameMap(np.array(per_class), self.instances, self.counts)


def mean_known(values: np.ndarray) -> float:
    """The mean of the values of a float64 array that are not NaN; NaN where there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def frame_map(
    groundtruth: FrameBoxes,
    detections: FrameBoxes,
    num_classes: int,
    protocol: Protocol = PROTOCOLS[DEFAULT_PROTOCOL],
    *,
    named: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> FrameMap:
    """Frame mAP of `detections` against `groundtruth`, in float64; arguments and errors as of `match`."""
    return match(groundtruth, detections, num_classes, protocol, named=named, excluded=excluded).frame_map()


def match(
    groundtruth: FrameBoxes,
    detections: FrameBoxes,
    num_classes: int,
    protocol: Protocol = PROTOCOLS[DEFAULT_PROTOCOL],
    *,
    named: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> Matches:
    """Decides which detections count, and which of them are true positives.

    Args:
        groundtruth: boxes of the evaluated classes.
        detections: scored boxes of the evaluated classes.
        num_classes: C; classes are in [0, C).
        protocol: see `Protocol`; one of PROTOCOLS, or of your own.
        named: int64 [any], keyframes that the ground truth names; those of its boxes where None. To be given where
            keyframes without a box, or with none of an evaluated class, were annotated too.
        excluded: int64 [any], keyframes on the exclusion list; used where the protocol drops them.

    Raises:
        ValueError: a class outside of [0, C), or detections without scores.
    """
    if detections.scores is None:
        raise ValueError("detections have no scores")
    for boxes in (groundtruth, detections):
        if len(boxes) and not 0 <= boxes.classes.min() <= boxes.classes.max() < num_classes:
            raise ValueError(f"classes must be in [0, {num_classes})")
    counts = np.ones(len(detections), dtype=bool)
    if protocol.only_named_keyframes:
        counts &= _member(detections.frames, groundtruth.frames if named is None else named)
    if protocol.drops_excluded and excluded is not None:
        groundtruth = groundtruth.take(~_member(groundtruth.frames, excluded))
        counts &= ~_member(detections.frames, excluded)
    if not counts.all():
        detections = detections.take(counts)
    assert detections.scores is not None
    kept = _capped(detections, protocol.max_per_image)
    x1, y1, x2, y2 = detections.boxes.T
    kept &= (x1 < x2) & (y1 < y2)
    best, overlap = best_groundtruth(groundtruth, detections, num_classes)

    # Rows by score, of equal scores in the order of the file.
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(-detections.scores[rows], kind="stable")]
    candidates = rows[overlap[rows] >= IOU_THRESHOLD]
    if protocol.matches_in_file_order:
        candidates = np.sort(candidates)
    _, first = np.unique(best[candidates], return_index=True)
    is_match = np.zeros(len(detections), dtype=bool)
    is_match[candidates[first]] = True
    rows = rows[_stable_order(detections.classes[rows])]
    return Matches(groundtruth, detections.take(rows), is_match[rows], best[rows], overlap[rows], num_classes)


def average_precision(is_match: np.ndarray, instances: int) -> float:
    """Area under the interpolated precision-recall curve.

    Args:
        is_match: bool [N], whether each detection is a true positive, highest score first.
        instances: number of ground-truth boxes.

    Returns:
        AP in [0, 1]; NaN where there is no ground truth.
    """
    if instances == 0:
        return float("nan")
    places = np.flatnonzero(is_match)
    # Recall rises at true positives only, and precision falls between them: no other point shapes the envelope.
    precision = np.arange(1, len(places) + 1) / (places + 1)
    envelope = np.maximum.accumulate(precision[::-1])
    return float(envelope.sum() / instances)


def best_groundtruth(
    groundtruth: FrameBoxes, detections: FrameBoxes, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the ground-truth box (int64 row) of its frame and class that it overlaps most, and the IoU.

    Of equal overlaps the box that comes first wins. Without any such box the IoU is 0 and the row is meaningless.
    """
    groups = groundtruth.frames * num_classes + groundtruth.classes
    by_group = np.argsort(groups, kind="stable")
    groups, low = np.unique(groups[by_group], return_index=True)
    sizes = np.diff(low, append=len(by_group))
    best = np.zeros(len(detections), dtype=np.int64)
    overlap = np.zeros(len(detections))
    for start in range(0, len(detections) if len(groups) else 0, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        wanted = detections.frames[chunk] * num_classes + detections.classes[chunk]
        place = np.minimum(np.searchsorted(groups, wanted), len(groups) - 1)
        rows = np.flatnonzero(groups[place] == wanted)
        if not len(rows):
            continue
        counts = sizes[place[rows]]
        starts = np.cumsum(counts) - counts
        # One entry per (detection, ground-truth box) pair, those of one detection side by side.
        owner = np.repeat(rows, counts)
        other = by_group[np.arange(len(owner)) + np.repeat(low[place[rows]] - starts, counts)]
        iou = _iou(detections.boxes[chunk][owner], groundtruth.boxes[other])
        highest = np.maximum.reduceat(iou, starts)
        at_highest = np.flatnonzero(iou == np.repeat(highest, counts))
        _, first = np.unique(owner[at_highest], return_index=True)
        best[start + rows] = other[at_highest[first]]
        overlap[start + rows] = highest
    return best, overlap


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of N pairs of boxes [N, 4], 0 where they do not overlap.

    Summed in the official evaluator's order, so that an IoU next to 0.5 falls on the same side.
    """
    width = np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    intersection = np.maximum(width, 0) * np.maximum(height, 0)
    area_a = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1])
    area_b = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    # Boxes that overlap have area, so nothing is divided by 0.
    return np.divide(intersection, area_a + area_b - intersection, out=np.zeros(len(a)), where=intersection > 0)


def _capped(detections: FrameBoxes, most: int) -> np.ndarray:
    """bool [N]: the rows that count, at most `most` of a keyframe, those of the highest scores; 0 is all.

    Of rows that tie for the last places the same ones stay as in the official evaluator, which keeps a heap: a row
    that finds it full of scores as high as its own stays out, and a higher one takes the place of the tied row that is
    least by class, y1, x1, y2 and x2.
    """
    all_kept = np.ones(len(detections), dtype=bool)
    crowded = np.flatnonzero(np.bincount(detections.frames)[detections.frames] > most) if len(detections) else ()
    if not most or not len(crowded):
        return all_kept
    frames, scores = detections.frames[crowded], detections.scores
    assert scores is not None
    scores = scores[crowded]
    order = np.argsort(-scores, kind="stable")
    ends = order[_rank_within(frames[order]) == most - 1]
    last = np.full(int(frames.max()) + 1, -np.inf)  # by keyframe: the lowest score that counts
    last[frames[ends]] = scores[ends]
    kept = scores > last[frames]
    free = most - np.bincount(frames[kept], minlength=len(last))
    early = np.flatnonzero(scores >= last[frames])
    early = early[_rank_within(frames[early]) < most]
    tied = early[~kept[early]]
    x1, y1, x2, y2 = detections.boxes[crowded[tied]].T
    tied = tied[np.lexsort((tied, -x2, -y2, -x1, -y1, -detections.classes[crowded[tied]]))]
    kept[tied[_rank_within(frames[tied]) < free[frames[tied]]]] = True
    all_kept[crowded] = kept
    return all_kept


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """int64 [N]: how many earlier rows belong to the same group."""
    by_group = _stable_order(groups)
    sizes = np.bincount(groups) if len(groups) else np.zeros(0, np.int64)
    rank = np.empty(len(groups), dtype=np.int64)
    rank[by_group] = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def _stable_order(numbers: np.ndarray) -> np.ndarray:
    """A stable argsort of numbers of 0 or more: by 16 bits at a time, for which NumPy has a radix sort."""
    order = np.arange(len(numbers))
    for shift in range(0, int(numbers.max(initial=0)).bit_length(), 16):
        digits = (numbers[order] >> shift & 0xFFFF).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
    return order


def _differs_from_before(frames: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """bool [N]: whether a box is on another keyframe or elsewhere than the one of the row before."""
    differs = np.ones(len(frames), dtype=bool)
    differs[1:] = frames[1:] != frames[:-1]
    for corner in boxes.T:
        differs[1:] |= corner[1:] != corner[:-1]
    return differs


def _member(frames: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """bool [N]: whether each keyframe number is among the chosen ones."""
    return np.isin(frames, np.unique(chosen))
