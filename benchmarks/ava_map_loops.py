"""Frame mAP in the manner of the official evaluator: rows into dictionaries, then loops over images and classes.

    python -m benchmarks.ava_map_loops GROUNDTRUTH DETECTIONS LABELMAP

What `benchmarks/ava_map.py` compares with. It takes the steps of `Evaluation/get_ava_performance.py` of the activitynet
repository, protocol of 2020, and is written from what they are: a heap of the 50 best rows of each keyframe; for each
keyframe and each class a count of the ground truth, four selections (difficult and group-of boxes too, of which AVA has
none), boxes that are checked one by one, a matrix of overlaps and a loop over the detections; for each class a sort of
all scores and a loop over the precision envelope.
"""

import argparse
import csv
import heapq
import json
from collections import defaultdict

import numpy as np

from data.ava_files import read_labelmap

IOU, MOST = 0.5, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("groundtruth", "detections", "labelmap"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    ids = {c.id for c in read_labelmap(arguments.labelmap)}
    truth = read(arguments.groundtruth, ids, 0)
    found = read(arguments.detections, ids, MOST)
    result = evaluate(truth, found, max(ids))
    per_class = {number: value for number, value in result.items() if value is not None}
    print(json.dumps({"mAP": sum(per_class.values()) / len(per_class), "per_class": per_class}))


def read(path: str, ids: set[int], most: int) -> dict[str, list[tuple]]:
    """Rows (score, class, y1, x1, y2, x2) by keyframe; `most` above 0 keeps only the highest-scoring ones."""
    rows: dict[str, list[tuple]] = defaultdict(list)
    with open(path, newline="") as file:
        for row in csv.reader(file):
            key = f"{row[0]},{float(row[1]):.6f}"
            image = rows[key]
            if len(row) == 2 or int(row[6]) not in ids:
                continue
            x1, y1, x2, y2 = map(float, row[2:6])
            score = float(row[7]) if len(row) > 7 and most else 1.0
            entry = (score, int(row[6]), y1, x1, y2, x2)
            if not most or len(image) < most:
                heapq.heappush(image, entry) if most else image.append(entry)
            elif score > image[0][0]:
                heapq.heapreplace(image, entry)
    return rows


def evaluate(truth: dict[str, list[tuple]], found: dict[str, list[tuple]], classes: int) -> dict[int, float | None]:
    """AP of every class number up to `classes`; None without ground truth."""
    scores: list[list[np.ndarray]] = [[] for _ in range(classes)]
    right: list[list[np.ndarray]] = [[] for _ in range(classes)]
    instances, images = np.zeros(classes, dtype=int), np.zeros(classes, dtype=int)
    for key, annotated in truth.items():
        gt = np.array(annotated).reshape(-1, 6)
        gt_boxes, gt_classes = gt[:, 2:], gt[:, 1].astype(int) - 1
        difficult, group_of = np.zeros(len(gt), dtype=bool), np.zeros(len(gt), dtype=bool)
        for number in range(classes):
            instances[number] += np.sum(gt_classes[~difficult & ~group_of] == number)
            images[number] += np.any(gt_classes == number)
        det = np.array(sorted(found.get(key, []), key=lambda row: -row[0])).reshape(-1, 6)
        det = det[(det[:, 2] < det[:, 4]) & (det[:, 3] < det[:, 5])]
        det_boxes, det_classes, det_scores = det[:, 2:], det[:, 1].astype(int) - 1, det[:, 0]
        for number in range(classes):
            own, wanted = det_classes == number, gt_classes == number
            own_scores, hits = match(
                Boxes(det_boxes[own]),
                det_scores[own],
                Boxes(gt_boxes[wanted]),
                difficult[gt_classes == number],
                group_of[gt_classes == number],
            )
            if len(own_scores):
                scores[number].append(own_scores)
                right[number].append(hits)
    return {
        number + 1: average_precision(scores[number], right[number], int(instances[number]))
        for number in range(classes)
    }


class Boxes:
    """Boxes (y1, x1, y2, x2) [N, 4] that have been looked at one by one."""

    def __init__(self, corners: np.ndarray) -> None:
        for box in corners:
            assert box[0] <= box[2] and box[1] <= box[3]
        self.corners = corners

    def areas(self) -> np.ndarray:
        return (self.corners[:, 2] - self.corners[:, 0]) * (self.corners[:, 3] - self.corners[:, 1])


def match(
    found: Boxes, scores: np.ndarray, truth: Boxes, difficult: np.ndarray, group_of: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of one keyframe's detections of one class that count, highest first, and whether each is right."""
    is_right, ignored = np.zeros(len(scores), dtype=bool), np.zeros(len(scores), dtype=bool)
    if len(scores) and len(truth.corners):
        overlaps = iou(found, truth)[:, ~group_of]
        taken = np.zeros(overlaps.shape[1], dtype=bool)
        best = np.argmax(overlaps, axis=1)
        for place in range(len(scores)):
            target = best[place]
            if overlaps[place, target] >= IOU:
                ignored[place] = difficult[target]
                if not difficult[target] and not taken[target]:
                    is_right[place] = taken[target] = True
    return scores[~ignored], is_right[~ignored]


def iou(found: Boxes, truth: Boxes) -> np.ndarray:
    """[N, M] overlaps."""
    a, b = found.corners, truth.corners
    height = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    width = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    shared = np.maximum(height, 0) * np.maximum(width, 0)
    return shared / (found.areas()[:, None] + truth.areas()[None] - shared)


def average_precision(scores: list[np.ndarray], right: list[np.ndarray], instances: int) -> float | None:
    if instances == 0:
        return None
    if not scores:
        return 0.0
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.concatenate(right)[order].astype(float)
    positives, negatives = np.cumsum(hits), np.cumsum(1 - hits)
    recall = np.concatenate([[0], positives / instances, [1]])
    precision = np.concatenate([[0], positives / (positives + negatives), [0]])
    for place in range(len(precision) - 2, -1, -1):
        precision[place] = max(precision[place], precision[place + 1])
    rises = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(np.sum((recall[rises] - recall[rises - 1]) * precision[rises]))


if __name__ == "__main__":
    main()
