"""The clips of the classification sets: planned by seed, rendered to files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from shard_tools.toy.faults import SHORT_FRAMES, choose_faults, lay_down, spoil
from shard_tools.toy.props import Thing
from shard_tools.toy.staging import FPS, draw_things, stage
from shard_tools.toy.video import Video, encode

DATASETS = ("kinetics", "moments", "ssv2", "ava")
SPLITS = ("train", "val")

_SECONDS = {"kinetics": (2.3, 2.8), "moments": (1.8, 2.2), "ssv2": (1.7, 2.4)}
_FRAME_SIZES = {
    # (width, height) in pixels. Moments come in one size, Something-Something in one height.
    "kinetics": ((128, 96), (128, 96), (160, 96), (112, 112), (96, 128), (144, 108)),
    "moments": ((112, 112), (112, 112), (128, 96)),
    "ssv2": ((128, 96), (128, 96), (144, 96), (160, 96)),
}
_SUFFIXES = {"kinetics": ".mp4", "moments": ".mp4", "ssv2": ".webm"}


@dataclass(frozen=True)
class Clip:
    """A clip to render.

    Attributes:
        seed, dataset, split, index: what its randomness is derived from, and nothing else.
        class_name: as the dataset names what is done.
        action: see staging.ACTIONS.
        things: what it is done with.
        frames: how many.
        size: (width, height) in pixels.
        fault: see faults.py; None for most.
    """

    seed: int
    dataset: str
    split: str
    index: int
    class_name: str
    action: str
    things: tuple[Thing, ...]
    frames: int
    size: tuple[int, int]
    fault: str | None

    @property
    def suffix(self) -> str:
        return _SUFFIXES[self.dataset]


def make_rng(seed: int, dataset: str, split: str, *more: int) -> np.random.Generator:
    """The random generator of a split, or with more numbers of a part of it."""
    return np.random.default_rng([seed, DATASETS.index(dataset), SPLITS.index(split), *more])


def plan_clips(
    seed: int, dataset: str, split: str, classes: dict[str, str], count: int, fault_share: float
) -> list[Clip]:
    """Plans `count` clips with classes (name -> action) in even numbers and random order."""
    rng = make_rng(seed, dataset, split)
    names = [list(classes)[i % len(classes)] for i in range(count)]
    names = [names[i] for i in rng.permutation(count)]
    faults = choose_faults(dataset, count, fault_share, rng)
    clips = []
    for index, name in enumerate(names):
        action, sizes = classes[name], _FRAME_SIZES[dataset]
        frames = round(rng.uniform(*_SECONDS[dataset]) * FPS)
        things, size = draw_things(action, rng), sizes[rng.integers(len(sizes))]
        clips.append(Clip(seed, dataset, split, index, name, action, things, frames, size, faults.get(index)))
    return clips


def write_clips(clips: Sequence[tuple[Clip, Path]], work: Path) -> None:
    """Renders clips to files, which appear whole or not at all; `work` is a folder for raw frames.

    Raises:
        UserError: FFmpeg failed.
    """
    videos = []
    for clip, path in clips:
        path.parent.mkdir(parents=True, exist_ok=True)
        if clip.fault not in ("empty", "text"):
            first = clip.fault == "truncated" and clip.suffix == ".mp4"
            videos.append(Video(_frames(clip), _part(path), clip.suffix, index_first=first))
    if videos:
        encode(videos, work)
    for clip, path in clips:
        if clip.fault:
            spoil(_part(path), clip.fault)
        _part(path).replace(path)


def _frames(clip: Clip) -> Iterator[Image.Image]:
    rng = make_rng(clip.seed, clip.dataset, clip.split, clip.index)
    frames = stage(clip.action, clip.frames, rng, clip.size, clip.things).frames()
    if clip.fault == "short":
        return islice(frames, SHORT_FRAMES)
    return map(lay_down, frames) if clip.fault == "rotated" else frames


def _part(path: Path) -> Path:
    """Where a file is written until it is whole."""
    return path.with_name(f".{path.name}.part")
