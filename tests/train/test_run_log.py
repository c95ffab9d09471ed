"""The log of a run: it says when it cannot be written, and two runs do not share one."""

import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.batch import Batch
from data.errors import UserError
from train.launch import Rank
from train.run_log import RunLog

ALONE = Rank(0, 1, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_full_disk_is_told(tmp_path):
    log = RunLog(tmp_path, ALONE, steps=1000, every=1, start=0)
    log.step(0, {"look": 1.0}, 4, 0.1, 1e-3, 1.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write past the limit is an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"the log in .* cannot be written: .*--resume goes on"):
            for step in range(1, 30):
                log.step(step, {"look": 1.0}, 4, 0.1, 1e-3, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)


def test_rate_and_memory_are_plotted(tmp_path, monkeypatch):
    flops = {"look": 2e12, "where": 1e12}
    log = RunLog(tmp_path, ALONE, steps=2, every=1, start=0, training_flops=flops, device_rate=9e12)
    clips = torch.zeros(3, 3, 1, 2, 2, dtype=torch.uint8)
    for task in ("look", "where"):
        log.loaded([Batch(task, clips, ["a"] * 3, torch.arange(3), torch.zeros(3), counts={"clips": 3.0})])
    now = log._since
    monkeypatch.setattr(time, "monotonic", lambda: now + 2.0)
    log.step(0, {"look": 1.0, "where": 1.0}, 6, 0.1, 1e-3, 1.0)
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (rate,) = board.Scalars("speed/tflops_per_rank")
    # Three clips of 2 TFLOP and three of 1 in two seconds.
    assert rate.value == pytest.approx(4.5)
    (share,) = board.Scalars("speed/utilisation")
    assert share.value == pytest.approx(0.5)
    (memory,) = board.Scalars("memory/process_gb")
    assert memory.value == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, rel=0.2)


def test_an_evaluation_does_not_count_as_speed(tmp_path, monkeypatch, capsys):
    log = RunLog(tmp_path, ALONE, steps=4, every=1, start=0)
    now = log._since
    monkeypatch.setattr(time, "monotonic", lambda: now)
    now += 2
    log.step(0, {"look": 1.0}, 8, 1.0, 1e-3, 1.0)
    with log.pause():
        now += 100
    now += 2
    log.step(1, {"look": 1.0}, 8, 1.0, 1e-3, 1.0)
    log.close()
    first, second = capsys.readouterr().out.splitlines()
    assert "4 clips/s  data wait 50%  left 0:06" in first
    assert "4 clips/s  data wait 50%  left 1:44" in second


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match=r"run cannot be written: .*File exists"):
        RunLog(tmp_path / "run", ALONE, steps=1, every=1, start=0)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path):
    log = RunLog(tmp_path, ALONE, steps=1, every=1, start=0)
    log.say("first")
    other = f"""
import torch
from data.errors import UserError
from train.launch import Rank
from train import run_log
from train.run_log import RunLog
run_log.LOCK_WAIT = 0.3
try:
    RunLog({str(tmp_path)!r}, Rank(0, 1, torch.device("cpu")), steps=1, every=1, start=0)
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert f"another run is writing to {tmp_path}" in done.stdout, done.stderr
    log.close()
    done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
    assert done.stdout == "", "the first has ended"


def test_pictures_are_drawn_beside_the_run_and_are_there_in_the_end(tmp_path):
    log, drawing = RunLog(tmp_path, ALONE, steps=1, every=1, start=0), threading.Event()

    def draw() -> dict[str, np.ndarray]:
        assert drawing.wait(60), "the run does not wait for its pictures"
        return {"ava/confusion": np.full((4, 6, 3), 200, np.uint8)}

    log.show(3, {"ava_AP/stand": 0.5}, draw)
    drawing.set()
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (picture,) = board.Images("ava/confusion")
    assert (picture.step, picture.width, picture.height) == (3, 6, 4)
    assert [(e.step, e.value) for e in board.Scalars("ava_AP/stand")] == [(3, 0.5)]


def test_what_goes_wrong_with_a_picture_is_not_silent(tmp_path):
    log = RunLog(tmp_path, ALONE, steps=1, every=1, start=0)

    def draw() -> dict[str, np.ndarray]:
        raise ZeroDivisionError("a defect")

    log.show(1, {}, draw)
    with pytest.raises(ZeroDivisionError, match="a defect"):
        log.show(2, {})
    log.close()


@pytest.mark.parametrize("start", [0, 2])
def test_points_of_an_attempt_that_left_no_checkpoint_are_dropped(tmp_path, monkeypatch, start):
    now = time.time()
    for attempt, steps in ((1, 6), (2, 4)):
        monkeypatch.setattr(time, "time", lambda later=now + attempt: later)  # files are read in the order of seconds
        log = RunLog(tmp_path, ALONE, steps=10, every=1, start=0 if attempt == 1 else start)
        for step in range(log.start, steps):
            log.step(step, {"look": float(attempt)}, 4, 0.1, 1e-3, 1.0)
        log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(event.step, event.value) for event in board.Scalars("loss/look")]
    assert points == [(step, 1.0 if step <= start else 2.0) for step in range(1, 5)]
