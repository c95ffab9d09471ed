"""gradients_every: TensorBoard gets what plain PyTorch computes, whatever the engine, and training stays the same."""

import functools
import json
import math
from itertools import combinations

import pytest
import torch

from data.batch import collate
from tests.dist import run_ranks
from tests.train.tiny_runs import ZERO1, ZERO2, ZERO2_OFFLOAD, made_up, run_several, scalars, tiny_recipe, tiny_tasks
from train.model import build_model, model_config

RANDOM = ["steps=3", "model.drop_path_rate=0.3", "tasks.look.head.dropout=0.3", "model.grad_checkpointing=full"]
RUNS = {
    "exact": ["steps=2", "gradients_every=1"],
    "bf16": ["steps=2", "gradients_every=1", "precision=bf16"],
    "on": [*RANDOM, "gradients_every=1"],
    "off": RANDOM,
    "alternating": ["schedule=alternating", "steps=12", "gradients_every=2"],
}
"""Overrides of the tiny recipe, whose tasks have several micro-batches, loss weights and unequal numbers of boxes."""
ENGINES = [(1, "plain"), (1, "zero2"), (2, "zero1"), (2, "zero2"), (2, "offload"), (2, "zero3")]
TASKS = ("look", "where", "other")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """((ranks, engine), run) -> the run's folder and its weights at the end; all of as many ranks run when the first is
    asked for."""
    folder = tmp_path_factory.mktemp("runs")
    # Every layer apart; the project's own keeps small ones, which are all of the tiny model's, whole.
    zero3 = folder / "zero3.json"
    zero3.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    configs = {"plain": None, "zero1": ZERO1, "zero2": ZERO2, "offload": ZERO2_OFFLOAD, "zero3": str(zero3)}

    @functools.cache
    def of(world):
        cases = [(engine, run) for engine in ENGINES if engine[0] == world for run in RUNS]
        places = [folder / f"{world}-{name}-{run}" for (_, name), run in cases]
        jobs = [
            (str(place), configs[name], RUNS[run], None) for place, ((_, name), run) in zip(places, cases, strict=True)
        ]
        ends = run_ranks(run_several, world, jobs, timeout=900)[0]
        return dict(zip(cases, zip(places, ends, strict=True), strict=True))

    return lambda engine, run: of(engine[0])[engine, run]


of_every_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: f"{engine[1]}-{engine[0]}")


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """The figures of the first step: each task's global batch as one, differentiated by itself."""
    recipe = tiny_recipe(tmp_path_factory.mktemp("none"))
    tasks = tiny_tasks(recipe)
    model = build_model(recipe, model_config(recipe, tasks))
    figures, backbone = {}, {}
    for task in tasks:
        batch = collate([made_up(recipe, task.name, position) for position in range(task.recipe.batch)])
        logits = model(task.name, batch.clips, batch.boxes, batch.box_clip)
        loss = task.recipe.loss_weight * task.loss(logits, batch) / len(batch.labels)
        shared, own = list(model.backbone.parameters()), list(model.heads[task.name].parameters())
        gradients = torch.autograd.grad(loss, [*shared, *own])
        backbone[task.name] = flat(gradients[: len(shared)])
        figures[f"gradients/backbone/{task.name}"] = float(backbone[task.name].norm())
        figures[f"gradients/head/{task.name}"] = float(flat(gradients[len(shared) :]).norm())
    figures["gradients/backbone"] = float(sum(backbone.values(), torch.zeros(1)).norm())
    for a, b in combinations(TASKS, 2):
        cosine = torch.nn.functional.cosine_similarity(backbone[a], backbone[b], dim=0)
        figures[f"gradients/cosine/{a}/{b}"] = float(cosine)
    return figures


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


@of_every_engine
def test_the_figures_are_those_of_plain_pytorch(runs, by_hand, engine):
    told = scalars(runs(engine, "exact")[0])
    ours = {tag: values[1] for tag, values in told.items() if tag.startswith("gradients/")}
    assert ours.keys() == by_hand.keys() and len(ours) == 1 + 3 + 3 + 3
    assert ours == pytest.approx(by_hand, rel=1e-5, abs=1e-6)
    cosines = [value for tag, value in by_hand.items() if "cosine" in tag]
    assert min(map(abs, cosines)) > 1e-3, "a cosine of nothing: the test says little"


@of_every_engine
@pytest.mark.parametrize("run", ["exact", "bf16", "on"])
def test_backbone_and_heads_make_up_the_gradient_that_the_engine_clips(runs, engine, run):
    """Also behind the first step, where gradients of the step before must have gone."""
    told = scalars(runs(engine, run)[0])
    for step, norm in told["train/gradient_norm"].items():
        parts = [told["gradients/backbone"][step], *(told[f"gradients/head/{task}"][step] for task in TASKS)]
        assert math.hypot(*parts) == pytest.approx(norm, rel=1e-5)
    assert len(told["train/gradient_norm"]) == (3 if run == "on" else 2)


@of_every_engine
def test_training_is_the_same_to_the_bit(runs, engine):
    (_, on), (folder, off) = runs(engine, "on"), runs(engine, "off")
    assert on.keys() == off.keys() and all(torch.equal(on[name], off[name]) for name in off)
    assert not any(tag.startswith("gradients/") for tag in scalars(folder))


@of_every_engine
def test_a_tasks_own_steps_count_and_one_task_has_no_cosine(runs, engine):
    told = scalars(runs(engine, "alternating")[0])
    steps = {"look": {4, 10}, "where": {5, 11}, "other": {6, 12}}
    assert {tag: set(values) for tag, values in told.items() if tag.startswith("gradients/")} == {
        "gradients/backbone": {4, 5, 6, 10, 11, 12},
        **{f"gradients/backbone/{task}": steps[task] for task in TASKS},
        **{f"gradients/head/{task}": steps[task] for task in TASKS},
    }
    for task in TASKS:
        for step in steps[task]:
            parts = told[f"gradients/backbone/{task}"][step], told[f"gradients/head/{task}"][step]
            assert math.hypot(*parts) == pytest.approx(told["train/gradient_norm"][step], rel=1e-5)
