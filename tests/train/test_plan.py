"""--plan: what a run takes, from its recipe alone."""

import pytest

from data.errors import UserError
from tests.train.tiny_runs import tiny_recipe
from train.plan import describe_plan, make_plan, memory_by_stage
from train.recipe import PROJECT, load_recipe

RECIPES = sorted((PROJECT / "train" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("ranks", [8, 64])
@pytest.mark.parametrize("path", [p for p in RECIPES if p.stem != "toy"], ids=lambda p: p.stem)
def test_every_full_recipe_makes_a_model_and_a_plan(path, ranks):
    plan = make_plan(load_recipe(path), ranks)
    assert all(task.steps and ranks * task.micro_steps * task.micro_batch == task.clips for task in plan.tasks)
    assert 80e6 < plan.parameters < 330e6
    assert 0 < plan.hours(989, 0.4) < 24 * 365
    assert str(plan.ranks) in describe_plan(plan)


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
    assert [memory[stage].weights for stage in range(4)] == [4000, 4000, 4000, 1000]
    assert [memory[stage].gradients for stage in range(4)] == [4000, 4000, 1000, 1000]
    # From stage 1 on, DeepSpeed's own copy of the parameters lies beside the two moments.
    assert [memory[stage].optimizer for stage in range(4)] == [8000, 3000, 3000, 3000]
    assert memory[2].total == 8007


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
