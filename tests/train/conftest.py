"""A small world on disk, training on it in this process, and a model to predict with."""

import signal
from pathlib import Path

import pytest
import torch

from tests.train.commands import make_world
from tests.train.predicting import make_model
from train import main
from train.launch import Rank


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with shards and `recipe.yaml`."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def train_here(world, monkeypatch):
    """Runs train/main.py in this process."""
    monkeypatch.chdir(world)
    rank = Rank(0, 1, torch.device("cpu"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield lambda *args: main.run(main.parser().parse_intermixed_args(["--recipe", "recipe.yaml", *args]), rank)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))
