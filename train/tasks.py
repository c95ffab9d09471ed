"""Tasks: a dataset with its loss. What a kind of task is to training stands here and nowhere else."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from data.batch import Batch
from data.dataset import MixtureDataset, TaskData
from data.errors import UserError
from data.mixture import build_mixture
from data.shards import ClassInfo, ShardSet
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

        classification: softmax cross-entropy of logits [B, C] and labels int64 [B].
        localisation: sigmoid cross-entropy of logits [K, C] and multi-hot labels float32 [K, C], mean over classes.
        """
        if self.recipe.kind == "classification":
            return F.cross_entropy(logits.float(), batch.labels, reduction="sum")
        loss = F.binary_cross_entropy_with_logits(logits.float(), batch.labels, reduction="none")
        return loss.mean(dim=1).sum()

    def weight(self, batch: Batch) -> int:
        """What the sum in `loss` is a sum over: clips, or boxes."""
        return batch.labels.shape[0]


def open_tasks(recipe: Recipe, train: bool = True, val: bool = True) -> list[Task]:
    """Opens the training and the validation shards of all tasks of a recipe.

    Raises:
        UserError: shards that are not there, or of another kind or other classes than their task; the message says
            which, and what to run.
    """
    return [_open(name, task, recipe, train, val) for name, task in recipe.tasks.items()]


def mixture(tasks: list[Task], recipe: Recipe) -> MixtureDataset:
    """The training sets of all tasks, each with its order."""
    return build_mixture([task.train for task in tasks if task.train is not None], recipe)


def _open(name: str, task: TaskRecipe, recipe: Recipe, train: bool, val: bool) -> Task:
    view = view_config(task.view, recipe.model)
    opened: dict[str, TaskData] = {}
    for key, prefix, wanted in (("shards", task.shards, train), ("val_shards", task.val_shards, val)):
        if not wanted or prefix is None:
            continue
        try:
            shards = ShardSet(prefix)
        except UserError as error:
            raise UserError(f"tasks.{name}.{key}: {error}{_toy_hint(prefix)}") from error
        if shards.manifest.kind != task.kind:
            raise UserError(f"tasks.{name}.kind={task.kind}, but {key}={prefix} is a {shards.manifest.kind} set")
        if len(shards) == 0:
            raise UserError(f"tasks.{name}.{key}={prefix} holds no examples")
        opened[key] = TaskData(name, task.kind, shards, view)
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
        return "; shard_tools/pack_*.py do that, and data_root=FOLDER or the recipe's paths say where they are"
    return ". `make demo` in the project's folder makes, packs and trains the toy world; real data: see README.md"
