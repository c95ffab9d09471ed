"""What the comparisons that were named before the runs say, and which parts of the goal are reached, by whom."""

import math
from collections.abc import Sequence

from benchmarks.reproduce.intervals import Difference, difference, holm, paired
from benchmarks.reproduce.protocol import BASELINES, CANDIDATES, CONTROL, DOWNSTREAM, REGIMES, UPSTREAM, Plan
from benchmarks.reproduce.records import Record, final_metric, mean_ap, part_masks

ALPHA = 0.05
MARGIN = 0.02
"""Of top-1: what an upstream set may lose at most, by the lower end of the interval."""
YES, NO, NOT_SHOWN = "yes", "no", "not shown"
"""Answers to a part of the goal: NO where the opposite is clear, NOT_SHOWN where neither is."""
NOT_ASKED = "not asked by this plan"
Runs = dict[str, list[Record]]


def conclude(runs: Runs, plan: Plan) -> str:
    """Markdown: a line for each named comparison, the parts of the goal for each candidate, and the goal as a whole.

    Args:
        runs: regime -> its runs; while some of the plan are missing, parts of the goal are open.
    """
    named = {
        (name, base): compared(runs[name], runs[base], "mAP")
        for name in CANDIDATES
        for base in BASELINES
        if name in runs and base in runs
    }
    if not named:
        return "None of the comparisons that were named before the runs has its runs yet."
    asked = sum(name in plan.regimes and base in plan.regimes for name in CANDIDATES for base in BASELINES)
    p_values = dict(zip(named, holm([own.p for own in named.values()], asked), strict=True))
    above = {pair for pair, own in named.items() if p_values[pair] < ALPHA and own.over_seeds.value > 0}
    lines = []
    for (name, base), own in named.items():
        p = p_values[name, base]
        verdict = "is above" if (name, base) in above else "is below" if p < ALPHA else "is not clearly apart from"
        if own.over_seeds.n < len(plan.seeds):
            verdict = "against"  # no verdict before all runs are there
        lines.append(
            f"- **{REGIMES[name].title}** {verdict} {REGIMES[base].title}: {points(own)} points of mAP over "
            f"{own.over_seeds.n} seeds, p = {p:.2g}. On tail classes {points(tail_change(runs[name], runs[base]))}; "
            f"that less the others' change: {points(tail_gain(runs[name], runs[base]))}."
        )
    for base in BASELINES if CONTROL in runs else ():
        if base in runs:
            worth = compared(runs[base], runs[CONTROL], "mAP")
            lines.append(
                f"- What upstream sets are worth to {REGIMES[base].title}: {points(worth)} points of mAP over training"
                " on AVA alone with as many clips of it (not a comparison that was named)."
            )
    lines.append("")
    signs = {pair: (pair in above, p_values[pair] < ALPHA and own.over_seeds.value < 0) for pair, own in named.items()}
    goals = {REGIMES[name].title: _goal(name, runs, signs, plan) for name in CANDIDATES if name in runs}
    for title, parts in goals.items():
        lines.append(f"- Goal, {title}: " + "; ".join(f"{part}: **{answer}**" for part, answer in parts.items()) + ".")
    reached = [title for title, parts in goals.items() if set(parts.values()) == {YES}]
    answers = {answer for parts in goals.values() for answer in parts.values()}
    if reached:
        whole = f"reached by {' and '.join(reached)}"
    elif NOT_ASKED in answers:
        whole = NOT_ASKED
    else:
        whole = "still open" if len(goals) < len(CANDIDATES) or answers - {YES, NO, NOT_SHOWN} else "not reached"
    lines.append(f"- Goal as a whole, all parts by one schedule: **{whole}**.")
    lines += [
        "",
        f"p: paired t test, corrected for {asked} comparisons after Holm; clear is below {ALPHA}. The other parts",
        "of the goal go by 95 % intervals over seeds: the gain on the tail, and that less the gain on the others,",
        "are to be above 0, over both baselines, and an upstream set's accuracy less that of training on the set alone",
        f"above {-100 * MARGIN:.0f} points. {YES.capitalize()}: all of it is so; {NO}: for some of it the opposite is",
        f"clear; {NOT_SHOWN}: neither.",
    ]
    return "\n".join(lines)


