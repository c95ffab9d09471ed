"""Transfer learning in one run, and steps that are left out: the real loop on made-up batches."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import UserError
from tests.dist import run_ranks
from tests.train.tiny_runs import ZERO2, build, made_up_batches, scalars, tiny_recipe, weights
from train.launch import ToldError, init_distributed
from train.loop import StepPlan, train
from train.run_log import RunLog
from train.tasks import Task

LOOK, WHERE, OTHER = 17, 9, 4
"""Steps of the tiny recipe's tasks, by their shares of 30."""


def run(recipe, ds=None, first=None):
    """Weights after a run of `recipe`, from the weights `first`."""
    rank = init_distributed()
    engine, _, tasks = build(recipe, rank, ds)
    if first is not None:
        engine.module.load_state_dict(first)
    plan, log = StepPlan(recipe, rank.world), RunLog(recipe.out, rank, recipe.steps, 1, 0)
    batches = made_up_batches(recipe, plan, rank, 0)
    try:
        train(recipe, tasks, engine, plan, batches, rank, log, 0, lambda *_: None)
    finally:
        log.close()
    return weights(engine)


def two_protocols(out):
    """One run in stages; and a run for each task, which begins with the backbone of the one before and a fresh head."""
    options = ["optim.clip_grad=0.5", "optim.min_lr=1e-4"]
    staged = tiny_recipe(f"{out}/staged", "steps=30", "schedule=task_by_task", "optim.per_stage=true", *options)
    in_stages = run(staged)
    start = run(tiny_recipe(f"{out}/start", "steps=1", "optim.lr=1e-30", "optim.min_lr=0", "schedule=weighted"))
    backbone = {name: value for name, value in start.items() if name.startswith("backbone.")}
    ends: dict[str, Any] = {}
    for task, steps in {"look": LOOK, "where": WHERE, "other": OTHER}.items():
        alone = tiny_recipe(f"{out}/{task}", f"steps={steps}", *options)
        alone.tasks = {task: alone.tasks[task]}
        heads = {name: value for name, value in start.items() if name.startswith(f"heads.{task}.")}
        end = run(alone, first=backbone | heads)
        backbone = {name: value for name, value in end.items() if name.startswith("backbone.")}
        ends |= end
    return in_stages, ends, run(tiny_recipe(f"{out}/unstaged", "steps=30", "schedule=task_by_task", *options))


def test_stages_are_runs_of_their_own(tmp_path):
    ((in_stages, one_by_one, unstaged),) = run_ranks(two_protocols, 1, str(tmp_path), timeout=300)
    assert in_stages.keys() == one_by_one.keys()
    for name, value in in_stages.items():
        assert torch.equal(value, one_by_one[name]), name
    assert any((value - unstaged[name]).abs().max() > 1e-3 for name, value in in_stages.items())
    log = (tmp_path / "staged" / "log.txt").read_text()
    assert f"stage where, {WHERE} steps: optimizer and learning rate begin anew" in log


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.per_stage=true"], "optim.per_stage=True: is for schedule=task_by_task, not accumulate"),
        (
            ["optim.per_stage=true", "schedule=task_by_task", "steps=14"],
            "optim.warmup_steps=3: must be below the 2 steps of tasks.other",
        ),
        (["max_skipped_steps=-1"], "max_skipped_steps=-1: must not be below 0"),
    ],
)
def test_stages_that_make_no_sense_are_refused(tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        tiny_recipe(tmp_path, *overrides)


def with_bad_losses(out, bad, most):
    """A run in which rank 1's losses of `where` are not a number in the steps `bad`: its weights, or the error."""
    rank, own, count = init_distributed(), Task.loss, 0

    def loss(self, logits, batch):
        nonlocal count
        value = own(self, logits, batch)
        if self.name != "where":
            return value
        count += 1
        return value * float("nan") if count - 1 in bad and rank.index == 1 else value

    Task.loss = loss  # type: ignore[method-assign]
    try:
        options = [f"max_skipped_steps={most}", "optim.schedule=constant", "gradients_every=1"]
        return run(tiny_recipe(out, "steps=6", *options), ZERO2)
    except ToldError as error:
        return str(error)
    finally:
        Task.loss = own  # type: ignore[method-assign]


def bad_runs(out):
    return [with_bad_losses(f"{out}/{i}", *case) for i, case in enumerate([({1, 4}, 2), ({1, 4}, 1), ((), 0)])]


def test_steps_without_a_finite_loss_are_left_out_and_told(tmp_path):
    first, second = run_ranks(bad_runs, 2, str(tmp_path), timeout=300)
    for some, error, none in (first, second):
        assert all(bool(value.isfinite().all()) for value in some.values())
        assert max(float((some[name] - none[name]).abs().max()) for name in some) > 1e-4
        assert "2 steps were left out" in error and "max_skipped_steps=1" in error
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    lines = [json.loads(line) for line in Path(tmp_path / "0" / "skipped_steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["task"], line["not_finite"]) for line in lines] == [
        (1, "where", "loss"),
        (4, "where", "loss"),
    ]
    # Clips 4 to 7 are step 1's; rank 1 has the second half of them.
    assert lines[0]["keys"] == ["where6", "where7"] and lines[0]["losses"] == ["nan"]
    log = (tmp_path / "0" / "log.txt").read_text()
    assert "step 1 left out, its loss is not finite: where, clips where6, where7" in log
    told = scalars(tmp_path / "0")["gradients/backbone"]
    assert set(told) == {1, 3, 4, 6} and all(map(math.isfinite, told.values()))
    assert not (tmp_path / "2" / "skipped_steps.jsonl").exists()
