"""Checkpoints: whole or absent, the newest named by `latest`, resumed only by the run that wrote them."""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data.errors import UserError
from models import save_model
from train.engine import Engine
from train.launch import Rank, file_problem
from train.optim_state import STATE_FILE, WEIGHTS_FILE
from train.recipe import Recipe, dump_recipe, parse_recipe, recipe_differences

HARMLESS = (
    *(
        "name",
        "out",
        "data_root",
        "workers",
        "log_every",
        "save_every",
        "keep",
        "keep_best",
        "eval_every",
        "eval_batch",
    ),
    *("cache.folder", "cache.max_gb", "cache.whole_shards"),
)
"""Recipe keys that may change between a checkpoint and its resumption: they do not change what is learned."""
HARMLESS_OF_TASK = ("shards", "val_shards", "micro_batch")


class Checkpoints:
    """The checkpoints of one run, in RUN/checkpoints/step-NNNNNN.

    Args:
        run: the run's folder.
        keep: number of newest checkpoints that are kept.
        keep_best: metrics, as in ava/mAP; the best checkpoint of each is kept too.
    """

    def __init__(self, run: str | Path, keep: int, keep_best: Sequence[str] = ()) -> None:
        self.folder = Path(run) / "checkpoints"
        self.keep, self.keep_best = keep, tuple(keep_best)

    def newest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        whole = whole_checkpoints(self.folder)
        return whole[-1] if whole else None

    def newest_intact(self, rank: Rank) -> Path | None:
        """The newest checkpoint whose files are as they were written, or None where there has been none; the same on
        all ranks. Those that are not are renamed to step-NNNNNN.damaged, with a message.

        Raises:
            UserError: all of them are damaged.
        """

        def choose() -> Path | None:
            moved = []
            for folder in reversed(whole_checkpoints(self.folder)) if rank.first else []:
                reason = damage(folder)
                if reason is None:
                    return folder
                aside = folder.with_name(f"{folder.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
                moved.append(aside)
                print(
                    f"warning: {folder} is damaged ({reason}): set aside as {aside.name}", file=sys.stderr, flush=True
                )
            if moved:
                raise UserError(
                    f"no checkpoint of {self.folder} is intact, all are set aside as *.damaged; restore one from a "
                    "backup under its old name, or start again to begin at step 0"
                )
            return None

        return rank.gather(rank.together(choose))[0]

    def score(self, step: int, metrics: dict[str, float], rank: Rank) -> None:
        """Notes what the checkpoint of `step` scored, for `keep_best`; the higher the better."""
        if rank.first and (self.folder / f"step-{step:06d}").is_dir():
            scores = self._scores()
            scores[f"step-{step:06d}"] = {name: metrics[name] for name in self.keep_best if name in metrics}
            kept = {path.name for path in whole_checkpoints(self.folder)}
            scores = {name: scored for name, scored in scores.items() if name in kept}
            write_atomically(self.folder / "scores.json", json.dumps(scores, indent=1) + "\n")

    def is_best(self, metrics: dict[str, float]) -> bool:
        """Whether any metric of `keep_best` is above that of all kept checkpoints."""
        scores = self._scores().values()
        return any(
            name in metrics and all(metrics[name] > scored.get(name, -math.inf) for scored in scores)
            for name in self.keep_best
        )

    def _scores(self) -> dict[str, dict[str, float]]:
        try:
            scores = json.loads((self.folder / "scores.json").read_text())
            return {str(name): {str(k): float(v) for k, v in scored.items()} for name, scored in scores.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}

    def _surplus(self) -> list[Path]:
        """Whole checkpoints that are neither among the newest nor the best of a metric."""
        whole, scores = whole_checkpoints(self.folder), self._scores()
        kept = {path.name for path in whole[-self.keep :]}
        for metric in self.keep_best:
            scored = [path.name for path in whole if metric in scores.get(path.name, {})]
            if scored:
                kept.add(max(scored, key=lambda name: scores[name][metric]))
        return [path for path in whole if path.name not in kept]

    def save(self, step: int, engine: Engine, recipe: Recipe, config: dict[str, Any], rank: Rank) -> Path:
        """Writes the state after `step` optimizer steps; called on every rank.

        Everything goes into a folder of another name, which is renamed when all of it is there.

        Raises:
            UserError: the disk is full or cannot be written; older checkpoints are as they were.
        """
        final = self.folder / f"step-{step:06d}"
        partial = self.folder / f"{final.name}.partial"
        if final.exists():
            return final

        def prepare() -> None:
            if rank.first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)

        def write() -> None:
            engine.save(partial)
            if rank.first:
                save_model(partial, engine.module, config)
                state = {"step": step, "world": rank.world, "recipe": dump_recipe(recipe), "files": _digests(partial)}
                write_atomically(partial / "state.json", json.dumps(state, indent=1))

        def publish() -> None:
            if rank.first:
                partial.rename(final)
                write_atomically(self.folder / "latest", final.name + "\n")
                for old in self._surplus():
                    # Renamed first, so that an interrupted removal does not leave half a checkpoint.
                    shutil.rmtree(old.rename(old.with_name(f"{old.name}.partial")))

        for part in (prepare, write, publish):
            rank.together(lambda part=part: _told(part, partial))  # type: ignore[misc]
        return final

    def resume(self, engine: Engine, recipe: Recipe, config: dict[str, Any], folder: Path | None) -> int:
        """Loads `folder`, which `newest_intact` gave, into `engine`; the number of steps done, 0 where it is None.

        Args:
            config: what `model_config` gave; its classes must be the checkpoint's.

        Raises:
            UserError: the checkpoint's recipe or classes would make another run; the message shows the difference.
        """
        if folder is None:
            return 0
        state = read_state(folder)
        different = [
            line
            for line in recipe_differences(parse_recipe(state["recipe"], str(folder)), recipe)
            if not _harmless(line.partition(":")[0])
        ]
        if different:
            raise UserError(
                f"{folder} was written by another recipe than this one:\n  "
                + "\n  ".join(different)
                + "\ngive the old values to go on with that run, or out=FOLDER to start another"
            )
        _same_classes(folder, config)
        engine.load(folder)
        return int(state["step"])


