"""Makes a whole toy world in a folder: renders what is not there yet, then writes annotations and a last mark."""

import errno
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from shard_tools.progress import progress_bar
from shard_tools.toy.ava_set import MovieFile, ava_annotations, plan_ava
from shard_tools.toy.classification_sets import annotations, video_paths
from shard_tools.toy.clips import SPLITS, Clip, plan_clips, write_clips
from shard_tools.toy.faults import SHARE
from shard_tools.toy.labels import KINETICS, MOMENTS, SSV2
from shard_tools.toy.video import require_ffmpeg
from shard_tools.workers import Lost, run_ordered

VERSION = 2
"""Of the world that a seed and a size stand for: raised when the same seed gives other files."""

CLASSES = {"kinetics": KINETICS, "moments": MOMENTS, "ssv2": SSV2}
_COMPLETE, _BEGUN, _WORK = ".complete.json", ".begun.json", ".work"
_TOGETHER = 8  # clips that share an FFmpeg process
_PATIENCE_S = 600.0

Identity = dict[str, int | str]


@dataclass(frozen=True)
class Size:
    """How much there is: (training, validation) clips, and movies on disk and annotated but missing ones."""

    name: str
    kinetics: tuple[int, int]
    moments: tuple[int, int]
    ssv2: tuple[int, int]
    movies: tuple[int, int]
    missing_movies: tuple[int, int]
    seconds: int = 32
    """Length of a movie."""
    shots: int = 4
    """Shots in a movie."""
    fault_share: float = SHARE


SIZES = {
    "small": Size("small", (480, 96), (400, 80), (324, 63), (25, 8), (1, 0)),
    "full": Size("full", (6000, 600), (4000, 400), (2997, 297), (60, 40), (2, 1)),
}


@dataclass(frozen=True)
class World:
    """All that is to be made: clips with their paths, and movies, by split; paths are relative to the raw folder."""

    clips: dict[tuple[str, str], list[tuple[Clip, str]]]
    movies: dict[str, list[MovieFile]]

    def frames(self) -> int:
        """How many frames there are to render in all."""
        clips = sum(clip.frames for members in self.clips.values() for clip, _ in members if clip.fault != "missing")
        return clips + sum(file.frames for files in self.movies.values() for file in files if not file.missing)


@dataclass(frozen=True)
class _Task:
    """What a worker makes in one go, and how many frames that is."""

    raw: Path
    clips: tuple[tuple[Clip, str], ...] = ()
    movie: MovieFile | None = None

    @property
    def frames(self) -> int:
        return self.movie.frames if self.movie else sum(clip.frames for clip, _ in self.clips)

    def run(self) -> int:
        if self.movie:
            self.movie.write(self.raw / "ava" / self.movie.path, self.raw / _WORK)
        else:
            write_clips([(clip, self.raw / path) for clip, path in self.clips], self.raw / _WORK)
        return self.frames


def plan_world(seed: int, size: Size) -> World:
    """Plans everything from the seed; nothing is rendered."""
    clips = {}
    for dataset, counts in (("kinetics", size.kinetics), ("moments", size.moments), ("ssv2", size.ssv2)):
        for split, count in zip(SPLITS, counts, strict=True):
            planned = plan_clips(seed, dataset, split, CLASSES[dataset], count, size.fault_share)
            paths = [f"{dataset}/{path}" for path in video_paths(planned)]
            clips[dataset, split] = list(zip(planned, paths, strict=True))
    numbers = zip(SPLITS, size.movies, size.missing_movies, strict=True)
    movies = {s: plan_ava(seed, s, count, missing, size.seconds, size.shots) for s, count, missing in numbers}
    return World(clips, movies)


