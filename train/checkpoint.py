"""Checkpoints: whole or absent, the newest named by `latest`, resumed only by the run that wrote them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from data.errors import UserError
from models import save_model
from train.engine import Engine
from train.launch import Rank
from train.recipe import Recipe, dump_recipe, parse_recipe, recipe_differences

HARMLESS = (
    *("name", "out", "data_root", "workers", "log_every", "save_every", "keep", "eval_every", "eval_batch"),
    *("cache.folder", "cache.max_gb", "cache.whole_shards"),
)
"""Recipe keys that may change between a checkpoint and its resumption: they do not change what is learned."""
HARMLESS_OF_TASK = ("shards", "val_shards", "micro_batch")


class Checkpoints:
    """The checkpoints of one run, in RUN/checkpoints/step-NNNNNN.

    Args:
        run: the run's folder.
        keep: number of newest checkpoints that are kept.
    """

    def __init__(self, run: str | Path, keep: int) -> None:
        self.folder = Path(run) / "checkpoints"
        self.keep = keep

    def newest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        whole = whole_checkpoints(self.folder)
        return whole[-1] if whole else None

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
                state = {"step": step, "world": rank.world, "recipe": dump_recipe(recipe)}
                (partial / "state.json").write_text(json.dumps(state, indent=1))

        def publish() -> None:
            if rank.first:
                partial.rename(final)
                write_atomically(self.folder / "latest", final.name + "\n")
                for old in whole_checkpoints(self.folder)[: -self.keep]:
                    # Renamed first, so that an interrupted removal does not leave half a checkpoint.
                    shutil.rmtree(old.rename(old.with_name(f"{old.name}.partial")))

        for part in (prepare, write, publish):
            rank.together(lambda part=part: _told(part, partial))  # type: ignore[misc]
        return final

    def resume(self, engine: Engine, recipe: Recipe) -> int:
        """Loads the newest whole checkpoint into `engine`; the number of steps done, 0 where there is none.

        Raises:
            UserError: the checkpoint's recipe would make another run than `recipe`; the message shows the difference.
        """
        newest = self.newest()
        if newest is None:
            return 0
        state = read_state(newest)
        different = [
            line
            for line in recipe_differences(parse_recipe(state["recipe"], str(newest)), recipe)
            if not _harmless(line.partition(":")[0])
        ]
        if different:
            raise UserError(
                f"{newest} was written by another recipe than this one:\n  "
                + "\n  ".join(different)
                + "\ngive the old values to go on with that run, or out=FOLDER to start another"
            )
        engine.load(newest)
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
