"""Tasks: a dataset with its loss. What a kind of task is to training stands here and nowhere else."""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from data.dataset import MixtureDataset, TaskData
from data.errors import UserError
from data.mixture import build_mixture, open_cache, order_of
from data.schedule import NodeShare
from data.shard_cache import GB, ShardCache
from data.shards import ClassInfo, ShardSet
from train.check_set import check_boxes, check_set, leak_warning, window_warning
from train.recipe import Recipe, TaskRecipe, load_recipe, view_config


@dataclass(frozen=True)
class Task:
    """One dataset of a recipe, opened. `train` or `val` is None where it was not asked for."""

    name: str
    recipe: TaskRecipe
    classes: list[ClassInfo]
    train: TaskData | None
    val: TaskData | None

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Sum (not mean) of the batch's losses, fp32: `weight(batch)` says over how many things.

        classification: softmax cross-entropy of logits [B, C] and labels int64 [B], or float32 [B, C] that sum to 1
        where clips are mixed; `label_smoothing` of the recipe spreads that share of either over all classes.
        localisation: sigmoid cross-entropy of logits [K, C] and multi-hot labels float32 [K, C], mean over classes.
        """
        if self.recipe.kind == "classification":
            smoothing = self.recipe.label_smoothing
            return F.cross_entropy(logits.float(), batch.labels, reduction="sum", label_smoothing=smoothing)
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.labels, reduction="none")
        return loss.mean(dim=1).sum()

    def weight(self, batch: Batch) -> int:
        """What the sum in `loss` is a sum over: clips, or boxes."""
        return batch.labels.shape[0]


def open_tasks(
    recipe: Recipe, train: bool = True, val: bool = True, check: bool = True, node: NodeShare | None = None
) -> list[Task]:
    """Opens the training and the validation shards of all tasks of a recipe.

    Args:
        check: also look at every tar and index row (see `check_set`), warn on stderr of what is damaged, and see that
            there are boxes to evaluate. One rank is enough: a thousand that ask for the size of ten thousand files
            bring a file system to its knees.
        node: the ranks of this machine, which share its cache of remote shards; None: all ranks.

    Raises:
        UserError: shards that are not there, or of another kind or other classes than their task, or a cache too small
            for them; the message says which, and what to do.
    """
    prefixes = [task.shards for task in recipe.tasks.values() if train]
    prefixes += [task.val_shards for task in recipe.tasks.values() if val and task.val_shards]
    cache = open_cache(recipe, prefixes)
    tasks = [_open(name, task, recipe, cache, train, val) for name, task in recipe.tasks.items()]
    for task in tasks if check else []:
        for warning in _warnings(task, tasks, recipe, evaluates=recipe.eval_every > 0 or not train):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    if cache is not None and recipe.cache.whole_shards:
        _check_room(tasks, recipe, cache, node or NodeShare())
    return tasks


def mixture(tasks: list[Task], recipe: Recipe, node: NodeShare | None = None) -> MixtureDataset:
    """The training sets of all tasks, each with its order; `node` as in `open_tasks`."""
    return build_mixture([task.train for task in tasks if task.train is not None], recipe, node)


def _check_room(tasks: list[Task], recipe: Recipe, cache: ShardCache, node: NodeShare) -> None:
    """The ranks of a machine read their shards of a window by turns: a cache that does not hold them would fetch each
    many times. What counts is the largest window of the first epoch; others hardly differ."""
    needed = 0
    for task in tasks:
        if task.train is None or task.train.shards.cache is None:
            continue
        order, shards = order_of(task.train, recipe), task.train.shards.manifest.shards
        windows = islice(order.windows_from(0, 0, *node.places(order.batch)), -(-len(shards) // order.window))
        needed += max(sum(shards[number].bytes for number in window) for window in windows)
    if needed > cache.max_bytes:
        raise UserError(
            f"cache.max_gb={recipe.cache.max_gb:g} is too little: the remote shards that this machine reads by turns"
            f" (its part of window={recipe.window} shards of each task) have {needed / GB:.3g} GB, and twice as much"
            f" lets the next ones come in time: give cache.max_gb={math.ceil(2 * needed / GB)}, a smaller window, or"
            " cache.whole_shards=false"
        )


def _warnings(task: Task, tasks: list[Task], recipe: Recipe, evaluates: bool) -> Iterator[str]:
    """What is not as it should be in a task's shards; raises UserError as `open_tasks` does."""
    for key, data in (("shards", task.train), ("val_shards", task.val)):
        if data is not None:
            where = f"tasks.{task.name}.{key}"
            found = (check_set(where, data.shards, recipe.max_bad_share), window_warning(where, data))
            yield from filter(None, found)
    if task.val is None or task.val.kind != "localisation":
        return
    where = f"tasks.{task.name}.val_shards"
    if evaluates:
        check_boxes(where, task.val)
    # Whether this run evaluates or a later program does: the videos are learned here.
    leak = leak_warning(where, task.val, [other.train for other in tasks if other.train is not None])
    if leak is not None:
        yield leak


def _open(name: str, task: TaskRecipe, recipe: Recipe, cache: ShardCache | None, train: bool, val: bool) -> Task:
    view = view_config(task.view, recipe.model)
    opened: dict[str, TaskData] = {}
    for key, prefix, wanted in (("shards", task.shards, train), ("val_shards", task.val_shards, val)):
        if not wanted or prefix is None:
            continue
        try:
            shards = ShardSet(prefix, cache)
        except UserError as error:
            raise UserError(f"tasks.{name}.{key}: {error}{_toy_hint(prefix)}") from error
        if shards.manifest.kind != task.kind:
            raise UserError(f"tasks.{name}.kind={task.kind}, but {key}={prefix} is a {shards.manifest.kind} set")
        if len(shards) == 0:
            raise UserError(f"tasks.{name}.{key}={prefix} holds no examples")
        opened[key] = TaskData(name, task.kind, shards if recipe.cache.whole_shards else shards.by_range(), view)
    classes = {key: data.shards.manifest.classes for key, data in opened.items()}
    if len(classes) == 2 and classes["shards"] != classes["val_shards"]:
        raise UserError(
            f"tasks.{name}: {task.shards} ({len(classes['shards'])} classes) and {task.val_shards} "
            f"({len(classes['val_shards'])} classes) do not have the same list of classes; pack both with one list"
        )
    return Task(name, task, next(iter(classes.values()), []), opened.get("shards"), opened.get("val_shards"))


def _toy_hint(prefix: str) -> str:
    """What a newcomer, who starts the toy recipe first of all, has to type."""
    if load_recipe().data_root not in prefix:
        return "; shard_tools/pack_*.py write shards, data_root=FOLDER or the recipe's paths say where they are"
    return ". `make demo` in the project's folder makes, packs and trains the toy world; real data: see README.md"
