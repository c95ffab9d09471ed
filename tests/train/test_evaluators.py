"""Evaluation: metrics by hand, every example once whatever the number of ranks, and files that give the same mAP."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.batch import PADDING
from data.dataset import EvalDataset, TaskData
from data.errors import UserError
from data.shards import ClassInfo
from models import save_model
from models.weights import read_model_config
from tests.dist import run_ranks
from tests.tiny_shards import class_video, make_classification_set, make_localisation_set, video_record, write_set
from train import ava_map
from train.ava_classes import NOT_EVALUATED, group_masks, is_evaluated
from train.checkpoint_files import find_weights
from train.eval_table import lost_at_packing
from train.evaluators import Result, evaluate_all, evaluate_tasks
from train.evaluators.classification import ViewAverages, accuracies, places
from train.launch import Rank, init_distributed
from train.model import build_model, model_config
from train.recipe import PROJECT, Recipe, dump_recipe, parse_recipe
from train.tasks import Task, open_tasks

ALONE = Rank(0, 1, torch.device("cpu"))
RECIPE = """
name: tiny
out: {folder}/run
steps: 1
workers: 0
eval_batch: 2
model: {{name: vit_tiny, embed_dim: 32, depth: 1, num_heads: 2, num_frames: 4, image_size: 32}}
tasks:
  clips: {{kind: classification, shards: "{folder}/clips-val", val_shards: "{folder}/clips-val"}}
  people: {{kind: localisation, shards: "{folder}/people-val", val_shards: "{folder}/people-val"}}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder of two small sets: 7 clips of 3 classes, 4 samples of 2 keyframes with one person."""
    folder = tmp_path_factory.mktemp("world")
    make_classification_set(folder, "clips", "val", samples=7)
    make_localisation_set(folder, "people", "val")
    return folder


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    return parse_recipe(RECIPE.format(folder=folder), "tiny", list(overrides))


def tasks_of(recipe: Recipe) -> list[Task]:
    return open_tasks(recipe, train=False)


class ByPlace(nn.Module):
    """Knows each person of `make_localisation_set` by the place of the box, and sees clips by their mean colour."""

    def forward(self, task, clips, boxes=None, box_clip=None):
        if task == "clips":
            return clips.float().mean(dim=(2, 3, 4)) @ torch.tensor([[1.0, 0, -1], [0, 1.0, 0.5], [-1, 0.3, 1]])
        sample = (boxes[:, 0] * 16 - 1).round().long()
        confidence = 2 + sample[:, None] + clips.float().mean(dim=(1, 2, 3, 4))[box_clip, None] / 255
        return torch.where(torch.arange(3) == sample[:, None] % 3, confidence, -confidence)


def test_a_labels_place_is_the_number_of_classes_before_it():
    logits = torch.tensor([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    # Where all tie, the class of the lowest index goes first.
    assert places(logits, torch.tensor([2, 0, 2])).tolist() == [1, 0, 2]


def test_accuracies_by_hand():
    metrics, per_class = accuracies(np.array([0, 0, 0, 1]), np.array([0, 0, 4, 5]), ["a", "b", "c"])
    assert metrics == {"top1": 0.5, "top5": 0.75, "mean_class": pytest.approx((2 / 3 + 0) / 2)}
    assert per_class == {"a": pytest.approx(2 / 3), "b": 0.0, "c": None}


def test_of_avas_80_classes_60_are_evaluated_and_other_lists_are_as_they_are():
    official = [ClassInfo(i, str(i)) for i in range(1, 81)]
    assert is_evaluated(official).sum() == 60
    assert not is_evaluated(official)[1]  # id 2, crawl
    assert is_evaluated(official[:10]).all()
    sixty = [c for c in official if c.id not in NOT_EVALUATED]
    assert {name: int(mask.sum()) for name, mask in group_masks(sixty).items()} == {
        "person pose": 13,
        "person-object": 32,
        "person-person": 15,
    }
    assert group_masks(official[:10]) == {}


def test_a_model_that_knows_the_answers_scores_1(world):
    recipe = recipe_of(world)
    model = ByPlace().train()
    results = evaluate_tasks(model, tasks_of(recipe), ALONE, recipe)
    people = results["people"]
    assert people.metrics == {"mAP": 1.0, "mAP_no_cap": 1.0, "box_recall": 1.0}
    assert people.per_class == {"action 1": 1.0, "action 3": 1.0, "action 7": 1.0}
    assert people.counts == {"examples": 8, "boxes": 8, "groundtruth_rows": 8, "classes": 3}
    # One right class of three per box, 4 right answers among 8 boxes at most: far from perfect, and not nothing.
    assert 0.1 < people.chance["mAP"] < 0.9
    assert results["clips"].chance == {"top1": 1 / 3, "top5": 1.0, "mean_class": 1 / 3}
    assert results["clips"].counts == {"examples": 7, "labelled": 7}
    assert model.training


def test_proposals_below_the_threshold_do_not_count_and_ground_truth_can_take_their_place(world):
    for override, boxes in (("0.2", 16), ("0.96", 0)):
        recipe = recipe_of(world, f"tasks.people.view.proposal_score_threshold={override}")
        assert evaluate_tasks(ByPlace(), tasks_of(recipe)[1:], ALONE, recipe)["people"].counts["boxes"] == boxes
    # Without any box everything is missed.
    assert evaluate_all(ByPlace(), tasks_of(recipe)[1:], ALONE, recipe)["people/mAP"] == 0.0
    recipe = recipe_of(world, "tasks.people.view.eval_boxes=groundtruth")
    assert evaluate_all(ByPlace(), tasks_of(recipe)[1:], ALONE, recipe)["people/mAP"] == 1.0


def test_a_set_without_proposals_is_told_before_it_is_evaluated(tmp_path):
    make_classification_set(tmp_path, "clips", "val")
    make_localisation_set(tmp_path, "people", "val", proposals=False)
    with pytest.raises(
        UserError, match=r"none of 8 keyframes .* --proposals FILE, or set tasks.people.view.eval_boxes"
    ):
        tasks_of(recipe_of(tmp_path))
    assert tasks_of(recipe_of(tmp_path, "tasks.people.view.eval_boxes=groundtruth"))
    # Training that evaluates nothing has no need of them.
    assert open_tasks(recipe_of(tmp_path, "eval_every=0"))
    with pytest.raises(UserError, match="none of 8 keyframes"):
        open_tasks(recipe_of(tmp_path, "eval_every=10"))


def test_a_limit_takes_examples_from_all_over_the_set(world):
    recipe = recipe_of(world)
    results = evaluate_tasks(ByPlace(), tasks_of(recipe), ALONE, recipe, limit=3)
    assert results["clips"].counts["examples"] == results["people"].counts["examples"] == 3
    assert results["people"].boxes is not None
    assert [video for video, _ in results["people"].boxes.keyframes] == ["movie.0", "movie.1", "movie.2"]


def test_bad_samples_are_listed_and_in_no_metric(tmp_path):
    records = [
        {"key": f"c_{i}", "dataset": "c", "source": "c", "label": i, "class_name": "x", "video": video_record(38)}
        for i in range(3)
    ]
    videos = [class_video(0, 3), b"no video", class_video(1, 3)]
    records[2]["label"] = None
    classes = [ClassInfo(i, str(i)) for i in range(3)]
    write_set(tmp_path, "clips", "val", "classification", classes, list(zip(records, videos, strict=True)))
    make_localisation_set(tmp_path, "people", "val")
    recipe = recipe_of(tmp_path)
    result = evaluate_tasks(ByPlace(), tasks_of(recipe), ALONE, recipe)["clips"]
    assert [bad.key for bad in result.failures] == ["c_1"]
    assert result.counts == {"examples": 2, "labelled": 1}
    assert result.per_class["1"] is None


def test_scores_of_an_examples_views_are_averaged_and_let_go_of():
    averages = ViewAverages(3)
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    examples, labels = torch.tensor([7, 7, PADDING, 7, 8, 8]), torch.tensor([2, 2, -1, 2, 0, 0])
    first = averages.add(examples[:3], labels[:3], logits[:3])
    assert [len(part) for part in first] == [0, 0, 0] and first[2].shape == (0, 4)
    own, known, scores = averages.add(examples[3:], labels[3:], logits[3:])
    assert own.tolist() == [7] and known.tolist() == [2]
    assert torch.allclose(scores[0], logits[[0, 1, 3]].double().softmax(1).mean(0))
    assert list(averages._sums) == [8]
    own, known, scores = ViewAverages(1).add(examples, labels, logits)
    assert own.tolist() == [7, 7, 7, 8, 8] and torch.equal(scores, logits[examples >= 0])


def test_an_example_counts_once_whatever_its_views(world):
    recipe = recipe_of(world, "tasks.clips.view.eval_views=[2,3]", "eval_batch=4")
    task = tasks_of(recipe)[0]
    result = evaluate_tasks(ByPlace(), [task], ALONE, recipe)["clips"]
    assert result.counts == {"examples": 7, "labelled": 7, "views": 6}
    dataset = EvalDataset(task.val)
    right = 0
    for example in range(7):
        views = dataset.__getitems__(range(6 * example, 6 * example + 6))
        scores = torch.stack([ByPlace()("clips", view.clip[None])[0].softmax(0) for view in views]).mean(0)
        right += int(scores.argmax()) == example % 3
    assert result.metrics["top1"] == pytest.approx(right / 7)
    limited = evaluate_tasks(ByPlace(), [task], ALONE, recipe, limit=3)["clips"]
    assert limited.counts["examples"] == 3


def test_a_damaged_example_is_one_failure_whatever_its_views(tmp_path):
    video = class_video(0, 3)
    records = [{"key": f"c_{i}", "label": 0, "video": video_record(38)} for i in range(2)]
    classes = [ClassInfo(i, str(i)) for i in range(3)]
    write_set(tmp_path, "clips", "val", "classification", classes, [(records[0], video), (records[1], b"no video")])
    make_localisation_set(tmp_path, "people", "val")
    recipe = recipe_of(tmp_path, "tasks.clips.view.eval_views=[2,2]", "eval_batch=3")
    result = evaluate_tasks(ByPlace(), tasks_of(recipe)[:1], ALONE, recipe)["clips"]
    assert [bad.key for bad in result.failures] == ["c_1"]
    assert result.counts == {"examples": 1, "labelled": 1, "views": 4}


def test_output_that_is_not_finite_is_an_error(world):
    class Diverged(ByPlace):
        def forward(self, *args):
            return super().forward(*args) * float("nan")

    recipe = recipe_of(world)
    with pytest.raises(UserError, match="not finite"):
        evaluate_all(Diverged(), tasks_of(recipe), ALONE, recipe)


def on_ranks(folder: str) -> dict:
    rank = init_distributed()
    recipe = recipe_of(Path(folder))
    results = evaluate_tasks(ByPlace(), tasks_of(recipe), rank, recipe)
    for name, result in results.items():
        assert (result.boxes is not None) == (rank.first and name == "people")
        assert (result.predictions is not None) == (rank.first and name == "clips")
    results["views"] = many_views(folder, rank)
    return {name: replace(result, boxes=None, frame_map=None, predictions=None) for name, result in results.items()}


def many_views(folder: str, rank: Rank) -> Result:
    recipe = recipe_of(Path(folder), "tasks.clips.view.eval_views=[2,3]")
    return evaluate_tasks(ByPlace(), tasks_of(recipe)[:1], rank, recipe)["clips"]


def test_results_do_not_depend_on_the_number_of_ranks(world):
    recipe = recipe_of(world)
    alone = evaluate_tasks(ByPlace(), tasks_of(recipe), ALONE, recipe)
    alone["views"] = many_views(str(world), ALONE)
    alone = {name: replace(result, boxes=None, frame_map=None, predictions=None) for name, result in alone.items()}
    # Seven clips and eight keyframes over three ranks need padding.
    for results in run_ranks(on_ranks, 3, str(world)):
        assert results == alone


def save_run(world: Path, run: Path) -> Recipe:
    """A run's folder with one checkpoint of a randomly initialised model."""
    recipe = recipe_of(world, f"out={run}", "seed=3")
    config = model_config(recipe, open_tasks(recipe))
    weights = run / "checkpoints" / "step-000012"
    extra = config.pop("extra", None) or {"tasks": config.pop("tasks")}
    save_model(weights, build_model(recipe, config), config, extra)
    (weights / "state.json").write_text(json.dumps({"step": 12, "world": 1, "recipe": dump_recipe(recipe)}))
    (run / "recipe.yaml").write_text(dump_recipe(recipe))
    return recipe


