"""What the loader needs of a sample's JSON, checked: shards come from outside and may hold anything."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.shards import KEY_PATTERN

VIDEO_ID = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,255}")
"""Rows of CSV files bear it: no line of its own, and nothing that UTF-8 cannot write."""


class SampleError(ValueError):
    """A sample whose record cannot be used; the text is the reason, on one line."""


@dataclass(frozen=True)
class Keyframe:
    """One annotated keyframe of a localisation sample.

    `frame` is its frame number in the sample's video and `timestamp` its second in the whole video. `boxes` is
    float64 [G, 4] and `proposals` float64 [P, 5], both x1 y1 x2 y2 in [0, 1] of the frame, proposals followed by a
    score; `labels[g]` lists the logit indices of box g.
    """

    video_id: str
    timestamp: float
    frame: int
    boxes: np.ndarray
    labels: list[list[int]]
    proposals: np.ndarray


def sample_key(sample: Mapping[str, Any]) -> str:
    key = sample.get("key")
    if not isinstance(key, str) or not KEY_PATTERN.fullmatch(key):
        raise SampleError(f"bad key {_show(key)}")
    return key


def frame_count(sample: Mapping[str, Any]) -> int:
    """Frames of the sample's video, at least 1."""
    video = sample.get("video")
    frames: Any = video.get("frames") if isinstance(video, dict) else None
    if not _is_int(frames) or not 1 <= frames < 2**31:
        raise SampleError(f"bad video.frames {_show(frames)}")
    return int(frames)


MAX_SIDE = 2**16
"""Pixels: no codec that is packed has larger frames."""


def frame_size(sample: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that the record gives the frames, 1 to MAX_SIDE; None where it does not. It need not be true."""
    video = sample.get("video")
    size: list[Any] = [video.get(side) for side in ("height", "width")] if isinstance(video, dict) else []
    if not size or not all(_is_int(side) and 1 <= side <= MAX_SIDE for side in size):
        return None
    return int(size[0]), int(size[1])


def class_label(sample: Mapping[str, Any], classes: int) -> int:
    """The logit index of a classification sample, -1 where it has no label."""
    label = sample.get("label", "missing")
    if label is None:
        return -1
    if not _is_int(label) or not 0 <= label < classes:
        raise SampleError(f"bad label {_show(label)}: the set has {classes} classes")
    return int(label)


def read_keyframe(sample: Mapping[str, Any], item: int, dense: Mapping[int, int]) -> Keyframe:
    """Keyframe number `item` of a localisation sample.

    Args:
        dense: official class id -> logit index.

    Raises:
        SampleError: a field is missing or malformed, a box lies outside the frame or has no area, an unknown class.
    """
    video_id, keyframes = sample.get("video_id"), sample.get("keyframes")
    if not isinstance(video_id, str) or not VIDEO_ID.fullmatch(video_id):
        raise SampleError(f"bad video_id {_show(video_id)}")
    if not isinstance(keyframes, list) or item >= len(keyframes) or not isinstance(keyframes[item], dict):
        raise SampleError(f"has no keyframe number {item}")
    record = keyframes[item]
    timestamp, frame, labels = record.get("timestamp"), record.get("frame"), record.get("labels")
    if not _is_number(timestamp):
        raise SampleError(f"keyframe {item}: bad timestamp {_show(timestamp)}")
    if not _is_int(frame) or not 0 <= frame < frame_count(sample):
        raise SampleError(f"keyframe {item}: bad frame {_show(frame)}")
    boxes = _boxes(record.get("boxes"), 4, f"keyframe {item}: boxes")
    if not isinstance(labels, list) or len(labels) != len(boxes):
        raise SampleError(f"keyframe {item}: needs one list of labels for each of its {len(boxes)} boxes")
    return Keyframe(
        video_id=video_id,
        timestamp=float(timestamp),
        frame=frame,
        boxes=boxes,
        labels=[_dense_labels(ids, dense, item) for ids in labels],
        proposals=_boxes(record.get("proposals"), 5, f"keyframe {item}: proposals"),
    )


def _dense_labels(ids: object, dense: Mapping[int, int], item: int) -> list[int]:
    if not isinstance(ids, list):
        raise SampleError(f"keyframe {item}: labels of a box are no list: {_show(ids)}")
    for class_id in ids:
        if not _is_int(class_id) or class_id not in dense:
            raise SampleError(f"keyframe {item}: label {_show(class_id)} is not a class of the set")
    return [dense[class_id] for class_id in ids]


def _boxes(rows: object, columns: int, where: str) -> np.ndarray:
    """float64 [len(rows), columns]; the first four are checked to be a box inside the unit square."""
    if not isinstance(rows, list):
        raise SampleError(f"{where}: not a list")
    for row in rows:
        if not _is_row(row, columns):
            raise SampleError(f"{where}: bad box {_show(row)}")
    return np.array(rows, dtype=np.float64).reshape(-1, columns)


def _is_row(row: object, columns: int) -> bool:
    if not isinstance(row, list) or len(row) != columns or not all(_is_number(value) for value in row):
        return False
    x1, y1, x2, y2 = row[:4]
    return bool(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    # A whole number of a thousand digits is legal JSON and overflows a float.
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 2**63
    return isinstance(value, float) and math.isfinite(value)


def _show(value: object) -> str:
    """A value from outside, short enough for a message."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
