"""Pictures of a breakdown: AP against frequency in training, bars of every class, and kinds of error."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from train.ava_classes import frequency_masks
from train.breakdown import Breakdown
from train.error_kinds import FALSE_POSITIVES, KINDS

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442"),
)
GREY = "#8c8c8c"
GROUP_COLOURS = {"person pose": BLUE, "person-object": ORANGE, "person-person": GREEN, "": BLUE}
KIND_COLOURS = dict(zip(("right", *KINDS), (GREEN, YELLOW, RED, ORANGE, PURPLE, GREY, BLUE), strict=True))
ROWS, COLUMNS = 40, 2
"""Classes under each other and beside each other on one picture; more go onto further pictures."""
NAME_LENGTH = 36
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.dpi": 130,
}


def draw_report(folder: Path, b: Breakdown, cutoffs: Sequence[int], this: str = "", other: str = "") -> list[str]:
    """Draws all pictures of a breakdown.

    Args:
        cutoffs: training boxes below and above which a class is tail and head.
        this: name of the run, and `other` of the one that it is compared with.

    Returns:
        The names of the files, PNG.

    Raises:
        OSError: a picture cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        figures = {"ap_by_frequency": ap_by_frequency(b, cutoffs, this, other)}
        figures |= _numbered("classes", class_bars(b, this, other))
        if b.errors is not None:
            figures["errors"] = error_overview(b)
            figures |= _numbered("errors_by_class", error_bars(b))
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", bbox_inches="tight")
    return [f"{name}.png" for name in figures]


def _numbered(name: str, figures: list[Figure]) -> dict[str, Figure]:
    if len(figures) == 1:
        return {name: figures[0]}
    return {f"{name}-{number}": figure for number, figure in enumerate(figures, start=1)}


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **ratios: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **ratios)


def _frequency(b: Breakdown) -> tuple[np.ndarray, str]:
    if b.training is not None:
        return b.training, "labelled boxes in training"
    return b.result.instances, "labelled boxes in the evaluated set (those in training are not known)"


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"


def ap_by_frequency(b: Breakdown, cutoffs: Sequence[int], this: str, other: str) -> Figure:
    """A point per class over the number of its training boxes (log), and the means of head, mid and tail."""
    counts, title = _frequency(b)
    known = np.flatnonzero(~np.isnan(b.result.per_class))
    figure, ((axes,),) = _figure(11, 6.5)
    # A class that was never trained stands left of 1.
    x = np.maximum(counts.astype(np.float64), 0.5)
    y = 100 * b.result.per_class
    axes.set_xscale("log")
    before = y if b.comparison is None else 100 * b.comparison.other
    axes.set_ylim(0, max(10.0, 1.05 * float(np.nanmax([y, before], initial=0.0))))
    low, high = (float(x[known].min()), float(x[known].max())) if len(known) else (1.0, 10.0)
    axes.set_xlim(low / 1.5, high * 1.8)
    if b.comparison is not None:
        for number in known:
            colour = GREEN if y[number] >= before[number] else RED
            axes.plot([x[number]] * 2, [before[number], y[number]], color=colour, lw=1.2, alpha=0.8, zorder=2)
        axes.scatter(
            x[known], before[known], s=22, facecolor="white", edgecolor=GREY, zorder=3, label=other, clip_on=False
        )
    groups = [b.group_of(number) for number in range(len(b.classes))]
    for group in dict.fromkeys(groups[number] for number in known):
        own = [number for number in known if groups[number] == group]
        label = group or this or "classes"
        axes.scatter(x[own], y[own], s=26, color=GROUP_COLOURS[group], zorder=4, label=label, clip_on=False)
    if b.training is not None:
        _draw_parts(axes, b, cutoffs)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    if (counts[known] == 0).any():
        axes.set_xticks([0.5], ["0"], minor=True)
    axes.set_xlabel(f"{title}, log scale")
    axes.set_ylabel("AP, %")
    axes.grid(axis="y", color="#e6e6e6")
    axes.set_title(_headline(b, this, other), loc="left", pad=22)
    handles, _ = axes.get_legend_handles_labels()
    if len(handles) > 1:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.canvas.draw()
    lines = [(x[number], before[number], x[number], y[number]) for number in known]
    lines += [tuple(line.get_xydata().ravel()) for line in axes.lines if line.get_linestyle() == "--"]
    _label_points(axes, x[known], y[known], [b.names[number] for number in known], lines)
    return figure