def build(raw: Path, seed: int, size: Size, workers: int) -> bool:
    """Makes the world of a seed and size in the folder `raw`; goes on where an earlier call was cut off.

    Returns:
        False where it was there already.

    Raises:
        UserError: the folder holds something else or cannot be written to, or FFmpeg is missing.
        OSError: the disk or FFmpeg failed.
    """
    identity: Identity = {"seed": seed, "size": size.name, "version": VERSION}
    if _is_complete(raw, identity):
        return False
    require_ffmpeg()
    try:
        raw.mkdir(parents=True, exist_ok=True)
        _write(raw / _BEGUN, json.dumps(identity))
        shutil.rmtree(raw / _WORK, ignore_errors=True)
        (raw / _WORK).mkdir()
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        raise UserError(f"{raw}: cannot be written to: {error.strerror}") from error
    world = plan_world(seed, size)
    _render(raw, world, workers)
    _annotate(raw, world)
    shutil.rmtree(raw / _WORK)
    _write(raw / _COMPLETE, json.dumps(identity))
    (raw / _BEGUN).unlink()
    return True


def _is_complete(raw: Path, identity: Identity) -> bool:
    if not raw.exists():
        return False
    for mark in (_COMPLETE, _BEGUN):
        path = raw / mark
        if path.exists():
            found = path.read_text()
            if found.strip() != json.dumps(identity):
                wanted = json.dumps(identity)
                raise UserError(
                    f"{raw} holds another toy world ({found.strip()}, wanted {wanted}): choose another --out"
                )
            return mark == _COMPLETE
    # A disk may have been full before there was a mark.
    if not raw.is_dir() or any(path != _part(raw / _BEGUN) for path in raw.iterdir()):
        raise UserError(f"{raw} is not an empty folder, nor one that holds a toy world: choose another --out")
    return False


def _render(raw: Path, world: World, workers: int) -> None:
    tasks = list(_tasks(raw, world))
    total, left = world.frames(), sum(task.frames for task in tasks)
    quiet = not sys.stderr.isatty()
    with progress_bar(
        total=total,
        initial=total - left,
        unit=" frames",
        desc="toy world",
        mininterval=30 if quiet else 0.2,
        smoothing=0.05,
    ) as bar:
        for result in run_ordered(_run_tasks, tasks, workers, _PATIENCE_S):
            if isinstance(result, Lost):
                why = (
                    result.error.removeprefix("UserError: ") or "a worker took too long or was killed (out of memory?)"
                )
                raise OSError(why)
            bar.update(result)


def _run_tasks(tasks: Sequence[_Task]) -> list[int]:
    return [task.run() for task in tasks]


def _tasks(raw: Path, world: World) -> Iterator[_Task]:
    """What is not on disk yet; the longest first, so that workers end at about the same time."""
    for files in world.movies.values():
        for file in files:
            if not file.missing and not (raw / "ava" / file.path).exists():
                yield _Task(raw, movie=file)
    for members in world.clips.values():
        todo = [(clip, path) for clip, path in members if clip.fault != "missing" and not (raw / path).exists()]
        for first in range(0, len(todo), _TOGETHER):
            yield _Task(raw, clips=tuple(todo[first : first + _TOGETHER]))


def _annotate(raw: Path, world: World) -> None:
    planted = []
    for (dataset, split), members in world.clips.items():
        clips = [clip for clip, _ in members]
        for name, text in annotations(clips, [path.partition("/")[2] for _, path in members]).items():
            _write(raw / dataset / name, text)
        planted += [
            {"dataset": dataset, "split": split, "kind": clip.fault, "path": path}
            for clip, path in members
            if clip.fault
        ]
    for split, files in world.movies.items():
        texts, odd = ava_annotations(files)
        for name, text in texts.items():
            _write(raw / "ava" / name, text)
        entry = {"dataset": "ava", "split": split}
        planted += [{**entry, "kind": "missing", "path": f"ava/{file.path}"} for file in files if file.missing]
        planted += [{**entry, "kind": "odd person", "path": f"ava/ava_{split}_v2.2.csv", "row": row} for row in odd]
    _write(raw / "planted.json", json.dumps(planted, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part(path)
    part.write_text(text)
    part.replace(path)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")
