"""The report's pictures: AP against class frequency, what co-finetuning changes for each class, and learning curves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.reproduce.intervals import mean_of, paired
from benchmarks.reproduce.protocol import BASELINES, CANDIDATES, DOWNSTREAM, HEAD, REGIMES, ROUND, TAIL, Plan
from benchmarks.reproduce.records import Record, part_masks
from train.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, new_figure, save, style

COLOURS = {
    "transfer": ORANGE,
    "transfer_joint": RED,
    "weighted": SKY,
    "accumulate": BLUE,
    "ava_only": GREY,
    "ava_as_often": "#404040",
    "alternating": GREEN,
    "uniform": PURPLE,
}
Runs = dict[str, list[Record]]


def draw_all(results: Path, runs: Runs, plan: Plan) -> dict[str, str]:
    """Draws what the runs allow; file name -> title. Files are PNG, in `results`."""
    drawn: dict[str, tuple[str, Callable[[Runs, Plan], Figure]]] = {
        "ap_by_frequency.png": ("AP of each class against its frequency in training", _by_frequency),
        "gain_by_class.png": ("Gain of co-finetuning over transfer learning, by class", _gain_by_class),
        "learning_curves.png": ("AVA mAP on the tuning split during training", _learning_curves),
    }
    results.mkdir(parents=True, exist_ok=True)
    titles = {}
    if not _shown(runs):
        del drawn["ap_by_frequency.png"]
    if not any(name in runs for name in CANDIDATES) or not any(base in runs for base in BASELINES):
        del drawn["gain_by_class.png"]
    if not any(name in COLOURS and DOWNSTREAM in REGIMES[name].tasks for name in runs):
        del drawn["learning_curves.png"]
    with style():
        for name, (title, draw) in drawn.items():
            save(draw(runs, plan), results / name)
            titles[name] = title
    return titles


def class_counts(runs: Runs) -> dict[str, int]:
    """Class name -> labelled boxes in training, the rarest first; classes that the test lacks left out."""
    for own in runs.values():
        test = own[0]["test"].get(DOWNSTREAM)
        if test is not None:
            counts = dict(zip(test["per_class"], test["training_counts"].values(), strict=True))
            names = part_masks(own[0])["all"]
            return {name: counts[name] for name in sorted(names, key=lambda name: counts[name])}
    return {}


def _ap(run: Record, name: str) -> float:
    return float(run["test"][DOWNSTREAM]["per_class"][name])


def _shown(runs: Runs) -> list[str]:
    return [name for name in ("ava_only", *BASELINES, *CANDIDATES) if name in runs]


def _by_frequency(runs: Runs, plan: Plan) -> Figure:
    counts = class_counts(runs)
    figure, ((axes,),) = new_figure(10, 5.5)
    shown = _shown(runs)
    for place, regime in enumerate(shown):
        means = [mean_of([_ap(run, name) for run in runs[regime]]) for name in counts]
        # A little beside each other, so that intervals do not hide one another.
        x = np.array(list(counts.values())) * 1.05 ** (place - (len(shown) - 1) / 2)
        y = 100 * np.array([mean.value for mean in means])
        half = 100 * np.nan_to_num([mean.half for mean in means])
        axes.errorbar(
            *(x, y, half),
            fmt="o",
            ms=4.5,
            lw=1,
            color=COLOURS[regime],
            label=REGIMES[regime].title,
            ecolor=COLOURS[regime] + "70",
        )
    for edge in (TAIL, HEAD):
        axes.axvline(edge, color="#c0c0c0", lw=1, ls="--", zorder=0)
    _counts_axis(axes, counts)
    axes.set_ylabel("AP on test movies, %")
    axes.set_ylim(0, None)
    axes.grid(axis="y", color="#e6e6e6")
    axes.legend(frameon=False, loc="upper left")
    seeds = sorted(len(runs[regime]) for regime in shown)
    many = " to ".join(map(str, dict.fromkeys(seeds[:1] + seeds[-1:])))
    axes.set_title(f"AP by class frequency, mean and 95 % interval over {many} seeds", loc="left")
    return figure


def _counts_axis(axes: Axes, counts: dict[str, int]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"labelled boxes of the class in training (log); dashed: tail below {TAIL}, head above {HEAD}")


def _gain_by_class(runs: Runs, plan: Plan) -> Figure:
    counts = class_counts(runs)
    figure, ((axes,),) = new_figure(10, 0.42 * len(counts) + 1.6)
    bases = [base for base in BASELINES if base in runs]
    pairs = [(name, base) for name in CANDIDATES if name in runs for base in bases]
    height = 0.8 / max(1, len(pairs))
    for place, (name, base) in enumerate(pairs):
        ours, theirs = paired(runs[name], runs[base])
        gains = [mean_of([_ap(a, each) - _ap(b, each) for a, b in zip(ours, theirs, strict=True)]) for each in counts]
        y = np.arange(len(counts)) + (place - (len(pairs) - 1) / 2) * height
        axes.barh(
            y,
            [100 * gain.value for gain in gains],
            height,
            xerr=100 * np.nan_to_num([gain.half for gain in gains]),
            color=COLOURS[name] if base == BASELINES[0] else COLOURS[name] + "80",
            error_kw={"lw": 0.7, "ecolor": "#404040"},
            label=f"{REGIMES[name].title}, less {REGIMES[base].title}",
        )
    axes.set_yticks(range(len(counts)), [f"{name} ({count:,})" for name, count in counts.items()])
    axes.axvline(0, color="#404040", lw=0.8)
    axes.grid(axis="x", color="#e6e6e6")
    axes.set_xlabel(
        "points of AP, 95 % interval over seeds; in brackets labelled boxes in training, the rarest class below"
    )
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2, fontsize=8)
    return figure


def _learning_curves(runs: Runs, plan: Plan) -> Figure:
    figure, ((axes,),) = new_figure(9, 5)
    for name, own in runs.items():
        if name not in COLOURS:
            continue
        # A point that was evaluated again after a kill counts once.
        curves = [dict(ava_curve(run, plan.rounds)) for run in own]
        common = [place for place in curves[0] if all(place in curve for curve in curves)]
        if not common:
            continue
        points = np.array([[(place, curve[place]) for place in common] for curve in curves])  # [seeds, points, 2]
        x, y = points[0, :, 0], 100 * points[..., 1]
        axes.plot(x, y.mean(0), "o-", ms=3, color=COLOURS[name], label=REGIMES[name].title)
        if len(own) > 1:
            spread = y.std(0, ddof=1)
            axes.fill_between(x, y.mean(0) - spread, y.mean(0) + spread, color=COLOURS[name], alpha=0.12, lw=0)
    axes.set_xlabel("clips seen, of all sets")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlim(0, sum(ROUND.values()) * plan.rounds * 1.02)
    axes.set_ylabel("AVA mAP on the tuning split, %")
    axes.set_ylim(0, None)
    axes.grid(axis="y", color="#e6e6e6")
    axes.legend(frameon=False)
    axes.set_title("Mean over seeds, ± one standard deviation", loc="left")
    return figure


def ava_curve(run: Record, rounds: int) -> list[tuple[float, float]]:
    """(clips seen of all sets, mAP) of every evaluation of AVA; clips are spread evenly over a training's steps.

    Under `uniform`, whose seeds differ by what they draw, they are those seen on average.
    """
    points, before = [], 0.0
    for training, steps, curves in zip(REGIMES[run["regime"]].trainings, run["steps"], run["curves"], strict=True):
        own = sum(training.clips.values()) * rounds
        points += [(before + own * step / steps, value) for step, value in curves.get("ava/mAP", [])]
        before += own
    return points
