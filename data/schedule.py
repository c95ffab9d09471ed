"""Schedules: which tasks an optimizer step trains, and with which positions of their streams, from the step alone.

The names and rules are those of PolyViT (arXiv 2111.12993), and `accumulate`, which co-finetuning uses. U_j is the
number of steps that task j is trained for, here a share of the run's steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import UserError
from data.order import make_key, permute

SCHEDULES = ("accumulate", "weighted", "alternating", "uniform", "task_by_task")


@dataclass(frozen=True)
class TaskStep:
    """What a step takes of one task: positions `first` .. `first + clips - 1` of the task's stream."""

    task: int
    first: int
    clips: int


def apportion(steps: int, shares: Sequence[float]) -> list[int]:
    """Divides `steps` after `shares` by largest remainders (ties: first task), so that the parts sum up exactly."""
    exact = [steps * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda task: (counts[task] - exact[task], task))
    for task in by_remainder[: steps - sum(counts)]:
        counts[task] += 1
    return counts


class Schedule:
    """The plan of every step of a run.

    Args:
        name: one of SCHEDULES. `accumulate`: every step sees every task. The others give each step one task:
            `weighted`: exactly U_j steps of task j, in one seeded permutation of all steps; `alternating`: a fixed
            cycle; `uniform`: each step draws a task with equal probability; `task_by_task`: all U_1 steps of the first
            task, then all U_2 of the second, ... which is transfer learning.
        clips: global clips per optimizer step of each task.
        steps: optimizer steps of the run.
        seed: the run's seed.
        shares: U_j / U of each task (scaled to sum 1); `weighted` and `task_by_task` heed it.

    Raises:
        UserError: an unknown name, or a share below 0, or all 0.
    """

    def __init__(self, name: str, clips: Sequence[int], steps: int, seed: int, shares: Sequence[float]) -> None:
        if name not in SCHEDULES:
            raise UserError(f"schedule: {name!r} is none of {', '.join(SCHEDULES)}")
        if min(shares) < 0 or sum(shares) <= 0:
            raise UserError(f"share: must not be below 0, nor all be 0; they are {list(shares)}")
        self.name, self.clips, self.steps = name, list(clips), steps
        self._tasks: np.ndarray | None = None
        if name != "accumulate":
            self._tasks = _one_task_a_step(name, len(clips), steps, seed, shares)
            # How often a step's task came before it: the whole state of a stream.
            self._before = np.zeros(steps, dtype=np.int64)
            for task in range(len(clips)):
                own = self._tasks == task
                self._before[own] = np.arange(own.sum())

    def plan(self, step: int) -> list[TaskStep]:
        """The tasks of optimizer step `step` (from 0), in the order in which they are run."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is outside of range({self.steps})")
        if self._tasks is None:
            return [TaskStep(task, step * clips, clips) for task, clips in enumerate(self.clips)]
        task = int(self._tasks[step])
        return [TaskStep(task, int(self._before[step]) * self.clips[task], self.clips[task])]

    def steps_of(self, task: int) -> int:
        """Number of the run's steps that train `task`."""
        return self.steps if self._tasks is None else int((self._tasks == task).sum())


def _one_task_a_step(name: str, tasks: int, steps: int, seed: int, shares: Sequence[float]) -> np.ndarray:
    """int64 [steps]: the task of each step."""
    if name == "alternating":
        return np.arange(steps) % tasks
    if name == "uniform":
        draws = (make_key(seed, "uniform", step) % tasks for step in range(steps))
        return np.fromiter(draws, dtype=np.int64, count=steps)
    in_turn = np.repeat(np.arange(tasks), apportion(steps, shares))
    if name == "task_by_task":
        return in_turn
    key = make_key(seed, "weighted")
    places = np.fromiter((permute(step, steps, key) for step in range(steps)), dtype=np.int64, count=steps)
    return in_turn[places]


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward of one rank: the positions of one task's stream that this rank takes."""

    task: int
    positions: tuple[int, ...]


def micro_clips(task: str, clips: int, world: int, most: int) -> int:
    """Clips per rank and micro-step: the largest number up to `most` that divides a rank's share of the global batch.

    Raises:
        UserError: `clips` does not divide over `world` ranks.
    """
    if clips % world:
        fits = [ranks for ranks in range(1, clips + 1) if clips % ranks == 0]
        raise UserError(
            f"tasks.{task}.batch={clips} does not divide over {world} ranks: take a multiple of {world} "
            f"(tasks.{task}.batch={clips + world - clips % world}), or start one of these numbers of ranks: "
            + ", ".join(map(str, fits))
        )
    share = clips // world
    return max(size for size in range(1, min(share, most) + 1) if share % size == 0)


def micro_steps(plan: Sequence[TaskStep], micro: Sequence[int], rank: int, world: int) -> list[MicroStep]:
    """The micro-steps of `rank`: all ranks run the same task in the same one.

    Micro-step m takes the next `world * micro[task]` positions of the step, rank r the r-th part of them, so the
    union over ranks and micro-steps is the plan, whatever their numbers.
    """
    result = []
    for part in plan:
        size = micro[part.task]
        for start in range(part.first + rank * size, part.first + part.clips, world * size):
            result.append(MicroStep(part.task, tuple(range(start, start + size))))
    return result
