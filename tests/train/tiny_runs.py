"""Tiny runs on made-up batches: the real loop, engine and checkpoints, without shards and decoding."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from data.batch import Batch, Example, collate
from data.shards import ClassInfo
from train.checkpoint import Checkpoints
from train.ema import WeightAverage
from train.engine import Engine, build_engine
from train.launch import Rank, init_distributed
from train.loop import StepPlan, train
from train.model import build_model, model_config
from train.optim import build_optimizer
from train.recipe import PROJECT, Recipe, parse_recipe
from train.resume import resume
from train.run_log import RunLog
from train.tasks import Task

ZERO1, ZERO2, ZERO2_OFFLOAD, ZERO3 = (
    str(PROJECT / "ds_configs" / f"{name}.json") for name in ("zero1", "zero2", "zero2_offload", "zero3")
)
CLASSES = {"look": 5, "where": 4, "other": 3}

RECIPE = """
name: tiny
out: {out}
steps: 20
save_every: 1000
workers: 0
model: {{name: vit_tiny, embed_dim: 32, depth: 2, num_heads: 2, num_frames: 4, image_size: 32}}
optim: {{lr: 0.003, warmup_steps: 3, layer_decay: 0.7, clip_grad: 0.5}}
tasks:
  look: {{kind: classification, shards: none, batch: 8, micro_batch: 4, share: 2}}
  where:
    {{kind: localisation, shards: none, batch: 4, micro_batch: 2, loss_weight: 3, lr_scale: 0.5,
      head: {{roi_size: 3, context_heads: 2}}}}
  other: {{kind: classification, shards: none, batch: 4, micro_batch: 8, share: 0.5}}
"""


def tiny_recipe(out: Path | str, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(out=out), "tiny", list(overrides))


def tiny_tasks(recipe: Recipe) -> list[Task]:
    return [
        Task(name, task, [ClassInfo(i, str(i)) for i in range(CLASSES[name])], None, None)
        for name, task in recipe.tasks.items()
    ]


def made_up(recipe: Recipe, name: str, position: int) -> Example:
    """A clip that only the task and the position decide; localisation clips hold none to three boxes."""
    draw = torch.Generator().manual_seed(1000 * list(CLASSES).index(name) + position)
    size = recipe.model.image_size
    clip = torch.randint(0, 256, (3, recipe.model.num_frames, size, size), dtype=torch.uint8, generator=draw)
    if recipe.tasks[name].kind == "classification":
        label = torch.randint(0, CLASSES[name], (), generator=draw)
        return Example(name, f"{name}{position}", position, clip, label)
    count = position % 4
    corner, side = torch.rand(count, 2, generator=draw) * 0.5, torch.rand(count, 2, generator=draw) * 0.4 + 0.1
    labels = (torch.rand(count, CLASSES[name], generator=draw) < 0.3).float()
    return Example(name, f"{name}{position}", position, clip, labels, torch.cat([corner, corner + side], 1))


def made_up_batches(recipe: Recipe, plan: StepPlan, rank: Rank, start: int) -> Iterator[Batch]:
    names = list(recipe.tasks)
    for addresses in plan.batches(start, rank.index):
        yield collate([made_up(recipe, names[task], position) for task, position in addresses])


def build(recipe: Recipe, rank: Rank, ds: str | None) -> tuple[Engine, dict[str, Any], list[Task]]:
    tasks = tiny_tasks(recipe)
    config = model_config(recipe, tasks)
    model = build_model(recipe, config)
    optimizer = build_optimizer(model, recipe.model.depth or 0, recipe.optim)
    return build_engine(model, optimizer, recipe, rank, ds), config, tasks


def run_tiny(out: str, ds: str | None, overrides: list[str], until: int | None = None) -> dict[str, Tensor]:
    """Trains (on every rank), goes on from a checkpoint where there is one, and returns the weights.

    Args:
        until: save a checkpoint after this step and end there.
    """
    rank = init_distributed()
    recipe = tiny_recipe(out, *overrides)
    engine, config, tasks = build(recipe, rank, ds)
    checkpoints = Checkpoints(out, recipe.keep)
    average = WeightAverage(engine.module, recipe.ema) if recipe.ema else None
    start = resume(checkpoints.newest_intact(rank), engine, recipe, config, average)
    plan = StepPlan(recipe, rank.world)

    class Enough(Exception):
        pass

    def after_step(done: int, last: bool) -> None:
        if done == until or last:
            checkpoints.save(done, engine, recipe, config, rank, average)
        if done == until:
            raise Enough

    log = RunLog(out, rank, recipe.steps, 1, start)
    with contextlib.suppress(Enough):
        batches = made_up_batches(recipe, plan, rank, start)
        train(recipe, tasks, engine, plan, batches, rank, log, start, after_step, average=average)
    log.close()
    averaged = {} if average is None else {f"ema/{name}": value for name, value in average.snapshot().items()}
    return weights(engine) | averaged


def weights(engine: Engine) -> dict[str, Tensor]:
    with engine.whole() as model:
        return {name: value.detach().clone() for name, value in model.state_dict().items()}


def scalars(out: Path) -> dict[str, dict[int, float]]:
    """tag -> step -> value, of what a run has given to TensorBoard."""
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: {event.step: event.value for event in board.Scalars(tag)} for tag in board.Tags()["scalars"]}


def run_several(jobs: list[tuple[str, str | None, list[str], int | None]]) -> list[dict[str, Tensor]]:
    """`run_tiny` of several jobs on the same ranks, one after the other."""
    return [run_tiny(*job) for job in jobs]
