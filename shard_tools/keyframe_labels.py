"""Turns the rows of an AVA annotation file into keyframes: boxes grouped, cleaned, with labels and proposals."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data.ava_files import BoxRows, Keyframe
from data.errors import UserError

HAIR = 0.05 + 1e-9
"""How far outside the frame, as a share of it, an annotated corner may lie; it is moved to the edge."""

_CHUNK = 100_000  # rows
_PIXELS = 2.0  # detectors reach over the edge, but a coordinate above this is one in pixels


@dataclass(slots=True)
class KeyframeLabels:
    """One keyframe: its boxes in [0, 1] with their action ids and person ids, and proposals (box and score)."""

    timestamp: float
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    person_ids: list[int] = field(default_factory=list)
    proposals: list[list[float]] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The keyframe's JSON in a sample, but for its frame number."""
        return {name: getattr(self, name) for name in self.__slots__}


def collect_keyframes(
    rows: BoxRows,
    classes: set[int],
    excluded: set[Keyframe],
    proposals: Mapping[Keyframe, np.ndarray] | None,
    keep_empty: bool,
) -> tuple[dict[str, list[KeyframeLabels]], Counter[str]]:
    """Keyframes of each video in order of time.

    Args:
        classes: action ids to keep; others are dropped.
        excluded: keyframes to leave out.
        proposals: float64 [k, 5] per keyframe; all are kept, whatever their score.
        keep_empty: keep keyframes without a box: an evaluation counts detections on them, training has no use for them.

    Returns:
        {video id: keyframes}, and counts of what was dropped or mended.

    Raises:
        UserError: a corner that is far outside the frame.
    """
    counts: Counter[str] = Counter()
    boxes = _unit_boxes(rows, counts)
    whole = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    known = np.isin(rows.action_ids, sorted(classes))
    counts["boxes without area, dropped (rows)"] = int((~whole).sum())
    counts["labels that are not in the label map, dropped (rows)"] = int((~known).sum())
    counts["person ids that are no whole numbers, mended (rows)"] = len(rows.odd_lines)
    persons = rows.person_ids if rows.person_ids is not None else np.full(len(rows), -1)
    actions: dict[Keyframe, dict[tuple[float, ...], list[int]]] = {}
    columns = (rows.timestamps, boxes, rows.action_ids, persons, whole & known)
    for first in range(0, len(rows), _CHUNK):  # as Python's numbers, columns take many times the room
        part = slice(first, first + _CHUNK)
        chunk = (column[part].tolist() for column in columns)
        for video, seconds, box, action, person, keep in zip(rows.video_ids[part], *chunk, strict=True):
            found = actions.setdefault((video, seconds), {})
            if keep:
                ids = found.setdefault((*box, person), [])
                if action not in ids:
                    ids.append(action)
    for key in rows.unlabelled:
        actions.setdefault(key, {})
    videos: dict[str, list[KeyframeLabels]] = {}
    for video, seconds in sorted(actions):
        if (video, seconds) in excluded:
            counts["excluded keyframes, dropped"] += 1
            continue
        found = actions.pop((video, seconds))
        if not found and not keep_empty:
            counts["keyframes without a box, dropped"] += 1
            continue
        keyframe = KeyframeLabels(seconds)
        for (*box, person), ids in found.items():
            keyframe.boxes.append(list(box))
            keyframe.labels.append(sorted(ids))
            keyframe.person_ids.append(int(person))
        if proposals is not None:
            keyframe.proposals = _unit_proposals(proposals.get((video, seconds)), (video, seconds), counts)
        videos.setdefault(video, []).append(keyframe)
    return videos, +counts


def _unit_boxes(rows: BoxRows, counts: Counter[str]) -> np.ndarray:
    """float64 [N, 4] in [0, 1]."""
    outside = np.maximum(-rows.boxes, rows.boxes - 1).max(axis=1, initial=0)
    if len(outside) and outside.max() > HAIR:
        row = int(np.argmax(outside > HAIR))
        column = int(np.argmax(np.maximum(-rows.boxes[row], rows.boxes[row] - 1)))
        name, value = ("x1", "y1", "x2", "y2")[column], rows.boxes[row, column]
        raise UserError(
            f"{rows.path}, line {rows.lines[row]}, column {name}: {value:g}, expected a share of the frame's width or"
            " height, from 0 to 1"
        )
    counts["boxes over the frame's edge, clipped (rows)"] = int((outside > 0).sum())
    return rows.boxes.clip(0, 1)


def _unit_proposals(found: np.ndarray | None, key: Keyframe, counts: Counter[str]) -> list[list[float]]:
    if found is None:
        counts["keyframes without proposals"] += 1
        return []
    boxes = found[:, :4]
    if boxes.size and np.abs(boxes).max() > _PIXELS:
        raise UserError(
            f"proposals of {key[0]} at {key[1]:g} s: coordinate {boxes.flat[np.abs(boxes).argmax()]:g}, expected shares"
            " of the frame's width or height, from 0 to 1: these look like pixels"
        )
    clipped = found.copy()
    clipped[:, :4] = boxes.clip(0, 1)
    counts["proposals over the frame's edge, clipped"] += int((clipped != found).any(axis=1).sum())
    whole = (clipped[:, 2] > clipped[:, 0]) & (clipped[:, 3] > clipped[:, 1])
    counts["proposals without area, dropped"] += int((~whole).sum())
    kept: list[list[float]] = clipped[whole].tolist()
    return kept
