"""What evaluation keeps and says: calibration, predictions, views, going on after an interruption, its files."""

import csv
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.shards import ClassInfo
from models import load_model
from tests.dist import run_ranks
from tests.tiny_shards import make_classification_set, make_localisation_set
from tests.train.test_evaluators import ALONE, ByPlace, recipe_of, save_run, tasks_of
from train import evaluate
from train.checkpoint_files import find_weights
from train.evaluators import collected, common, evaluate_tasks
from train.evaluators.classification import ViewAverages, columns
from train.evaluators.collected import Collected
from train.evaluators.localisation import _runs
from train.evaluators.predictions import Predictions, calibration_error
from train.launch import init_distributed
from train.recipe import PROJECT


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_classification_set(folder, "clips", "val", samples=7)
    make_localisation_set(folder, "people", "val")
    return folder


def test_calibration_error_by_hand():
    confidence, right = np.array([0.95, 0.95, 0.35, 1.0]), np.array([True, False, False, True])
    # Bins of 1/15: {0.35}: |0 - 0.35|; {0.95, 0.95, 1.0}, from 0.933 on: |2 - 2.9|. In all (0.35 + 0.9) / 4.
    assert calibration_error(confidence, right) == pytest.approx((0.35 + 0.9) / 4)


def test_a_bin_has_its_upper_end():
    # 0.2 = 3/15 ends the third bin, and 0.21 is in the fourth: their errors of opposite sign do not cancel.
    assert calibration_error(np.array([3 / 15, 0.21]), np.array([True, False])) == pytest.approx((0.8 + 0.21) / 2)
    assert np.isnan(calibration_error(np.zeros(0), np.zeros(0, bool)))


def test_of_calibrated_confidence_the_error_is_small():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, 20_000)
    right = rng.random(20_000) < confidence
    assert calibration_error(confidence, right) < 0.02 < 0.2 < calibration_error(confidence**3, right)


def test_predictions_are_a_csv_of_names(tmp_path):
    classes = [ClassInfo(0, "eat, drink"), ClassInfo(1, "run"), ClassInfo(2, "run")]
    found = Predictions(
        np.array(["a_1", "b"]), np.array([0, -1]), np.array([[1, 0], [2, 1]]), np.array([[0.75, 0.25], [0.5, 0.5]])
    )
    found.write(tmp_path / "p.csv", classes)
    with (tmp_path / "p.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["key", "label", "top1", "score1", "top2", "score2"],
        ["a_1", "eat, drink", "run (1)", "0.750000", "eat, drink", "0.250000"],
        ["b", "", "run (2)", "0.500000", "run (1)", "0.500000"],
    ]


def test_views_are_averaged_by_softmax_or_by_logits():
    logits = torch.tensor([[0.0, 5.0], [3.0, 0.0], [3.0, 0.0]])
    one, label = torch.tensor([4, 4, 4]), torch.tensor([0, 0, 0])
    by_logits = ViewAverages(3, "logits").add(one, label, logits)[2]
    by_softmax = ViewAverages(3).add(one, label, logits)[2]
    assert torch.allclose(by_logits, torch.tensor([[2.0, 5 / 3]]).double())
    assert torch.allclose(by_softmax, logits.double().softmax(1).mean(0, keepdim=True))
    assert ViewAverages(3).are_shares and not ViewAverages(3, "logits").are_shares and not ViewAverages(1).are_shares


@pytest.mark.parametrize("average", ["softmax", "logits"])
def test_predictions_agree_with_the_metrics(world, average):
    recipe = recipe_of(world, "tasks.clips.view.eval_views=[2,1]")
    result = evaluate_tasks(ByPlace(), tasks_of(recipe)[:1], ALONE, recipe, average=average)["clips"]
    found = result.predictions
    assert found.keys.tolist() == [f"clips_{n:05d}" for n in range(7)]
    right = found.classes[:, 0] == found.labels
    assert result.metrics["top1"] == right.mean()
    assert result.metrics["ece"] == pytest.approx(calibration_error(found.probabilities[:, 0], right))
    assert np.allclose(found.probabilities.sum(axis=1), 1), "three classes, all among the best five"
    assert (np.diff(found.probabilities, axis=1) <= 0).all()


def test_rows_of_groups_in_another_order():
    assert _runs(np.array([2, 0, 3]), np.array([2, 1, 0])).tolist() == [2, 3, 4, 0, 1]
    assert _runs(np.zeros(0, int), np.zeros(0, int)).tolist() == []


