"""What TensorBoard shows of evaluations during training, and the files and figures that evaluation leaves."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.tiny_shards import make_classification_set, make_localisation_set
from tests.train.test_evaluation_results import count_labels, run_command
from tests.train.test_evaluators import ALONE, ByPlace, recipe_of, save_run, tasks_of
from train.ava_classes import DEFAULT_CUTOFFS
from train.eval_board import EvalBoard
from train.eval_files import break_down
from train.evaluators import evaluate_tasks
from train.run_log import RunLog
from train.tasks import open_tasks


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_classification_set(folder, "clips", "val", samples=7)
    make_localisation_set(folder, "people", "val")
    count_labels(folder, [50, 5, 1])
    return folder


def test_scalars_and_pictures_of_an_evaluation(world, tmp_path):
    recipe = recipe_of(world)
    tasks = tasks_of(recipe)
    results = evaluate_tasks(ByPlace(), tasks, ALONE, recipe, chance=False)
    board = EvalBoard(tasks, 2)
    scalars, before = board.scalars(results), torch.get_rng_state()
    assert scalars == {f"people_AP/action {n}": 1.0 for n in (1, 3, 7)}
    log = RunLog(tmp_path, ALONE, steps=4, every=1, start=0)
    for step in (2, 4):
        log.show(step, scalars, board.pictures(results))
    log.close()
    assert torch.equal(before, torch.get_rng_state()), "training draws on as if there were no pictures"
    shown = EvalBoardReader(tmp_path / "tensorboard")
    tags = ["clips/confusion", "people/ap_by_frequency"]
    tags += [f"people_keyframes/movie.{n}, 902 s" for n in (1, 3)]
    assert shown.images == {tag: [2, 4] for tag in tags}
    assert shown.scalars == {name: [(2, 1.0), (4, 1.0)] for name in scalars}
    assert list(tmp_path.glob("*.png")) == []


class EvalBoardReader:
    def __init__(self, folder: Path) -> None:
        found = EventAccumulator(str(folder)).Reload()
        tags = found.Tags()
        self.images = {tag: [event.step for event in found.Images(tag)] for tag in tags["images"]}
        self.scalars = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}


def test_a_class_without_ground_truth_has_no_scalar_and_no_keyframes_are_no_pictures(world):
    recipe = recipe_of(world)
    tasks = tasks_of(recipe)[1:]
    results = evaluate_tasks(ByPlace(), tasks, ALONE, recipe, limit=2, chance=False)
    board = EvalBoard(tasks, 0)
    assert set(board.scalars(results)) == {"people_AP/action 1", "people_AP/action 7"}, "of movies 0 and 2"
    assert list(board.pictures(results)()) == ["people/ap_by_frequency"]


def test_a_breakdown_has_the_counts_of_the_training_shards_whether_they_are_open_or_not(world):
    recipe = recipe_of(world)
    for tasks in (tasks_of(recipe)[1:], open_tasks(recipe)[1:]):
        result = evaluate_tasks(ByPlace(), tasks, ALONE, recipe, chance=False)["people"]
        b = break_down(tasks[0], result, DEFAULT_CUTOFFS)
        assert b.training is not None and b.training.tolist() == [50, 5, 1]
        assert b.recall.tolist() == [1, 1, 1] and b.result.instances.tolist() == [4, 2, 2]


def test_the_command_writes_confusion_and_figures(world, tmp_path):
    save_run(world, tmp_path / "run")
    tasks = run_command(tmp_path / "run", "--cutoffs", "5", "10")
    folder = tmp_path / "run" / "eval"
    with (folder / "clips_confusion.csv").open() as file:
        cells = list(csv.DictReader(file))
    right = sum(int(cell["count"]) for cell in cells if cell["true"] == cell["predicted"])
    assert sum(int(cell["count"]) for cell in cells) == 7
    assert right / 7 == pytest.approx(tasks["clips"]["metrics"]["top1"])
    for name in ("clips_confusion.png", "people_ap_by_frequency.png"):
        assert np.asarray(Image.open(folder / name)).std() > 5
    assert not list(folder.glob("*.partial"))
