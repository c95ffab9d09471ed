"""A confusion matrix as a picture that can be read: of few classes all, of many those that are confused most."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from train.confusion import Confusion
from train.figures import PALE, RED, new_figure, row_axes, short, style

MOST_CLASSES = 40
"""Rows of the matrix. Where there are more classes, `shown_classes` chooses."""
MOST_PAIRS = 25
"""Pairs that are listed beside it."""
CELL, LARGE_CELL = 0.21, 0.5
"""Least and greatest side of a cell, in inches; the least is also the height of a listed pair."""
SIDE = 3.2
"""Side of the matrix in inches, as far as cells may be so large or small."""
BAR = 2.6
"""Room for the longest bar of the list, in inches."""
CHARACTER = 0.066
"""Room for a character of a name, in inches."""
PAIR_NAME = 34
"""Characters of a class name in the list of pairs."""


def shown_classes(c: Confusion) -> np.ndarray:
    """int64 [n], n <= MOST_CLASSES, logit indices in the order in which they are drawn.

    All classes in their order where there are no more. Else those of the greatest mistakes (as `Confusion.mistakes`
    ranks them), from the first one on as long as there is room, and then the classes with the most examples. Classes
    that are confused with each other stand beside each other.
    """
    if len(c.names) <= MOST_CLASSES:
        return np.arange(len(c.names))
    groups: dict[int, list[int]] = {}
    for cell in c.mistakes.tolist():
        pair = int(c.true[cell]), int(c.predicted[cell])
        if len(groups) + sum(number not in groups for number in pair) > MOST_CLASSES:
            break
        one, other = (groups.get(number, [number]) for number in pair)
        for number in one + other if one is not other else []:
            groups[number] = one + other
    chosen = list(dict.fromkeys(number for group in groups.values() for number in group))
    frequent = np.argsort(-c.totals, kind="stable").tolist()
    return np.array((chosen + [number for number in frequent if number not in groups])[:MOST_CLASSES], dtype=np.int64)


@style()
def confusion_picture(c: Confusion) -> Figure:
    """The matrix, each row in percent of its class's examples, and beside it the pairs with the most mistakes."""
    shown, pairs = shown_classes(c), c.mistakes[:MOST_PAIRS]
    partly = len(shown) < len(c.names)
    names = [short(c.names[number]) for number in shown]
    ends = zip(c.true[pairs].tolist(), c.predicted[pairs].tolist(), strict=True)
    labels = [f"{short(c.names[t], PAIR_NAME)}  →  {short(c.names[p], PAIR_NAME)}" for t, p in ends]
    side = min(max(CELL, SIDE / len(shown)), LARGE_CELL) * (len(shown) + partly)
    name, label = (CHARACTER * max(map(len, texts), default=0) for texts in (names, labels))
    height = max(side + name + 0.3, CELL * len(pairs))
    figure, ((left, right),) = new_figure(side + name + label + BAR + 0.8, height + 0.8, 1, 2, width_ratios=[side, BAR])
    _draw_matrix(left, c, shown, names, partly)
    _draw_pairs(right, c, pairs, labels, room=int(height / CELL))
    accuracy = f"{100 * c.right / c.examples:.1f} %" if c.examples else "-"
    title = f"top-1 {accuracy} of {c.examples:,} examples of {len(c.names):,} classes"
    if partly:
        title += f"; the matrix has the {len(shown)} classes that are confused most"
    figure.suptitle(title, x=0.01, ha="left", size=10)
    return figure


def _draw_matrix(axes: Axes, c: Confusion, shown: np.ndarray, names: list[str], partly: bool) -> None:
    percent = 100 * c.rows(shown)[:, : len(shown) + partly]
    axes.set_facecolor(PALE)  # where a class has no examples
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axes.set_anchor("NE")
    for row, column in zip(*np.nonzero(np.nan_to_num(percent) >= 0.5), strict=True):
        value = percent[row, column]
        colour = "white" if value > 55 else "black"
        cell = axes.text(column, row, f"{value:.0f}", ha="center", va="center", size=6, color=colour)
        cell.set_in_layout(False)  # it is inside, and there are many
    if partly:
        axes.axvline(len(shown) - 0.5, color="black", lw=0.8)
    axes.set_xticks(range(percent.shape[1]), names + ["other classes"] * partly, rotation=90, size=8)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title("rows add up to 100 %", loc="left", size=9)


def _draw_pairs(axes: Axes, c: Confusion, pairs: np.ndarray, labels: list[str], room: int) -> None:
    counts = c.count[pairs]
    axes.barh(range(len(pairs)), counts, 0.62, color=RED)
    row_axes(axes, labels, max(len(pairs), room))
    longest = max(counts.tolist(), default=1)
    for place, (count, total) in enumerate(zip(counts.tolist(), c.totals[c.true[pairs]].tolist(), strict=True)):
        axes.text(count + 0.02 * longest, place, f"{count} of {total}", va="center", size=7)
    axes.set_xlim(0, 1.35 * longest)
    axes.xaxis.set_visible(False)  # the figures stand beside the bars
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("the most frequent mistakes" if len(pairs) else "no mistakes", loc="left", size=9)