def _draw_parts(axes: Axes, b: Breakdown, cutoffs: Sequence[int]) -> None:
    """The borders of head, mid and tail, and the mean of each over its stretch of the axis."""
    assert b.training is not None
    left, right = axes.get_xlim()
    edges = [left, *(min(max(cutoff, left), right) for cutoff in (cutoffs[0], cutoffs[1])), right]
    masks = list(frequency_masks(b.training, cutoffs).items())[::-1]  # from the left: tail, mid, head
    for (name, mask), start, end in zip(masks, edges[:-1], edges[1:], strict=True):
        mean = b.result.mean_of(mask)
        if math.isnan(mean) or start >= end:
            continue
        axes.plot([start, end], [100 * mean] * 2, color="black", lw=1, ls=(0, (4, 3)), zorder=1)
        middle = math.sqrt(start * end)
        text = f"{name.partition(' ')[0]}: {100 * mean:.1f}"
        if b.comparison is not None:
            text += f" ({100 * b.comparison.of_mean(mask).value:+.1f})"
        axes.text(middle, 1.01, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontweight="bold")
    for cutoff in cutoffs:
        if left < cutoff < right:
            axes.axvline(cutoff, color=GREY, lw=0.8)


def _headline(b: Breakdown, this: str, other: str) -> str:
    text = f"mAP {100 * b.result.mean:.2f} %"
    if b.comparison is None:
        return text
    mean = b.comparison.of_mean(np.ones(len(b.classes), dtype=bool))
    return (
        f"{this}: {text}, {100 * mean.value:+.2f} against {other}"
        f" ({b.comparison.confidence:.0%} interval {100 * mean.low:+.2f} to {100 * mean.high:+.2f})"
    )


def _label_points(axes: Axes, x: np.ndarray, y: np.ndarray, names: list[str], lines: list[tuple]) -> None:
    """Names beside as many points as have room: none over another, over a point or over a line (x1, y1, x2, y2) that is
    upright or level; extremes come first."""
    figure = axes.figure
    assert figure is not None
    area = axes.get_window_extent()
    points = axes.transData.transform(np.column_stack([x, y]))
    ends = axes.transData.transform(np.reshape(lines, (-1, 2))).reshape(-1, 2, 2)
    taken = np.concatenate(
        [np.concatenate([points - 4, points + 4], axis=1), np.concatenate([ends.min(1) - 2, ends.max(1) + 2], axis=1)]
    )
    middle = np.median(y) if len(y) else 0.0
    for place in np.argsort(-np.abs(y - middle), kind="stable").tolist():
        for dx, dy, ha, va in ((6, 0, "left", "center"), (-6, 0, "right", "center"), (0, 6, "center", "bottom")):
            text = axes.annotate(
                _short(names[place]), (x[place], y[place]), (dx, dy), textcoords="offset points", ha=ha, va=va, size=7
            )
            box = text.get_window_extent()
            free = (
                (taken[:, 0] > box.x1) | (taken[:, 2] < box.x0) | (taken[:, 1] > box.y1) | (taken[:, 3] < box.y0)
            ).all()
            inside = area.x0 < box.x0 and box.x1 < area.x1 and area.y0 < box.y0 and box.y1 < area.y1
            if free and inside:
                taken = np.concatenate([taken, [[box.x0, box.y0, box.x1, box.y1]]])
                break
            text.remove()


def _pages(b: Breakdown) -> list[list[np.ndarray]]:
    """The classes with ground truth from frequent to rare, in columns of ROWS, COLUMNS on a page, of even lengths."""
    counts, _ = _frequency(b)
    known = np.flatnonzero(b.result.instances > 0)
    order = known[np.argsort(-counts[known], kind="stable")]
    columns = np.array_split(order, max(1, math.ceil(len(order) / ROWS)))
    return [columns[start : start + COLUMNS] for start in range(0, len(columns), COLUMNS)]


def _row_axes(axes: Axes, names: list[str], height: int) -> None:
    """One row per name from the top, with as much room as on a page of `height` rows."""
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#e6e6e6")


def _names(b: Breakdown, numbers: np.ndarray) -> list[str]:
    counts, _ = _frequency(b)
    return [f"{_short(b.names[number])}  {int(counts[number]):,}" for number in numbers]


