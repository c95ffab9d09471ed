"""The training loop: take the step's plan; for each micro-batch loss and backward; one optimizer step; log."""

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from data.batch import Batch, Substitute
from data.errors import UserError
from data.mixture import StepPlan
from data.order import make_key
from train.ema import WeightAverage
from train.engine import Engine
from train.gradients import GradientProbe
from train.launch import Rank, StopSignal, ToldError
from train.optim import learning_rate
from train.recipe import Recipe
from train.run_log import RunLog
from train.skipped import SkippedSteps
from train.tasks import Task
from train.whole_files import write_atomically

BUDGET_FLOOR = 1000
"""The share of bad clips is taken of at least so many, so that an early one does not end a run."""


def train(
    recipe: Recipe,
    tasks: list[Task],
    engine: Engine,
    plan: StepPlan,
    loader: Iterator[Batch],
    rank: Rank,
    log: RunLog,
    start: int,
    after_step: Callable[[int, bool], None],
    stop: StopSignal | None = None,
    average: WeightAverage | None = None,
) -> int:
    """Trains from step `start` to the recipe's last, or until a signal asks to stop.

    Args:
        loader: this rank's micro-batches, as `plan.batches(start, rank.index)` orders them.
        after_step: called on every rank with the number of steps done, and whether it was the last.
        stop: what asks to stop; made here where it is not given.
        average: takes in the weights after every step that was not left out.

    Returns:
        The number of steps done.

    Raises:
        UserError: too many clips cannot be read, too many steps have a loss or gradient that is not finite, the ranks
            do not agree on what they train, or a micro-batch does not fit into the GPU's memory.
        KeyboardInterrupt: stopped by Ctrl-C, so that what a script does next is not done with half a run.
    """
    by_name = {task.name: task for task in tasks}
    stop, ledger = stop or StopSignal(), Ledger(recipe, rank, log, start)
    skipped = SkippedSteps(recipe, rank, log, start)
    probe = GradientProbe(engine.module, rank, recipe.gradients_every)
    stop.take_all()
    done = start
    for step in range(start, recipe.steps):
        engine.module.train()
        began = time.monotonic()
        batches = [next(loader) for _ in plan.micro_steps(step, rank.index)]
        waited = time.monotonic() - began
        weights, stopping = agree(step, batches, by_name, rank, stop.number)
        ledger.add(step, batches)
        log.loaded(batches)

        stage = plan.schedule.stage(step) if recipe.optim.per_stage else range(recipe.steps)
        if step == stage.start > 0:
            engine.restart()
            if average is not None:
                average.restart(engine.module)
            log.say(f"stage {batches[0].task}, {len(stage)} steps: optimizer and learning rate begin anew")
        # Dropout is a function of the step, so that a resumed run goes on as the first one would have.
        torch.manual_seed(make_key(recipe.seed, "dropout", step, rank.index))
        parts = []
        probe.begin(plan.schedule.plan(step))
        for batch in batches:
            task = by_name[batch.task]
            with _memory_of(task.name):
                batch = batch.to(rank.device)
                logits = engine(task.name, batch.clips, batch.boxes, batch.box_clip)
                loss = task.loss(logits, batch) / weights[task.name]
                parts.append(loss.detach())
                # One that is not finite on a rank makes the gradient so on all, which then leave the step out together.
                with probe.watch(task.name):
                    engine.backward(loss * task.recipe.loss_weight * torch.where(parts[-1].isfinite(), 1.0, math.nan))
        gradients = probe.figures()
        lr = learning_rate(step - stage.start, len(stage), recipe.optim)
        norm = engine.step(lr, {batch.task: by_name[batch.task].recipe.lr_scale for batch in batches})
        losses = torch.stack(parts).tolist()
        if norm is None:
            skipped.add(step, batches, losses)
        elif average is not None:
            average.update(engine.module)

        clips = sum(part.clips for part in plan.schedule.plan(step))
        log.step(step, total(batches, losses), clips, waited, lr, norm)
        if norm is not None:
            log.gradients(step, gradients)
        done = step + 1
        last = bool(stopping) or done == recipe.steps
        if last or done % recipe.save_every == 0 or evaluates(recipe, done):  # wherever there may be a checkpoint
            ledger.keep(done)
        after_step(done, last)
        if stopping:
            log.say(f"stopped by {signal.Signals(stopping).name} after step {done}; --resume goes on")
            break
    ledger.close()
    if done < recipe.steps and stop.number == signal.SIGINT:
        raise KeyboardInterrupt
    return done


def evaluates(recipe: Recipe, done: int) -> bool:
    """Whether the model is evaluated after `done` steps; what scores best is kept as a checkpoint then."""
    return recipe.eval_every > 0 and done % recipe.eval_every == 0


def total(batches: list[Batch], losses: list[float]) -> dict[str, float]:
    """Each task's sum over micro-batches."""
    sums = {batch.task: 0.0 for batch in batches}
    for batch, loss in zip(batches, losses, strict=True):
        sums[batch.task] += loss
    return sums


