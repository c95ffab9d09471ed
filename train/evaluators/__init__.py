"""Evaluators: one per kind of task, with one contract, for use during training and after."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
from torch import nn

from data.batch import PADDING
from data.dataset import EvalDataset, TaskData
from data.errors import UserError
from data.loader import Loader, eval_batches
from train.evaluators import classification, localisation
from train.evaluators.common import Result
from train.launch import Rank
from train.recipe import Recipe
from train.tasks import Task

EVALUATORS = {"classification": classification.evaluate, "localisation": localisation.evaluate}
METRICS = {"classification": classification.metric_names, "localisation": localisation.metric_names}

SPARSE_SHARE = 0.25
"""Below this share of a set, remote examples are read one by one and not with their whole shards."""

__all__ = ["EVALUATORS", "Result", "check_metrics", "evaluate_all", "evaluate_tasks"]


def check_metrics(key: str, wanted: Sequence[str], tasks: Sequence[Task]) -> None:
    """Raises UserError unless `evaluate_all` will give all metrics that the recipe's `key` names."""
    known = [f"{task.name}/{name}" for task in tasks if task.val for name in METRICS[task.val.kind](task.classes)]
    for name in wanted:
        if name not in known:
            raise UserError(f"{key}: {name} is no metric of this recipe's validation sets: {', '.join(known)}")


def evaluate_all(
    model: nn.Module, tasks: Sequence[Task], rank: Rank, recipe: Recipe, limit: int | None = None
) -> dict[str, float]:
    """`{task}/{metric}` -> value, of every task that has validation shards; else as `evaluate_tasks`."""
    results = evaluate_tasks(model, tasks, rank, recipe, limit=limit, chance=False)
    return {f"{task}/{name}": value for task, result in results.items() for name, value in result.metrics.items()}


def evaluate_tasks(
    model: nn.Module,
    tasks: Sequence[Task],
    rank: Rank,
    recipe: Recipe,
    *,
    limit: int | None = None,
    chance: bool = True,
) -> dict[str, Result]:
    """Evaluates every task that has validation shards; called on every rank, whose number does not change the result.

    Args:
        model: on the rank's device; left in the mode that it came in.
        limit: at most so many examples of each task, spread evenly over it; None for all.
        chance: whether to work out what guessing would score.

    Raises:
        UserError: the model's output is not finite, or the loader's workers have died.
    """
    results = {}
    for task in tasks:
        if task.val is None:
            continue
        evaluate = EVALUATORS[task.val.kind]
        with closing(_loader(task.val, rank, recipe, limit)) as loader:
            results[task.name] = evaluate(model, task.val, loader, rank, recipe.precision == "bf16", chance)
    return results


def _loader(data: TaskData, rank: Rank, recipe: Recipe, limit: int | None) -> Loader:
    count = len(data.shards)
    chosen = np.arange(count)
    if limit is not None and limit < count:
        chosen = np.arange(limit) * count // limit
        if limit < SPARSE_SHARE * count:
            data = replace(data, shards=data.shards.by_range())
    views = data.view.views
    batches = [
        [PADDING if place == PADDING else int(chosen[place // views]) * views + place % views for place in batch]
        for batch in eval_batches(len(chosen), rank.index, rank.world, recipe.eval_batch, views)
    ]
    return Loader(EvalDataset(data), batches, recipe.workers)