def test_what_was_lost_at_packing_is_told(world):
    tasks = [task for task in open_tasks(recipe_of(world), train=False) if task.val is not None]
    assert lost_at_packing(tasks) == []
    examples = {task.name: len(task.val.shards) for task in tasks}
    for task in tasks:
        task.val.shards.manifest.failures.update({"missing": 2, "truncated": 1})
    clips, people = lost_at_packing(tasks)
    assert f"clips: 3 of {3 + examples['clips']} clips were lost at packing (missing 2, truncated 1)" in clips
    assert f"3 of {3 + examples['people']} keyframes were lost" in people and "people_detections.csv" in people


def test_the_command_writes_metrics_and_files_that_give_the_same_map(world, tmp_path, capsys):
    save_run(world, tmp_path / "run")
    done = subprocess.run(
        [sys.executable, PROJECT / "train" / "evaluate.py", "--checkpoint", tmp_path / "run", "--local_rank=0"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "run" / "eval"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["step"] == 12
    people = metrics["tasks"]["people"]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert rows[0] == ["task", "metric", "value,", "%", "chance,", "%"]
    value, chance = people["metrics"]["mAP"], people["chance"]["mAP"]
    assert ["people", "mAP", f"{100 * value:.2f}", f"{100 * chance:.2f}"] in rows

    names = ("detections.csv", "groundtruth.csv", "labelmap.pbtxt")
    found, truth, labelmap = (str(folder / f"people_{name}") for name in names)
    first = (folder / "people_detections.csv").read_text().splitlines()[0].split(",")
    assert first[:2] == ["movie.0", "0902"] and len(first) == 8 and first[6] == "1"
    for cap, name in (("50", "mAP"), ("0", "mAP_no_cap")):
        arguments = ["--groundtruth", truth, "--detections", found, "--labelmap", labelmap, "--max-per-image", cap]
        assert ava_map.main(arguments) == 0
        again = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert again["mAP"] == people["metrics"][name]
    assert again["per_class"] == people["per_class"]
    assert 0 < value < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "peple"], "the recipe's tasks are clips, people"),
        (["model.image_size=64"], "the recipe has model.image_size=64, the checkpoint 32"),
        (
            ["model.mean=[0,0,0]"],
            r"the recipe has model.mean=\[0.*\], the checkpoint \[0.5, 0.5, 0.5\]: give",
        ),
        (
            ["tasks.people.head.box_scale=1.5"],
            "tasks.people.head.box_scale=1.5, the checkpoint 1.0: give",
        ),
        (["model.act_layer=relu"], "the recipe has model.act_layer=relu, the checkpoint gelu"),
        (["model.attention=flash_attn"], "^model: .*flash_attn"),
        (["model.attention=none"], "^model: attention"),
        (["tasks.clips.val_shards=null", "tasks.people.val_shards=null"], "nothing to evaluate on"),
        (["--ds", "nowhere.json"], "no DeepSpeed configuration at nowhere.json"),
        (["--limit", "0"], "expected 1 or more"),
    ],
)
def test_mistakes_are_told_without_a_traceback(world, tmp_path, monkeypatch, arguments, message):
    from train import evaluate

    save_run(world, tmp_path)
    args = evaluate.parser().parse_args(["--checkpoint", str(tmp_path), *arguments])
    with pytest.raises(UserError, match=message):
        evaluate.run(args, ALONE)


def test_a_model_of_other_classes_is_refused(world, tmp_path):
    from train import evaluate

    recipe = save_run(world, tmp_path)
    config = {"backbone": {"num_frames": 4, "image_size": 32}, "tasks": {"clips": {"classes": []}}}
    with pytest.raises(UserError, match="other classes than the checkpoint's head for clips"):
        evaluate.open_validation(recipe, ["clips"], config)
    config["tasks"] = {"clips": {"classes": [{"id": 7}]}}
    with pytest.raises(UserError, match=r"config.json does not say what the classes of clips are \(KeyError"):
        evaluate.open_validation(recipe, ["clips"], config)
    trained = read_model_config(find_weights(tmp_path))
    trained["tasks"]["clips"]["classes"].reverse()
    with pytest.raises(UserError, match=r"3 classes then, 3 now; class 0 was '.*' \(id 2\) and is '.*' \(id 0\)"):
        evaluate.open_validation(recipe, ["clips"], trained)
    with pytest.raises(UserError, match="no head for the task people"):
        evaluate.open_validation(recipe_of(world), ["people"], config)


def test_task_data_is_what_the_evaluators_take(world):
    data = tasks_of(recipe_of(world))[0].val
    assert isinstance(data, TaskData) and len(data.shards) == 7
