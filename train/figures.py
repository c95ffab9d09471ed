"""How figures look and where they go: colours, style, files that are there whole or not at all, pixels."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from train.whole_files import whole_file

# Okabe and Ito's colours, which people with any colour vision tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442"),
)
GREY, PALE = "#8c8c8c", "#ececec"
GRID = "#e6e6e6"
NAME_LENGTH = 40
"""Characters: the longest name of AVA's classes has 39."""
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.dpi": 130,
    # Names of classes and runs come from outside: two $ in one of them are no formula.
    "text.parse_math": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Figures that are made, drawn and saved inside of it look alike; also a decorator."""
    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **ratios: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of so many inches and its axes [rows, columns], outside of pyplot's global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **ratios)


def row_axes(axes: Axes, names: list[str], height: int) -> None:
    """One row per name from the top, with as much room as on a page of `height` rows."""
    axes.set_ylim(height - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names, size=8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=GRID)


def short(name: str, length: int = NAME_LENGTH) -> str:
    """`name`, with an ellipsis for its middle where it is longer than `length` characters: names of one set often begin
    alike."""
    if len(name) <= length:
        return name
    end = length // 2 - 1
    return f"{name[: length - 1 - end].rstrip()}…{name[-end:].lstrip()}"


@style()
def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whole or not at all. Raises OSError where it cannot be written."""
    with whole_file(path) as partial:
        figure.savefig(partial, format="png", bbox_inches="tight")


@style()
def pixels(figure: Figure) -> np.ndarray:
    """uint8 [H, W, 3], RGB."""
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