def agree(step: int, batches: list[Batch], tasks: dict[str, Task], rank: Rank, stop: int) -> tuple[dict[str, int], int]:
    """Compares the step across ranks, and sums what its losses are divided by.

    ZeRO reduces gradients by their place in a bucket: ranks that run different heads in one micro-step would give
    wrong gradients without any error, so the order of tasks is compared before it is run.

    Returns:
        The number of clips or boxes of each task in the global batch (at least 1), and the number of the signal that
        asks any rank to stop, or 0.
    """
    names = [batch.task for batch in batches]
    # Half a key: all-gathered as int64.
    mine = [step, make_key(*names) >> 1, stop] + [0] * len(tasks)
    place = {name: 3 + i for i, name in enumerate(tasks)}
    for batch in batches:
        mine[place[batch.task]] += tasks[batch.task].weight(batch)
    if rank.world == 1:
        table = torch.tensor([mine])
    else:
        rows = [torch.empty(len(mine), dtype=torch.int64) for _ in range(rank.world)]
        dist.all_gather(rows, torch.tensor(mine), group=rank.control)
        table = torch.stack(rows)
    if not bool((table[:, :2] == table[0, :2]).all()):
        plans = rank.gather(f"step {step}: {', '.join(names)}")
        raise ToldError(
            "the ranks do not train the same tasks in the same order, so their gradients would be mixed up:\n"
            + "\n".join(f"  rank {index} is at {text}" for index, text in enumerate(plans))
            + "\nstart all ranks with the same recipe, shards and version"
        )
    totals = table.sum(dim=0).tolist()
    return {name: max(int(totals[i]), 1) for name, i in place.items()}, int(table[:, 2].max())


@contextlib.contextmanager
def _memory_of(task: str) -> Iterator[None]:
    """Raises UserError where a micro-batch of the task does not fit into the GPU's memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"out of GPU memory in a micro-batch of {task}: lower tasks.{task}.micro_batch; docs/training.md says what"
            f" else helps. It says: {' '.join(str(error).split())[:300]}"
        ) from error


class Ledger:
    """Counts the clips that could not be read, lists each once in RUN/bad_clips.jsonl, and ends the run when there are
    too many. Goes on over interruptions: what was counted up to a checkpoint is kept beside the list.

    Args:
        start: the step at which this process begins.
    """

    def __init__(self, recipe: Recipe, rank: Rank, log: RunLog, start: int = 0) -> None:
        self.path, self.most = Path(recipe.out) / "bad_clips.jsonl", recipe.max_bad_share
        self.rank, self.log = rank, log
        self.seen, self.bad = 0, 0
        self.listed = _listed(self.path)
        # Of all ranks together, by step: a run may go on with another number of ranks, or from an older checkpoint.
        self.totals_path = Path(recipe.out) / "bad_clips.totals.json"
        self.totals = {step: total for step, total in _totals(self.totals_path).items() if step <= start}
        # The last that is known before `start`, where it is not known for that step itself.
        self.seen_before, self.bad_before = self.totals.get(max(self.totals, default=0), (0, 0))

    def add(self, step: int, batches: list[Batch]) -> None:
        """Takes in the batches of optimizer step `step`.

        Raises:
            UserError: the share of bad clips that this rank has met, and its part of those before a resume, is above
                the recipe's `max_bad_share`.
        """
        self.seen += sum(len(batch.keys) for batch in batches)
        for batch in batches:
            for bad in batch.substitutes:
                self.bad += 1
                if (batch.task, bad.key) not in self.listed:
                    self.listed.add((batch.task, bad.key))
                    self._list(step, batch.task, bad)
        world = self.rank.world
        seen, bad_clips = self.seen + self.seen_before / world, self.bad + self.bad_before / world
        if bad_clips > self.most * max(seen, BUDGET_FLOOR):
            raise UserError(
                f"{bad_clips:.0f} of {seen:.0f} clips could not be read, more than max_bad_share={self.most} allows;"
                f" they are listed in {self.path}. `python shard_tools/verify.py SHARDS --decode` finds all bad ones"
            )

    def keep(self, done: int) -> None:
        """Writes down what all ranks have counted in the first `done` steps; called on every rank."""
        self.totals[done] = self._total()
        if self.rank.first:
            write_atomically(self.totals_path, json.dumps(self.totals) + "\n")

    def _total(self) -> tuple[int, int]:
        """(seen, bad) of all ranks, and of what went before."""
        parts = self.rank.gather((self.seen, self.bad))
        return self.seen_before + sum(seen for seen, _ in parts), self.bad_before + sum(bad for _, bad in parts)

    def _list(self, step: int, task: str, bad: Substitute) -> None:
        # One short line a write in append mode: lines of several ranks do not mix.
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, "task": task, "key": bad.key, "reason": bad.reason}) + "\n")
        text = f"{task}: clip {bad.key} cannot be read, another one takes its place: {bad.reason}"
        print(f"rank {self.rank.index}: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Says how many there were in all; called on every rank."""
        seen, bad = self._total()
        if bad:
            self.log.say(f"{bad} of {seen} clips could not be read and were replaced: see {self.path}")


def _listed(path: Path) -> set[tuple[str, str]]:
    """(task, key) of the clips that a ledger lists; a line that is none of its own is passed over."""
    found = set()
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            found.add((entry["task"], entry["key"]))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _totals(path: Path) -> dict[int, tuple[int, int]]:
    """Step -> (seen, bad), as `Ledger.keep` writes them; none where they cannot be read."""
    try:
        return {int(step): (int(seen), int(bad)) for step, (seen, bad) in json.loads(path.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
