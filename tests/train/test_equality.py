"""Every schedule under every stage of ZeRO, on 1, 2 and 4 ranks, against plain PyTorch in one process."""

import functools
import json
from typing import Any

import pytest

from tests.dist import run_ranks
from tests.train.tiny_runs import (
    ZERO1,
    ZERO2,
    ZERO2_OFFLOAD,
    ZERO3,
    build,
    made_up_batches,
    tiny_recipe,
    weights,
)
from train.launch import init_distributed
from train.loop import StepPlan, train
from train.run_log import RunLog

SCHEDULES = {
    "accumulate": ["schedule=accumulate"],
    "weighted": ["schedule=weighted"],
    "alternating": ["schedule=alternating"],
    "uniform": ["schedule=uniform"],
    "task_by_task": ["schedule=task_by_task"],
    "per_stage": ["schedule=task_by_task", "optim.per_stage=true"],
    "sgd": ["schedule=weighted", "optim.name=sgd", "optim.nesterov=true", "optim.lr=0.05"],
}
"""Overrides of the tiny recipe. Clipping, layer-wise decay, loss weights, rate coefficients and a head's options are on
in all of them, and ranks hold different numbers of boxes."""
MICRO_BATCHES = {
    "own": [],
    "other": ["tasks.look.micro_batch=1", "tasks.where.micro_batch=4", "tasks.other.micro_batch=2"],
}
ATOL = dict.fromkeys(SCHEDULES, 5e-6) | {"per_stage": 1e-5, "sgd": 2e-6}
"""Rounding in fp32, which differs between processors (2.03e-6 was the most so far): weights move by 1e-2 and more.
AdamW's first step divides a gradient by itself, so that a weight whose gradient is all but zero moves by its rounding;
with stages there are three first steps."""


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """DeepSpeed's JSON files by name: the project's own, and others, whose effect the tiny model's size would hide."""
    folder = tmp_path_factory.mktemp("configs")
    cpu = {"device": "cpu"}
    others: dict[str, dict[str, Any]] = {
        "zero1_offload": {"stage": 1, "offload_optimizer": cpu},
        # The project's own keeps layers below 100,000 weights, so all of the tiny model's, gathered.
        "zero3_all": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero3_offload": {
            "stage": 3,
            "stage3_param_persistence_threshold": 0,
            "offload_optimizer": cpu,
            "offload_param": cpu,
        },
    }
    for name, zero in others.items():
        (folder / f"{name}.json").write_text(json.dumps({"zero_optimization": zero}))
    return {"zero1": ZERO1, "zero2": ZERO2, "zero2_offload": ZERO2_OFFLOAD, "zero3": ZERO3} | {
        name: str(folder / f"{name}.json") for name in others
    }


CASES = (
    [(1, "zero2", name, "other") for name in SCHEDULES]
    + [(1, "zero1", name, "own") for name in ("accumulate", "weighted")]
    + [(2, stage, name, "own") for stage in ("zero1", "zero2") for name in SCHEDULES]
    + [(2, "zero3_all", name, "own") for name in ("accumulate", "weighted", "per_stage", "sgd")]
    + [(2, "zero3", "accumulate", "other")]
    + [(2, stage, "accumulate", "own") for stage in ("zero1_offload", "zero2_offload", "zero3_offload")]
    + [(2, stage, "per_stage", "own") for stage in ("zero2_offload", "zero3_offload")]
    + [(4, "zero2", name, "own") for name in SCHEDULES if name not in ("per_stage", "sgd")]
    + [(4, "zero1", "accumulate", "own")]
)
"""Ranks, configuration, schedule, and whose micro-batches: the recipe's own or other ones."""


def difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def run_cases(jobs):
    """Weights after 30 steps of each (run's folder, configuration or None, overrides), one after the other."""
    rank, ends = init_distributed(), []
    for out, ds, overrides in jobs:
        recipe = tiny_recipe(out, "steps=30", "log_every=30", *overrides)
        engine, _, tasks = build(recipe, rank, ds)
        plan, log = StepPlan(recipe, rank.world), RunLog(out, rank, recipe.steps, recipe.log_every, 0)
        train(recipe, tasks, engine, plan, made_up_batches(recipe, plan, rank, 0), rank, log, 0, lambda *_: None)
        log.close()
        ends.append(weights(engine))
    return ends


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory, configs):
    """(number of ranks) -> {case: weights after 30 steps on each rank}, run when it is first asked for. For one rank
    also those of plain PyTorch, under the schedule's name, and "start"."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def of(world):
        cases: list[Any] = [case for case in CASES if case[0] == world]
        jobs = [
            (str(folder / "-".join(map(str, case))), configs[ds], [*SCHEDULES[name], *MICRO_BATCHES[micro]])
            for case in cases
            for _, ds, name, micro in [case]
        ]
        if world == 1:
            jobs += [(str(folder / name), None, options) for name, options in SCHEDULES.items()]
            jobs.append((str(folder / "start"), None, ["optim.lr=1e-30"]))
            cases += [*SCHEDULES, "start"]
        ranks = run_ranks(run_cases, world, jobs, timeout=900)
        return {case: [ends[i] for ends in ranks] for i, case in enumerate(cases)}

    return of


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_zero_equals_plain_pytorch(outcomes, case):
    (reference,) = outcomes(1)[case[2]]
    for end in outcomes(case[0])[case]:
        assert difference(end, reference) < ATOL[case[2]]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_runs_move_all_that_they_train(outcomes, name):
    """Else equality would say nothing."""
    (reference,), (start,) = outcomes(1)[name], outcomes(1)["start"]
    moved = {key: float((reference[key] - start[key]).abs().max()) for key in start}
    if name == "sgd":
        # Its steps are as small as the gradients; those of the context layer begin at next to nothing.
        assert min(value for key, value in moved.items() if ".context." not in key) > 1e-6
    else:
        assert min(moved.values()) > 1e-4, sorted(moved.items(), key=lambda item: item[1])[:3]
    assert max(moved.values()) > 1e-2


def test_schedules_and_stages_make_a_difference(outcomes):
    ends = [outcomes(1)[name][0] for name in SCHEDULES]
    assert min(difference(a, b) for i, a in enumerate(ends) for b in ends[:i]) > 1e-3
