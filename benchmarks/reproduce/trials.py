"""All that `make reproduce` runs, in order: each regime's trials, its choice, and its runs."""

import dataclasses
from collections.abc import Sequence

from benchmarks.reproduce.protocol import LEARNING_RATES, REGIMES, TRIAL_SEED, UNTUNED, Setting
from benchmarks.reproduce.records import Record, tuned_score
from benchmarks.reproduce.runs import Laboratory, Run

OTHER_SCHEDULE = "constant"
"""What the best learning rate with cosine decay is tried with too."""


def run_all(laboratory: Laboratory) -> None:
    """Does what has no record yet, phase by phase.

    Raises:
        UserError: a run failed.
    """
    plan = laboratory.plan
    done = sum(sum(record["clips"].values()) for record in laboratory.records_found())
    laboratory.tell("all phases", max(0, sum(_clips(laboratory, phase) for phase in plan.phases) - done))
    for number, phase in enumerate(plan.phases):
        later = sum(_clips(laboratory, names) for names in plan.phases[number + 1 :])
        settings = _tune(laboratory, phase, later) if plan.tuned else {}
        laboratory.do(_runs(laboratory, phase, settings), "runs", later)


def _tune(laboratory: Laboratory, phase: Sequence[str], later: int) -> dict[str, Setting]:
    """Does the trials of a phase; the setting of every regime that has had its trials by then."""
    own = [REGIMES[name] for name in phase if REGIMES[name].tuned == name]
    after = laboratory.clips(_runs(laboratory, phase, {}))
    cosine = [Run(regime, Setting(rate), TRIAL_SEED, trial=True) for regime in own for rate in LEARNING_RATES]
    last = sum(map(laboratory.seen, cosine)) // len(LEARNING_RATES)
    laboratory.do(cosine, "trials of the learning rate", later + after + last)
    best = chosen_settings([r for r in laboratory.records_found() if r["setting"]["schedule"] == Setting.schedule])
    other = [dataclasses.replace(best[regime.name], schedule=OTHER_SCHEDULE) for regime in own]
    second = [Run(regime, setting, TRIAL_SEED, trial=True) for regime, setting in zip(own, other, strict=True)]
    laboratory.do(second, "trials of the schedule", later + after)
    return chosen_settings(laboratory.records_found())


def chosen_settings(records: Sequence[Record]) -> dict[str, Setting]:
    """Regime -> the setting of its best trial on `tune`; of equal ones the one that was planned first."""
    best: dict[str, Record] = {}
    for record in sorted((r for r in records if r["trial"]), key=_place):
        name = record["regime"]
        if name not in best or tuned_score(record) > tuned_score(best[name]):
            best[name] = record
    return {name: Setting(**record["setting"]) for name, record in best.items()}


def _place(record: Record) -> tuple[bool, float]:
    return record["setting"]["schedule"] == OTHER_SCHEDULE, record["setting"]["lr"]


def _runs(laboratory: Laboratory, phase: Sequence[str], settings: dict[str, Setting]) -> list[Run]:
    return [
        Run(REGIMES[name], settings.get(REGIMES[name].tuned, UNTUNED), seed)
        for seed in laboratory.plan.seeds
        for name in phase
    ]


def _clips(laboratory: Laboratory, phase: Sequence[str]) -> int:
    """Of a phase's trials and runs, done or not."""
    own = [REGIMES[name] for name in phase if REGIMES[name].tuned == name and laboratory.plan.tuned]
    trials = [Run(regime, UNTUNED, TRIAL_SEED, trial=True) for regime in own]
    runs = sum(map(laboratory.seen, _runs(laboratory, phase, {})))
    return runs + (len(LEARNING_RATES) + 1) * sum(map(laboratory.seen, trials))