def class_bars(b: Breakdown, this: str, other: str) -> list[Figure]:
    """AP of every class from frequent to rare, with what the boxes allow; with a comparison, the differences beside."""
    _, title = _frequency(b)
    c = b.comparison
    top = 100 * max(np.nanmax(b.result.per_class, initial=0.1), np.nanmax(b.recall, initial=0.1))
    reach = 100 * _greatest_difference(b)
    figures = []
    for page in _pages(b):
        height = max(map(len, page))
        panels = 2 if c is not None else 1
        widths = {"width_ratios": [3, 2] * len(page)} if c is not None else {}
        figure, (row,) = _figure(
            len(page) * (4.6 + 2.6 * (c is not None)), 1.3 + 0.19 * height, 1, len(page) * panels, **widths
        )
        for place, numbers in enumerate(page):
            axes, rows = row[place * panels], np.arange(len(numbers))
            _row_axes(axes, _names(b, numbers), height)
            axes.barh(
                rows, 100 * b.recall[numbers], 0.8, color="#ececec", label="share of boxes that a detection covers"
            )
            colours = [GROUP_COLOURS[b.group_of(number)] for number in numbers]
            axes.barh(rows, 100 * b.result.per_class[numbers], 0.62, color=colours)
            axes.set_xlim(0, 1.12 * top)
            axes.set_xlabel("AP, %")
            for at, number in enumerate(numbers):
                value = 100 * float(b.result.per_class[number])
                end = value if c is None else max(value, 100 * float(c.other[number]))
                axes.text(end + 0.015 * top, at, f"{value:.1f}", va="center", size=7)
            if c is not None:
                axes.scatter(100 * c.other[numbers], rows, s=14, color="black", marker="|", zorder=3)
                _differences(row[place * panels + 1], b, numbers, height, reach)
        lines = [_headline(b, this, other), f"classes from frequent to rare; the number is that of {title}"]
        groups = [name for name in GROUP_COLOURS if name and any(b.group_of(n) == name for n in range(len(b.classes)))]
        handles: list[Artist] = [Patch(color=GROUP_COLOURS[name], label=name) for name in groups]
        handles.append(Patch(color="#ececec", label="share of boxes that a detection covers"))
        if c is not None:
            handles.append(Line2D([], [], color="black", marker="|", ls="", label=f"AP of {other}"))
        figure.suptitle("\n".join(lines), x=0.01, ha="left", size=10)
        figure.legend(handles=handles, loc="outside lower left", ncols=min(3, len(handles)), frameon=False)
        figures.append(figure)
    return figures


def _greatest_difference(b: Breakdown) -> float:
    if b.comparison is None:
        return 0.0
    intervals = [b.comparison.of_class(number) for number in range(len(b.classes))]
    ends = [abs(end) for interval in intervals for end in (interval.value, interval.low, interval.high)]
    return max([end for end in ends if not math.isnan(end)], default=0.01)


def _differences(axes: Axes, b: Breakdown, numbers: np.ndarray, height: int, reach: float) -> None:
    assert b.comparison is not None
    _row_axes(axes, [""] * len(numbers), height)
    for at, number in enumerate(numbers):
        interval = b.comparison.of_class(int(number))
        colour = GREY if not interval.is_clear else GREEN if interval.value > 0 else RED
        axes.barh(at, 100 * interval.value, 0.62, color=colour, alpha=0.75)
        axes.plot([100 * interval.low, 100 * interval.high], [at, at], color="black", lw=0.9)
    axes.axvline(0, color="black", lw=0.8)
    axes.set_xlim(-1.08 * reach, 1.08 * reach)
    axes.set_xlabel(f"difference, {b.comparison.confidence:.0%} interval")


def error_overview(b: Breakdown) -> Figure:
    """Of all classes and each part: what the highest-scoring detections are, and what mending each kind would bring."""
    errors = b.errors
    assert errors is not None
    masks = {"all classes" if name == "mAP" else name: mask for name, mask in reversed(b.masks.items())}
    masks = {name: mask for name, mask in masks.items() if (mask & (b.result.instances > 0)).any()}
    figure, ((left, right),) = _figure(12, 2.4 + 0.42 * max(len(masks), len(KINDS)), 1, 2, width_ratios=[3, 2])
    shares = np.array([_shares(b, np.flatnonzero(mask)) for mask in masks.values()])
    _stacked(left, shares, list(masks), len(masks), legend=True)
    gain = 100 * np.nan_to_num(errors.mean_gain(np.ones(len(b.classes), dtype=bool)))
    right.barh(range(len(KINDS)), gain, 0.7, color=[KIND_COLOURS[kind] for kind in KINDS])
    _row_axes(right, list(KINDS), len(KINDS))
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
    _row_axes(axes, names, height)
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
        figure, (row,) = _figure(5.6 * len(page), 1.5 + 0.19 * height, 1, len(page))
        for axes, numbers in zip(row, page, strict=True):
            shares = np.array([_shares(b, np.array([number])) for number in numbers]).reshape(-1, 6)
            _stacked(axes, shares, _names(b, numbers), height, legend=False)
            axes.set_xlabel("of the highest-scoring detections, %")
        handles, labels = row[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=6, frameon=False)
        _, title = _frequency(b)
        figure.suptitle(f"Errors by class; the number is that of {title}", x=0.01, ha="left", size=10)
        figures.append(figure)
    return figures
