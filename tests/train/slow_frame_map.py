"""AVA's frame mAP once more, straight from the written rules: plain Python, one box at a time, as slow as it likes."""

import heapq
from collections import defaultdict
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple


class Box(NamedTuple):
    frame: int
    corners: tuple[float, float, float, float]
    label: int
    score: float = 1.0


def iou(a, b):
    """Exact, in fractions: IoU 0.5 is decided as on paper."""
    ax1, ay1, ax2, ay2 = map(Fraction, a)
    bx1, by1, bx2, by2 = map(Fraction, b)
    overlap = max(Fraction(0), min(ax2, bx2) - max(ax1, bx1)) * max(Fraction(0), min(ay2, by2) - max(ay1, by1))
    if overlap == 0:
        return overlap
    return overlap / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap)


def slow_frame_map(
    truth: list[Box],
    found: list[Box],
    labels: Iterable[int],
    *,
    most: int,
    named: set[int] | None,
    excluded: set[int],
    file_order: bool,
) -> dict[int, float | None]:
    """AP of each label; `named` None counts detections on any keyframe, `most` 0 keeps all of a keyframe's."""
    truth = [box for box in truth if box.frame not in excluded]
    found = [box for box in found if box.frame not in excluded and (named is None or box.frame in named)]
    by_frame = defaultdict(list)
    for place, box in enumerate(found):
        by_frame[box.frame].append((place, box))
    kept = []
    for boxes in by_frame.values():
        kept += _highest(boxes, most) if most else boxes
    kept = [(p, b) for p, b in kept if b.corners[0] < b.corners[2] and b.corners[1] < b.corners[3]]
    return {label: _class_ap(label, truth, kept, file_order) for label in labels}


def _highest(boxes: list[tuple[int, Box]], most: int) -> list[tuple[int, Box]]:
    """A full heap gives up its least row, by score, label, y1, x1, y2, x2, to a row of a higher score."""
    heap: list[tuple] = []
    for place, box in boxes:
        x1, y1, x2, y2 = box.corners
        row = (box.score, box.label, y1, x1, y2, x2, -place, (place, box))
        if len(heap) < most:
            heapq.heappush(heap, row)
        elif box.score > heap[0][0]:
            heapq.heapreplace(heap, row)
    return [row[-1] for row in heap]


def _class_ap(label, truth, kept, file_order):
    truth = [box for box in truth if box.label == label]
    if not truth:
        return None
    kept = [(place, box) for place, box in kept if box.label == label]
    taken, right = set(), set()
    for place, box in sorted(kept, key=lambda item: (0.0 if file_order else -item[1].score, item[0])):
        rivals = [(iou(box.corners, t.corners), -i) for i, t in enumerate(truth) if t.frame == box.frame]
        if rivals:
            overlap, i = max(rivals)
            if overlap >= Fraction(1, 2) and i not in taken:
                taken.add(i)
                right.add(place)
    curve, hits = [], 0
    for seen, (place, _) in enumerate(sorted(kept, key=lambda item: (-item[1].score, item[0])), start=1):
        hits += place in right
        curve.append((Fraction(hits, len(truth)), Fraction(hits, seen)))
    area, reached = Fraction(0), Fraction(0)
    for recall, _ in curve:
        area += (recall - reached) * max(precision for r, precision in curve if r >= recall)
        reached = recall
    return float(area)
