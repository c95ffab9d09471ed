"""The worker pool: order, crashes, hangs, errors, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from shard_tools.workers import Lost, run_ordered


def double(tasks):
    time.sleep(0.01 * (tasks[0] % 3))
    return [2 * task for task in tasks]


def mischief(tasks):
    for task in tasks:
        if task == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "hang":
            time.sleep(60)
        if task == "raise":
            raise KeyError("what")
    return [(task, len(tasks)) for task in tasks]


def start_sleep(tasks):
    child = subprocess.Popen(["sleep", "60"])
    Path(tasks[0]).write_text(f"{os.getpid()} {child.pid}")
    child.wait()
    return tasks


def sizes(tasks, batch):
    return [min(batch, tasks - first) for first in range(0, tasks, batch)]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (3, 1), (2, 4), (5, 3)])
def test_results_come_in_order(workers, batch):
    assert list(run_ordered(double, range(50), workers, 30, sizes(50, batch))) == [2 * n for n in range(50)]


def test_nothing_to_do():
    assert list(run_ordered(double, [], 2, 30)) == []


@pytest.mark.parametrize(
    ("bad", "lost"), [("crash", Lost()), ("hang", Lost(timeout=True)), ("raise", Lost(error="KeyError: 'what'"))]
)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_bad_task_is_lost_alone(bad, lost, batch):
    tasks = ["a", "b", bad, "d", "e", "f"]
    results = list(run_ordered(mischief, tasks, 2, 0.5, sizes(6, batch)))
    assert results[2] == lost
    assert [result[0] for n, result in enumerate(results) if n != 2] == ["a", "b", "d", "e", "f"]
    if batch == 4:
        assert results[0] == ("a", 1) and results[5] == ("f", 2), "of the lost call each is tried alone"


def test_every_task_may_crash():
    assert list(run_ordered(mischief, ["crash"] * 5, 2, 5)) == [Lost()] * 5


def test_closing_early_ends_workers_and_what_they_started(tmp_path):
    note = tmp_path / "pids"
    with closing(run_ordered(start_sleep, [str(note)], 1, 1)) as results:
        assert next(results) == Lost(timeout=True)
    worker, child = note.read_text().split()
    assert wait_until(lambda: not alive(worker) and not alive(child))


def test_workers_end_when_the_parent_is_killed(tmp_path):
    note = tmp_path / "pids"
    code = f"from tests.shard_tools.test_workers import *\nlist(run_ordered(start_sleep, [{str(note)!r}], 1, 60))"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert wait_until(lambda: note.exists() and note.read_text().count(" "))
    worker, child = note.read_text().split()
    parent.kill()
    parent.wait()
    assert wait_until(lambda: not alive(worker))
    os.kill(int(child), signal.SIGKILL)  # a plain child, without setpriv: ended here
