"""Persons between keyframes: boxes linked by overlap and moved in a straight line, for a video without jumps."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.boxes import iou

LINK_IOU = 0.3
"""Boxes of neighbouring keyframes that overlap less than this are not taken for one person."""


@dataclass(frozen=True)
class Person:
    """A person to draw: a number that stays for the person, (x1, y1, x2, y2) in [0, 1], and (text, score) labels; what
    is certain has no score."""

    track: int
    box: np.ndarray
    labels: Sequence[tuple[str, float | None]]


@dataclass(frozen=True)
class PersonKeyframe:
    """The persons at one moment: its second in the video, boxes float64 [k, 4] in [0, 1] and their labels."""

    time: float
    boxes: np.ndarray
    labels: list[list[tuple[str, float]]]


class Tracks:
    """Who is where at any moment.

    Args:
        keyframes: in ascending order of time.
        reach: seconds. Keyframes further apart than this are not linked, and a keyframe is not shown further than
            half of it away.
    """

    def __init__(self, keyframes: Sequence[PersonKeyframe], reach: float) -> None:
        self.keyframes, self.reach = list(keyframes), reach
        self.times = [keyframe.time for keyframe in keyframes]
        self.tracks: list[np.ndarray] = []
        count = 0
        for number, keyframe in enumerate(keyframes):
            own = np.full(len(keyframe.boxes), -1)
            if number and keyframe.time - self.times[number - 1] <= reach:
                for old, new in link(keyframes[number - 1].boxes, keyframe.boxes):
                    own[new] = self.tracks[-1][old]
            fresh = np.flatnonzero(own < 0)
            own[fresh] = count + np.arange(len(fresh))
            count += len(fresh)
            self.tracks.append(own)

    def at(self, time: float) -> list[Person]:
        """The persons at `time`, seconds in the video. Labels are those of the nearer keyframe."""
        after = bisect_right(self.times, time)
        before = after - 1
        near = [
            number
            for number in (before, after)
            if 0 <= number < len(self.times) and abs(self.times[number] - time) <= self.reach / 2
        ]
        between = before >= 0 and after < len(self.times) and self.times[after] - self.times[before] <= self.reach
        if not between:
            return [person for number in near for person in self._persons(number)]
        share = (time - self.times[before]) / (self.times[after] - self.times[before])
        old = {person.track: person for person in self._persons(before)}
        new = {person.track: person for person in self._persons(after)}
        shown = new if share >= 0.5 else old
        persons = []
        for track in sorted(old.keys() | new.keys()):
            if track in old and track in new:
                box = (1 - share) * old[track].box + share * new[track].box
                persons.append(Person(track, box, shown[track].labels))
            elif track in shown:
                persons.append(shown[track])
        return persons

    def _persons(self, number: int) -> list[Person]:
        keyframe = self.keyframes[number]
        return [
            Person(int(track), box, labels)
            for track, box, labels in zip(self.tracks[number], keyframe.boxes, keyframe.labels, strict=True)
        ]


def link(boxes: np.ndarray, others: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of boxes [n, 4] and [m, 4] that are one person: the most overlapping pair first, each box at most once."""
    if not len(boxes) or not len(others):
        return []
    overlap = iou(boxes, others)
    pairs = []
    while overlap.max() >= LINK_IOU:
        old, new = divmod(int(overlap.argmax()), len(others))
        pairs.append((old, new))
        overlap[old, :] = overlap[:, new] = -1
    return pairs
