"""An idea on the bench: regimes, seeds, clips and recipe keys of one's own, and their gain over other runs."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.reproduce.conclusion import compared, points
from benchmarks.reproduce.intervals import difference, paired
from benchmarks.reproduce.protocol import (
    BEYOND,
    DOWNSTREAM,
    LEARNING_RATES,
    REGIMES,
    TASKS,
    TRIAL_SEED,
    UPSTREAM,
    Plan,
    Setting,
    make_recipe,
    overrides_of,
)
from benchmarks.reproduce.records import PARTS, Record, before_transfer, final_metric, read_record, tuned_score
from data.errors import UserError
from data.shards import ClassInfo, ShardSet
from train.model import build_model, model_config
from train.recipe import parse_recipe
from train.tasks import Task
from train.whole_files import write_atomically

OF_THE_PROTOCOL = (
    *("name", "out", "data_root", "seed", "steps", "schedule", "workers", "save_every", "keep", "eval_every"),
    *("ema", "keep_best", "optim.lr", "optim.schedule", "optim.per_stage", "model.init"),
    *(f"tasks.{task}.{key}" for task in TASKS for key in ("kind", "batch", "share", "val_shards")),
    *(f"tasks.{task}.view.{key}" for task in TASKS for key in ("eval_boxes", "proposal_score_threshold")),
    f"tasks.{DOWNSTREAM}.lr_scale",
)
"""Keys that an idea may not change: what a run sees, is tuned by, is scored on and is called."""
MARK = "plan.json"
"""In a folder of results: the plan whose runs it holds, regimes and seeds aside, and their world."""


def idea_plan(
    plan: Plan,
    regimes: Sequence[str] | None = None,
    seeds: int | None = None,
    rounds: int | None = None,
    setting: Setting | None = None,
    overrides: Sequence[str] = (),
    same_as: Path | None = None,
) -> Plan:
    """`plan` with what an idea changes of it; None leaves its own.

    Args:
        seeds: how many, from 0.
        setting: of all regimes, in place of trials.
        overrides: `key=value` for every training that has the key's task.
        same_as: results from whose runs each regime takes its setting, in place of trials.

    Raises:
        UserError: no such regime, one that takes the setting of another that is not there, a number out of range, no
            runs to take a setting from, or an override that a recipe refuses or that the protocol decides.
    """
    names = plan.regimes if regimes is None else tuple(dict.fromkeys(regimes))
    if unknown := [name for name in names if name not in REGIMES]:
        raise UserError(f"--regimes: there is no {unknown[0]!r}; there are {', '.join(REGIMES)}")
    if seeds is not None and not 1 <= seeds <= TRIAL_SEED:
        raise UserError(f"--seeds {seeds}: expected 1 to {TRIAL_SEED}")
    if rounds is not None and (rounds < 20 or rounds % 20):
        raise UserError(f"--rounds {rounds}: expected a multiple of 20")
    if setting is not None and not setting.lr > 0:
        raise UserError(f"--lr {setting.lr:g}: expected a number above 0")
    own_seeds = plan.seeds if seeds is None else tuple(range(seeds))
    settings = {} if same_as is None else _settings_there(same_as, names, own_seeds)
    changed = dataclasses.replace(
        plan,
        rounds=plan.rounds if rounds is None else rounds,
        seeds=own_seeds,
        phases=plan.phases if regimes is None else (names,),
        tuned=plan.tuned and setting is None and same_as is None,
        setting=setting or plan.setting,
        settings=tuple(settings.items()),
        idea=True,
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
        key, equals, value = override.partition("=")
        if not equals or "[" in key:
            raise UserError(f"{override!r}: expected key=value, as in model.pos_embed=sincos")
        for own in OF_THE_PROTOCOL:
            if key == own or key.startswith(f"{own}."):
                raise UserError(f"{override}: {own} is the protocol's (docs/reproduce.md), an idea may not change it")
            if own.startswith(f"{key}."):
                raise UserError(
                    f"{override}: holds {own}, which is the protocol's: name single keys, as in {key}.KEY=VALUE"
                )
        if not any(overrides_of(training, [override]) for name in plan.regimes for training in REGIMES[name].trainings):
            raise UserError(f"{override}: no regime of this plan has a task of that name; there are {', '.join(TASKS)}")
        if key.endswith(".shards") and not value.startswith("${"):
            ShardSet(value)
    # Trials may go as low as this.
    settings = [plan.setting_of(name) for name in plan.regimes]
    lowest = Setting(min(LEARNING_RATES) / 2**BEYOND) if plan.tuned else min(settings, key=lambda s: s.lr)
    for training in {
        training.tasks: training for name in plan.regimes for training in REGIMES[name].trainings
    }.values():
        made = make_recipe(
            training, out=Path("run"), shards=Path("shards"), rounds=plan.rounds, setting=lowest, seed=0, workers=0
        )
        recipe = parse_recipe(OmegaConf.to_yaml(made), "the recipe", overrides_of(training, plan.overrides))
        classes = [ClassInfo(number, str(number)) for number in range(2)]
        tasks = [Task(name, own, classes, None, None) for name, own in recipe.tasks.items()]
        build_model(recipe, model_config(recipe, tasks))


def mark_results(results: Path, plan: Plan, world: dict[str, Any]) -> None:
    """Writes whose runs the folder is to hold.

    Raises:
        UserError: it holds the runs of another plan or world, which would be overwritten.
    """
    mark = results / MARK
    own = _told(plan, world)
    held = _read_mark(mark) if mark.exists() else dict(own)
    # The protocol's records of before there were marks have none.
    foreign = plan.idea and not mark.exists() and any((results / "runs").glob("*.json"))
    # Of --same-settings: regimes may come later, and with them their settings.
    there, here = held.pop("settings", {}), own.pop("settings", {})
    if held != own or bool(there) != bool(here) or foreign:
        raise UserError(
            f"{results} holds runs of another idea, protocol or world: give this one a --results of its own"
        )
    for name in there.keys() & here.keys():
        if there[name] != here[name]:
            raise UserError(
                f"{results} holds runs of {name} at {Setting(**there[name])}; in --against they are now at "
                f"{Setting(**here[name])}: give these a --results of its own"
            )
    results.mkdir(parents=True, exist_ok=True)
    if here:
        own["settings"] = there | here
    write_atomically(mark, json.dumps(own, indent=1) + "\n")


def _told(plan: Plan, world: dict[str, Any]) -> dict[str, Any]:
    kept = {key: getattr(plan, key) for key in ("idea", "rounds", "tuned")}
    told = {**kept, "setting": vars(plan.setting), "overrides": list(plan.overrides), "world": world}
    if plan.settings:
        told["settings"] = {name: vars(setting) for name, setting in plan.settings}
    return told


def _read_mark(mark: Path) -> dict[str, Any]:
    try:
        held = json.loads(mark.read_text())
        if not isinstance(held, dict) or not isinstance(held.get("settings", {}), dict):
            raise ValueError("it is no mark of a plan")
        return held
    except ValueError as error:
        raise UserError(f"{mark} cannot be read ({error}): it tells whose runs lie beside it; restore it") from error


def check_against(other: Path, results: Path, plan: Plan, world: dict[str, Any]) -> None:
    """Looks, before anything is trained, whether there will be something to compare.

    Raises:
        UserError: the same results, those of another world, or no run of these regimes and seeds.
    """
    if other.resolve() == results.resolve():
        raise UserError(f"--against {other}: these are the results themselves")
    mark = other / MARK
    if mark.exists() and _read_mark(mark).get("world") != world:
        raise UserError(f"--against {other}: its runs are of another toy world")
    if not any((other / "runs" / f"{name}-seed{seed}.json").exists() for name in plan.regimes for seed in plan.seeds):
        raise UserError(f"--against {other}: no run of {', '.join(plan.regimes)} with a seed of these is in its runs/")


def _settings_there(other: Path, regimes: Sequence[str], seeds: Sequence[int]) -> dict[str, Setting]:
    """Regime -> the setting of its runs in other results, or of those of the regime whose trials it takes.

    Raises:
        UserError: a regime has no run of these seeds there, or runs of several settings.
    """
    found: dict[str, list[Record]] = {}
    for path in sorted((other / "runs").glob("*.json")):
        record = read_record(path)
        if not record["trial"] and record["seed"] in seeds:
            found.setdefault(record["regime"], []).append(record)
    chosen: dict[str, Setting] = {}
    for name in regimes:
        own = found.get(name) or found.get(REGIMES[name].tuned)
        if not own:
            raise UserError(f"--same-settings: no run of {name} with a seed of these is in {other / 'runs'}")
        chosen[name] = _setting_of(own, other)
    return chosen


def _setting_of(runs: Sequence[Record], other: Path) -> Setting:
    try:
        settings = sorted({Setting(**run["setting"]) for run in runs}, key=str)
    except (TypeError, ValueError) as error:
        raise UserError(f"--against {other}: a record of {runs[0]['regime']} has no setting ({error})") from error
    if len(settings) > 1:
        told = "; ".join(map(str, settings))
        raise UserError(f"--against {other}: its runs of {runs[0]['regime']} are of several settings: {told}")
    return settings[0]


def against_rows(runs: dict[str, list[Record]], other: Path) -> list[list[str]]:
    """A table, head first: for each regime that both results have, its scores here less those there, by seed.

    Args:
        runs: regime -> its runs here.
        other: the folder of the other results.

    Raises:
        UserError: there are no records of these regimes and seeds, they are of several settings, or their test clips
            are others.
    """
    found = [read_record(path) for path in sorted((other / "runs").glob("*.json"))]
    theirs = {name: [r for r in found if r["regime"] == name and not r["trial"]] for name in runs}
    accuracies = [f"{task} top-1" for task in UPSTREAM]
    rows = [["regime", "there", "on tune", "AVA mAP", *PARTS, *accuracies, "AVA mAP, each seed"]]
    for name, own in runs.items():
        sides = paired(own, theirs[name])
        if sides[0]:
            rows.append([REGIMES[name].title, *_changes(*sides, other)])
    if len(rows) == 1:
        raise UserError(f"--against {other}: no run of {', '.join(runs)} with a seed of these is there")
    return rows


def _changes(ours: list[Record], theirs: list[Record], other: Path) -> list[str]:
    regime = theirs[0]["regime"]
    for a, b in zip(ours, theirs, strict=True):
        if _tested_on(a) != _tested_on(b):
            raise UserError(f"--against {other}: {regime}, seed {b['seed']}, was tested on another world")
    setting = _setting_of(theirs, other)
    clips = sorted({sum(run["clips"].values()) for run in theirs})
    there = f"{len(theirs)} seeds, {setting}, {' to '.join(f'{count:,}' for count in clips[:1] + clips[1:][-1:])} clips"

    def change(score: Callable[[Record], float]) -> str:
        return points(difference(list(map(score, ours)), list(map(score, theirs))))

    def top1(task: str) -> Callable[[Record], float]:
        return lambda run: final_metric(before_transfer(run), task, "top1")

    upstream = [change(top1(task)) for task in UPSTREAM]
    if DOWNSTREAM not in ours[0]["test"]:
        return [there, change(tuned_score), "-", *("-" for _ in PARTS), *upstream, "-"]
    whole = compared(ours, theirs, "mAP")
    parts = ["-" for _ in PARTS]
    # Head, mid and tail go by the boxes in training: of other training sets they are other classes.
    if len({json.dumps(run["test"][DOWNSTREAM].get("training_counts")) for run in (*ours, *theirs)}) == 1:
        parts = [points(compared(ours, theirs, part)) for part in PARTS]
    each = " ".join(f"{100 * value:+.1f}" for value in whole.each)
    return [there, change(tuned_score), points(whole), *parts, *upstream, each]


def _tested_on(record: Record) -> dict[str, list[int]]:
    """Clips or keyframes, and labelled boxes, of each test set: what tells the worlds of two records apart."""
    return {
        task: [own["counts"][key] for key in ("examples", "groundtruth_rows") if key in own.get("counts", {})]
        for task, own in record["test"].items()
    }
