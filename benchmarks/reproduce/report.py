"""The report of a plan: tables and pictures, from the records of its runs alone."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.reproduce.conclusion import MARGIN, compared, conclude, points, upstream_change
from benchmarks.reproduce.gradients import gradient_rows
from benchmarks.reproduce.ideas import against_rows
from benchmarks.reproduce.intervals import Difference, Mean, mean_of, paired
from benchmarks.reproduce.pictures import class_counts, draw_all
from benchmarks.reproduce.protocol import (
    BASELINES,
    DOWNSTREAM,
    HEAD,
    REGIMES,
    ROUND,
    TAIL,
    UPSTREAM,
    UPSTREAM_TOO,
    Plan,
    Setting,
)
from benchmarks.reproduce.records import PARTS, Record, before_transfer, final_metric, mean_ap, part_masks, tuned_score
from benchmarks.reproduce.trials import chosen_settings
from data.errors import UserError
from train.run_log import duration
from train.whole_files import write_atomically

TITLE = "# Co-finetuning against transfer learning on the toy world"
COLUMNS = ("mAP", *PARTS)
Differences = dict[tuple[str, str], dict[str, Difference]]


def write_report(
    results: Path, plan: Plan, records: Sequence[Record], command: str, against: Path | None = None
) -> str:
    """Writes RESULTS/report.md and its pictures; returns the conclusion, one line per comparison.

    Args:
        against: other results, whose runs those of the same regime and seed are compared with.

    Raises:
        UserError: there is no run to report, or none to compare with.
    """
    chosen = chosen_settings(records) if plan.tuned else {}
    runs: dict[str, list[Record]] = {}
    stale = []
    for record in records:
        name = record["regime"]
        if record["trial"] or name not in plan.regimes:
            continue
        setting = chosen.get(REGIMES[name].tuned, plan.setting_of(name))
        if record["setting"] == vars(setting) and record["seed"] in plan.seeds:
            runs.setdefault(name, []).append(record)
        else:
            stale.append(f"{name}-seed{record['seed']}")
    if not runs:
        raise UserError(f"{results / 'runs'}: no records of finished runs of this protocol")
    runs = {name: sorted(runs[name], key=lambda r: r["seed"]) for name in plan.regimes if name in runs}
    differences = {
        (name, base): {column: compared(runs[name], runs[base], column) for column in COLUMNS}
        for base in BASELINES
        for name in runs
        if base in runs and name != base and DOWNSTREAM in REGIMES[name].tasks
    }
    conclusion = "" if plan.idea else conclude(runs, plan)
    changes = "" if against is None else f"## Less those of {against}, points\n{table(against_rows(runs, against))}"
    pictures = draw_all(results, runs, plan)
    parts = [
        "# An idea on the bench of the toy world" if plan.idea else TITLE,
        _origin(plan, records, runs, command),
        "## Result\n" + conclusion if conclusion else "",
        "## AVA, test movies, %\n" + _ava_table(runs),
        changes,
        "## Difference to transfer learning, points of mAP\n" + _difference_tables(differences),
        "## Upstream sets, top-1 on test clips, %\n" + _upstream_table(runs),
        "## AP of each class, %\n" + _class_table(runs),
        _gradient_table(runs),
        "## Pictures\n" + "\n\n".join(f"![{title}]({file})" for file, title in pictures.items()),
        "## Every seed: AVA mAP, %\n" + _seed_table(runs, plan),
        "## Every trial: score on the tuning split, %\n" + _trial_table(records) if plan.tuned else "",
        "## Cost\n" + _cost_table(runs, records),
        f"Left out, as their setting or seed is not one of this plan: {', '.join(stale)}." if stale else "",
    ]
    write_atomically(results / "report.md", "\n\n".join(part for part in parts if part) + "\n")
    return "\n\n".join(part for part in (conclusion, changes) if part) or "## AVA, test movies, %\n" + _ava_table(runs)


def _origin(plan: Plan, records: Sequence[Record], runs: dict[str, list[Record]], command: str) -> str:
    machines = Counter(record["machine"] for record in records)
    commits = Counter(" then ".join(record["commits"]) for record in records)
    clips, own = sum(ROUND.values()) * plan.rounds, ROUND[DOWNSTREAM] * plan.rounds
    lines = [
        f"`{command}`, {time.strftime('%Y-%m-%d')}. The protocol is docs/reproduce.md. A run of all sets sees",
        f"{clips:,} clips, {own:,} of them of AVA (`uniform` on average); under Cost is what every regime sees.",
        f"Toy world: {plan.size}. Seeds: {', '.join(map(str, plan.seeds))}."
        + (f" Recipe keys that are not the protocol's: `{' '.join(plan.overrides)}`." if plan.overrides else ""),
        f"Machine: {_counted(machines)}. Commit: {_counted(commits)}.",
        "",
        "Mean ± half of the 95 % interval over seeds (Student's t). Intervals over seeds and movies add the",
        "variance over draws of the test movies. None of them says what another training world would change.",
    ]
    first = next((run for own in runs.values() for run in own if DOWNSTREAM in run["test"]), None)
    if first is not None:
        sizes = ", ".join(f"{part} {len(names)}" for part, names in part_masks(first).items() if part != "all")
        lines.append(f"Tail: fewer than {TAIL} labelled boxes in training; head: more than {HEAD:,}. Classes: {sizes}.")
    return "\n".join(lines)


def _counted(names: Counter[str]) -> str:
    return "; ".join(f"{name} ({count} runs)" for name, count in names.items())


def _ava_table(runs: dict[str, list[Record]]) -> str:
    rows = [["regime", "seeds", "learning rate", *COLUMNS]]
    tests = [own[0]["test"][DOWNSTREAM] for own in runs.values() if DOWNSTREAM in own[0]["test"]]
    if tests:
        rows.append(["guessing", "", "", f"{100 * tests[0]['chance']['mAP']:.1f}", "", "", ""])
    for name, own in runs.items():
        if DOWNSTREAM not in REGIMES[name].tasks:
            continue
        means = [mean_of([final_metric(run, DOWNSTREAM, column) for run in own]) for column in COLUMNS]
        rows.append([REGIMES[name].title, str(len(own)), str(Setting(**own[0]["setting"])), *map(_mean, means)])
    return table(rows)


def _difference_tables(differences: Differences) -> str:
    parts = []
    for base in BASELINES:
        rows = [["regime", *COLUMNS, "p, uncorrected", "mAP, over seeds and movies", "each seed"]]
        for (name, other), own in differences.items():
            if other != base:
                continue
            low, high = own["mAP"].over_both
            movies = "-" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
            each = " ".join(f"{100 * value:+.1f}" for value in own["mAP"].each)
            rows.append([REGIMES[name].title, *(points(own[c]) for c in COLUMNS), f"{own['mAP'].p:.3g}", movies, each])
        if len(rows) > 1:
            parts.append(f"Less *{REGIMES[base].title}*:\n\n{table(rows)}")
    if not parts:
        return "-"
    note = "p is of one paired t test each, not corrected for the others."
    return "\n\n".join([*parts, note])


def _upstream_table(runs: dict[str, list[Record]]) -> str:
    """Accuracies; and paired differences to training on a set alone, where a regime sees as many clips of it."""
    rows = [["regime", *UPSTREAM, *(f"{task}, less alone" for task in UPSTREAM)]]
    for name, own in runs.items():
        regime = REGIMES[name]
        if not set(UPSTREAM) & set(regime.tasks) and name != "transfer_joint":
            continue
        seen = [before_transfer(run) for run in own]
        cells = [_mean(mean_of([final_metric(run, task, "top1") for run in seen])) for task in UPSTREAM]
        for task in UPSTREAM:
            alone = runs.get(f"{task}_only", [])
            ours, theirs = paired(seen, alone)
            comparable = ours and name != f"{task}_only" and ours[0]["clips"].get(task) == theirs[0]["clips"][task]
            if comparable:
                cells.append(points(upstream_change(ours, theirs, task)))
            else:
                cells.append("-")
        when = {"transfer": ", after AVA", "transfer_joint": ", before AVA"}
        rows.append([regime.title + when.get(name, ""), *cells])
    sizes = {
        task: int(run["test"][task]["counts"]["examples"])
        for own in runs.values()
        for run in own
        for task in UPSTREAM
        if "counts" in run["test"].get(task, {})
    }
    note = f"An upstream set has kept its accuracy where the interval's lower end is above {-100 * MARGIN:.0f} points."
    if sizes:
        errors = ", ".join(f"{50 / math.sqrt(size):.1f} ({task}, {size:,} clips)" for task, size in sizes.items())
        note += " Intervals over seeds hold nothing of what other test clips would change: at 50 %, the standard"
        note += f" error is {errors}."
    return f"{table(rows)}\n\n{note}"


def _class_table(runs: dict[str, list[Record]]) -> str:
    """AP of every class under every regime that has an AVA head, the rarest class first."""
    shown = {name: own for name, own in runs.items() if DOWNSTREAM in own[0]["test"]}
    rows = [["class", "boxes in training", "upstream too", *(REGIMES[name].title for name in shown)]]
    for name, count in class_counts(runs).items():
        means = [mean_of([mean_ap(run, [name]) for run in own]) for own in shown.values()]
        rows.append([name, f"{count:,}", "yes" if name in UPSTREAM_TOO else "no", *map(_mean, means)])
    return table(rows)


def _gradient_table(runs: dict[str, list[Record]]) -> str:
    rows = gradient_rows(runs)
    if len(rows) == 1:
        return ""
    note = (
        f"Mean norms on the backbone, loss weights in them, before clipping. {DOWNSTREAM}'s part: its mean square over"
    )
    note += (
        " the sum of all tasks'. Of the cosines of every two tasks the least and the greatest mean. All over those of"
    )
    note += " the second half of the last training's steps that were looked at."
    return f"## Gradients of the tasks\n{table(rows)}\n\n{note}"


def _seed_table(runs: dict[str, list[Record]], plan: Plan) -> str:
    rows = [["regime", *(f"seed {seed}" for seed in plan.seeds)]]
    for name, own in runs.items():
        if DOWNSTREAM in REGIMES[name].tasks:
            scores = {run["seed"]: final_metric(run, DOWNSTREAM, "mAP") for run in own}
            rows.append(
                [REGIMES[name].title, *(f"{100 * scores[s]:.1f}" if s in scores else "to come" for s in plan.seeds)]
            )
    return table(rows)


def _trial_table(records: Sequence[Record]) -> str:
    trials = [record for record in records if record["trial"]]
    rows = [["regime", "learning rate: score", "chosen"]]
    chosen = chosen_settings(records)
    for name in REGIMES:
        own = [record for record in trials if record["regime"] == name]
        if own:
            scores = [f"{Setting(**record['setting'])}: {100 * tuned_score(record):.1f}" for record in own]
            rows.append([REGIMES[name].title, "; ".join(scores), str(chosen[name])])
    return table(rows)


def _cost_table(runs: dict[str, list[Record]], records: Sequence[Record]) -> str:
    rows = [["regime", "steps", "clips", "CPU minutes a run", "minutes by the clock"]]
    for name, own in runs.items():
        clips = Counter[str]()
        for run in own:
            clips.update(run["clips"])
        shown = ", ".join(f"{task} {count / len(own):,.0f}" for task, count in clips.items())
        steps = " + ".join(f"{count:,}" for count in own[0]["steps"])
        minutes = [float(np.mean([run[key] for run in own])) / 60 for key in ("cpu_seconds", "seconds")]
        rows.append([REGIMES[name].title, steps, shown, *(f"{value:.1f}" for value in minutes)])
    total = sum(record["cpu_seconds"] for record in records)
    return (
        f"{table(rows)}\n\nAll {len(records)} runs, trials included: {duration(total)} of CPU time. Evaluations and"
        " starts are in it; the clock also counts what else the machine did."
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _mean(mean: Mean) -> str:
    if math.isnan(mean.value):
        return "-"
    return f"{100 * mean.value:.1f}" + ("" if math.isnan(mean.half) else f" ± {100 * mean.half:.1f}")
