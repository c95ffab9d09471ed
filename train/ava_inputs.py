"""Reads what AVA's frame mAP is computed from, and says what in the files does not count or looks wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from data.ava_files import BoxRows, Keyframe, read_annotations, read_detections, read_excluded, read_labelmap
from data.errors import UserError
from data.shards import ClassInfo, Manifest
from data.text_files import read_text
from train.ava_classes import is_evaluated
from train.frame_map import FrameBoxes, Protocol


@dataclass(frozen=True)
class Files:
    """What the files hold, in the terms of `frame_map`: boxes of the label map's classes, keyframes as numbers.

    Attributes:
        classes: the label map's C classes.
        groundtruth: the boxes of these classes, one per (person, class).
        people: the ground truth's boxes of any class, also of those that the label map does not name; class 0.
        detections: of these classes; `others` those of further files, one by one.
        named: int64 [any], keyframes that the ground truth names.
        excluded: int64 [any], keyframes of the exclusion list.
        videos: int64 [F], the number of each keyframe's video.
        remarks: what of the rows does not count, and what looks wrong in them.
    """

    classes: list[ClassInfo]
    groundtruth: FrameBoxes
    people: FrameBoxes
    detections: FrameBoxes
    others: list[FrameBoxes]
    named: np.ndarray
    excluded: np.ndarray
    videos: np.ndarray
    remarks: list[str]


def read_files(
    groundtruth: str, detections: str, labelmap: str, excluded: str | None = None, others: Sequence[str] = ()
) -> Files:
    """Reads the evaluator's inputs; rows of classes that the label map does not name are left out, as officially.

    Args:
        others: further files of detections, to compare with.

    Raises:
        UserError: a file that cannot be read or is malformed, with file and line.
    """
    classes = read_labelmap(labelmap)
    truth_rows = read_annotations(groundtruth)
    numbers: dict[Keyframe, int] = {}
    truth = _boxes(truth_rows, classes, numbers)
    remarks = _remarks(truth_rows, classes)
    twice = len(truth) - len(np.unique(np.column_stack([truth.frames, truth.classes, truth.boxes]), axis=0))
    if twice:
        remarks.append(f"{groundtruth}: {twice} rows repeat another's keyframe, box and class, and count once more")
    found = []
    for path in (detections, *others):
        # One at a time: text and columns of millions of rows are let go of before the next file is read.
        rows = read_detections(path)
        remarks += _remarks(rows, classes)
        found.append(_boxes(rows, classes, numbers))
    named = _numbers(truth_rows.keyframes(), numbers)
    left_out = _numbers(read_excluded(excluded) if excluded else (), numbers)
    videos: dict[str, int] = {}
    return Files(
        classes=classes,
        groundtruth=truth,
        people=_people(truth_rows, numbers),
        detections=found[0],
        others=found[1:],
        remarks=remarks,
        named=named,
        excluded=left_out,
        videos=np.array([videos.setdefault(video, len(videos)) for video, _ in numbers], dtype=np.int64),
    )


def training_counts(path: str, classes: Sequence[ClassInfo]) -> np.ndarray:
    """int64 [C]: labelled boxes of each class in a training set: its ground-truth CSV, or the manifest of its shards
    where the name ends in .json.

    Raises:
        UserError: a file that cannot be read or is malformed, or a manifest without counts.
    """
    if not path.endswith(".json"):
        return np.bincount(_boxes(read_annotations(path), classes, {}).classes, minlength=len(classes))
    counts = manifest_counts(Manifest.from_json(read_text(path), path))
    if counts is None:
        raise UserError(f"{path}: holds no counts per class: pack the set again, or give its ground-truth CSV")
    return np.array([counts.get(c.id, 0) for c in classes], dtype=np.int64)


def manifest_counts(manifest: Manifest) -> dict[int, int] | None:
    """Class id -> packed labels, as the packers count them; None where the manifest does not say."""
    rows = manifest.settings.get("per_class")
    try:
        counts = {c.id: int(packed) for c, (_, packed) in zip(manifest.classes, rows or (), strict=True)}
    except (TypeError, ValueError):
        return None
    return counts if all(count >= 0 for count in counts.values()) else None


def _boxes(rows: BoxRows, classes: Sequence[ClassInfo], numbers: dict[Keyframe, int]) -> FrameBoxes:
    ids = np.array([c.id for c in classes])  # in ascending order
    index = np.minimum(np.searchsorted(ids, rows.action_ids), len(ids) - 1)
    keyframes, which = rows.keyframe_rows()
    boxes = FrameBoxes(_numbers(keyframes, numbers)[which], rows.boxes, index, rows.scores)
    known = ids[index] == rows.action_ids
    return boxes if known.all() else boxes.take(known)


def _people(rows: BoxRows, numbers: dict[Keyframe, int]) -> FrameBoxes:
    keyframes, which = rows.keyframe_rows()
    return FrameBoxes(_numbers(keyframes, numbers)[which], rows.boxes, np.zeros(len(rows), dtype=np.int64)).distinct()


def _remarks(rows: BoxRows, classes: Sequence[ClassInfo]) -> list[str]:
    x1, y1, x2, y2 = rows.boxes.T
    unknown = ~np.isin(rows.action_ids, [c.id for c in classes])
    checks = [
        ("are of classes that the label map does not name, and do not count", unknown),
        ("have no area (x1 < x2 and y1 < y2 is expected)", (x1 >= x2) | (y1 >= y2)),
        # Detectors' boxes run over the edge by a little; pixels by far.
        ("are far outside of the frame: boxes are fractions of it, from 0 to 1", (np.abs(rows.boxes) > 2).any(axis=1)),
    ]
    remarks = [f"{rows.path}: {bad.sum()} of {len(rows)} rows {what}" for what, bad in checks if bad.any()]
    return remarks if len(rows) else [f"{rows.path}: no boxes in it"]


def _numbers(keyframes: Iterable[Keyframe], numbers: dict[Keyframe, int]) -> np.ndarray:
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keyframes), dtype=np.int64)


def notes(files: Files, name: str, protocol: Protocol) -> list[str]:
    """What a user should know before comparing the figure with others."""
    result = list(files.remarks)
    elsewhere = ~np.isin(files.detections.frames, files.named)
    if protocol.only_named_keyframes and elsewhere.any():
        result.append(
            f"{elsewhere.sum()} of {len(elsewhere)} detections are on keyframes that the ground truth does not name,"
            f" and do not count under {name}"
        )
    if not protocol.drops_excluded and len(files.excluded):
        touched = len(np.intersect1d(files.excluded, files.named))
        result.append(
            f"{name} takes no exclusion list: it scores the keyframes that the ground truth names, {touched} of which"
            f" are on the list of {len(files.excluded)}"
        )
    if not is_evaluated(files.classes).all():
        result.append(
            "the label map has all 80 classes of AVA; published figures average 60 (the label map"
            " ava_action_list_v2.2_for_activitynet_2019.pbtxt)"
        )
    return result
