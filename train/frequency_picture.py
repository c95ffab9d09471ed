"""AP of every class against its frequency in training, as papers on long-tailed data draw it."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import NullFormatter

from train.ava_classes import frequency_masks
from train.breakdown import Breakdown
from train.figures import BLUE, GREEN, GREY, GRID, ORANGE, PURPLE, RED, new_figure, short, style

# Green and red are for better and worse.
GROUP_COLOURS = {"person pose": BLUE, "person-object": ORANGE, "person-person": PURPLE, "": BLUE}
SIDES = (
    *((6, 0, "left", "center"), (-6, 0, "right", "center")),
    *((0, 6, "center", "bottom"), (0, -6, "center", "top")),
)
"""Where a name stands by its point: points to the right and up of it, and which of its edges is there; best first."""
FEW_DECADES = 2.5
"""Below it an axis has ticks at 1, 2 and 5 times the powers of ten."""


def frequency(b: Breakdown) -> tuple[np.ndarray, str]:
    """int64 [C], how many boxes a class has, and of what: of the training set or, where that is not known, the
    evaluated one."""
    if b.training is not None:
        return b.training, "labelled boxes in training"
    return b.result.instances, "labelled boxes in the evaluated set (those in training are not known)"


def headline(b: Breakdown, this: str, other: str) -> str:
    """The mAP, and with a comparison the difference and its interval."""
    text = f"mAP {100 * b.result.mean:.2f} %"
    if b.comparison is None:
        return text
    mean = b.comparison.of_mean(np.ones(len(b.classes), dtype=bool))
    return (
        f"{this}: {text}, {100 * mean.value:+.2f} against {other}"
        f" ({b.comparison.confidence:.0%} interval {100 * mean.low:+.2f} to {100 * mean.high:+.2f})"
    )


@style()
def ap_by_frequency(b: Breakdown, cutoffs: Sequence[int], this: str = "", other: str = "") -> Figure:
    """A point per class over the number of its training boxes (log), and the means of head, mid and tail.

    Args:
        b: of at least one class with ground truth.
        cutoffs: training boxes below and above which a class is tail and head.
        this: name of the run, and `other` of the one that it is compared with, if it is.
    """
    counts, title = frequency(b)
    known = np.flatnonzero(b.result.instances > 0)
    figure, ((axes,),) = new_figure(11, 6.5)
    # A class that was never trained stands left of 1.
    x = np.maximum(counts[known].astype(np.float64), 0.5)
    y = 100 * b.result.per_class[known]
    before = y if b.comparison is None else 100 * b.comparison.other[known]
    axes.set_ylim(0, max(10.0, 1.05 * float(np.max([y, before]))))
    _scale(axes, float(x.min()), float(x.max()))
    handles: list[Artist] = []
    if b.comparison is not None:
        for place in range(len(known)):
            colour = GREEN if y[place] >= before[place] else RED
            axes.plot([x[place]] * 2, [before[place], y[place]], color=colour, lw=1.2, alpha=0.8, zorder=2)
        look = {"facecolor": "white", "edgecolor": GREY}
        handles.append(axes.scatter(x, before, s=22, zorder=3, label=other, clip_on=False, **look))
        handles += [Line2D([], [], color=colour, label=name) for colour, name in ((GREEN, "better"), (RED, "worse"))]
    groups = np.array([b.group_of(number) for number in known.tolist()])
    for group in dict.fromkeys(groups.tolist()):
        own, label = groups == group, group or this or "classes"
        look = {"color": GROUP_COLOURS[group], "label": label}
        handles.append(axes.scatter(x[own], y[own], s=26, zorder=4, clip_on=False, **look))
    titles = [] if b.training is None else _draw_parts(axes, b, cutoffs)
    if titles:
        handles.append(Line2D([], [], color="black", lw=1, ls=(0, (4, 3)), label="mean of head, mid, tail"))
    axes.set_xlabel(f"{title}, log scale")
    axes.set_ylabel("AP, %")
    axes.grid(axis="y", color=GRID)
    axes.set_title(headline(b, this, other), loc="left", pad=22)
    if len(handles) > 1:
        axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.canvas.draw()
    _spread(axes, titles)
    points = np.concatenate([np.column_stack([x, y]), np.column_stack([x, before])])
    _label_points(axes, points, [b.names[number] for number in known])
    return figure


def _scale(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis of counts from `low` to `high`, on which 0.5 is labelled 0."""
    axes.set_xscale("log")
    axes.set_xlim(low / 1.5, high * 1.8)
    left, right = axes.get_xlim()
    steps = (1, 2, 5) if math.log10(high / low) < FEW_DECADES else (1,)
    ticks = [step * 10**power for power in range(math.ceil(math.log10(right))) for step in steps]
    ticks = [tick for tick in ticks if left <= tick <= right]
    never = [0.5] if low < 1 else []
    axes.set_xticks([*never, *ticks], [*("0" for _ in never), *(f"{tick:,}" for tick in ticks)])
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_parts(axes: Axes, b: Breakdown, cutoffs: Sequence[int]) -> list[Text]:
    """The borders of head, mid and tail, and the mean of each over its stretch of the axis; what is written above."""
    assert b.training is not None
    left, right = axes.get_xlim()
    edges = [left, *(min(max(cutoff, left), right) for cutoff in cutoffs), right]
    masks = list(frequency_masks(b.training, cutoffs).items())[::-1]  # from the left: tail, mid, head
    titles = []
    for (name, mask), start, end in zip(masks, edges[:-1], edges[1:], strict=True):
        mean = b.result.mean_of(mask)
        if math.isnan(mean):
            continue
        axes.plot([start, end], [100 * mean] * 2, color="black", lw=1, ls=(0, (4, 3)), zorder=1)
        text = f"{name.partition(' ')[0]}: {100 * mean:.1f}"
        if b.comparison is not None:
            text += f" ({100 * b.comparison.of_mean(mask).value:+.1f})"
        above = axes.text(math.sqrt(start * end), 1.01, text, ha="center", va="bottom", fontweight="bold")
        above.set_transform(axes.get_xaxis_transform())
        titles.append(above)
    for cutoff in cutoffs:
        if left < cutoff < right:
            axes.plot([cutoff] * 2, axes.get_ylim(), color=GREY, lw=0.8, zorder=1)
    return titles


