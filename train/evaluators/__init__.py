"""Evaluators: one per kind of task, with one contract, for use during training and after."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import nn

from data.batch import PADDING
from data.dataset import EvalDataset, TaskData
from data.errors import UserError
from data.loader import Loader, eval_batches
from train.ema import EMA_PREFIX
from train.evaluators import classification, localisation
from train.evaluators.collected import Collected
from train.evaluators.common import Result, Settings, progress, until_stopped
from train.launch import Rank, StopSignal
from train.recipe import Recipe
from train.tasks import Task

EVALUATORS: dict[str, ModuleType] = {"classification": classification, "localisation": localisation}
"""Each has `columns(data)`, what it collects, `evaluate(model, data, collected, rank, settings)`, and
`metric_names(classes)`."""

SPARSE_SHARE = 0.25
"""Below this share of a set, remote examples are read one by one and not with their whole shards."""

__all__ = ["EVALUATORS", "Result", "check_metrics", "evaluate_all", "evaluate_tasks", "metrics_of"]


def check_metrics(key: str, wanted: Sequence[str], tasks: Sequence[Task], ema: bool = False) -> None:
    """Raises UserError unless evaluation gives all metrics that the recipe's `key` names. With `ema` those of a moving
    average of the weights are among them."""
    known = [
        f"{task.name}/{name}"
        for task in tasks
        if task.val
        for name in EVALUATORS[task.val.kind].metric_names(task.classes)
    ]
    if ema:
        known += [EMA_PREFIX + name for name in known]
    for name in wanted:
        if name not in known:
            raise UserError(f"{key}: {name} is no metric of this recipe's validation sets: {', '.join(known)}")


def evaluate_all(
    model: nn.Module,
    tasks: Sequence[Task],
    rank: Rank,
    recipe: Recipe,
    limit: int | None = None,
    stop: StopSignal | None = None,
) -> dict[str, float]:
    """`{task}/{metric}` -> value, of every task that has validation shards; else as `evaluate_tasks`."""
    return metrics_of(evaluate_tasks(model, tasks, rank, recipe, limit=limit, chance=False, stop=stop))


def metrics_of(results: Mapping[str, Result]) -> dict[str, float]:
    """`{task}/{metric}` -> value."""
    return {f"{task}/{name}": value for task, result in results.items() for name, value in result.metrics.items()}


def evaluate_tasks(
    model: nn.Module,
    tasks: Sequence[Task],
    rank: Rank,
    recipe: Recipe,
    *,
    limit: int | None = None,
    chance: bool = True,
    average: str = "softmax",
    folders: Mapping[str, Path] | None = None,
    stop: StopSignal | None = None,
) -> dict[str, Result]:
    """Evaluates every task that has validation shards; called on every rank, whose number does not change the result.

    Args:
        model: on the rank's device; left in the mode that it came in.
        limit: at most so many examples of each task, spread evenly over it; None for all.
        chance: whether to work out what guessing would score.
        average: of several views of an example, the `softmax` or the `logits`.
        folders: task name -> where what is done is kept, and taken up again by another call for the same model, recipe
            and limit; None keeps nothing.
        stop: what asks to stop.

    Raises:
        Stopped: a signal has asked one of the ranks to.
        UserError: the model's output is not finite, or the loader's workers have died.
    """
    results = {}
    for task in tasks:
        data = task.val
        if data is None:
            continue
        evaluator = EVALUATORS[data.kind]
        folder = None if folders is None else folders[task.name]
        with Collected(evaluator.columns(data), rank, folder) as collected:
            chosen = _chosen(len(data.shards), limit)
            left = np.setdiff1d(chosen, collected.done)
            with closing(_loader(data, rank, recipe, left)) as loader:
                done = len(chosen) - len(left)
                heeded = until_stopped(loader, rank, stop)
                batches = progress(heeded, rank, task.name, len(chosen), done, data.view.views)
                settings = Settings(batches, recipe.precision == "bf16", chance, average)
                results[task.name] = evaluator.evaluate(model, data, collected, rank, settings)
    return results


def _chosen(count: int, limit: int | None) -> np.ndarray:
    """int64: the numbers of the examples to evaluate."""
    return np.arange(count) if limit is None or limit >= count else np.arange(limit) * count // limit


def _loader(data: TaskData, rank: Rank, recipe: Recipe, chosen: np.ndarray) -> Loader:
    if len(chosen) < SPARSE_SHARE * len(data.shards):
        data = replace(data, shards=data.shards.by_range())
    views = data.view.views
    batches = [
        [PADDING if place == PADDING else int(chosen[place // views]) * views + place % views for place in batch]
        for batch in eval_batches(len(chosen), rank.index, rank.world, recipe.eval_batch, views)
    ]
    return Loader(EvalDataset(data), batches, recipe.workers)
