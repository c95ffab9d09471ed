"""The AVA-like set: movies planned by seed, rendered to files, and all of AVA's annotation files about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shard_tools.toy.classification_sets import youtube_ids
from shard_tools.toy.clips import make_rng
from shard_tools.toy.detector import detect
from shard_tools.toy.labels import AVA, EPISODES
from shard_tools.toy.movie import Movie, PersonAt
from shard_tools.toy.movie_plan import MOVIE_START, MoviePlan, plan_movies
from shard_tools.toy.staging import FPS
from shard_tools.toy.video import Video, encode

_PICTURE, _DETECTOR = 0, 1  # random generators of a movie
_EXCLUDED_SHARE = 0.008
_RARE = {number for e in EPISODES if not e.share for number in e.ids + e.partner_ids} - {11, 12, 17}


@dataclass(frozen=True)
class MovieFile:
    """A movie of the set; one that is `missing` is annotated but not on disk."""

    seed: int
    split: str
    index: int
    name: str
    plan: MoviePlan
    missing: bool

    @property
    def path(self) -> str:
        """Relative to the dataset's folder."""
        return f"videos/{self.name}.mp4"

    @property
    def frames(self) -> int:
        return self.plan.seconds * FPS

    def stage(self) -> Movie:
        return Movie(self.plan, make_rng(self.seed, "ava", self.split, self.index, _PICTURE))

    def write(self, path: Path, work: Path) -> None:
        """Renders it to a file, which appears whole or not at all. Raises UserError where FFmpeg fails."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        encode([Video(self.stage().frames(), part, path.suffix, audio=True)], work)
        part.replace(path)


def plan_ava(seed: int, split: str, movies: int, missing: int, seconds: int, shots: int) -> list[MovieFile]:
    """Plans `movies` movies on disk and `missing` ones that are annotated only."""
    rng = make_rng(seed, "ava", split)
    plans = plan_movies(rng, movies, seconds, shots, train=split == "train")
    # What is not on disk takes nothing from the counts of those that are.
    plans += plan_movies(rng, missing, seconds, shots, train=False)
    names = youtube_ids(rng, len(plans))
    return [
        MovieFile(seed, split, index, name, plan, missing=index >= movies)
        for index, (name, plan) in enumerate(zip(names, plans, strict=True))
    ]


def ava_annotations(files: Sequence[MovieFile]) -> tuple[dict[str, str], list[str]]:
    """The annotation files of one split.

    Returns:
        path relative to the dataset's folder -> text, and the rows of the annotations with an odd person id.
    """
    split = files[0].split
    keyframes: dict[str, list[PersonAt]] = {}
    proposals = []
    for file in sorted(files, key=lambda file: file.name):
        rng = make_rng(file.seed, "ava", split, file.index, _DETECTOR)
        people = file.stage().people()
        for second in file.plan.keyframes:
            stamp = f"{file.name},{MOVIE_START + second:04d}"
            keyframes[stamp] = [person for person in people if person.second == second]
            found = detect(np.array([person.box for person in keyframes[stamp]]).reshape(-1, 4), rng)
            proposals += [f"{stamp},{_corners(row[:4])},,{row[4]:.6f}" for row in found]

    rng = make_rng(files[0].seed, "ava", split, len(files))
    # Never one with a rare action, of which each counts.
    common = [stamp for stamp, people in keyframes.items() if not any(_RARE & {*at.ids} for at in people)]
    count = min(len(common), max(1, round(_EXCLUDED_SHARE * len(keyframes))))
    excluded = sorted(common[i] for i in rng.choice(len(common), count, replace=False))
    rows = [row for stamp, people in keyframes.items() if stamp not in excluded for row in _rows(stamp, people)]
    odd: list[str] = []
    if split == "train":
        # A slip of the pen that copies of AVA have.
        place = int(rng.integers(len(rows)))
        rows[place] += "_"
        odd.append(rows[place])
    texts = {
        f"ava_{split}_v2.2.csv": _lines(rows),
        f"ava_{split}_excluded_timestamps_v2.2.csv": _lines(excluded),
        f"ava_{split}_predicted_boxes.csv": _lines(proposals),
        "ava_action_list_v2.2.pbtxt": "".join(_label(number, name) for number, name in AVA.items()),
        "ava_action_list_v2.2_for_activitynet_2019.pbtxt": "".join(
            f'item {{\n  name: "{name}"\n  id: {number}\n}}\n' for number, name in AVA.items()
        ),
    }
    return texts, odd


def _rows(stamp: str, people: Sequence[PersonAt]) -> list[str]:
    """One row for each person and action."""
    return [f"{stamp},{_corners(at.box)},{number},{at.person}" for at in people for number in sorted(at.ids)]


def _corners(box: Sequence[float]) -> str:
    return ",".join(f"{value:.3f}" for value in box)


def _label(number: int, name: str) -> str:
    kind = "PERSON_MOVEMENT" if number <= 14 else "OBJECT_MANIPULATION" if number <= 63 else "PERSON_INTERACTION"
    return f'label {{\n  name: "{name}"\n  label_id: {number}\n  label_type: {kind}\n}}\n'


def _lines(rows: Sequence[str]) -> str:
    return "".join(f"{row}\n" for row in rows)