def _goal(name: str, runs: Runs, signs: dict[tuple[str, str], tuple[bool, bool]], plan: Plan) -> dict[str, str]:
    """Part of the goal -> YES, NO, NOT_SHOWN, or why it is open.

    Args:
        signs: (candidate, baseline) -> whether its mAP is clearly above, and whether it is clearly below.
    """
    alone = [f"{task}_only" for task in UPSTREAM]
    bases = [base for base in BASELINES if base in runs]
    tails = [over(runs[name], runs[base]).over_seeds for base in bases for over in (tail_change, tail_gain)]
    kept = [
        upstream_change(runs[name], runs[f"{task}_only"], task).over_seeds
        for task in UPSTREAM
        if f"{task}_only" in runs
    ]

    def answer(needed: Sequence[str], checks: Sequence[tuple[bool, bool]]) -> str:
        """Of (it is clearly so, the opposite is clear) for all that has to be so."""
        if any(regime not in plan.regimes for regime in needed):
            return NOT_ASKED
        if any(len(runs.get(regime, [])) < len(plan.seeds) for regime in (name, *needed)):
            return "open, as runs are missing"
        if all(so for so, _ in checks):
            return YES
        return NO if any(opposite for _, opposite in checks) else NOT_SHOWN

    return {
        "above both kinds of transfer learning": answer(BASELINES, [signs[name, base] for base in bases]),
        "its gain is largest on the tail": answer(BASELINES, [(own.low > 0, own.high < 0) for own in tails]),
        "upstream sets keep their accuracy": answer(alone, [(own.low > -MARGIN, own.high < -MARGIN) for own in kept]),
    }


def compared(regime: Sequence[Record], baseline: Sequence[Record], column: str) -> Difference:
    """Of AVA's mAP, or its part over head, mid or tail, on the seeds that both have."""
    ours, theirs = paired(regime, baseline)
    part = "all" if column == "mAP" else column
    draws = [[run["resamples"]["mAP"][part] for run in side] for side in (ours, theirs)]
    scores = [[final_metric(run, DOWNSTREAM, column) for run in side] for side in (ours, theirs)]
    return difference(scores[0], scores[1], (draws[0], draws[1]))


def tail_change(regime: Sequence[Record], baseline: Sequence[Record]) -> Difference:
    """By seed: the mean gain in AP over tail classes."""
    sides = paired(regime, baseline)
    ours, theirs = ([mean_ap(run, part_masks(run)["tail"]) for run in side] for side in sides)
    return difference(ours, theirs)


def tail_gain(regime: Sequence[Record], baseline: Sequence[Record]) -> Difference:
    """By seed: the mean gain in AP over tail classes, less the mean gain over all other classes."""
    ours, theirs = paired(regime, baseline)
    return difference([_tail_less_rest(run) for run in ours], [_tail_less_rest(run) for run in theirs])


def _tail_less_rest(run: Record) -> float:
    parts = part_masks(run)
    rest = [name for name in parts["all"] if name not in parts["tail"]]
    return mean_ap(run, parts["tail"]) - mean_ap(run, rest)


def upstream_change(regime: Sequence[Record], alone: Sequence[Record], task: str) -> Difference:
    """Of an upstream set's top-1, against training on that set alone, on the seeds that both have."""
    ours, theirs = paired(regime, alone)
    scores = [[final_metric(run, task, "top1") for run in side] for side in (ours, theirs)]
    return difference(scores[0], scores[1])


def points(own: Difference) -> str:
    """A difference of shares in points, with half of its interval."""
    mean = own.over_seeds
    if math.isnan(mean.value):
        return "-"
    return f"{100 * mean.value:+.1f}" + ("" if math.isnan(mean.half) else f" ± {100 * mean.half:.1f}")
