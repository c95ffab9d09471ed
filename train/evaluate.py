"""Entry point of evaluation: `deepspeed train/evaluate.py --ds ds_configs/zero2.json --checkpoint RUN`."""

import argparse
import contextlib
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from data.decode import require_ffmpeg
from data.errors import UserError
from train.ava_classes import DEFAULT_CUTOFFS
from train.checkpoint_files import find_weights, read_state
from train.ds_config import deepspeed_config
from train.ema import EMA_FILE, use_average
from train.eval_files import frequency_metrics, write
from train.eval_table import lost_at_packing, not_comparable, table
from train.evaluators import Result, evaluate_tasks
from train.launch import Rank, command, init_distributed, parse_args
from train.model import EXECUTION, read_model
from train.recipe import Recipe, load_recipe, parse_recipe, project_path
from train.resume import class_difference
from train.tasks import Task, open_tasks


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="deepspeed train/evaluate.py",
        description="Evaluates a run's newest checkpoint on the validation shards of its tasks; writes RUN/eval. Also "
        "starts under torchrun, or under plain python as one process; the figures do not depend on the number of them. "
        "The same command goes on where an evaluation of the same checkpoint was cut off.",
        epilog="Example: deepspeed train/evaluate.py --ds ds_configs/zero2.json --checkpoint demo/run workers=2",
    )
    p.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="a run's folder (its newest checkpoint), or a checkpoint's"
    )
    p.add_argument("--recipe", metavar="YAML", help="whose tasks and views (default: the recipe that the run kept)")
    p.add_argument(
        "--ema",
        action="store_true",
        help="evaluate the moving average of the weights (recipe key ema); writes RUN/eval_ema in place of RUN/eval "
        "(default: the weights themselves)",
    )
    p.add_argument("--ds", metavar="JSON", help="DeepSpeed's configuration, checked like in training (default: none)")
    p.add_argument(
        "--tasks",
        "--task",
        action="append",
        metavar="NAME[,NAME]",
        help="evaluate these tasks; repeatable (default: all that have val_shards)",
    )
    p.add_argument(
        "--limit", type=int, metavar="N", help="at most N examples of each task, spread evenly (default: all of them)"
    )
    p.add_argument(
        "--view-average",
        choices=("softmax", "logits"),
        default="softmax",
        help="what is averaged over the views of a video (eval_views of its task; default: %(default)s)",
    )
    p.add_argument(
        "--ceiling",
        action="store_true",
        help="also score the ground truth's boxes: mAP_groundtruth_boxes, what a perfect detector would give",
    )
    p.add_argument(
        "--cutoffs",
        type=int,
        nargs=2,
        default=DEFAULT_CUTOFFS,
        metavar=("LOW", "HIGH"),
        help="boxes in training: mAP is averaged apart over tail classes, with fewer than LOW, and head classes, with"
        f" more than HIGH (default: {DEFAULT_CUTOFFS[0]} {DEFAULT_CUTOFFS[1]})",
    )
    p.add_argument(
        "--restart",
        action="store_true",
        help="forget what an interrupted evaluation of the same tasks has done (default: go on with it)",
    )
    p.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # DeepSpeed's launcher adds it
    p.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe, as in eval_batch=64")
    return p


def run(args: argparse.Namespace, rank: Rank) -> None:
    """The steps of an evaluation, on every rank."""
    checkpoint = project_path(args.checkpoint)
    weights, step = choose_weights(checkpoint, rank)
    out = weights.parent.parent if weights.parent.name == "checkpoints" else weights
    recipe = rank.together(lambda: read_recipe(args, out, weights))
    model, config = rank.together(lambda: read_model(weights, recipe))
    if args.ema:
        rank.together(lambda: use_average(model, weights))
    folder = out / ("eval_ema" if args.ema else "eval")
    names = [name for part in args.tasks or [] for name in part.split(",")]
    tasks = rank.together(lambda: open_validation(recipe, names, config, rank.first))
    model.to(rank.device)

    options: dict[str, Any] = {"limit": args.limit, "average": args.view_average}
    settings = {"limit": args.limit, "view_average": args.view_average, "precision": recipe.precision}
    file = weights / (EMA_FILE if args.ema else "model.safetensors")
    digest = rank.gather(rank.together(lambda: file_digest(file) if rank.first else ""))[0]
    bounded = [on_groundtruth_boxes(task) for task in tasks if args.ceiling and task.recipe.kind == "localisation"]

    def place(task: Task) -> Path:
        return folder / "partial" / f"{task.name}-{identity(task, recipe, digest, options)}"

    def evaluate(tasks: Sequence[Task], chance: bool = True) -> dict[str, Result]:
        folders = {task.name: place(task) for task in tasks}
        return evaluate_tasks(model, tasks, rank, recipe, chance=chance, folders=folders, **options)

    # Of no others: those may have been interrupted, or be under way in another process.
    kept = [place(task) for task in (*tasks, *bounded)] if rank.first else []
    if args.restart:
        forget(kept)
    results = evaluate(tasks)
    for name, result in evaluate(bounded, chance=False).items():
        results[name].metrics["mAP_groundtruth_boxes"] = result.metrics["mAP"]

    if rank.first:
        for task in tasks:
            results[task.name].metrics.update(frequency_metrics(task, results[task.name], args.cutoffs))
    evaluated = (weights, digest, step)
    notes = rank.together(
        lambda: write(folder, evaluated, tasks, results, args.cutoffs, settings) if rank.first else []
    )
    if rank.first:
        print(table(results))
        for line in [*not_comparable(tasks, args.limit), *lost_at_packing(tasks), *notes]:
            print(line)
        print(f"written: {folder / 'metrics.json'}")
        forget(kept)


