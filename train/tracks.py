"""Persons between keyframes: the boxes of one person are linked, and move in a straight line, without jumps."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

FARTHEST = 1.5
"""Boxes whose `unlikeness` is more than this are not taken for one person."""

LOOK_WEIGHT = 4.0
"""What a difference of the whole range of colours counts, where a distance of a person's own length counts 1."""

PARTS = 3
"""Parts of a box, one below the other, whose colours are looked at: head, trunk, legs."""


@dataclass(frozen=True)
class Person:
    """A person to draw: a number that stays for the person, (x1, y1, x2, y2) in [0, 1], and (text, score) labels; what
    is certain has no score."""

    track: int
    box: np.ndarray
    labels: Sequence[tuple[str, float | None]]


@dataclass(frozen=True)
class PersonKeyframe:
    """The persons at one moment: its second in the video, boxes float64 [k, 4] in [0, 1], their labels, and their
    `looks`, float64 [k, d]; all of a video's looks may be left out, with a d of 0."""

    time: float
    boxes: np.ndarray
    labels: list[list[tuple[str, float]]]
    looks: np.ndarray


class Tracks:
    """Who is where at any moment.

    Args:
        keyframes: in ascending order of time.
        reach: seconds. Keyframes further apart than this are not linked, and a keyframe is not shown further than
            half of it away.
        aspect: width of the frame over its height.
    """

    def __init__(self, keyframes: Sequence[PersonKeyframe], reach: float, aspect: float = 1.0) -> None:
        self.keyframes, self.reach = list(keyframes), reach
        self.times = [keyframe.time for keyframe in keyframes]
        self.tracks: list[np.ndarray] = []
        count = 0
        for number, keyframe in enumerate(keyframes):
            own = np.full(len(keyframe.boxes), -1)
            if number and keyframe.time - self.times[number - 1] <= reach:
                for old, new in link(unlikeness(keyframes[number - 1], keyframe, aspect)):
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


def unlikeness(one: PersonKeyframe, other: PersonKeyframe, aspect: float) -> np.ndarray:
    """float64 [n, m]: how little a box of one keyframe speaks for being the same person as one of the other.

    The sum of the distance between the boxes' middles in units of the larger one's longer side, of the ratio of longer
    sides (as a logarithm), and of LOOK_WEIGHT times the difference of looks. Overlap would not do: in a second people
    walk further than they are wide.
    """
    (centres, sizes), (others, other_sizes) = (_places(keyframe.boxes, aspect) for keyframe in (one, other))
    distances = np.linalg.norm(centres[:, None] - others[None], axis=2)
    distances /= np.maximum(sizes[:, None], other_sizes[None])
    ratios = np.abs(np.log(sizes[:, None] / other_sizes[None]))
    differences = one.looks[:, None] - other.looks[None]
    looks = np.sqrt((differences**2).sum(axis=2) / max(differences.shape[2], 1))
    return distances + ratios + LOOK_WEIGHT * looks


def _places(boxes: np.ndarray, aspect: float) -> tuple[np.ndarray, np.ndarray]:
    """Middles [n, 2] and longer sides [n] of boxes [n, 4], in units of the frame's height."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2 * (aspect, 1)
    return middles, np.maximum(((boxes[:, 2:] - boxes[:, :2]) * (aspect, 1)).max(axis=1, initial=0), 1e-6)


def link(costs: np.ndarray) -> list[tuple[int, int]]:
    """Pairs of rows and columns of costs [n, m] that are one person: the surest first, each at most once."""
    costs, pairs = costs.copy(), []
    while costs.size and costs.min() <= FARTHEST:
        old, new = divmod(int(costs.argmin()), costs.shape[1])
        pairs.append((old, new))
        costs[old, :] = costs[:, new] = np.inf
    return pairs


def looks(frame: Tensor, boxes: np.ndarray) -> np.ndarray:
    """What persons look like: mean colours of PARTS parts of each box, one below the other, without its sides, where
    the background shows.

    Args:
        frame: uint8 [3, H, W].
        boxes: float64 [k, 4], x1 y1 x2 y2 in [0, 1].

    Returns:
        float64 [k, 3 * PARTS] in [0, 1].
    """
    height, width = frame.shape[1:]
    pixels = frame.numpy()
    found = np.zeros((len(boxes), PARTS, 3))
    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        side = (x2 - x1) / 4
        left, right = _pixels(x1 + side, x2 - side, width)
        for part in range(PARTS):
            top, bottom = _pixels(y1 + part * (y2 - y1) / PARTS, y1 + (part + 1) * (y2 - y1) / PARTS, height)
            found[number, part] = pixels[:, top:bottom, left:right].mean(axis=(1, 2)) / 255
    return found.reshape(len(boxes), 3 * PARTS)


def _pixels(start: float, end: float, size: int) -> tuple[int, int]:
    """From which pixel to before which, one at least, an interval in [0, 1] goes."""
    first = min(max(round(start * size), 0), size - 1)
    return first, min(max(round(end * size), first + 1), size)
