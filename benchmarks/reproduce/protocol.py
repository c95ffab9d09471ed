"""What is compared: regimes that see the same clips, how each is tuned, and the recipe of every run.

A round is 80 clips: 32 of AVA and 16 of each upstream set. A regime sees `rounds` of them, or as many clips where it
has other sets. docs/reproduce.md says why each regime is there; what stands here was fixed before the runs.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.schedule import Schedule
from shard_tools.toy.labels import AVA
from train.recipe import TOY_RECIPE

UPSTREAM = ("kinetics", "moments", "ssv2")
DOWNSTREAM = "ava"
TASKS = (*UPSTREAM, DOWNSTREAM)
ROUND = {**dict.fromkeys(UPSTREAM, 16), DOWNSTREAM: 32}
"""Clips of a round. The schedules that train one task a step by its share take STEP clips a step of any task."""
STEP = 16
LEARNING_RATES = (1e-3, 2e-3, 4e-3)
BEYOND = 4
"""Rates at most that are tried beyond these, by factors of 2, while the best one is at an edge."""
AVA_RATE = 0.25
"""AVA's learning rate over that of the other sets, in the last trial of a regime that has both."""
TRIAL_SEED = 100
"""Of the trials that choose the learning rate and its schedule; no run that counts has it."""
EVALUATIONS = 5
"""Points of a learning curve."""
WARMUP_SHARE = 0.05
TAIL, HEAD = 100, 1000
"""Labelled boxes in training below and above which a class is tail and head."""
UPSTREAM_TOO = frozenset(AVA.values()) - {AVA[number] for number in (11, 12, 17, 79)}
"""AVA's classes that an upstream set shows under a name of its own; sit, stand, carry and talk are in none."""


@dataclass(frozen=True)
class Training:
    """One run of train/main.py.

    Attributes:
        tasks: of the recipe, in its order.
        schedule: see data/schedule.py.
        batches: clips of each task in a step that trains it.
        clips: of each task in the whole training, per round of the regime.
    """

    tasks: tuple[str, ...]
    schedule: str
    batches: dict[str, int]
    clips: dict[str, int]
    per_stage: bool = False

    def steps_of(self, task: str, rounds: int) -> int:
        return self.clips[task] * rounds // self.batches[task]

    def steps(self, rounds: int) -> int:
        """Optimizer steps of `rounds` rounds."""
        steps = [self.steps_of(task, rounds) for task in self.tasks]
        return steps[0] if self.schedule == "accumulate" else sum(steps)

    def seen(self, rounds: int, seed: int) -> dict[str, int]:
        """Clips of each task that a run sees; `uniform` draws them, so that they differ by seed."""
        shares = [self.clips[task] / self.batches[task] for task in self.tasks]
        batches = [self.batches[task] for task in self.tasks]
        schedule = Schedule(self.schedule, batches, self.steps(rounds), seed, shares)
        return {task: schedule.steps_of(i) * batches[i] for i, task in enumerate(self.tasks)}


@dataclass(frozen=True)
class Regime:
    """A way to spend the clips.

    Attributes:
        trainings: run one after the other; each later one takes over the backbone of the one before.
        tuned_as: the regime whose learning rate and schedule it takes; its own name where it has trials of its own.
    """

    name: str
    title: str
    trainings: tuple[Training, ...]
    tuned_as: str = ""

    @property
    def tuned(self) -> str:
        return self.tuned_as or self.name

    @property
    def has_ava_beside_others(self) -> bool:
        tasks = {task for training in self.trainings for task in training.tasks}
        return DOWNSTREAM in tasks and len(tasks) > 1

    @property
    def tasks(self) -> tuple[str, ...]:
        """Of the last training: those that its model has heads for."""
        return self.trainings[-1].tasks

    def seen(self, rounds: int, seed: int) -> dict[str, int]:
        """Clips of each task that a run sees, in all of its trainings."""
        total: Counter[str] = Counter()
        for training in self.trainings:
            total.update(training.seen(rounds, seed))
        return {task: total[task] for task in TASKS if total[task]}

    def total_clips(self, rounds: int, seed: int) -> int:
        return sum(self.seen(rounds, seed).values())


