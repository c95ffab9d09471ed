"""Signals become a flag that a run ends on; those that nothing could be saved for still end a process at once."""

import os
import signal

import pytest
import torch

from data.errors import UserError
from train.launch import StopSignal, init_distributed

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