def whole_checkpoints(folder: Path) -> list[Path]:
    """All whole checkpoints of RUN/checkpoints, oldest first."""
    found = [path.parent for path in folder.glob("step-*/state.json") if path.parent.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def find_weights(path: str | Path) -> Path:
    """The folder with model.safetensors that `path` names: a run's newest checkpoint, or `path` itself.

    Raises:
        UserError: there is none.
    """
    path = Path(path)
    if (path / "model.safetensors").exists():
        return path
    for folder in (path, path / "checkpoints"):
        whole = whole_checkpoints(folder)
        if whole:
            return whole[-1]
    raise UserError(f"no checkpoint at {path}: give a run's folder, or a folder that holds model.safetensors")


def read_state(folder: Path) -> dict[str, Any]:
    """The checkpoint's state.json: step, world, recipe.

    Raises:
        UserError: not such a file.
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        return {"step": int(state["step"]), "world": int(state["world"]), "recipe": str(state["recipe"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'state.json'} cannot be read ({error}): the checkpoint is not whole") from error


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, by size and SHA-256; None where all are as they were written."""
    try:
        files = json.loads((folder / "state.json").read_text())["files"]
        if STATE_FILE not in files or WEIGHTS_FILE not in files:
            return "state.json does not list its files"
        read_state(folder)
        for name, (size, _) in files.items():
            found = (folder / name).stat().st_size
            if found != size:
                return f"{name} has {found} bytes, not {size}"
        for name, (_, digest) in files.items():
            with (folder / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    return f"{name} is not what was written"
    except UserError as error:
        return str(error)
    except OSError as error:
        return file_problem(error)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"state.json cannot be read: {error}"
    return None


def _digests(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file, each first brought to the disk."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            found[path.name] = (path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
    return found


def _same_classes(folder: Path, config: dict[str, Any]) -> None:
    """Shards that were packed again with other classes, or the same in another order, would train heads wrongly."""
    try:
        old = {
            name: task["classes"] for name, task in json.loads((folder / "config.json").read_text())["tasks"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}): the checkpoint is not whole") from error
    for name, task in config["tasks"].items():
        before, now = old.get(name, []), task["classes"]
        if before == now:
            continue
        place = next(
            (i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now))
        )
        was, is_now = ((c[place]["name"] if place < len(c) else "none") for c in (before, now))
        raise UserError(
            f"tasks.{name}.shards: its classes are not those that {folder} was trained on ({len(before)} then, "
            f"{len(now)} now; class {place} was {was!r} and is {is_now!r}): resume with the shards of that run, or "
            "give out=FOLDER to start another"
        )


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all, also after a power cut."""
    temporary = path.with_name(f"{path.name}.partial")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _harmless(key: str) -> bool:
    parts = key.split(".")
    return key in HARMLESS or (parts[0] == "tasks" and len(parts) == 3 and parts[2] in HARMLESS_OF_TASK)


def _told(work: Callable[[], None], folder: Path) -> None:
    try:
        work()
    except UserError:
        raise
    # A full disk is a RuntimeError to torch, and an error of its own to safetensors.
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"the checkpoint {folder} cannot be written: {reason}; older ones are untouched") from error
