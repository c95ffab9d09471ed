"""Going on from a checkpoint: what may differ between the run that wrote it and this one, and what may not."""

import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from train.checkpoint_files import CONFIG_FILE, read_state
from train.ema import WeightAverage
from train.engine import Engine
from train.model import EXECUTION
from train.recipe import Recipe, parse_recipe, recipe_differences

HARMLESS = {
    *("name", "out", "data_root", "workers", "max_bad_share", "max_skipped_steps", "log_every", "save_every", "keep"),
    *("gradients_every", "keep_best", "eval_every", "eval_batch", "eval_keyframes"),
    *("cache.folder", "cache.max_gb", "cache.whole_shards"),
    *(f"model.{key}" for key in EXECUTION),
}
"""Keys of a recipe that may change when a run goes on: what is learned does not depend on them, rounding aside."""
HARMLESS_OF_TASK = {"shards", "val_shards", "micro_batch"}


def recipe_changes(folder: Path | None, recipe: Recipe) -> list[str]:
    """`key: old -> new` of all that differs between the recipe of the checkpoint `folder` and this one, and may.

    Raises:
        UserError: what differs would make another run of it; the message shows all differences.
    """
    if folder is None:
        return []
    before = parse_recipe(read_state(folder).recipe, f"{folder / 'state.json'}: recipe")
    differences = recipe_differences(before, recipe)
    refused = [line for line in differences if not _harmless(line.partition(":")[0])]
    if refused:
        allowed = [f"{line} (this one may change)" for line in differences if line not in refused]
        raise UserError(
            f"{folder} was written by another recipe than this one, which would silently change the run:\n  "
            + "\n  ".join(refused + allowed)
            + "\ngive the old values to go on with that run, or out=FOLDER to start another"
        )
    return differences


def resume(
    folder: Path | None,
    engine: Engine,
    recipe: Recipe,
    config: dict[str, Any],
    average: WeightAverage | None = None,
) -> int:
    """Loads a checkpoint of `Checkpoints.newest_intact` into `engine` and `average`; the number of steps done, 0 where
    it is None.

    Args:
        config: what `model_config` gave; its training sets and classes must be the checkpoint's.

    Raises:
        UserError: the checkpoint's recipe, sets or classes would make another run; the message shows the difference.
    """
    if folder is None:
        return 0
    recipe_changes(folder, recipe)
    _check_sets(folder, config)
    engine.load(folder)
    if average is not None:
        average.load(folder)
    return read_state(folder).step


def class_difference(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str | None:
    """How two lists of classes, {"id", "name"} in the order of the logits, differ; None where they do not."""
    if before == now:
        return None
    first = next((i for i, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), None)
    place = min(len(before), len(now)) if first is None else first
    was, is_now = (f"{c[place]['name']!r} (id {c[place]['id']})" if place < len(c) else "none" for c in (before, now))
    return f"{len(before)} classes then, {len(now)} now; class {place} was {was} and is {is_now}"


def _check_sets(folder: Path, config: dict[str, Any]) -> None:
    """Shards that were packed again in another way would give other clips, or train heads on wrong labels."""
    try:
        old = dict(json.loads((folder / CONFIG_FILE).read_text())["tasks"])
        for name, task in config["tasks"].items():
            differs = class_difference(old[name]["classes"], task["classes"])
            was, now = old[name].get("train_set"), task.get("train_set")
            if differs is None and was != now:
                differs = f"{_describe_set(was)} then, {_describe_set(now)} now"
                if was and now and was | {"sha256": None} == now | {"sha256": None}:
                    differs += ", and the tars are others"
            if differs is not None:
                raise UserError(
                    f"tasks.{name}.shards: not the set that {folder} was trained on ({differs}): resume with the "
                    "shards of that run, or give out=FOLDER to start another"
                )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / CONFIG_FILE} cannot be read ({error!r}): the checkpoint is not whole") from error


def _describe_set(told: dict[str, Any] | None) -> str:
    return "none" if told is None else f"{told['examples']} examples in {told['shards']} shards"


def _harmless(key: str) -> bool:
    parts = key.split(".")
    return key in HARMLESS or (parts[0] == "tasks" and len(parts) == 3 and parts[2] in HARMLESS_OF_TASK)
