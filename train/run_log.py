"""What a run tells: a progress line, RUN/log.txt and TensorBoard, all from the first rank."""

import contextlib
import fcntl
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from data.batch import Batch
from data.counters import add, figures
from data.errors import UserError
from train.launch import Rank, file_problem
from train.recipe import Recipe
from train.tasks import Task

LOCK_WAIT = 20.0
"""Seconds: loader processes of a run that was killed hold its lock until they notice, some seconds later."""


def duration(seconds: float) -> str:
    """`1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def describe(recipe: Recipe, tasks: list[Task], rank: Rank, ds: str | None, start: int) -> str:
    """A few lines on what is about to be trained."""
    lines = [
        f"{recipe.name}: {recipe.steps} steps, schedule {recipe.schedule}, {rank.world} "
        f"{'process' if rank.world == 1 else 'processes'} on {rank.device.type}, "
        + (f"DeepSpeed ({ds})" if ds else "plain PyTorch")
        + (f", from step {start} on" if start else "")
    ]
    for task in tasks:
        assert task.train is not None
        shards = task.train.shards
        lines.append(
            f"  {task.name}: {task.recipe.kind}, {len(shards)} examples of {len(task.classes)} classes, "
            f"{task.recipe.batch} clips a step ({shards.prefix})"
        )
    return "\n".join(lines)


class RunLog:
    """Collects figures over `every` steps and tells their means.

    Args:
        run: the run's folder.
        rank: all ranks collect, the first one writes.
        steps: steps of the whole run, for the time that is left.
        start: step at which this process begins; TensorBoard's later points, of a run that was cut off, are dropped.
        training_flops: of each task, the operations of one clip forward and backward (models/flops.py).
        device_rate: operations a second that utilisation is a share of, the mean over ranks; None: it is not told.

    Raises:
        UserError: the folder cannot be written, at first or later, or another run is writing to it.
    """

    def __init__(
        self,
        run: str | Path,
        rank: Rank,
        steps: int,
        every: int,
        start: int,
        training_flops: Mapping[str, float] | None = None,
        device_rate: float | None = None,
    ) -> None:
        self.flops, self.device_rate = training_flops or {}, device_rate
        self.rank, self.steps, self.every, self.start = rank, steps, every, start
        self.folder, self.file, self.board = Path(run), None, None
        if rank.first:
            with self._writing():
                self.folder.mkdir(parents=True, exist_ok=True)
                self.file = (self.folder / "log.txt").open("a")
                self._take()
                # From step 0 too: a run that was killed before its first checkpoint has left points as well.
                self.board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=start + 1)
        self._artist = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._pictures: Future[None] | None = None
        self._begin = self._since = time.monotonic()
        self._reset()

    def _take(self) -> None:
        """Locks log.txt until this process ends: two runs in one folder would mix up their checkpoints."""
        assert self.file is not None
        until = time.monotonic() + LOCK_WAIT
        while True:
            try:
                return fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(0.2)
                    continue
                raise UserError(
                    f"another run is writing to {self.folder}: end its processes first (a launcher that was killed can "
                    "leave its ranks running), or give out=FOLDER"
                ) from None
            except OSError:
                return  # a file system without locks

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the log in {self.folder} cannot be written: {file_problem(error)}; with that mended, --resume goes on"
            ) from error

    def _reset(self) -> None:
        self._losses: dict[str, list[float]] = {}
        self._counts: dict[str, dict[str, float]] = {}
        self._clips, self._waited, self._count, self._skipped = 0, 0.0, 0, 0
        self._norms: list[float] = []

    def say(self, line: str) -> None:
        """Prints a line and keeps it in log.txt."""
        if self.file is not None:
            with contextlib.suppress(BrokenPipeError):  # whoever read it has ended; the file goes on
                print(line, flush=True)
            with self._writing():
                self.file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
                self.file.flush()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """What is done inside, as an evaluation, counts in the time that is left, but not in speed and waiting."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - began

    def loaded(self, batches: Sequence[Batch]) -> None:
        """Takes in what this rank's batches of a step cost to load."""
        for batch in batches:
            add(self._counts.setdefault(batch.task, {}), batch.counts)

    def step(
        self, step: int, losses: dict[str, float], clips: int, waited: float, lr: float, norm: float | None
    ) -> None:
        """Takes in optimizer step `step` (from 0), and tells when it is time.

        Args:
            losses: this rank's part of each task's mean loss over the global batch; the sum over ranks is the mean.
                Those of a skipped step are in no mean.
            clips: global clips of the step.
            waited: seconds that this rank waited for data.
            norm: the gradient's norm, None for a skipped step.
        """
        for task, loss in losses.items() if norm is not None else ():
            self._losses.setdefault(task, []).append(loss)
        self._clips, self._waited, self._count = self._clips + clips, self._waited + waited, self._count + 1
        if norm is None:
            self._skipped += 1
        else:
            self._norms.append(norm)
        if (step + 1) % self.every == 0 or step + 1 == self.steps:
            self._tell(step + 1, lr)

    def gradients(self, step: int, figures: dict[str, float]) -> None:
        """What optimizer step `step` (from 0) has shown of its gradients, by name; none in most steps."""
        if self.board is not None and figures:
            self._plot(figures, step + 1)

    def metrics(self, step: int, metrics: dict[str, float]) -> None:
        """Evaluation results after `step` steps, by name."""
        if self.board is not None:
            self._plot(metrics, step)
        self.say(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items()))

    def show(
        self, step: int, scalars: Mapping[str, float], pictures: Callable[[], Mapping[str, np.ndarray]] | None = None
    ) -> None:
        """Puts what belongs to an evaluation after `step` steps onto the board alone.

        Args:
            pictures: what draws them, uint8 [H, W, 3]; called in a thread, while the run goes on. What goes wrong
                there is raised by the next call or by `close`.
        """
        if self.board is None:
            return
        self._plot(scalars, step)
        self._wait_for_pictures()
        if pictures is not None:
            self._pictures = self._artist.submit(self._draw, self.board, step, pictures)

    def _draw(self, board: SummaryWriter, step: int, pictures: Callable[[], Mapping[str, np.ndarray]]) -> None:
        for name, picture in pictures().items():
            board.add_image(name, picture, step, dataformats="HWC")
        board.flush()

    def _wait_for_pictures(self) -> None:
        pictures, self._pictures = self._pictures, None
        if pictures is not None:
            with self._writing():
                pictures.result()

    def _tell(self, done: int, lr: float) -> None:
        now = time.monotonic()
        parts = self.rank.gather((self._losses, self._waited, self._counts, self._memory()))
        losses = {task: _mean(task, [part for part, *_ in parts]) for task in self._losses}
        elapsed = max(now - self._since, 1e-9)
        wait = sum(waited for _, waited, *_ in parts) / len(parts) / elapsed
        counts: dict[str, dict[str, float]] = {}
        for _, _, part, _ in parts:
            for task, own in part.items():
                add(counts.setdefault(task, {}), own)
        norm = sum(self._norms) / len(self._norms) if self._norms else float("nan")
        if self.board is not None:
            scalars: dict[str, Any] = {f"loss/{task}": loss for task, loss in losses.items()}
            scalars |= {"train/lr": lr, "train/gradient_norm": norm, "train/skipped_steps": self._skipped}
            for task, own in counts.items():
                scalars |= {f"data/{task}/{name}": value for name, value in figures(own, elapsed).items()}
            scalars |= {"speed/clips_per_second": self._clips / elapsed, "speed/data_wait_share": wait}
            if self.flops:
                done_flops = sum(own.get("clips", 0) * self.flops[task] for task, own in counts.items())
                rate = done_flops / elapsed / len(parts)
                scalars["speed/tflops_per_rank"] = rate / 1e12
                if self.device_rate:
                    scalars["speed/utilisation"] = rate / self.device_rate
            memory = [part for *_, part in parts]
            scalars |= {f"memory/{name}": max(part[name] for part in memory) for name in memory[0]}
            self._plot(scalars, done)
        left = (now - self._begin) / (done - self.start) * (self.steps - done)
        self.say(
            f"step {done}/{self.steps}  "
            + "  ".join(f"{task} {loss:.3f}" for task, loss in losses.items())
            + f"  lr {lr:.2e}  |g| {norm:.2f}  {self._clips / elapsed:.0f} clips/s  data wait {wait:.0%}"
            + (f"  {self._skipped} steps skipped (not finite)" if self._skipped else "")
            + f"  left {duration(left)}"
        )
        self._since = time.monotonic()
        self._reset()

    def _memory(self) -> dict[str, float]:
        """The most that this rank has held so far, in 10^9 bytes."""
        held = {"process_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}
        if self.rank.device.type == "cuda":
            held["device_gb"] = torch.cuda.max_memory_allocated(self.rank.device) / 1e9
        return held

    def _plot(self, scalars: Mapping[str, Any], step: int) -> None:
        assert self.board is not None
        with self._writing():
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def close(self) -> None:
        self._wait_for_pictures()
        with self._writing():
            if self.board is not None:
                self.board.close()
            if self.file is not None:
                self.file.close()


def _mean(task: str, parts: list[dict[str, list[float]]]) -> float:
    """Mean over steps of the sum over ranks."""
    count = len(parts[0][task])
    return sum(sum(part[task]) for part in parts) / count
