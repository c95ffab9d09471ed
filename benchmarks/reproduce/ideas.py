"""An idea on the bench: regimes, seeds, clips and recipe keys of one's own, and their gain over other runs."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import OmegaConf

from benchmarks.reproduce.conclusion import compared, points
from benchmarks.reproduce.intervals import difference, paired
from benchmarks.reproduce.protocol import (
    DOWNSTREAM,
    REGIMES,
    TASKS,
    UPSTREAM,
    Plan,
    Setting,
    make_recipe,
    overrides_of,
)
from benchmarks.reproduce.records import PARTS, Record, final_metric, read_record, tuned_score
from benchmarks.reproduce.runs import Laboratory, Run
from data.errors import UserError
from train.recipe import parse_recipe

OF_THE_PROTOCOL = (
    *("name", "out", "data_root", "seed", "steps", "schedule", "workers", "save_every", "keep", "eval_every"),
    *("optim.lr", "optim.schedule", "optim.per_stage", "model.init"),
    *(f"tasks.{task}.{key}" for task in TASKS for key in ("kind", "batch", "share", "val_shards")),
    f"tasks.{DOWNSTREAM}.lr_scale",
)
"""Keys that an idea may not change: what a run sees, is tuned by, is scored on and is called."""


def idea_plan(
    plan: Plan,
    regimes: Sequence[str] | None = None,
    seeds: int | None = None,
    rounds: int | None = None,
    setting: Setting | None = None,
    overrides: Sequence[str] = (),
) -> Plan:
    """`plan` with what an idea changes of it; None leaves its own.

    Args:
        seeds: how many, from 0.
        setting: of all regimes, in place of trials.
        overrides: `key=value` for every training that has the key's task.

    Raises:
        UserError: no such regime, one that takes the setting of another that is not there, a number out of range, or
            an override that a recipe refuses or that the protocol decides.
    """
    names = plan.regimes if regimes is None else tuple(dict.fromkeys(regimes))
    if unknown := [name for name in names if name not in REGIMES]:
        raise UserError(f"--regimes: there is no {unknown[0]!r}; there are {', '.join(REGIMES)}")
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds {seeds}: expected 1 or more")
    if rounds is not None and (rounds < 20 or rounds % 20):
        raise UserError(f"--rounds {rounds}: expected a multiple of 20")
    if setting is not None and not setting.lr > 0:
        raise UserError(f"--lr {setting.lr:g}: expected a number above 0")
    changed = dataclasses.replace(
        plan,
        rounds=plan.rounds if rounds is None else rounds,
        seeds=plan.seeds if seeds is None else tuple(range(seeds)),
        phases=plan.phases if regimes is None else (names,),
        tuned=plan.tuned and setting is None,
        setting=setting or plan.setting,
        overrides=tuple(overrides),
    )
    for name in names if changed.tuned else ():
        if (tuned := REGIMES[name].tuned) not in names:
            raise UserError(
                f"--regimes: {name} takes the rate that the trials of {tuned} choose: add that, or give --lr"
            )
    _check_overrides(changed)
    return changed


def _check_overrides(plan: Plan) -> None:
    for override in plan.overrides:
        key, equals, _ = override.partition("=")
        if not equals or "[" in key:
            raise UserError(f"{override!r}: expected key=value, as in model.pos_embed=sincos")
        for own in OF_THE_PROTOCOL:
            if f"{own}.".startswith(f"{key}.") or key.startswith(f"{own}."):
                raise UserError(f"{override}: {own} is the protocol's (docs/reproduce.md), an idea may not change it")
        if not any(overrides_of(training, [override]) for name in plan.regimes for training in REGIMES[name].trainings):
            raise UserError(f"{override}: no regime of this plan has a task of that name; there are {', '.join(TASKS)}")
    for name in plan.regimes:
        for training in REGIMES[name].trainings:
            recipe = make_recipe(
                training,
                out=Path(name),
                shards=Path("shards"),
                rounds=plan.rounds,
                setting=plan.setting,
                seed=0,
                workers=0,
            )
            parse_recipe(OmegaConf.to_yaml(recipe), f"recipe of {name}", overrides_of(training, plan.overrides))


def check_results(laboratory: Laboratory) -> None:
    """Raises UserError where runs would overwrite the records of another idea or protocol."""
    plan = laboratory.plan
    planned = [Run(REGIMES[name], plan.setting, seed) for name in plan.regimes for seed in plan.seeds]
    other = laboratory.foreign()
    if not plan.tuned:
        paths = [laboratory.records / f"{run.name}.json" for run in planned if laboratory.record_of(run) is None]
        other += [path for path in paths if path.exists()]
    if other:
        raise UserError(f"{other[0]} is of another idea, protocol or world: give this one a --results of its own")


def against_rows(runs: dict[str, list[Record]], other: Path) -> list[list[str]]:
    """A table, head first: for each regime that both results have, its scores here less those there, by seed.

    Args:
        runs: regime -> its runs here.
        other: the folder of the other results.

    Raises:
        UserError: there are no records of runs, none of these regimes and seeds, or their test clips are others.
    """
    found = [read_record(path) for path in sorted((other / "runs").glob("*.json"))]
    theirs = {name: [r for r in found if r["regime"] == name and not r["trial"]] for name in runs}
    accuracies = [f"{task} top-1" for task in UPSTREAM]
    rows = [["regime", "there", "AVA mAP on tune", "mAP", *PARTS, *accuracies, "mAP, each seed"]]
    for name, own in runs.items():
        sides = paired(own, theirs[name])
        if sides[0]:
            rows.append([REGIMES[name].title, *_changes(*sides, other)])
    if len(rows) == 1:
        raise UserError(f"--against {other}: no run of {', '.join(runs)} with a seed of these is there")
    return rows


def _changes(ours: list[Record], theirs: list[Record], other: Path) -> list[str]:
    for a, b in zip(ours, theirs, strict=True):
        if _tested_on(a) != _tested_on(b):
            raise UserError(f"--against {other}: {b['regime']}, seed {b['seed']}, was tested on another world")
    settings = sorted({str(Setting(**run["setting"])) for run in theirs})
    clips = sorted({sum(run["clips"].values()) for run in theirs})
    there = f"{len(theirs)} seeds, {' or '.join(settings)}, {' or '.join(f'{count:,}' for count in clips)} clips"

    def change(score: Callable[[Record], float]) -> str:
        return points(difference(list(map(score, ours)), list(map(score, theirs))))

    upstream = [change(functools.partial(final_metric, task=task, metric="top1")) for task in UPSTREAM]
    if DOWNSTREAM not in ours[0]["test"]:
        return [there, "-", "-", *("-" for _ in PARTS), *upstream, "-"]
    parts = [compared(ours, theirs, column) for column in ("mAP", *PARTS)]
    each = " ".join(f"{100 * value:+.1f}" for value in parts[0].each)
    return [there, change(tuned_score), *map(points, parts), *upstream, each]


def _tested_on(record: Record) -> dict[str, list[int]]:
    """Clips or keyframes, and labelled boxes, of each test set: what tells the worlds of two records apart."""
    return {
        task: [own["counts"][key] for key in ("examples", "groundtruth_rows") if key in own.get("counts", {})]
        for task, own in record["test"].items()
    }
