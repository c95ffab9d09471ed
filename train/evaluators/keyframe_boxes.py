"""Scored boxes and ground truth of keyframes: what AVA's metric and AVA's files are made from."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.ava_files import Keyframe
from data.shards import ClassInfo
from train.frame_map import FrameBoxes
from train.whole_files import whole_text

DECIMALS = 6
"""Of box corners, here and in the files, so that the metric of the files is exactly the one computed here."""


@dataclass(frozen=True)
class KeyframeBoxes:
    """F keyframes with K scored boxes and R rows of ground truth, one per (box, class).

    Attributes:
        keyframes: F of (video id, timestamp in seconds).
        frames: int64 [K], index of each box's keyframe.
        boxes: float64 [K, 4], (x1, y1, x2, y2) in [0, 1] of the frame.
        scores: float32 [K, E], in [0, 1], of the evaluated classes.
        evaluated: int64 [E], their logit indices.
        truth: the rows of ground truth, classes as logit indices, evaluated or not.
    """

    keyframes: list[Keyframe]
    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    evaluated: np.ndarray
    truth: FrameBoxes

    def detections(self, scores: np.ndarray | None = None) -> FrameBoxes:
        """K * E rows, box by box; the class is the place in `evaluated`. `scores` [K, E] replace the boxes' own."""
        scores = self.scores if scores is None else scores
        count = len(self.evaluated)
        return FrameBoxes(
            frames=np.repeat(self.frames, count),
            boxes=np.repeat(self.boxes, count, axis=0),
            classes=np.tile(np.arange(count), len(self.frames)),
            scores=scores.ravel().astype(np.float64),
        )

    def plain_boxes(self) -> FrameBoxes:
        """The K boxes, of class 0."""
        return FrameBoxes(self.frames, self.boxes, np.zeros(len(self.frames), dtype=np.int64))

    def groundtruth(self) -> FrameBoxes:
        """The rows of evaluated classes; the class is the place in `evaluated`."""
        place = np.searchsorted(self.evaluated, self.truth.classes).clip(max=len(self.evaluated) - 1)
        return replace(self.truth, classes=place).take(self.evaluated[place] == self.truth.classes)

    def write_detections(self, path: Path, classes: Sequence[ClassInfo]) -> None:
        """Writes rows of video_id,timestamp,x1,y1,x2,y2,action_id,score: the official evaluator's format."""
        ids = [classes[index].id for index in self.evaluated]
        with whole_text(path) as file:
            for frame, box, scores in zip(self.frames, self.boxes, self.scores, strict=True):
                start = f"{_keyframe(self.keyframes[frame])},{_corners(box)}"
                # Nine digits tell any two float32 apart, so that the file ranks as the model does.
                file.writelines(f"{start},{n},{s:.9g}\n" for n, s in zip(ids, scores.tolist(), strict=True))

    def write_groundtruth(self, path: Path, classes: Sequence[ClassInfo]) -> None:
        """Writes rows of video_id,timestamp,x1,y1,x2,y2,action_id, of all classes; two columns for other keyframes."""
        with whole_text(path) as file:
            for frame, box, label in zip(self.truth.frames, self.truth.boxes, self.truth.classes, strict=True):
                file.write(f"{_keyframe(self.keyframes[frame])},{_corners(box)},{classes[label].id}\n")
            for frame in np.setdiff1d(np.arange(len(self.keyframes)), self.truth.frames):
                file.write(f"{_keyframe(self.keyframes[frame])}\n")

    def write_labelmap(self, path: Path, classes: Sequence[ClassInfo]) -> None:
        """Writes the evaluated classes as a label map."""
        with whole_text(path) as file:
            for index in self.evaluated:
                name = classes[index].name.replace('"', "'")
                file.write(f'item {{\n  name: "{name}"\n  id: {classes[index].id}\n}}\n')


def _keyframe(keyframe: Keyframe) -> str:
    video, seconds = keyframe
    if set(video) & set(',"\n'):
        video = '"{}"'.format(video.replace('"', '""'))  # as CSV has it
    # AVA writes whole seconds in four digits; AVA-Kinetics has fractions.
    return f"{video},{int(seconds):04d}" if seconds == int(seconds) else f"{video},{seconds:.6f}"


def _corners(box: np.ndarray) -> str:
    return ",".join(f"{value:.{DECIMALS}f}" for value in box.tolist())
