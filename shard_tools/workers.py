"""Runs a function over many tasks in worker processes that may crash or hang, and yields the results in order."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, repeat
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

from data.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Lost:
    """Stands for the result of a task that took too long (`timeout`), whose worker died, or that raised `error`."""

    timeout: bool = False
    error: str = ""


class StopRunError(UserError):
    """Raised by the function that workers run where it is not the task that is at fault: no other would fare better."""


def run_ordered(
    function: Callable[[Sequence[T]], Sequence[R]],
    tasks: Sequence[T],
    workers: int,
    limit_s: float,
    batches: Iterable[int] | None = None,
) -> Generator[R | Lost, None, None]:
    """Yields one result per task, in the order of the tasks; a bounded number of them is under way at a time.

    Workers are forked: import what is heavy before, and start no thread. They end with this process, whatever ends it,
    and when the iterator is closed; with a worker ends every process that it has started.

    Args:
        function: takes some tasks and returns as many results; it must not depend on which tasks come together.
        limit_s: seconds that a call may take; its worker is killed then.
        batches: how many tasks go into each call, in turn, the sum being all of them; None for one each. The tasks of
            a call that was lost are tried again one by one.

    Raises:
        StopRunError: a call has raised it, or worker after worker dies before it takes a task.
    """
    ends = list(accumulate(repeat(1, len(tasks)) if batches is None else batches))
    assert (ends[-1] if ends else 0) == len(tasks)
    chunks = deque(pairwise([0, *ends]))
    results: dict[int, R | Lost] = {}
    pool: list[_Worker[T, R]] = []
    window = max(2 * workers * max((end - first for first, end in chunks), default=1), 32)
    following = untaken = 0
    try:
        while following < len(tasks):
            while chunks and chunks[0][0] < following + window and (worker := _idle(pool, workers, function)):
                worker.submit(tasks, chunks.popleft(), limit_s)
            for worker in _ready(pool):
                answer = worker.receive()
                first, end = worker.chunk
                untaken = untaken + 1 if answer is None else 0
                if untaken > 3 * workers:  # each may die once without a task
                    raise StopRunError("worker processes die before they begin (out of memory?): give fewer --workers")
                if isinstance(answer, StopRunError):
                    raise answer
                if answer is None:
                    chunks.appendleft(worker.chunk)
                elif not isinstance(answer, Lost):
                    results.update(zip(range(first, end), answer, strict=True))
                elif end - first == 1:
                    results[first] = answer
                else:
                    chunks.extendleft((task, task + 1) for task in reversed(range(first, end)))
                if not worker.process.is_alive():
                    pool.remove(worker)
            while following in results:
                yield results.pop(following)
                following += 1
    finally:
        for worker in pool:
            worker.kill()


class _Worker(Generic[T, R]):
    """A worker process with a pipe; `chunk` is the range of tasks that it is at."""

    def __init__(self, function: Callable[[Sequence[T]], Sequence[R]]) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self.chunk = (0, 0)
        self.busy = False
        self.refused = False
        self.deadline = 0.0

    def submit(self, tasks: Sequence[T], chunk: tuple[int, int], limit_s: float) -> None:
        self.chunk, self.busy, self.deadline = chunk, True, time.monotonic() + limit_s
        # A worker that has died is noticed when its answer is read. Out of memory, the kernel also ends processes that
        # have nothing to do, which is no fault of the task to come.
        try:
            self.pipe.send(tasks[slice(*chunk)])
        except ConnectionError:
            self.refused = True

    def receive(self) -> Sequence[R] | Lost | StopRunError | None:
        """The answer that is there, Lost from a worker that has died or is past its time, or None from one that died
        before it took its task."""
        self.busy = False
        lost: Lost | None = None
        try:
            if self.pipe.poll():
                answer: Sequence[R] | Lost | StopRunError = self.pipe.recv()
                return answer
            lost = Lost(timeout=True)
        except ConnectionResetError:  # so Linux says that what was sent had not been read
            pass
        except (EOFError, OSError):
            lost = None if self.refused else Lost()
        self.kill()
        return lost

    def kill(self) -> None:
        # The group holds the worker and whatever it has started. Gone already: nothing to do.
        assert self.process.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _idle(
    pool: "list[_Worker[T, R]]", workers: int, function: Callable[[Sequence[T]], Sequence[R]]
) -> "_Worker[T, R] | None":
    for worker in pool:
        if not worker.busy:
            return worker
    if len(pool) == workers:
        return None
    pool.append(_Worker(function))
    return pool[-1]


def _ready(pool: "list[_Worker[T, R]]") -> "list[_Worker[T, R]]":
    """Waits for workers that have answered, died, or are past their time."""
    busy = [worker for worker in pool if worker.busy]
    patience = max(min(worker.deadline for worker in busy) - time.monotonic(), 0)
    answered = set(wait([worker.pipe for worker in busy], patience))
    now = time.monotonic()
    return [worker for worker in busy if worker.pipe in answered or worker.deadline <= now]


def _serve(function: Callable[[Sequence[T]], Sequence[R]], pipe: Connection, parent: int) -> None:
    # A group of its own: Ctrl-C reaches the parent alone, which decides, and one signal ends the worker's children too.
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            return
    while True:
        try:
            tasks = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(tasks))
        except StopRunError as error:
            pipe.send(error)
        except Exception as error:  # noqa: BLE001 - one bad task must not stop the run; the error is its result
            pipe.send(Lost(error=f"{type(error).__name__}: {error}"))
