"""What the tasks' gradients say, of runs whose recipe has `gradients_every`."""

import numpy as np

from benchmarks.reproduce.protocol import DOWNSTREAM, REGIMES, TASKS
from benchmarks.reproduce.records import Record

NORM, COSINE = "gradients/backbone/", "gradients/cosine/"
"""The trainer's names for them (train/gradients.py), which a task follows, and two."""


def gradient_rows(runs: dict[str, list[Record]]) -> list[list[str]]:
    """A table, head first, with a row for each run that has them, over the second half of its last training's steps.

    Of each task the mean norm of its gradient on the backbone, as it comes from the backward passes: with its loss
    weight, before clipping. AVA's part is its mean squared norm over the sum of all tasks', where all were looked at;
    of the cosines of every two tasks, which schedules that train all of them in a step have, there are the least and
    the greatest mean.

    Args:
        runs: regime -> its runs.
    """
    rows = [["regime", "seed", *TASKS, f"{DOWNSTREAM}'s part, %", "cosines"]]
    for name, own in runs.items():
        for run in own:
            late = {
                tag: np.array([value for step, value in points if 2 * step > run["steps"][-1]])
                for tag, points in run["curves"][-1].items()
                if tag.startswith((NORM, COSINE))
            }
            norms = {task: late[NORM + task] for task in TASKS if late.get(NORM + task, np.empty(0)).size}
            if not norms:
                continue
            squares = {task: float((values**2).mean()) for task, values in norms.items()}
            total = sum(squares.values())
            whole = DOWNSTREAM in squares and len(squares) == len(REGIMES[name].tasks) > 1 and total > 0
            part = f"{100 * squares[DOWNSTREAM] / total:.0f}" if whole else "-"
            cosines = [float(values.mean()) for tag, values in late.items() if tag.startswith(COSINE) and values.size]
            told = f"{min(cosines):.2f} to {max(cosines):.2f}" if cosines else "-"
            means = [f"{norms[task].mean():.2f}" if task in norms else "-" for task in TASKS]
            rows.append([REGIMES[name].title, str(run["seed"]), *means, part, told])
    return rows