def _spread(axes: Axes, texts: Sequence[Text], gap: float = 12) -> None:
    """Moves texts on one line, from the left, to the right of each other where they would overlap; `gap` in pixels."""
    end = -math.inf
    for text in texts:
        box = text.get_window_extent()
        shift = max(0.0, end + gap - box.x0)
        if shift:
            x, y = text.get_position()
            place = axes.transData.transform((x, 0))[0] + shift
            text.set_position((axes.transData.inverted().transform((place, 0))[0], y))
        end = box.x1 + shift


def _label_points(axes: Axes, points: np.ndarray, names: list[str]) -> None:
    """Names beside as many points as have room: none over another, over a point or over a line that is upright or
    level; extremes come first. `points` [n, 2] are in the data's units, those with names first."""
    area = axes.get_window_extent()
    dots = axes.transData.transform(points)
    ends = np.concatenate([np.zeros((0, 2)), *(line.get_xydata() for line in axes.lines)])
    ends = axes.transData.transform(ends).reshape(-1, 2, 2)
    taken = np.concatenate(
        [np.concatenate([dots - 4, dots + 4], axis=1), np.concatenate([ends.min(1) - 2, ends.max(1) + 2], axis=1)]
    )
    heights = points[: len(names), 1]
    for place in np.argsort(-np.abs(heights - np.median(heights)), kind="stable").tolist():
        for dx, dy, ha, va in SIDES:
            text = axes.annotate(
                short(names[place]), points[place], (dx, dy), textcoords="offset points", ha=ha, va=va, size=7
            )
            box = text.get_window_extent()
            free = (
                (taken[:, 0] > box.x1) | (taken[:, 2] < box.x0) | (taken[:, 1] > box.y1) | (taken[:, 3] < box.y0)
            ).all()
            inside = area.x0 < box.x0 and box.x1 < area.x1 and area.y0 < box.y0 and box.y1 < area.y1
            if free and inside:
                taken = np.concatenate([taken, [[box.x0 - 3, box.y0, box.x1 + 3, box.y1]]])
                break
            text.remove()
