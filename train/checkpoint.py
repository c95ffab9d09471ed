"""Checkpoints: whole or absent, written while training goes on; `latest` names the newest, `best.json` the best ones.

RUN/checkpoints/step-NNNNNN holds the whole model (model.safetensors, config.json), every process's part of the
optimizer's state, and state.json with step, recipe and the SHA-256 of the other files.
"""

import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from data.errors import UserError
from models import model_document
from train.checkpoint_files import (
    File,
    State,
    damage,
    read_state,
    step_folders,
    whole_checkpoints,
    write_part,
)
from train.ema import EMA_FILE, EMA_PREFIX, WeightAverage
from train.engine import Engine
from train.launch import Rank
from train.optim_state import optimizer_file
from train.recipe import Recipe, dump_recipe
from train.whole_files import sync_folder, write_atomically

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Score:
    """What a checkpoint scored: one of the validation set that is there now is above all of others, which no longer
    can be compared with what comes."""

    comparable: bool
    value: float


@dataclass(frozen=True)
class Pending:
    """A checkpoint that is being written: `part` is this process's share of it."""

    final: Path
    partial: Path
    state: State
    part: Future[dict[str, File]]


class Checkpoints:
    """The checkpoints of one run, in RUN/checkpoints/step-NNNNNN.

    Args:
        run: the run's folder, on a file system that all ranks see.
        keep: number of newest checkpoints that are kept.
        keep_best: metrics, as in ava/mAP, the higher the better; the best checkpoint of each is kept too.

    Attributes:
        val_sets: fingerprints of the validation sets, by task, which may change when a run goes on: only metrics of
            the same one are compared.
    """

    def __init__(self, run: str | Path, keep: int, keep_best: Sequence[str] = ()) -> None:
        self.folder = Path(run) / "checkpoints"
        self.keep, self.keep_best = keep, tuple(keep_best)
        self.val_sets: dict[str, str] = {}
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Pending | None = None
        self._unreadable: set[Path] = set()

    def newest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        whole = whole_checkpoints(self.folder)
        return whole[-1] if whole else None

    def newest_intact(self, rank: Rank) -> Path | None:
        """The newest checkpoint whose files are as they were written, or None where there has been none; the same on
        all ranks. Newer ones that are not are renamed to step-NNNNNN.damaged, with a message.

        Raises:
            UserError: all of them are damaged, or one is of another format.
        """
        return rank.gather(rank.together(self._choose if rank.first else lambda: None))[0]

    def _choose(self) -> Path | None:
        damaged = []
        for folder in reversed(step_folders(self.folder)):
            reason = damage(folder)
            if reason is None:
                break
            damaged.append((folder, reason))
        else:
            if damaged:
                raise UserError(
                    f"no checkpoint of {self.folder} is intact:\n"
                    + "\n".join(f"  {folder.name}: {reason}" for folder, reason in damaged)
                    + "\nrestore one from a backup, or move them all away to begin at step 0"
                )
            return None
        for broken, reason in damaged:
            aside = _set_aside(broken)
            print(
                f"warning: {broken} is damaged ({reason}): set aside as {aside.name}; going on from {folder.name}",
                file=sys.stderr,
                flush=True,
            )
        self._name_latest(folder)
        return folder

    def save(
        self,
        step: int,
        engine: Engine,
        recipe: Recipe,
        config: dict[str, Any],
        rank: Rank,
        average: WeightAverage | None = None,
    ) -> Path:
        """`begin` and `finish` in one: the checkpoint is there when this returns."""
        self.begin(step, engine, recipe, config, rank, average)
        self.finish(rank)
        return self._final(step)

    def begin(
        self,
        step: int,
        engine: Engine,
        recipe: Recipe,
        config: dict[str, Any],
        rank: Rank,
        average: WeightAverage | None = None,
    ) -> None:
        """Copies the state after `step` optimizer steps into host memory and begins to write it in a thread; called
        on every rank. `finish` must follow. A checkpoint of that step that is there already is left as it is.

        Raises:
            UserError: a checkpoint, this one or one begun earlier, cannot be written; older ones are as they were.
        """
        self.finish(rank)
        final = self._final(step)
        partial = final.with_name(f"{final.name}.partial")

        def prepare() -> bool:
            if rank.first and (final / "state.json").exists():
                return False
            if rank.first:
                if final.exists():
                    _set_aside(final)
                for left in self.folder.glob("*.partial"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
                partial.mkdir(parents=True)
            return True

        if not rank.gather(rank.together(lambda: _told(prepare, partial)))[0]:
            return
        weights, optimizer = engine.snapshot()
        document = model_document({name: tuple(t.shape) for name, t in weights.items()}, config) if rank.first else ""
        name = optimizer_file(rank.index, rank.world)
        files = {name: optimizer}
        if average is not None and rank.first:
            files[EMA_FILE] = average.snapshot()
        part = self._writer.submit(write_part, partial, files, (weights, document) if rank.first else None)
        state = State(step, rank.world, dump_recipe(recipe))
        self._pending = Pending(final, partial, state, part)

    def finish(self, rank: Rank, wait: bool = True) -> Path | None:
        """Publishes the checkpoint that is being written once all ranks have written their parts; called on every rank.

        Everything goes into a folder of another name, which is renamed when all of it is on the disk.

        Args:
            wait: false leaves it for a later call where a rank is still writing.

        Returns:
            The checkpoint, where this call has published one.

        Raises:
            UserError: the disk is full or cannot be written; older checkpoints are as they were.
        """
        pending = self._pending
        if pending is None or (not wait and not all(rank.gather(pending.part.done()))):
            return None
        self._pending = None
        try:
            own = rank.together(lambda: _told(pending.part.result, pending.partial))
            files = {name: file for part in rank.gather(own) for name, file in part.items()}
            rank.together(lambda: _told(lambda: self._publish(pending, files) if rank.first else None, pending.partial))
        except UserError:
            if rank.first:  # what is half written would keep the disk full
                shutil.rmtree(pending.partial, ignore_errors=True)
            raise
        return pending.final

    def _publish(self, pending: Pending, files: dict[str, File]) -> None:
        for name, file in files.items():
            path = pending.partial / name
            if not path.exists() or path.stat().st_size != file.size:
                raise UserError(
                    f"{path} was written by another rank but is not here: the run's folder (out={self.folder.parent}) "
                    "must be on a file system that all nodes share"
                )
        state = State(pending.state.step, pending.state.world, pending.state.recipe, files)
        write_atomically(pending.partial / "state.json", state.to_json())
        pending.partial.rename(pending.final)
        sync_folder(self.folder)
        self._name_latest(pending.final)
        self._remove_surplus()

    def is_best(self, metrics: dict[str, float], rank: Rank) -> bool:
        """Whether any metric of `keep_best` is above that of all kept checkpoints, of those that were scored on the
        same validation set as far as that is known; the same on all ranks."""

        def better() -> bool:
            best = self._best() if rank.first else {}
            new = {name: metrics[name] for name in self.keep_best if math.isfinite(metrics.get(name, math.nan))}
            return any(name not in best or Score(True, value) > best[name][0] for name, value in new.items())

        return rank.gather(rank.together(better))[0]

    def note(self, step: int, metrics: dict[str, float], rank: Rank) -> None:
        """Writes what the checkpoint of `step`, where there is one, scored into its state.json, and best.json."""

        def write() -> None:
            folder = self._final(step)
            if rank.first and (folder / "state.json").exists():
                scored = read_state(folder).scored(metrics, self.val_sets)
                write_atomically(folder / "state.json", scored.to_json())
                best = {
                    metric: {"checkpoint": path.name, "value": score.value}
                    for metric, (score, path) in self._best().items()
                }
                write_atomically(self.folder / "best.json", json.dumps(best, indent=1) + "\n")
                self._remove_surplus()  # what is best no longer

        rank.together(lambda: _told(write, self._final(step)))

    def _best(self) -> dict[str, tuple[Score, Path]]:
        """The highest score of each metric of `keep_best`, and the first checkpoint that has it."""
        best: dict[str, tuple[Score, Path]] = {}
        for folder in whole_checkpoints(self.folder):
            for name, score in self._scores(folder).items():
                if name in self.keep_best and (name not in best or score > best[name][0]):
                    best[name] = (score, folder)
        return best

    def _remove_surplus(self) -> None:
        for old in self._surplus():
            # Renamed first, so that an interrupted removal does not leave half a checkpoint.
            shutil.rmtree(old.rename(old.with_name(f"{old.name}.partial")), ignore_errors=True)

    def _surplus(self) -> list[Path]:
        """Whole checkpoints that are neither among the newest nor the best of a metric."""
        whole = whole_checkpoints(self.folder)
        kept = {*whole[-self.keep :], *(folder for _, folder in self._best().values()), *self._unreadable}
        return [folder for folder in whole if folder not in kept]

    def _scores(self, folder: Path) -> dict[str, Score]:
        """What a checkpoint scored. One that cannot be read costs no newer one; it is told once, and left as it is."""
        try:
            state = read_state(folder)
        except UserError as error:
            if folder not in self._unreadable:
                self._unreadable.add(folder)
                print(f"warning: {error}: it is neither compared nor removed", file=sys.stderr, flush=True)
            return {}
        return {name: Score(self._comparable(name, state), value) for name, value in (state.metrics or {}).items()}

    def _comparable(self, metric: str, state: State) -> bool:
        """Whether a checkpoint's metric is of the validation set that is there now, as far as is known."""
        task = metric.removeprefix(EMA_PREFIX).partition("/")[0]
        known = {state.val_sets.get(task), self.val_sets.get(task)} - {None}
        return len(known) <= 1

    def _final(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _name_latest(self, folder: Path) -> None:
        write_atomically(self.folder / "latest", folder.name + "\n")


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)
    return aside


def _told(work: Callable[[], T], folder: Path) -> T:
    try:
        return work()
    except UserError:
        raise
    # A full disk is a RuntimeError to torch, and an error of its own to safetensors.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"the checkpoint {folder} cannot be written: {reason}; older ones are untouched. Where the disk is full, "
            f"make room (`du -sh {folder.parent}/*` shows what a checkpoint takes; `keep` of the recipe says how many "
            "stay, and one more is written beside them); then --resume goes on"
        ) from error