class BreaksOff(ByPlace):
    """Evaluates some batches, counts them, and is interrupted."""

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left, self.seen = batches, 0

    def forward(self, task, clips, boxes=None, box_clip=None):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        self.seen += len(clips)
        return super().forward(task, clips, boxes, box_clip)


def plain(results):
    return {name: replace(result, boxes=None, frame_map=None, predictions=None) for name, result in results.items()}


@pytest.mark.parametrize("views", ["[1,1]", "[2,3]"])
def test_an_interrupted_evaluation_goes_on_and_gives_the_same(world, tmp_path, views):
    recipe = recipe_of(world, f"tasks.clips.view.eval_views={views}", "eval_batch=4")
    tasks = tasks_of(recipe)
    folders = {task.name: tmp_path / task.name for task in tasks}
    whole = evaluate_tasks(ByPlace(), tasks, ALONE, recipe)
    sets = [task.val for task in tasks if task.val is not None]
    clips = sum(len(data.shards) * data.view.views for data in sets)
    first = BreaksOff(2 if views == "[1,1]" else 9)
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(first, tasks, ALONE, recipe, folders=folders)
    second = BreaksOff(1000)
    results = evaluate_tasks(second, tasks, ALONE, recipe, folders=folders)
    assert plain(results) == plain(whole)
    for name in ("keys", "labels", "classes", "probabilities"):
        assert np.array_equal(getattr(results["clips"].predictions, name), getattr(whole["clips"].predictions, name)), (
            name
        )
    assert results["people"].boxes.keyframes == whole["people"].boxes.keyframes
    assert np.array_equal(results["people"].boxes.scores, whole["people"].boxes.scores)
    # Only examples of which not all views had been seen are looked at again (and padding, to fill the last batch).
    assert second.seen < clips
    third = BreaksOff(0)
    assert plain(evaluate_tasks(third, tasks, ALONE, recipe, folders=folders)) == plain(whole), "nothing is left to do"


def on_ranks(folder: str, kept: str) -> tuple[dict, int]:
    rank, recipe, model = init_distributed(), recipe_of(Path(folder)), BreaksOff(1000)
    folders = {name: Path(kept) / name for name in recipe.tasks}
    return plain(evaluate_tasks(model, tasks_of(recipe), rank, recipe, folders=folders)), model.seen


class GetsSigterm(BreaksOff):
    """Evaluates some batches, and is then told to end."""

    def forward(self, task, clips, boxes=None, box_clip=None):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            self.left = 1000
        return super().forward(task, clips, boxes, box_clip)


def test_sigterm_loses_nothing_that_is_done(world, tmp_path):
    recipe = recipe_of(world)
    tasks = tasks_of(recipe)[:1]
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    evaluate.stop_on_signals()
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate_tasks(GetsSigterm(2), tasks, ALONE, recipe, folders={"clips": tmp_path})
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with Collected(columns(tasks[0].val), ALONE, tmp_path) as kept:
        assert len(kept.done) >= 2 * recipe.eval_batch


STORM = """
import os, signal, sys, threading, time
from train import evaluate
from train.evaluators.collected import Collected
from train.launch import command

def storm():
    while True:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        time.sleep(0.001)

def add(self, arrays, add=Collected.add):
    add(self, arrays)
    if not any(thread.name == "storm" for thread in threading.enumerate()):
        threading.Thread(target=storm, name="storm", daemon=True).start()
        time.sleep(60)

Collected.add = add
command(evaluate.main)
"""
"""An evaluation that gets signals without end as soon as a batch of it is done."""


