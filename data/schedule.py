"""Schedules: which tasks an optimizer step trains, and with which positions of their streams, from the step alone.

The names and rules are those of PolyViT (arXiv 2111.12993), and `accumulate`, which co-finetuning uses. U_j is the
number of steps that task j is trained for, here a share of the run's steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.errors import UserError
from data.order import make_key, mix, permute


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


def task_by_task(steps: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """All U_1 steps of the first task, then all U_2 of the second, ... which is transfer learning."""
    return np.repeat(np.arange(len(shares)), apportion(steps, shares))


def weighted(steps: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """Exactly U_j steps of task j, in one seeded permutation of all steps."""
    return task_by_task(steps, shares, seed)[permute(np.arange(steps), steps, make_key(seed, "weighted"))]


def alternating(steps: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """A fixed cycle over the tasks."""
    return np.arange(steps) % len(shares)


def uniform(steps: int, shares: Sequence[float], seed: int) -> np.ndarray:
    """Each step draws a task with equal probability."""
    draws = mix(mix(np.arange(steps, dtype=np.uint64)) ^ np.uint64(make_key(seed, "uniform")))
    return (draws % np.uint64(len(shares))).astype(np.int64)


ONE_TASK_A_STEP: dict[str, Callable[[int, Sequence[float], int], np.ndarray]] = {
    "weighted": weighted,
    "alternating": alternating,
    "uniform": uniform,
    "task_by_task": task_by_task,
}
"""(steps, shares, seed) -> int64 [steps], the task of each step."""

SCHEDULES = ("accumulate", *ONE_TASK_A_STEP)


class Schedule:
    """The plan of every step of a run.

    Args:
        name: one of SCHEDULES. `accumulate`: every step sees every task. The others give each step one task.
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
        self._own: dict[int, np.ndarray] = {}
        if name != "accumulate":
            # In 32 bits: every process of a run holds both arrays.
            self._tasks = ONE_TASK_A_STEP[name](steps, shares, seed).astype(np.int32)
            # How often a step's task came before it: the whole state of a stream.
            self._before = np.zeros(steps, dtype=np.int32)
            for task in range(len(clips)):
                own = np.flatnonzero(self._tasks == task)
                self._before[own] = np.arange(len(own), dtype=np.int32)

    def plan(self, step: int) -> list[TaskStep]:
        """The tasks of optimizer step `step` (from 0), in the order in which they are run."""
        if not 0 <= step < self.steps:
            raise ValueError(f"step {step} is outside of range({self.steps})")
        if self._tasks is None:
            return [TaskStep(task, step * clips, clips) for task, clips in enumerate(self.clips)]
        task = int(self._tasks[step])
        return [TaskStep(task, int(self._before[step]) * self.clips[task], self.clips[task])]

    def done(self, task: int, step: int) -> int:
        """How many of the steps before `step` (at most the number of steps) train `task`."""
        return step if self._tasks is None else int((self._tasks[:step] == task).sum())

    def step_of(self, task: int, number: int) -> int:
        """The step that trains `task` for the `number`-th time, from 0; the number of steps where none does."""
        if self._tasks is None:
            return min(number, self.steps)
        if task not in self._own:
            self._own[task] = np.flatnonzero(self._tasks == task).astype(np.int32)
        own = self._own[task]
        return int(own[number]) if number < len(own) else self.steps

    def stage(self, step: int) -> range:
        """The steps of `task_by_task`'s block that `step` lies in; under other schedules those of the whole run."""
        if self.name != "task_by_task":
            return range(self.steps)
        assert self._tasks is not None
        task = self._tasks[step]
        first, end = (int(np.searchsorted(self._tasks, task, side)) for side in ("left", "right"))
        return range(first, end)

    def steps_of(self, task: int) -> int:
        """Number of the run's steps that train `task`."""
        return self.steps if self._tasks is None else int((self._tasks == task).sum())


@dataclass(frozen=True)
class MicroStep:
    """One forward and backward of one rank: the positions of one task's stream that this rank takes."""

    task: int
    positions: tuple[int, ...]


@dataclass(frozen=True)
class NodeShare:
    """The ranks of one machine: `ranks` neighbours of `world`, from rank `first` on. By default all there is."""

    first: int = 0
    ranks: int = 1
    world: int = 1

    def places(self, clips: int) -> tuple[int, int]:
        """First and last place of a global batch of `clips` that these ranks take (see `micro_steps`)."""
        share = clips // self.world
        return self.first * share, (self.first + self.ranks) * share - 1


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

    Rank r takes the r-th of `world` equal parts of a task's positions, and cuts it into micro-steps; one rank after
    the other, their positions are the plan, whatever the numbers of ranks and clips. So a rank's clips are neighbours
    in the global batch, and come from few shards (see EpochOrder).
    """
    result = []
    for part in plan:
        size, share = micro[part.task], part.clips // world
        first = part.first + rank * share
        for start in range(first, first + share, size):
            result.append(MicroStep(part.task, tuple(range(start, start + size))))
    return result
