"""Person boxes of a video from a file in one of the field's layouts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.ava_files import Keyframe, read_annotations, read_proposals
from data.errors import UserError
from data.text_files import read_rows

AVA_START = 900.0
"""Second of the movie at which AVA's published 15-minute copies begin."""


@dataclass(frozen=True)
class BoxFile:
    """A video's part of a file of person boxes.

    Attributes:
        video_id: as in the file.
        start: second of the movie at which the video begins.
        times: float64 [n], seconds in the video, ascending.
        boxes: for each time float64 [k, 4], (x1, y1, x2, y2) in [0, 1].
        outside: number of keyframes of the file that lie before or after the video.
    """

    video_id: str
    start: float
    times: np.ndarray
    boxes: list[np.ndarray]
    outside: int


def read_box_file(path: str, video: Path, seconds: float, start: float | None, least: float) -> BoxFile:
    """Reads the boxes of one video.

    Args:
        path: SlowFast's CSV or mmaction2's pickle of proposals, or a CSV in AVA's layout, whose boxes score 1.
        video: its name without the ending is the video id, unless the file knows one video only.
        seconds: length of the video.
        start: second of the movie at which the video begins; None: 0 or AVA's 900, whichever more keyframes fit.
        least: score that a box needs.

    Raises:
        UserError: a malformed file, no boxes in it, none of them are of this video, or none lie inside of it.
    """
    keyframes = _read_any(path)
    if not keyframes:
        raise UserError(f"{path}: has no boxes (expected rows of video_id,timestamp,x1,y1,x2,y2,...)")
    ids = sorted({name for name, _ in keyframes})
    if video.stem not in ids and len(ids) > 1:
        some = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        raise UserError(f"{path}: has no boxes of a video {video.stem!r}; it has {some}. Name the video like its id")
    video_id = video.stem if video.stem in ids else ids[0]
    stamps = np.array(sorted(stamp for name, stamp in keyframes if name == video_id))

    def inside(begin: float) -> np.ndarray:
        return (stamps >= begin) & (stamps <= begin + seconds)

    if start is None:
        start = max((0.0, AVA_START), key=lambda begin: int(inside(begin).sum()))
    chosen = stamps[inside(start)]
    if not len(chosen):
        raise UserError(
            f"{path}: the boxes of {video_id} are at seconds {stamps[0]:g} to {stamps[-1]:g}, the video at {start:g} to"
            f" {start + seconds:g}; say with --video-start at which second of the movie the file begins"
        )
    boxes = [keyframes[video_id, stamp] for stamp in chosen.tolist()]
    return BoxFile(
        video_id=video_id,
        start=start,
        times=chosen - start,
        boxes=[_clean(rows[rows[:, 4] >= least, :4]) for rows in boxes],
        outside=len(stamps) - len(chosen),
    )


def _read_any(path: str) -> dict[Keyframe, np.ndarray]:
    """Keyframe -> float64 [k, 5], x1 y1 x2 y2 score."""
    if path.endswith((".pkl", ".pickle")):
        return read_proposals(path)
    # SlowFast's seventh column is empty or its last one a score with a point; AVA's last one is a person's number.
    rows = (row for part in read_rows(path) for row in part.rows)
    if any(len(row) == 8 and (not row[6].strip() or "." in row[7]) for row in rows):
        return read_proposals(path)
    annotations = read_annotations(path)
    found: dict[Keyframe, list[np.ndarray]] = {}
    stamps = annotations.timestamps.tolist()
    for video, stamp, box in zip(annotations.video_ids, stamps, annotations.boxes, strict=True):
        found.setdefault((video, stamp), []).append(box)
    # One row per action: a person's box is there several times.
    persons = {key: np.unique(np.stack(boxes), axis=0) for key, boxes in found.items()}
    return {key: np.hstack([boxes, np.ones((len(boxes), 1))]) for key, boxes in persons.items()}


def _clean(boxes: np.ndarray) -> np.ndarray:
    """Clips boxes to the frame, and drops those that have no area left."""
    boxes = boxes.clip(0, 1)
    return boxes[(boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])]