def test_many_signals_are_as_good_as_one(world, tmp_path):
    run = tmp_path / "run"
    save_run(world, run)
    command = [sys.executable, "-c", STORM, "--checkpoint", str(run), "--tasks", "clips"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "stopped: the same command goes on with what is done\n"
    (folder,) = (run / "eval" / "partial").iterdir()
    (file,) = folder.iterdir()
    assert file.suffix == ".npz", "whole"


def test_another_number_of_ranks_goes_on(world, tmp_path):
    recipe = recipe_of(world)
    whole = plain(evaluate_tasks(ByPlace(), tasks_of(recipe), ALONE, recipe))
    folders = {name: tmp_path / name for name in recipe.tasks}
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(BreaksOff(2), tasks_of(recipe), ALONE, recipe, folders=folders)
    for results, seen in run_ranks(on_ranks, 2, str(world), str(tmp_path)):
        assert results == whole
        # Three of the seven clips and eight keyframes are left for two ranks, in batches of two.
        assert seen == 2 + 4


COLUMNS = {"example": np.zeros(0, np.int64), "score": np.zeros((0, 2)), "key": np.zeros(0, "<U1")}


def some(*examples: int) -> dict[str, np.ndarray]:
    rows = len(examples)
    return {"example": np.array(examples), "score": np.ones((rows, 2)), "key": np.array([f"k{e}" for e in examples])}


def test_what_was_kept_is_taken_up_and_files_that_do_not_fit_are_passed_over(tmp_path):
    with Collected(COLUMNS, ALONE, tmp_path) as first:
        first.add(some(3, 1))
        assert list(tmp_path.iterdir()) == [], "a file for every batch would be too many"
    with Collected(COLUMNS, ALONE, tmp_path) as second:
        second.add(some(2))
    (tmp_path / "broken.npz").write_bytes(b"PK no archive")
    np.savez(tmp_path / "zz-twice.npz", **some(3, 9))
    np.savez(tmp_path / "columns.npz", example=np.array([7]))
    np.savez(tmp_path / "objects.npz", **{**some(8), "key": np.array([{}], dtype=object)})
    last = Collected(COLUMNS, ALONE, tmp_path)
    assert sorted(last.done.tolist()) == [1, 2, 3]
    assert sorted(last.all()["key"].tolist()) == ["k1", "k2", "k3"] and last.all()["score"].shape == (3, 2)


def test_results_are_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(collected, "FLUSH_SECONDS", 0.0)
    kept = Collected(COLUMNS, ALONE, tmp_path)
    kept.add(some(0))
    kept.add(some(1))
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_a_folder_that_cannot_be_written_costs_the_keeping_alone(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with Collected(COLUMNS, ALONE, tmp_path / "file" / "folder") as kept:
        kept.add(some(0))
    assert "cannot be kept" in capsys.readouterr().err and kept.all()["example"].tolist() == [0]


def test_how_far_it_is_is_told_where_there_is_no_terminal(world, capsys, monkeypatch):
    monkeypatch.setattr(common, "TELL_SECONDS", 0.0)
    recipe = recipe_of(world)
    evaluate_tasks(ByPlace(), tasks_of(recipe)[:1], ALONE, recipe)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("evaluating clips: 2 of 7 examples, ") and lines[0].endswith(" left")
    assert lines[-1].startswith("evaluating clips: 7 of 7 examples, ") and lines[-1].endswith(" 0:00 left")


def run_command(run: Path, *arguments: str) -> dict:
    evaluate.run(evaluate.parser().parse_args(["--checkpoint", str(run), *arguments]), ALONE)
    return json.loads((run / "eval" / "metrics.json").read_text())["tasks"]


def count_labels(world: Path, counts: list[int]) -> None:
    path = world / "people-val.manifest.json"
    manifest = json.loads(path.read_text())
    manifest["settings"]["per_class"] = [[n, n] for n in counts]
    path.write_text(json.dumps(manifest))


def test_the_command_says_head_and_tail_and_the_ceiling(tmp_path, capsys):
    make_classification_set(tmp_path, "clips", "val", samples=3)
    make_localisation_set(tmp_path, "people", "val")
    save_run(tmp_path, tmp_path / "run")
    tasks = run_command(tmp_path / "run", "--tasks", "people,clips")
    assert "no counts per class" in capsys.readouterr().err and tasks["people"]["training_counts"] is None
    count_labels(tmp_path, [50, 5, 1])
    tasks = run_command(tmp_path / "run", "--tasks", "people", "--cutoffs", "5", "10", "--ceiling")
    people = tasks["people"]
    assert list(tasks) == ["clips", "people"] and people["training_counts"] == {"1": 50, "3": 5, "7": 1}
    metrics, per_class = people["metrics"], people["per_class"]
    assert metrics["mAP/head (> 10)"] == per_class["action 1"]
    assert metrics["mAP/mid (5 to 10)"] == per_class["action 3"]
    assert metrics["mAP/tail (< 5)"] == per_class["action 7"]
    # The one proposal above the threshold is the ground truth's box in this set.
    assert metrics["mAP_groundtruth_boxes"] == metrics["mAP"] and metrics["box_recall"] == 1.0


def test_the_command_writes_predictions_and_leaves_nothing_behind(world, tmp_path):
    save_run(world, tmp_path / "run")
    run_command(tmp_path / "run", "--view-average", "logits")
    rows = (tmp_path / "run" / "eval" / "clips_predictions.csv").read_text().splitlines()
    assert rows[0] == "key,label,top1,score1,top2,score2,top3,score3" and len(rows) == 8
    assert not (tmp_path / "run" / "eval" / "partial").exists()


def test_one_task_after_the_other_is_as_good_as_all_at_once(world, tmp_path, capsys):
    run = tmp_path / "run"
    save_run(world, run)
    whole = run_command(run)
    for name in ("metrics.json", "people_detections.csv"):
        (run / "eval" / name).unlink()
    run_command(run, "--tasks", "people")
    assert run_command(run, "--tasks", "clips") == whole
    # Of other weights nothing is kept, and that is told; older files did not name their weights.
    for other in ({"sha256": "other weights"}, {}):
        metrics = json.loads((run / "eval" / "metrics.json").read_text())
        del metrics["sha256"]
        (run / "eval" / "metrics.json").write_text(json.dumps({**metrics, **other, "tasks": whole}))
        capsys.readouterr()
        assert list(run_command(run, "--tasks", "clips")) == ["clips"]
        assert "the CSV files of people in" in capsys.readouterr().out


def test_what_decides_the_figures_stands_beside_them(world, tmp_path, capsys):
    save_run(world, tmp_path / "run")
    run_command(tmp_path / "run", "--tasks", "clips", "--limit", "3", "--view-average", "logits")
    assert "note: of each task 3 examples at most" in capsys.readouterr().out
    run_command(tmp_path / "run", "--tasks", "people", "tasks.people.view.eval_boxes=groundtruth")
    assert "note: people: on the ground truth's boxes" in capsys.readouterr().out
    tasks = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())["tasks"]
    clips, people = (tasks[name]["settings"] for name in ("clips", "people"))
    assert (clips["limit"], clips["view_average"], clips["precision"]) == (3, "logits", "fp32")
    assert (people["limit"], people["view"]["eval_boxes"]) == (None, "groundtruth")
    run_command(tmp_path / "run")
    assert "note" not in capsys.readouterr().out


def test_what_is_kept_of_other_tasks_outlives_an_evaluation(world, tmp_path, monkeypatch):
    run, interrupted = tmp_path / "run", BreaksOff(1)
    save_run(world, run)
    kept = run / "eval" / "partial"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(evaluate, "read_model", lambda weights, recipe: (interrupted, load_model(weights)[1]))
        run_command(run, "--tasks", "clips")
    (clips,) = kept.iterdir()
    files = sorted(clips.iterdir())
    assert files
    run_command(run, "--tasks", "people", "--ceiling")
    run_command(run, "--tasks", "people", "--restart")
    assert sorted(kept.rglob("*.npz")) == files, "of the one that is done nothing is left, of the other all"
    run_command(run, "--tasks", "clips")
    assert not kept.exists()


def test_restart_forgets_what_was_done_of_the_tasks_it_evaluates(world, tmp_path, monkeypatch):
    run = tmp_path / "run"
    save_run(world, run)
    for arguments in ([], ["--restart"]):
        interrupted = BreaksOff(1)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(evaluate, "read_model", lambda weights, _, model=interrupted: (model, load_model(weights)[1]))
            run_command(run, "--tasks", "clips", *arguments)
    (clips,) = (run / "eval" / "partial").iterdir()
    assert len(list(clips.iterdir())) == 1


def test_a_checkpoint_is_named_by_its_folder_or_its_file(world, tmp_path):
    save_run(world, tmp_path)
    folder = tmp_path / "checkpoints" / "step-000012"
    assert find_weights(tmp_path) == find_weights(folder) == find_weights(folder / "model.safetensors") == folder


def test_results_of_another_checkpoint_or_recipe_are_not_used(world, tmp_path):
    recipe = save_run(world, tmp_path / "run")
    task, people = tasks_of(recipe)
    other_view = tasks_of(recipe_of(world, "tasks.clips.view.stride=1"))[0]
    same = evaluate.identity(task, recipe, "digest", {"limit": None})
    assert same == evaluate.identity(tasks_of(recipe)[0], recipe_of(world, "eval_batch=7"), "digest", {"limit": None})
    assert same == evaluate.identity(task, recipe_of(world, "model.attention=eager"), "digest", {"limit": None})
    others = [
        evaluate.identity(task, recipe, "other", {"limit": None}),
        evaluate.identity(task, recipe, "digest", {"limit": 3}),
        evaluate.identity(task, recipe_of(world, "precision=bf16"), "digest", {"limit": None}),
        evaluate.identity(other_view, recipe, "digest", {"limit": None}),
        evaluate.identity(people, recipe, "digest", {"limit": None}),
    ]
    assert len({same, *others}) == 6


def test_cutoffs_in_the_wrong_order_are_refused(world, tmp_path):
    save_run(world, tmp_path / "run")
    with pytest.raises(UserError, match="--cutoffs 9 3: expected LOW"):
        run_command(tmp_path / "run", "--cutoffs", "9", "3")
