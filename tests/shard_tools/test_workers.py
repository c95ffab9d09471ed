"""The worker pool: order, crashes, hangs, errors, and that nothing outlives it."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from shard_tools.workers import Lost, StopRunError, run_ordered


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


def worker_of(tasks):
    return [os.getpid() for _ in tasks]


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


def test_no_task_goes_to_a_worker_that_died_while_it_had_none():
    with closing(run_ordered(worker_of, range(9), 1, 10)) as results:
        first = next(results)
        os.kill(first, signal.SIGKILL)
        assert wait_until(lambda: not alive(first))
        rest = list(results)
    assert len(rest) == 8 and len(set(rest)) == 1 and first not in rest and Lost() not in rest


def test_a_task_that_a_dying_worker_never_took_goes_to_another():
    with closing(run_ordered(worker_of, range(9), 1, 10)) as results:
        first = next(results)
        os.kill(first, signal.SIGSTOP)  # it lives, and does not read what it is sent
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {first}"])
        rest = list(results)
        killer.wait()
    assert len(rest) == 8 and len(set(rest)) == 1 and first not in rest and Lost() not in rest


def test_a_large_task_that_a_dying_worker_took_in_part_goes_to_another():
    with closing(run_ordered(worker_of, [b"", bytes(2**24)], 1, 10)) as results:
        first = next(results)
        os.kill(first, signal.SIGSTOP)
        killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {first}"])
        (second,) = results
        killer.wait()
    assert second not in (first, Lost())


def test_workers_that_all_die_before_they_begin_end_the_run(monkeypatch):
    monkeypatch.setattr(os, "setpgid", lambda *_: os._exit(1))  # the first thing that they do
    with pytest.raises(StopRunError, match="worker processes die before they begin"):
        list(run_ordered(double, range(3), 2, 10))


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