def choose_weights(checkpoint: Path, rank: Rank) -> tuple[Path, int | None]:
    """The folder of the weights that `checkpoint` names, and their step where they are of a run: the same on all ranks,
    though a run that goes on may publish a newer one at any moment, and remove this one before the end.

    Raises:
        UserError: there is none, or it cannot be read.
    """

    def choose() -> tuple[Path, int | None] | None:
        if not rank.first:
            return None
        weights = find_weights(checkpoint)
        return weights, read_state(weights).step if (weights / "state.json").is_file() else None

    chosen = rank.gather(rank.together(choose))[0]
    assert chosen is not None
    return chosen


def forget(folders: Iterable[Path]) -> None:
    """Removes folders of kept results, and the one that they lie in where nothing else does."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()


def file_digest(path: Path) -> str:
    """sha256 of a file's content, hex. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def identity(task: Task, recipe: Recipe, weights: str, options: dict[str, Any]) -> str:
    """Names everything that decides what is collected of an example, so that results are only ever put together with
    those of the same weights, clips and settings. Number of ranks, batch size and workers are not among it."""
    assert task.val is not None
    told = {
        "weights": weights,
        "set": task.val.shards.manifest.to_json(),
        "view": asdict(task.val.view),
        "model": {key: value for key, value in asdict(recipe.model).items() if key not in EXECUTION},
        "precision": recipe.precision,
        **options,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def on_groundtruth_boxes(task: Task) -> Task:
    """The task, evaluated on the ground truth's boxes."""
    assert task.val is not None
    return replace(task, val=replace(task.val, view=replace(task.val.view, eval_boxes="groundtruth")))


def read_recipe(args: argparse.Namespace, out: Path, weights: Path) -> Recipe:
    """The recipe that is asked for, or else the run's. Raises UserError for bad arguments too."""
    require_ffmpeg()
    if not 0 <= args.cutoffs[0] <= args.cutoffs[1]:
        raise UserError(f"--cutoffs {args.cutoffs[0]} {args.cutoffs[1]}: expected LOW, then HIGH, 0 or more")
    if args.limit is not None and args.limit < 1:
        raise UserError(f"--limit {args.limit}: expected 1 or more")
    if args.recipe is not None:
        recipe = load_recipe(args.recipe, args.overrides)
    elif (out / "recipe.yaml").is_file():
        recipe = load_recipe(out / "recipe.yaml", args.overrides)
    elif (weights / "state.json").is_file():
        recipe = parse_recipe(read_state(weights).recipe, str(weights / "state.json"), args.overrides)
    else:
        raise UserError(f"{out} holds no recipe.yaml: say with --recipe which tasks to evaluate")
    if args.ds is not None:
        deepspeed_config(args.ds, recipe)
    return recipe


def open_validation(
    recipe: Recipe, names: Sequence[str] | None, config: dict[str, Any], check: bool = True
) -> list[Task]:
    """The tasks to evaluate, checked against the model's configuration; `check` as in `open_tasks`.

    Raises:
        UserError: no such task, no validation shards at all, or a model that was trained for other classes.
    """
    for name in names or []:
        if name not in recipe.tasks:
            raise UserError(f"--tasks {name}: the recipe's tasks are {', '.join(recipe.tasks)}")
    recipe.tasks = {name: task for name, task in recipe.tasks.items() if not names or name in names}
    tasks = [task for task in open_tasks(recipe, train=False, check=check) if task.val is not None]
    if not tasks:
        raise UserError(f"none of the tasks {', '.join(recipe.tasks)} has val_shards: there is nothing to evaluate on")
    heads = config.get("tasks", {})
    for task in tasks:
        if task.name not in heads:
            raise UserError(f"the checkpoint has no head for the task {task.name}, only for {', '.join(heads)}")
        try:
            differs = class_difference(heads[task.name]["classes"], [asdict(c) for c in task.classes])
        except (KeyError, TypeError) as error:
            reason = f"the checkpoint's config.json does not say what the classes of {task.name} are ({error!r})"
            raise UserError(reason) from error
        if differs is not None:
            raise UserError(
                f"{task.recipe.val_shards} has other classes than the checkpoint's head for {task.name} was trained on "
                f"({differs})"
            )
    return tasks


def stop_on_signals() -> None:
    """Makes SIGTERM, as schedulers and launchers send it, end the process as Ctrl-C does: what is done is written. Of
    several signals, which both of them may send, the first counts, so that none breaks into the writing."""
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)


def main() -> None:
    args = parse_args(parser())
    rank = init_distributed()
    stop_on_signals()
    try:
        run(args, rank)
    except KeyboardInterrupt:
        if rank.first:
            print("stopped: the same command goes on with what is done", file=sys.stderr)
        raise


if __name__ == "__main__":
    command(main)
