"""No loader process outlives its run, however the run ends; a shard that breaks costs its own samples alone."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data import loader
from data.dataset import MixtureDataset
from data.loader import train_loader
from data.shards import ShardSet
from tests.data.examples import Counting, task

RUN = """
import os, sys, time
from contextlib import closing
from data.dataset import MixtureDataset
from data.loader import train_loader
from data.shards import ShardSet
from tests.data.examples import mixture, task
from tests.data.test_loader import children
from train.launch import StopSignal, command

class Stuck(MixtureDataset):
    def __getitems__(self, indices):
        if indices[0][1] >= 30:
            time.sleep(60)  # a download from a server that does not answer
        return super().__getitems__(indices)

def main():
    stop = StopSignal() if {graceful} else None
    if stop:
        stop.take_all()
    sets = Stuck([task(ShardSet({prefix!r}))], mixture(task(ShardSet({prefix!r}))).orders, 0)
    with closing(train_loader(sets, ([(0, p)] for p in range(10**9)), workers=2)) as loader:
        for number, batch in enumerate(loader):
            if number == 0:
                print(*children(), flush=True)
            if number == 20 and {raises}:
                raise LookupError("a defect of the run")
            if stop and stop.number:
                return
            if not {raises}:
                time.sleep(0.1)

command(main)
"""


def alive(pid: int) -> bool:
    """Whether there is such a process, one that has ended and was not waited for included."""
    return Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("how", "code", "told"),
    [
        ("exception", 1, "a defect of the run"),
        ("ctrl-c", 0, ""),
        ("ctrl-c at once", 130, ""),
        ("kill -9", -signal.SIGKILL, ""),
        ("kill -9 of a worker", 1, "a process that loads data has died: "),
    ],
)
def test_workers_end_with_their_run(classification, tmp_path, monkeypatch, how, code, told):
    """At once, though each of them is at something that takes a minute."""
    script = RUN.format(prefix=classification.prefix, raises=how == "exception", graceful=how == "ctrl-c")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where nobody else is at work
    # In a session of its own: Ctrl-C goes to all processes of the group.
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2 and all(map(alive, workers))
        if how.startswith("ctrl-c"):
            os.killpg(process.pid, signal.SIGINT)
        elif how == "kill -9":
            process.kill()
        elif how == "kill -9 of a worker":
            os.kill(workers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == code and told in errors, errors
    assert how == "exception" or "Traceback" not in errors, errors
    if how != "kill -9":
        assert not any(map(alive, workers))
    deadline = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    shared = [path for pid in (process.pid, *workers) for path in Path("/dev/shm").glob(f"torch_{pid}_*")]
    assert list(tmp_path.iterdir()) == [] and shared == []


def test_closing_waits_for_nothing_that_workers_are_at(classification):
    """torch's own end joins each of two workers for five seconds."""

    class Stuck(MixtureDataset):
        def __getitems__(self, indices):
            if indices[0][1] > 3:
                time.sleep(60)
            return super().__getitems__(indices)

    sets = Stuck([task(classification)], [Counting(len(classification))], 0)
    loader = train_loader(sets, [[(0, position)] for position in range(20)], workers=2)
    batches = iter(loader)
    next(batches)
    workers = [child.pid for child in multiprocessing.active_children()]
    began = time.monotonic()
    loader.close()
    assert time.monotonic() - began < 9 and multiprocessing.active_children() == []
    assert len(workers) == 2 and not any(map(alive, workers))
    loader.close()
    with pytest.raises(AssertionError, match="closed"):
        iter(loader)


@pytest.mark.parametrize("damage", ["a header", "a video", "a record"])
def test_a_corrupt_shard_costs_only_its_own_samples(classification, tmp_path, damage):
    shutil.copytree(Path(classification.folder), tmp_path / "copy")
    row = classification.index[1]
    tar = tmp_path / "copy" / classification.manifest.shards[int(row["shard"])].name
    content = bytearray(tar.read_bytes())
    places = {"a header": (int(row["json_offset"]) - 512, 512), "a record": (int(row["json_offset"]), 40)}
    start, size = places.get(damage, (int(row["video_offset"]), int(row["video_bytes"])))
    content[start : start + size] = b"\xff" * size
    tar.write_bytes(content)

    def load(shards: ShardSet):
        sets = MixtureDataset([task(shards)], [Counting(len(shards))], 0)
        return list(train_loader(sets, [[(0, position)] for position in range(len(shards))], workers=1))

    for position, (whole, broken) in enumerate(
        zip(load(classification), load(ShardSet(tmp_path / "copy" / "kinetics-train")), strict=True)
    ):
        # Samples are found by the index: a header that is no longer one costs nothing at all.
        if position == 1 and damage != "a header":
            assert len(broken.substitutes) == 1 and broken.keys != whole.keys
        else:
            assert not broken.substitutes and torch.equal(broken.clips, whole.clips)


HOLES = """
import numpy as np
from pathlib import Path
from data import loader

def resident():
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmRSS"))

loader._keep_freed_memory()
blocks = [np.ones(2**20, dtype=np.uint8) for _ in range(200)]
del blocks[::2]  # holes between what stays
full = resident()
loader._trim(loader.TRIM_CLIPS - 1)
kept = resident()
loader._trim(1)
print(full - kept, full - resident())
"""


def test_a_worker_gives_back_the_holes_between_what_stays():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert abs(before) < 10_000 and after > 80_000  # KB


def test_a_socket_that_is_made_meanwhile_goes_too(tmp_path, monkeypatch):
    folder, own, calls = tmp_path / "loader-x", shutil.rmtree, []
    folder.mkdir()

    def interrupted(path, ignore_errors):
        own(path, ignore_errors=ignore_errors)
        calls.append(path)
        if len(calls) == 1:  # the folder was not empty any more when it was to go
            folder.mkdir()
            (folder / "listener").touch()

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    loader._remove_folder(str(folder))
    assert len(calls) == 2 and not folder.exists()
