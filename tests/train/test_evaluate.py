"""train/evaluate.py evaluates one checkpoint, whatever becomes of the run's folder meanwhile."""

from pathlib import Path

import pytest

from data.errors import UserError
from tests.dist import run_ranks
from train import evaluate
from train.checkpoint_files import State
from train.launch import init_distributed


def checkpoint(run: Path, step: int) -> Path:
    folder = run / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(State(step=step, world=1, recipe="").to_json())
    (folder / "model.safetensors").touch()
    return folder


def chosen(run: str) -> tuple[Path, int | None]:
    """On the second rank a newer checkpoint has come to light already."""
    rank, find = init_distributed(), evaluate.find_weights
    evaluate.find_weights = lambda path: find(path if rank.first else Path(run) / "checkpoints" / "step-000004")
    return evaluate.choose_weights(Path(run) / "checkpoints" / "step-000002", rank)


def test_all_ranks_evaluate_what_the_first_one_has_chosen(tmp_path):
    folder = checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    assert run_ranks(chosen, 2, str(tmp_path)) == [(folder, 2)] * 2


def missing(run: str) -> str:
    with pytest.raises(UserError) as told:
        evaluate.choose_weights(Path(run), init_distributed())
    return str(told.value)


def test_a_checkpoint_that_is_not_there_is_told_on_all_ranks(tmp_path):
    assert all("no checkpoint at" in text for text in run_ranks(missing, 2, str(tmp_path)))


def test_weights_alone_are_of_no_step(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert run_ranks(choice, 1, str(tmp_path)) == [(tmp_path, None)]


def choice(folder: str) -> tuple[Path, int | None]:
    return evaluate.choose_weights(Path(folder), init_distributed())
