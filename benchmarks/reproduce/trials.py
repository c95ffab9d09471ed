"""All that `make reproduce` runs, in order: each regime's trials, its choice, and its runs."""

import dataclasses
from collections.abc import Callable, Sequence

from benchmarks.reproduce.protocol import (
    AVA_RATE,
    BEYOND,
    LEARNING_RATES,
    REGIMES,
    TRIAL_SEED,
    Regime,
    Setting,
)
from benchmarks.reproduce.records import Record, tuned_score
from benchmarks.reproduce.runs import Laboratory, Run

OTHER_SCHEDULE = "constant"
"""What the best learning rate with cosine decay is tried with too."""
USUAL_TRIALS = len(LEARNING_RATES) + 3
"""Of a regime, for the time that is left: one rate beyond, the other schedule, and AVA's own rate."""


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
    """Does the trials of a phase; the setting of every regime that has had its trials by then.

    Each regime: LEARNING_RATES with cosine decay; while the best is at an edge, the next one beyond it, BEYOND times at
    most; the best one held constant; and the best so far with AVA's rate at AVA_RATE of it, where there are other sets.
    """
    own = [REGIMES[name] for name in phase if REGIMES[name].tuned == name]
    after = later + laboratory.clips(_runs(laboratory, phase, {}))

    def try_each(what: str, setting_of: Callable[[Regime], Setting | None]) -> None:
        chosen = [(regime, setting) for regime in own if (setting := setting_of(regime)) is not None]
        laboratory.do([Run(regime, setting, TRIAL_SEED, trial=True) for regime, setting in chosen], what, after)

    laboratory.do(
        [Run(regime, Setting(rate), TRIAL_SEED, trial=True) for regime in own for rate in LEARNING_RATES],
        "trials of the learning rate",
        after,
    )
    for _ in range(BEYOND):
        try_each("trials beyond the best rate", lambda regime: beyond(laboratory.records_found(), regime.name))
    cosine = chosen_settings(_cosine(laboratory.records_found()))
    try_each("trials of the schedule", lambda regime: dataclasses.replace(cosine[regime.name], schedule=OTHER_SCHEDULE))
    best = chosen_settings([r for r in laboratory.records_found() if r["setting"]["ava_rate"] == 1])
    try_each(
        "trials of AVA's own rate",
        lambda regime: (
            dataclasses.replace(best[regime.name], ava_rate=AVA_RATE) if regime.has_ava_beside_others else None
        ),
    )
    return chosen_settings(laboratory.records_found())


def beyond(records: Sequence[Record], name: str) -> Setting | None:
    """The next learning rate to try of a regime: beyond the best one where it is the least or the greatest so far."""
    own = [record for record in _cosine(records) if record["regime"] == name]
    rates = sorted(record["setting"]["lr"] for record in own)
    best = chosen_settings(own)[name].lr
    if len(rates) >= len(LEARNING_RATES) + BEYOND or best not in (rates[0], rates[-1]):
        return None
    return Setting(best / 2 if best == rates[0] else best * 2)


def _cosine(records: Sequence[Record]) -> list[Record]:
    """Trials of the learning rate alone."""
    plain = {"schedule": Setting.schedule, "ava_rate": Setting.ava_rate}
    return [r for r in records if r["trial"] and plain.items() <= r["setting"].items()]


def chosen_settings(records: Sequence[Record]) -> dict[str, Setting]:
    """Regime -> the setting of its best trial on `tune`; of equal ones that with fewer changes and the lower rate."""
    best: dict[str, Record] = {}
    for record in sorted((r for r in records if r["trial"]), key=_place):
        name = record["regime"]
        if name not in best or tuned_score(record) > tuned_score(best[name]):
            best[name] = record
    return {name: Setting(**record["setting"]) for name, record in best.items()}


def _place(record: Record) -> tuple[bool, bool, float]:
    setting = record["setting"]
    return setting["ava_rate"] != 1, setting["schedule"] == OTHER_SCHEDULE, setting["lr"]


def _runs(laboratory: Laboratory, phase: Sequence[str], settings: dict[str, Setting]) -> list[Run]:
    return [
        Run(REGIMES[name], settings.get(REGIMES[name].tuned, laboratory.plan.setting_of(name)), seed)
        for seed in laboratory.plan.seeds
        for name in phase
    ]


def _clips(laboratory: Laboratory, phase: Sequence[str]) -> int:
    """Of a phase's trials and runs, done or not, with about as many trials as there will be."""
    own = [REGIMES[name] for name in phase if REGIMES[name].tuned == name and laboratory.plan.tuned]
    trials = [Run(regime, laboratory.plan.setting, TRIAL_SEED, trial=True) for regime in own]
    return sum(map(laboratory.seen, _runs(laboratory, phase, {}))) + USUAL_TRIALS * sum(map(laboratory.seen, trials))
