"""The report of a plan: tables and pictures, from the records of its runs alone."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.reproduce.intervals import Difference, Mean, difference, mean_of, paired
from benchmarks.reproduce.pictures import draw_all
from benchmarks.reproduce.protocol import (
    BASELINES,
    CANDIDATES,
    DOWNSTREAM,
    HEAD,
    LEARNING_RATES,
    REGIMES,
    ROUND,
    TAIL,
    UNTUNED,
    UPSTREAM,
    Plan,
)
from benchmarks.reproduce.records import PARTS, Record, final_metric, tuned_score
from benchmarks.reproduce.trials import chosen_settings
from data.errors import UserError
from train.checkpoint_files import write_atomically
from train.run_log import duration

COLUMNS = ("mAP", *PARTS)


def write_report(results: Path, plan: Plan, records: Sequence[Record], command: str) -> str:
    """Writes RESULTS/report.md and its pictures; returns the conclusion, one line per comparison.

    Raises:
        UserError: there is no run to report.
    """
    chosen = chosen_settings(records) if plan.tuned else {}
    runs: dict[str, list[Record]] = {}
    stale = []
    for record in records:
        name = record["regime"]
        if record["trial"]:
            continue
        setting = chosen.get(REGIMES[name].tuned, UNTUNED)
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
    conclusion = conclude(differences)
    pictures = draw_all(results, runs, plan)
    parts = [
        "# Co-finetuning against transfer learning on the toy world",
        _origin(plan, records, runs, command),
        "## Result\n" + conclusion,
        "## AVA, test movies, %\n" + _ava_table(runs),
        "## Difference to transfer learning, points of mAP\n" + _difference_tables(differences),
        "## Upstream sets, top-1 on test clips, %\n" + _upstream_table(runs),
        "## Pictures\n" + "\n\n".join(f"![{title}]({file})" for file, title in pictures.items()),
        "## Every seed: AVA mAP, %\n" + _seed_table(runs, plan),
        "## Every trial: score on the tuning split, %\n" + _trial_table(records) if plan.tuned else "",
        "## Cost\n" + _cost_table(runs, records),
        f"Left out, as their setting is not the one that the trials chose: {', '.join(stale)}." if stale else "",
    ]
    write_atomically(results / "report.md", "\n\n".join(part for part in parts if part) + "\n")
    return conclusion


def compared(regime: Sequence[Record], baseline: Sequence[Record], column: str) -> Difference:
    """Of AVA's mAP, or its part over head, mid or tail, on the seeds that both have."""
    ours, theirs = paired(regime, baseline)
    part = "all" if column == "mAP" else column
    draws = [[run["resamples"]["mAP"][part] for run in side] for side in (ours, theirs)]
    scores = [[final_metric(run, DOWNSTREAM, column) for run in side] for side in (ours, theirs)]
    return difference(scores[0], scores[1], (draws[0], draws[1]))


def conclude(differences: dict[tuple[str, str], dict[str, Difference]]) -> str:
    """What the comparisons that were named before the runs say."""
    named = [(name, base) for name in CANDIDATES for base in BASELINES if (name, base) in differences]
    corrected = holm([differences[pair]["mAP"].p for pair in named])
    lines = []
    for (name, base), p in zip(named, corrected, strict=True):
        own = differences[name, base]
        gains = {part: own[part].over_seeds.value for part in PARTS if not math.isnan(own[part].over_seeds.value)}
        most = max(gains, key=lambda part: gains[part]) if gains else "-"
        verdict = "above" if own["mAP"].is_above_zero else "not clearly above"
        lines.append(
            f"- {REGIMES[name].title} is {verdict} {REGIMES[base].title}: {_points(own['mAP'])} points of mAP, "
            f"p = {p:.3g} (paired t test over {own['mAP'].over_seeds.n} seeds, corrected for {len(named)} comparisons "
            f"after Holm); largest on the {most} ("
            + ", ".join(f"{part} {100 * gain:+.1f}" for part, gain in gains.items())
            + ")"
        )
    return "\n".join(lines) or "- none of the comparisons that were planned has its runs yet"


def holm(values: Sequence[float]) -> list[float]:
    """p values corrected for as many comparisons (Holm, 1979); NaN stays."""
    known = [index for index in np.argsort(values).tolist() if not math.isnan(values[index])]
    result, highest = [math.nan] * len(values), 0.0
    for place, index in enumerate(known):
        highest = max(highest, min(1.0, values[index] * (len(known) - place)))
        result[index] = highest
    return result


