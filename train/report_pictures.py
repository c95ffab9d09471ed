"""Pictures of a breakdown: AP against frequency in training, bars of every class, and kinds of error."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from train.breakdown import Breakdown
from train.error_kinds import FALSE_POSITIVES, KINDS
from train.figures import BLUE, GREEN, GREY, ORANGE, PALE, PURPLE, RED, YELLOW, new_figure, row_axes, save, short, style
from train.frequency_picture import GROUP_COLOURS, ap_by_frequency, frequency, headline

KIND_COLOURS = dict(zip(("right", *KINDS), (GREEN, YELLOW, RED, ORANGE, PURPLE, GREY, BLUE), strict=True))
ROWS, COLUMNS = 40, 2
"""Classes under each other and beside each other on one picture; more go onto further pictures."""
VALUE_WIDTH = 0.14
"""What a figure beside a bar takes of the longest bar."""
DIFFERENCE_ALPHA = 0.75


@style()
def draw_report(folder: Path, b: Breakdown, cutoffs: Sequence[int], this: str = "", other: str = "") -> list[str]:
    """Draws all pictures of a breakdown.

    Args:
        cutoffs: training boxes below and above which a class is tail and head.
        this: name of the run, and `other` of the one that it is compared with.

    Returns:
        The names of the files, PNG; none where no class has ground truth.

    Raises:
        OSError: a picture cannot be written.
    """
    if not (b.result.instances > 0).any():
        return []
    figures = {"ap_by_frequency": ap_by_frequency(b, cutoffs, this, other)}
    figures |= _numbered("classes", class_bars(b, this, other))
    if b.errors is not None:
        figures["errors"] = error_overview(b)
        figures |= _numbered("errors_by_class", error_bars(b))
    for name, figure in figures.items():
        save(figure, folder / f"{name}.png")
    return [f"{name}.png" for name in figures]


def _numbered(name: str, figures: list[Figure]) -> dict[str, Figure]:
    if len(figures) == 1:
        return {name: figures[0]}
    return {f"{name}-{number}": figure for number, figure in enumerate(figures, start=1)}


def _pages(b: Breakdown) -> list[list[np.ndarray]]:
    """The classes with ground truth from frequent to rare, in columns of ROWS, COLUMNS on a page, of even lengths."""
    counts, _ = frequency(b)
    known = np.flatnonzero(b.result.instances > 0)
    order = known[np.argsort(-counts[known], kind="stable")]
    columns = np.array_split(order, max(1, math.ceil(len(order) / ROWS)))
    return [columns[start : start + COLUMNS] for start in range(0, len(columns), COLUMNS)]


def _names(b: Breakdown, numbers: np.ndarray) -> list[str]:
    counts, _ = frequency(b)
    return [f"{short(b.names[number])}  {int(counts[number]):,}" for number in numbers]


def class_bars(b: Breakdown, this: str, other: str) -> list[Figure]:
    """AP of every class from frequent to rare, with what the boxes allow; with a comparison, the differences beside."""
    _, title = frequency(b)
    c = b.comparison
    top = 100 * max(np.nanmax(b.result.per_class, initial=0.1), np.nanmax(b.recall, initial=0.1))
    reach = 100 * _greatest_difference(b)
    figures = []
    for page in _pages(b):
        height = max(map(len, page))
        panels = 2 if c is not None else 1
        widths = {"width_ratios": [3, 2] * len(page)} if c is not None else {}
        figure, (row,) = new_figure(
            len(page) * (4.8 + 2.6 * (c is not None)), 2.0 + 0.19 * height, 1, len(page) * panels, **widths
        )
        for place, numbers in enumerate(page):
            axes, rows = row[place * panels], np.arange(len(numbers))
            row_axes(axes, _names(b, numbers), height)
            axes.barh(rows, 100 * b.recall[numbers], 0.8, color=PALE)
            colours = [GROUP_COLOURS[b.group_of(number)] for number in numbers]
            axes.barh(rows, 100 * b.result.per_class[numbers], 0.62, color=colours)
            axes.set_xlim(0, 1.18 * top)
            axes.set_xlabel("AP, %")
            for at, number in enumerate(numbers):
                value = 100 * float(b.result.per_class[number])
                mark = None if c is None else 100 * float(c.other[number])
                # Beside the bar that it is of; behind the other run's mark where that stands in its way.
                end = mark if mark is not None and 0 <= mark - value < VALUE_WIDTH * top else value
                axes.text(end + 0.015 * top, at, f"{value:.1f}", va="center", size=7)
            if c is not None:
                axes.scatter(100 * c.other[numbers], rows, s=14, color="black", marker="|", zorder=3)
                _differences(row[place * panels + 1], b, numbers, height, reach)
        lines = [headline(b, this, other), f"classes from frequent to rare; the number is that of {title}"]
        groups = [name for name in GROUP_COLOURS if name and any(b.group_of(n) == name for n in range(len(b.classes)))]
        handles: list[Artist] = [Patch(color=GROUP_COLOURS[name], label=name) for name in groups]
        handles.append(Patch(color=PALE, label="share of boxes that a detection covers"))
        if c is not None:
            handles.append(Line2D([], [], color="black", marker="|", ls="", label=f"AP of {other}"))
            for colour, name in ((GREEN, "better"), (RED, "worse"), (GREY, "the interval holds 0")):
                handles.append(Patch(color=colour, alpha=DIFFERENCE_ALPHA, label=name))
        figure.suptitle("\n".join(lines), x=0.01, ha="left", size=10)
        figure.legend(handles=handles, loc="outside lower left", ncols=4 if len(page) > 1 else 2, frameon=False)
        figures.append(figure)
    return figures


def _greatest_difference(b: Breakdown) -> float:
    if b.comparison is None:
        return 0.0
    intervals = [b.comparison.of_class(number) for number in range(len(b.classes))]
    ends = [abs(end) for interval in intervals for end in (interval.value, interval.low, interval.high)]
    return max([0.01, *(end for end in ends if not math.isnan(end))])


def _differences(axes: Axes, b: Breakdown, numbers: np.ndarray, height: int, reach: float) -> None:
    assert b.comparison is not None
    row_axes(axes, [""] * len(numbers), height)
    for at, number in enumerate(numbers):
        interval = b.comparison.of_class(int(number))
        colour = GREY if not interval.is_clear else GREEN if interval.value > 0 else RED
        axes.barh(at, 100 * interval.value, 0.62, color=colour, alpha=DIFFERENCE_ALPHA)
        axes.plot([100 * interval.low, 100 * interval.high], [at, at], color="black", lw=0.9)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlim(-1.08 * reach, 1.08 * reach)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"difference, points, {b.comparison.confidence:.0%} interval")


def error_overview(b: Breakdown) -> Figure:
    """Of all classes and each part: what the highest-scoring detections are, and what mending each kind would bring."""
    errors = b.errors
    assert errors is not None
    masks = {"all classes": np.ones(len(b.classes), dtype=bool), **b.parts}
    masks = {name: mask for name, mask in masks.items() if (mask & (b.result.instances > 0)).any()}
    figure, ((left, right),) = new_figure(12, 2.4 + 0.42 * max(len(masks), len(KINDS)), 1, 2, width_ratios=[3, 2])
    shares = np.array([_shares(b, np.flatnonzero(mask)) for mask in masks.values()])
    _stacked(left, shares, list(masks), len(masks), legend=True)
    gain = 100 * np.nan_to_num(errors.mean_gain(np.ones(len(b.classes), dtype=bool)))
    right.barh(range(len(KINDS)), gain, 0.7, color=[KIND_COLOURS[kind] for kind in KINDS])
    row_axes(right, list(KINDS), len(KINDS))
    for at, value in enumerate(gain.tolist()):
        right.text(value + 0.01 * max(gain.max(), 1e-9), at, f"{value:+.1f}", va="center", size=8)
    right.set_xlim(0, max(1.15 * gain.max(), 1e-9))
    right.set_xlabel("mAP gained by mending this kind alone, points")
    figure.suptitle(f"Errors at mAP {100 * b.result.mean:.2f} %", x=0.01, ha="left")
    return figure


def _shares(b: Breakdown, numbers: np.ndarray) -> np.ndarray:
    """float64 [6]: shares of right ones and of each false positive among the highest-scoring detections."""
    assert b.errors is not None
    counts = np.array([b.errors.right[numbers].sum(), *b.errors.top[numbers, :-1].sum(axis=0)], dtype=np.float64)
    return counts / max(1.0, counts.sum())


def _stacked(axes: Axes, shares: np.ndarray, names: list[str], height: int, legend: bool) -> None:
    start = np.zeros(len(shares))
    for place, kind in enumerate(("right", *FALSE_POSITIVES)):
        axes.barh(range(len(shares)), 100 * shares[:, place], 0.8, left=start, color=KIND_COLOURS[kind], label=kind)
        start += 100 * shares[:, place]
    row_axes(axes, names, height)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the highest-scoring detections, as many as there are boxes, %")
    if legend:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, frameon=False, handlelength=1.2, columnspacing=1
        )


def error_bars(b: Breakdown) -> list[Figure]:
    """What the highest-scoring detections of every class are, from frequent to rare classes."""
    figures = []
    for page in _pages(b):
        height = max(map(len, page))
        # Wide enough for the kinds of error below.
        figure, (row,) = new_figure(max(5.6 * len(page), 7.5), 1.8 + 0.19 * height, 1, len(page))
        for axes, numbers in zip(row, page, strict=True):
            shares = np.array([_shares(b, np.array([number])) for number in numbers]).reshape(-1, 6)
            _stacked(axes, shares, _names(b, numbers), height, legend=False)
            axes.set_xlabel("of the highest-scoring detections, %")
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, frameon=False)
        _, title = frequency(b)
        figure.suptitle(f"Errors by class; the number is that of {title}", x=0.01, ha="left", size=10)
        figures.append(figure)
    return figures