def _one_at_a_time(schedule: str, tasks: tuple[str, ...] = TASKS, per_stage: bool = False) -> Training:
    """By shares of the steps, all steps of STEP clips."""
    return Training(tasks, schedule, dict.fromkeys(tasks, STEP), {task: ROUND[task] for task in tasks}, per_stage)


def _in_turn(schedule: str) -> Training:
    """As many steps of each task, so that AVA's have twice the clips."""
    return Training(TASKS, schedule, dict(ROUND), dict(ROUND))


def _together(upstream: tuple[str, ...]) -> Training:
    """All tasks in every step; the clips of the upstream sets that are left out go to the others."""
    clips = {task: sum(ROUND[name] for name in UPSTREAM) // len(upstream) for task in upstream}
    clips[DOWNSTREAM] = ROUND[DOWNSTREAM]
    return Training((*upstream, DOWNSTREAM), "accumulate", clips, clips)


def _alone(task: str, clips: int) -> Training:
    return Training((task,), "accumulate", {task: STEP}, {task: clips})


REGIMES = {
    regime.name: regime
    for regime in (
        Regime("ava_only", "AVA only", (_alone(DOWNSTREAM, sum(ROUND.values())),)),
        Regime("ava_as_often", "AVA only, its clips of a mixture", (_alone(DOWNSTREAM, ROUND[DOWNSTREAM]),)),
        Regime("transfer", "transfer, set after set", (_one_at_a_time("task_by_task", per_stage=True),)),
        Regime(
            "transfer_joint",
            "transfer from all upstream sets",
            (_one_at_a_time("weighted", UPSTREAM), _alone(DOWNSTREAM, ROUND[DOWNSTREAM])),
        ),
        Regime("weighted", "co-finetuning, weighted", (_one_at_a_time("weighted"),)),
        Regime("accumulate", "co-finetuning, accumulate", (_together(UPSTREAM),)),
        Regime("alternating", "co-finetuning, alternating", (_in_turn("alternating"),)),
        Regime("uniform", "co-finetuning, uniform", (_in_turn("uniform"),)),
        Regime("with_kinetics", "accumulate, AVA + Kinetics", (_together(UPSTREAM[:1]),), "accumulate"),
        Regime("with_kinetics_moments", "accumulate, + Moments", (_together(UPSTREAM[:2]),), "accumulate"),
        *(Regime(f"{task}_only", f"{task} only", (_alone(task, ROUND[task]),)) for task in UPSTREAM),
    )
}
BASELINES = ("transfer", "transfer_joint")
"""Transfer learning in one run, set after set, and from all upstream sets mixed, which forgets less."""
CONTROL = "ava_as_often"
"""What a baseline is worth: transfer that is no better than this has nothing to transfer."""
CANDIDATES = ("weighted", "accumulate")
"""The comparisons that were named before the runs are of these two with each of BASELINES."""


@dataclass(frozen=True)
class Setting:
    """What is tuned: learning rate, how it goes on after the warm-up, and AVA's rate over that of the other sets."""

    lr: float
    schedule: str = "cosine"
    ava_rate: float = 1.0

    def __str__(self) -> str:
        return f"{self.lr:g} {self.schedule}" + ("" if self.ava_rate == 1 else f", AVA x {self.ava_rate:g}")


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
        size: of the toy world.
        rounds: clips of a run are 80 times as many; a multiple of 20, so that all parts are whole steps.
        seeds: of the runs that count.
        phases: names of regimes; all trials and runs of a phase are done before the next one begins.
        tuned: whether each regime has its trials; otherwise they take `settings`, or `setting` where it has none.
        settings: (regime, its setting) of an idea that takes over what others' runs had.
        idea: whether it is somebody's own (ideas.py) and not the protocol.
        overrides: `key=value` of an idea, laid over every training's recipe.
    """

    size: str
    rounds: int
    seeds: tuple[int, ...]
    phases: tuple[tuple[str, ...], ...]
    tuned: bool
    setting: Setting = Setting(2e-3)  # the toy recipe's
    idea: bool = False
    overrides: tuple[str, ...] = ()
    settings: tuple[tuple[str, Setting], ...] = ()

    def __post_init__(self) -> None:
        if self.rounds < 20 or self.rounds % 20:
            raise ValueError(f"rounds={self.rounds}: must be a multiple of 20, above 0")

    @property
    def regimes(self) -> tuple[str, ...]:
        return tuple(name for phase in self.phases for name in phase)

    def setting_of(self, name: str) -> Setting:
        """What a regime takes that has no trials."""
        return dict(self.settings).get(name, self.setting)


WORLD_SEED = 0
CORE = ("transfer", "transfer_joint", "weighted", "accumulate", "ava_only", "ava_as_often")
LAST = ("alternating", "uniform")
"""What no part of the goal asks for, and what costs most, comes at the end."""
OTHERS = tuple(name for name in REGIMES if name not in (*CORE, *LAST))
FULL = Plan("full", 600, (0, 1, 2, 3, 4), (CORE, OTHERS, LAST), tuned=True)
QUICK = Plan("small", 240, (0, 1), (CORE[1:4],), tuned=False)


def make_recipe(
    training: Training,
    *,
    out: Path,
    shards: Path,
    rounds: int,
    setting: Setting,
    seed: int,
    workers: int,
    init: Path | None = None,
) -> DictConfig:
    """A training's recipe: the toy recipe's model, views and losses, with this training's tasks and steps.

    Args:
        out: folder of the training.
        shards: where the world is packed; `tune` is what is evaluated on.
        init: a training whose backbone it starts from.
    """
    recipe = OmegaConf.load(TOY_RECIPE)
    assert isinstance(recipe, DictConfig)
    steps = training.steps(rounds)
    stages = [training.steps_of(task, rounds) for task in training.tasks] if training.per_stage else [steps]
    recipe.name = out.name
    recipe.out, recipe.data_root = str(out), str(shards)
    recipe.seed, recipe.steps, recipe.schedule, recipe.workers = seed, steps, training.schedule, workers
    recipe.log_every = max(1, steps // 40)
    recipe.save_every, recipe.keep = max(1, steps // EVALUATIONS), 1
    recipe.eval_every = steps // EVALUATIONS
    recipe.optim.lr, recipe.optim.schedule = setting.lr, setting.schedule
    recipe.optim.warmup_steps = max(1, round(WARMUP_SHARE * min(stages)))
    recipe.optim.per_stage = training.per_stage
    if init is not None:
        recipe.model.init = {"source": str(init)}
    tasks = {}
    for task in training.tasks:
        tasks[task] = recipe.tasks[task]
        tasks[task].batch = training.batches[task]
        tasks[task].micro_batch = 16
        tasks[task].share = float(training.clips[task] / training.batches[task])
        tasks[task].lr_scale = setting.ava_rate if task == DOWNSTREAM else 1.0
        tasks[task].val_shards = "${data_root}/" + f"{task}-tune"
    recipe.tasks = tasks
    return recipe


def overrides_of(training: Training, overrides: Sequence[str]) -> list[str]:
    """Those of a plan's overrides that a training's recipe can take: not those of tasks that it does not have."""
    named = [override.split("=")[0].split(".") for override in overrides]
    return [
        override
        for override, key in zip(overrides, named, strict=True)
        if key[0] != "tasks" or len(key) < 2 or key[1] in training.tasks
    ]


def identity(
    regime: Regime, rounds: int, setting: Setting, seed: int, world: dict[str, Any], overrides: Sequence[str] = ()
) -> str:
    """Names all that decides a run's figures but the program and the machine, 16 hex digits: its recipes, what it is
    scored on and how."""
    nowhere = Path("-")
    recipes = [
        make_recipe(
            training,
            out=nowhere,
            shards=nowhere,
            rounds=rounds,
            setting=setting,
            seed=seed,
            workers=0,
            init=nowhere if number else None,
        )
        for number, training in enumerate(regime.trainings)
    ]
    told = [[OmegaConf.to_yaml(recipe) for recipe in recipes], world, TAIL, HEAD]
    if any(changes := [overrides_of(training, overrides) for training in regime.trainings]):
        told.append(changes)
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