def _origin(plan: Plan, records: Sequence[Record], runs: dict[str, list[Record]], command: str) -> str:
    machines = Counter(record["machine"] for record in records)
    commits: Counter[str] = Counter()
    for record in records:
        git = record["git"]
        commits[git["commit"][:12] + (" with changes" if git["changed"] else "") if git else "unknown"] += 1
    clips, own = sum(ROUND.values()) * plan.rounds, ROUND[DOWNSTREAM] * plan.rounds
    return "\n".join(
        [
            f"`{command}`, {time.strftime('%Y-%m-%d')}. The protocol: [docs/reproduce.md](../../../docs/reproduce.md).",
            f"A run sees {clips:,} clips, where sets are mixed {own:,} of them AVA's; toy world of size {plan.size};",
            f"seeds {', '.join(map(str, plan.seeds))}. Machine: {_counted(machines)}. Commit: {_counted(commits)}.",
            "",
            "Mean ± half of the 95 % interval over seeds (Student's t). Intervals over movies are percentiles of draws",
            f"of the test movies. Tail: classes with fewer than {TAIL} labelled boxes in training; head: more than",
            f"{HEAD}.",
        ]
    )


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
        setting = own[0]["setting"]
        rows.append(
            [REGIMES[name].title, str(len(own)), f"{setting['lr']:g} {setting['schedule']}", *map(_mean, means)]
        )
    return table(rows)


def _difference_tables(differences: dict[tuple[str, str], dict[str, Difference]]) -> str:
    parts = []
    for base in BASELINES:
        rows = [["regime", *COLUMNS, "p", "mAP over movies", "each seed"]]
        for (name, other), own in differences.items():
            if other != base:
                continue
            low, high = own["mAP"].movies
            movies = "-" if math.isnan(low) else f"{100 * low:+.1f} to {100 * high:+.1f}"
            each = " ".join(f"{100 * value:+.1f}" for value in own["mAP"].each)
            rows.append([REGIMES[name].title, *(_points(own[c]) for c in COLUMNS), f"{own['mAP'].p:.3g}", movies, each])
        if len(rows) > 1:
            parts.append(f"Less *{REGIMES[base].title}*:\n\n{table(rows)}")
    return "\n\n".join(parts) or "-"


def _upstream_table(runs: dict[str, list[Record]]) -> str:
    """Accuracies; and paired differences to training on a set alone, where a regime sees as many clips of it."""
    rows = [["regime", *UPSTREAM, *(f"{task}, less alone" for task in UPSTREAM)]]
    for name, own in runs.items():
        regime = REGIMES[name]
        if not set(UPSTREAM) & set(regime.tasks) and name != "transfer_joint":
            continue
        key = "test_before_transfer" if name == "transfer_joint" else "test"
        seen = [{**run, "test": run[key]} for run in own]
        cells = [_mean(mean_of([final_metric(run, task, "top1") for run in seen])) for task in UPSTREAM]
        for task in UPSTREAM:
            alone = runs.get(f"{task}_only", [])
            ours, theirs = paired(seen, alone)
            comparable = ours and name != f"{task}_only" and ours[0]["clips"].get(task) == theirs[0]["clips"][task]
            if comparable:
                scores = [[final_metric(run, task, "top1") for run in side] for side in (ours, theirs)]
                cells.append(_points(difference(scores[0], scores[1])))
            else:
                cells.append("-")
        title = regime.title + (", before AVA" if name == "transfer_joint" else "")
        rows.append([title, *cells])
    return table(rows)


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
    rows = [["regime", *(f"{rate:g} cosine" for rate in LEARNING_RATES), "best rate, constant", "chosen"]]
    chosen = chosen_settings(records)
    for name in REGIMES:
        own = [record for record in trials if record["regime"] == name]
        if not own:
            continue
        by_setting = {(r["setting"]["lr"], r["setting"]["schedule"]): f"{100 * tuned_score(r):.1f}" for r in own}
        constant = [f"{text} ({rate:g})" for (rate, kind), text in by_setting.items() if kind != "cosine"]
        cells = [by_setting.get((rate, "cosine"), "-") for rate in LEARNING_RATES]
        best = f"{chosen[name].lr:g} {chosen[name].schedule}"
        rows.append([REGIMES[name].title, *cells, constant[0] if constant else "-", best])
    return table(rows)


def _cost_table(runs: dict[str, list[Record]], records: Sequence[Record]) -> str:
    rows = [["regime", "steps", "clips", "minutes a run"]]
    for name, own in runs.items():
        clips = Counter[str]()
        for run in own:
            clips.update(run["clips"])
        shown = ", ".join(f"{task} {count / len(own):,.0f}" for task, count in clips.items())
        steps = " + ".join(f"{count:,}" for count in own[0]["steps"])
        minutes = float(np.mean([run["seconds"] for run in own])) / 60
        rows.append([REGIMES[name].title, steps, shown, f"{minutes:.1f}"])
    total = sum(record["seconds"] for record in records)
    return (
        f"{table(rows)}\n\nAll {len(records)} runs, trials included: {duration(total)} of training, several at a time."
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first row is its head."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def _mean(mean: Mean) -> str:
    if math.isnan(mean.value):
        return "-"
    return f"{100 * mean.value:.1f}" + ("" if math.isnan(mean.half) else f" ± {100 * mean.half:.1f}")


def _points(own: Difference) -> str:
    mean = own.over_seeds
    if math.isnan(mean.value):
        return "-"
    return f"{100 * mean.value:+.1f}" + ("" if math.isnan(mean.half) else f" ± {100 * mean.half:.1f}")
