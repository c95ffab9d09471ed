"""Signals become a flag that a run ends on; those that nothing could be saved for still end a process at once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from tests.dist import run_ranks
from tests.train.tiny_runs import run_tiny
from train import launch
from train.launch import StopSignal, ToldError, init_distributed
from train.recipe import PROJECT
from train.tasks import Task

NUMBERS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture(autouse=True)
def handlers():
    kept = {number: signal.getsignal(number) for number in NUMBERS}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def test_the_warning_of_slurm_counts_before_training_has_begun():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopSignal()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.number == signal.SIGUSR1
    assert signal.getsignal(signal.SIGTERM) is before, "ends a process that has nothing to save"


@pytest.mark.parametrize("number", NUMBERS)
def test_all_count_from_the_first_step_on(number):
    stop = StopSignal()
    stop.take_all()
    os.kill(os.getpid(), number)
    assert stop.number == number


def test_a_second_interrupt_ends_at_once():
    stop = StopSignal()
    stop.take_all()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_run_under_nohup_outlives_its_terminal():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopSignal()
    stop.take_all()
    os.kill(os.getpid(), signal.SIGHUP)
    assert stop.number == 0


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"process 3 of its machine has no GPU: .* sees 2.*--num_gpus 2.*_node 2"):
        init_distributed()


def test_gpus_of_a_job_that_pytorch_cannot_use_are_no_reason_to_train_on_its_cpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"this job 8 GPUs.*nvidia-smi.*CUDA_VISIBLE_DEVICES=.*SLURM_GPUS_ON_NODE=0"):
        init_distributed()


@pytest.mark.parametrize(("given", "visible"), [("8", ""), ("0", None), ("", None), (None, None)])
def test_cpus_are_used_where_no_gpu_was_given_or_none_is_wanted(given, visible, monkeypatch):
    for name, value in {"SLURM_GPUS_ON_NODE": given, "CUDA_VISIBLE_DEVICES": visible}.items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    launch._check_not_given_gpus()


FAILS = """
import sys
import torch
import torch.distributed as dist
from train import lifeline, launch
def main():
    raise {error}
launch.VERDICT_WAIT = 0.1
launch.command(main)
"""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("dist.DistBackendError('NCCL error: Duplicate GPU detected')", "error: rank 1: NCCL error: Duplicate GPU"),
        ("dist.DistNetworkError('port 29500 is taken')", "error: rank 1: port 29500 is taken"),
        (
            "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB')",
            "error: rank 1: out of GPU memory; docs/training.md says what helps. It says: CUDA out of memory",
        ),
        (
            "RuntimeError('pair.cc: Connection closed by peer')",
            "rank 1: ends because another rank has ended; if",
        ),
    ],
)
def test_why_a_collective_failed_or_memory_ran_out_is_told(error, told):
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", FAILS.format(error=error)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr


def test_a_micro_batch_that_does_not_fit_is_told_with_its_task(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Task, "loss", full)
    with pytest.raises(UserError, match=r"of (\w+): lower tasks\.\1\.micro_batch; .* Tried to allocate 2\.00 GiB"):
        run_tiny(str(tmp_path), None, [])


def fetch(folder: Path) -> list[bool]:
    """Whether a rank found what rank 0 is slow to write into a shared folder, each time that it has looked."""
    rank, found = init_distributed(), []

    def work() -> None:
        found.append((folder / "file").exists())
        if rank.first:
            time.sleep(0.5)
            (folder / "file").touch()

    def fail() -> None:
        raise UserError("no network")

    rank.first_alone(work)
    rank.first_alone(work, alone=False)
    with pytest.raises(ToldError, match="rank 0: no network"):
        rank.first_alone(fail)
    return found


def test_ranks_wait_for_what_rank_0_fetches_into_a_folder_that_they_share(tmp_path):
    assert run_ranks(fetch, 2, tmp_path) == [[False, True], [True, True]]
