"""Keyframes of an evaluation, drawn: the ground truth on the left, what the model says on the right."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from data import counters, storage
from data.boxes import iou
from data.errors import UserError
from data.load import BadSample, TaskData, load_keyframe
from data.sample_json import Keyframe
from train.draw import ALL, Painter
from train.evaluators.keyframe_boxes import KeyframeBoxes
from train.tracks import Person, link

TOP = 3
"""Classes that are shown of each detected box, those of the highest scores."""
TRIES = 20
"""Examples that are looked at for one with a person and a readable video."""
SAME_IOU = 0.3
"""Overlap from which on a detected box is taken for an annotated person's, and gets its colour."""
GAP = 6
"""Pixels between the halves of a picture."""


@dataclass(frozen=True)
class Chosen:
    """A keyframe to draw, with its frame: uint8 [H, W, 3], RGB."""

    keyframe: Keyframe
    frame: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.keyframe.video_id}, {self.keyframe.timestamp:g} s"


class KeyframePictures:
    """Draws always the same keyframes of a validation set, whatever has been trained.

    The set is cut into `count` parts of equal length, and of each part the first keyframe from its middle on is taken
    that has a person and can be read. Keyframes of one video follow one another in a set, so the parts are of different
    videos where there are enough. Frames are read from the shards once, when they are first drawn, and kept.

    Args:
        data: a localisation task's validation set.
        count: how many keyframes; fewer where the set is smaller.
    """

    def __init__(self, data: TaskData, count: int) -> None:
        # A few samples of a remote set are no reason to fetch whole shards.
        self.data = replace(data, shards=data.shards.by_range())
        self.count = min(count, len(data.shards))
        self._chosen: list[Chosen] | None = None

    def read(self) -> list[Chosen]:
        """What is drawn; read from the shards the first time. A part without a keyframe that can be drawn is left out,
        with a note on stderr."""
        if self._chosen is None:
            self._chosen = self._choose()
            # It is no part of what a batch costs.
            counters.take()
            storage.take_counts()
        return self._chosen

    def _choose(self) -> list[Chosen]:
        found = []
        borders = np.arange(self.count + 1) * len(self.data.shards) // max(self.count, 1)
        for start, end in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
            middle = (start + end) // 2
            try:
                keyframe = self._first_of(range(middle, min(end, middle + TRIES)))
            except UserError as error:
                # A server that does not answer: training needs no pictures.
                print(f"note: {self.data.name}: no more keyframes are drawn: {error}", file=sys.stderr, flush=True)
                break
            if keyframe is None:
                told = f"example {middle} and those behind it have no person, or cannot be read"
                print(f"note: {self.data.name}: a keyframe less is drawn: {told}", file=sys.stderr, flush=True)
            else:
                found.append(keyframe)
        return found

    def _first_of(self, examples: Sequence[int]) -> Chosen | None:
        for example in examples:
            try:
                keyframe, frame = load_keyframe(self.data, example)
            except BadSample:
                continue
            if len(keyframe.boxes):
                return Chosen(keyframe, frame)
        return None

    def draw(self, boxes: KeyframeBoxes) -> dict[str, np.ndarray]:
        """Name of the keyframe -> picture, uint8 [H, W, 3], RGB. One that the evaluation could not read is left out.

        Args:
            boxes: what the model said of the whole set.
        """
        names = [c.name for c in self.data.shards.manifest.classes]
        places = {keyframe: place for place, keyframe in enumerate(boxes.keyframes)}
        pictures = {}
        for chosen in self.read():
            place = places.get((chosen.keyframe.video_id, float(np.round(chosen.keyframe.timestamp, 6))))
            if place is not None:
                rows = np.flatnonzero(boxes.frames == place)
                scores = boxes.scores[rows].astype(np.float64)
                evaluated = [names[number] for number in boxes.evaluated]
                pictures[chosen.name] = draw_keyframe(chosen, names, boxes.boxes[rows], scores, evaluated)
        return pictures


def draw_keyframe(
    chosen: Chosen, names: Sequence[str], boxes: np.ndarray, scores: np.ndarray, evaluated: Sequence[str]
) -> np.ndarray:
    """One picture, uint8 [H, W, 3]; a person has the same colour in both halves.

    Args:
        names: of the set's classes.
        boxes: float64 [k, 4] in [0, 1], the detections, with `scores` float64 [k, E] of the classes named `evaluated`.
    """
    truth, frame = chosen.keyframe, chosen.frame
    persons = [
        Person(number, box, [(names[label], None) for label in labels])
        for number, (box, labels) in enumerate(zip(truth.boxes, truth.labels, strict=True))
    ]
    overlap = iou(truth.boxes, boxes) if len(truth.boxes) and len(boxes) else np.zeros((len(truth.boxes), len(boxes)))
    same = {new: old for old, new in link(np.where(overlap >= SAME_IOU, 1 - overlap, np.inf))}
    detections = []
    for number, (box, row) in enumerate(zip(boxes, scores, strict=True)):
        best = np.argsort(-row, kind="stable")[:TOP].tolist()
        track = same.get(number, len(persons) + number)
        detections.append(Person(track, box, [(evaluated[place], float(row[place])) for place in best]))
    painter = Painter(frame.shape[1], frame.shape[0])
    halves = []
    for title, shown in ((f"{chosen.name}: ground truth", persons), (f"model: the {TOP} highest scores", detections)):
        painter.hidden, painter.lines, painter.before = 0, ALL, {}  # the halves have nothing but colours in common
        image = painter.paint(frame, shown)
        title += f", {painter.hidden} without room" if painter.hidden else "" if shown else ": no box"
        halves.append(painter.titled(image, title))
    page = Image.new("RGB", (sum(half.width for half in halves) + GAP, halves[0].height), "white")
    page.paste(halves[0], (0, 0))
    page.paste(halves[1], (halves[0].width + GAP, 0))
    return np.asarray(page)
