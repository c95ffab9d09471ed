"""No loader process outlives its run, however the run ends; a shard that breaks costs its own samples alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.dataset import MixtureDataset
from data.loader import train_loader
from data.shards import ShardSet
from tests.data.test_dataset import Counting, task

RUN = """
import os, sys
from data.loader import train_loader
from data.shards import ShardSet
from tests.data.test_dataset import mixture, task
from tests.data.test_loader import children
from train.launch import StopSignal, command

def main():
    stop = StopSignal() if {graceful} else None
    sets = mixture(task(ShardSet({prefix!r})))
    for number, batch in enumerate(train_loader(sets, ([(0, p)] for p in range(10**9)), workers=2)):
        if number == 0:
            print(*children(), flush=True)
        if number == 20 and {raises}:
            raise LookupError("a defect of the run")
        if stop and stop.name:
            return

command(main)
"""


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text().splitlines()[2]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("how", "code"), [("exception", 1), ("ctrl-c", 0), ("ctrl-c at once", 130), ("kill -9", -signal.SIGKILL)]
)
def test_workers_end_with_their_run(classification, how, code):
    script = RUN.format(prefix=classification.prefix, raises=how == "exception", graceful=how == "ctrl-c")
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
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert ("a defect of the run" in errors) == (how == "exception")
    deadline = time.monotonic() + 30  # a worker looks every few seconds whether its run is still there
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, workers))


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
