"""--plan: what a run takes, from its recipe alone."""

import re

import numpy as np
import pytest
import torch

from data.augment import draw_augmentation
from data.errors import UserError
from data.mixture import StepPlan
from tests.train.tiny_runs import tiny_recipe
from train import main
from train.launch import Rank
from train.plan import describe_plan, make_plan, memory_by_stage
from train.recipe import PROJECT, Recipe, load_recipe, view_config

RECIPES = sorted((PROJECT / "train" / "recipes").glob("*.yaml"))
METHODS = ("cofinetune", "transfer", "ava", "ava_kinetics")
ALONE = Rank(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "toy"], ids=lambda p: p.stem)
def test_every_full_recipe_has_a_plan_without_shards_and_weights(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main.run(main.parser().parse_intermixed_args(["--plan", "--plan-ranks", "64", "--recipe", str(path)]), ALONE)
    told = capsys.readouterr().out
    recipe = load_recipe(path)
    assert told.startswith(f"{path.stem}: {recipe.steps:,} steps, schedule {recipe.schedule}, 64 ranks\n")
    assert all(f"  {name} " in told for name in recipe.tasks) and "device hours" in told
    assert not list(tmp_path.iterdir()), "a plan writes nothing"
    plan = make_plan(recipe, 8)
    assert all(task.steps and 8 * task.micro_steps * task.micro_batch == task.clips for task in plan.tasks)
    assert 80e6 < plan.parameters < 330e6
    assert plan.memory[2].total < 70 * 2**30, "fits a card of 80 GB"
    assert 1 < plan.hours(989, 0.4) * 8 < 500


def test_the_recipes_are_those_that_the_docs_list():
    table = (PROJECT / "docs" / "recipes.md").read_text()
    assert {path.stem for path in RECIPES} == set(re.findall(r"^\| `(\w+)` \| [\d,]+ \|", table, re.MULTILINE))


def clips_per_task(recipe: Recipe) -> dict[str, int]:
    schedule = StepPlan(recipe, 8).schedule
    return {name: schedule.steps_of(i) * task.batch for i, (name, task) in enumerate(recipe.tasks.items())}


@pytest.mark.parametrize("start", ["vit_base", "vit_large", "vit_base_videomae", "vit_large_videomae"])
def test_baselines_see_the_same_clips(start):
    """What is compared differs in the method and not in the data: clips of each task, views, weights to start from."""
    recipes = {kind: load_recipe(f"train/recipes/{kind}_{start}.yaml") for kind in METHODS}
    clips = {kind: clips_per_task(recipe) for kind, recipe in recipes.items()}
    assert clips["cofinetune"] == clips["transfer"]
    assert clips["cofinetune"].items() >= clips["ava"].items() and set(clips["ava"]) == {"ava"}
    assert clips["ava_kinetics"].items() > clips["cofinetune"].items()
    assert len({repr(recipe.tasks["ava"].view) for recipe in recipes.values()}) == 1
    assert len({repr(recipe.model) for recipe in recipes.values()}) == 1
    assert list(clips["transfer"])[-1] == "ava", "downstream comes last"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_people_are_trained_on_in_the_shape_that_evaluation_shows_them_in(path):
    """Evaluation stretches the whole frame to the square."""
    recipe, rng = load_recipe(path), np.random.default_rng(0)
    for task in (task for task in recipe.tasks.values() if task.kind == "localisation"):
        view = view_config(task.view, recipe.model)
        for height, width in [(480, 854), (320, 768), (320, 426)] * 20:
            crop = draw_augmentation(view, "localisation", rng).crop(height, width)
            wider = (crop.height / height) / (crop.width / width)
            assert view.ratio[0] - 0.01 <= wider <= view.ratio[1] + 0.01
            assert view.short_side is None or wider == pytest.approx(1, abs=0.01)


def test_the_toy_recipe_has_a_plan_for_one_rank_and_two():
    one, two = make_plan(load_recipe(), 1), make_plan(load_recipe(), 2)
    assert [task.micro_steps for task in one.tasks] == [1, 1, 1, 2]
    assert [task.micro_steps for task in two.tasks] == [1, 1, 1, 1]
    assert one.total_flops == two.total_flops and one.hours(1, 1) == 2 * two.hours(1, 1)


def test_without_shards_epochs_are_unknown_and_it_is_said_why(tmp_path):
    plan = make_plan(tiny_recipe(tmp_path), 2)
    assert all(task.examples is None and task.epochs is None for task in plan.tasks)
    assert "look: examples and classes unknown: tasks.look.shards" in describe_plan(plan)
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_stages_divide_optimizer_gradients_and_weights_over_the_ranks():
    memory = memory_by_stage(1000, 4, activations=7)
    assert all(part.average == 0 for part in memory.values())
    assert [memory[stage].weights for stage in range(4)] == [4000, 4000, 4000, 1000]
    assert [memory[stage].gradients for stage in range(4)] == [4000, 4000, 1000, 1000]
    # From stage 1 on, DeepSpeed's own copy of the parameters lies beside the two moments.
    assert [memory[stage].optimizer for stage in range(4)] == [8000, 3000, 3000, 3000]
    assert memory[2].total == 8007


def test_a_moving_average_and_watched_gradients_are_counted(tmp_path):
    bare, ema = (make_plan(tiny_recipe(tmp_path, *options), 2) for options in ([], ["ema=0.99"]))
    assert set(bare.memory) == {0, 1, 2, 3} and set(ema.memory) == {0, 1, 2}, "stage 3 has no moving average"
    for stage, memory in ema.memory.items():
        assert memory.average == 4 * ema.parameters
        assert memory.total == bare.memory[stage].total + 4 * ema.parameters
    told = describe_plan(ema)
    assert "average: of the weights (ema)" in told and "\n  3  " not in told and "ema" not in describe_plan(bare)
    # The sum of one task's gradient, and a rank's half of each task's in a step.
    for schedule, copies in (("accumulate", 1 + 3 / 2), ("weighted", 1 + 1 / 2)):
        watched = make_plan(tiny_recipe(tmp_path, f"schedule={schedule}", "gradients_every=5"), 2)
        for stage, memory in watched.memory.items():
            more = memory.gradients - bare.memory[stage].gradients
            assert more == pytest.approx(copies * 4 * watched.parameters), (schedule, stage)


@pytest.mark.parametrize(
    ("ranks", "tflops", "utilisation", "message"),
    [
        (0, 989, 0.4, "--plan-ranks 0: must be at least 1"),
        (3, 989, 0.4, "does not divide over 3 ranks"),
        (1, 0, 0.4, "--plan-tflops 0: must be above 0"),
        (1, float("nan"), 0.4, "--plan-tflops nan"),
        (1, 989, 40, "--plan-utilisation 40: must be above 0 and at most 1"),
    ],
)
def test_a_plan_that_cannot_be_says_what_is_right(tmp_path, ranks, tflops, utilisation, message):
    with pytest.raises(UserError, match=message):
        describe_plan(make_plan(tiny_recipe(tmp_path), ranks), tflops, utilisation)
