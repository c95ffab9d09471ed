"""ZeRO on several ranks against plain PyTorch on one: same weights, same resumption, same errors."""

import json
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.errors import UserError
from tests.dist import run_ranks
from tests.train.tiny_runs import ZERO1, ZERO2, build, made_up_batches, run_several, tiny_recipe
from train.checkpoint import Checkpoints
from train.ds_config import deepspeed_config
from train.launch import ToldError, init_distributed
from train.loop import StepPlan, agree
from train.optim import set_step
from train.resume import resume

SCHEDULES = ["accumulate", "weighted"]


def difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Weights after 20 steps in one plain process, and the initial ones; and the folder of the runs."""
    folder = tmp_path_factory.mktemp("reference")
    jobs = [(f"{folder}/{name}", None, [f"schedule={name}"], None) for name in SCHEDULES]
    jobs.append((f"{folder}/start", None, ["optim.lr=1e-30"], None))
    return dict(zip([*SCHEDULES, "start"], run_ranks(run_several, 1, jobs)[0], strict=True)) | {"folder": folder}


@pytest.mark.parametrize(("ds", "world"), [(ZERO2, 2), (ZERO1, 2), (ZERO2, 1), (ZERO2, 4)])
def test_zero_equals_plain_pytorch(reference, tmp_path, ds, world):
    """Clipping, layer-wise decay, loss weights and rate coefficients are on; ranks hold different numbers of boxes."""
    overrides = ["tasks.look.micro_batch=1"] if world == 1 else []
    jobs = [(f"{tmp_path}/{name}", ds, [f"schedule={name}", *overrides], None) for name in SCHEDULES]
    ranks = run_ranks(run_several, world, jobs)
    for i, name in enumerate(SCHEDULES):
        for weights in ranks:
            assert difference(weights[i], reference[name]) < 2e-6
        assert difference(reference[name], reference["start"]) > 1e-3, "nothing was learned: the test says nothing"


def test_resuming_is_bitwise(tmp_path):
    """Weighted, so that a head's optimizer state may not exist yet when the checkpoint is written."""
    options = ["schedule=weighted", "steps=12", "model.drop_path_rate=0.2", "tasks.look.head.dropout=0.2"]
    whole, cut = f"{tmp_path}/whole", f"{tmp_path}/cut"
    ranks = run_ranks(run_several, 2, [(whole, ZERO2, options, None), (cut, ZERO2, options, 2)])
    again = run_ranks(run_several, 2, [(cut, ZERO2, options, None)])
    for first, second in zip(ranks, again, strict=True):
        assert difference(first[0], first[1]) > 1e-4
        assert difference(first[0], second[0]) == 0


def idle_head_moves(ds, out, overrides):
    """How far each head moves in a step of `look` alone, after steps that gave all heads momentum."""
    rank = init_distributed()
    recipe = tiny_recipe(out, *overrides)
    engine, _, tasks = build(recipe, rank, ds)
    by_name = {task.name: task for task in tasks}
    batches = list(made_up_batches(tiny_recipe(out, "steps=3"), StepPlan(recipe, rank.world), rank, 18))
    before = {}
    for only in (None, None, "look"):
        before = {name: value.detach().clone() for name, value in engine.module.state_dict().items()}
        scales = {}
        for batch in batches:
            if only in (None, batch.task):
                logits = engine(batch.task, batch.clips, batch.boxes, batch.box_clip)
                engine.backward(by_name[batch.task].loss(logits, batch))
                scales[batch.task] = 1.0
        engine.step(0.01, scales)
    after = engine.module.state_dict()
    return {
        name: max(float((after[key] - before[key]).abs().max()) for key in after if key.startswith(f"heads.{name}."))
        for name in by_name
    }


@pytest.mark.parametrize("optimizer", [[], ["optim.name=sgd", "optim.nesterov=true"]], ids=["adamw", "sgd"])
@pytest.mark.parametrize(("ds", "world"), [(None, 1), (ZERO2, 2)])
def test_a_head_outside_of_the_step_does_not_move(tmp_path, ds, world, optimizer):
    for moved in run_ranks(idle_head_moves, world, ds, str(tmp_path), optimizer):
        assert moved["look"] > 1e-4
        assert moved["where"] == moved["other"] == 0


def test_set_step_scales_rates():
    groups: list[dict[str, Any]] = [
        {"task": None, "layer_scale": 0.5},
        {"task": "a", "layer_scale": 1.0},
        {"task": "b", "layer_scale": 1.0},
        {"task": "c", "layer_scale": 1.0},
    ]
    set_step(groups, 0.1, {"a": 1.0, "b": 3.0})
    assert [group["lr"] for group in groups] == pytest.approx([0.1 * 0.5 * 2, 0.1, 0.3, 0.0])
    assert [group["active"] for group in groups] == [True, True, True, False]


def planted_disagreement(out):
    rank = init_distributed()
    recipe = tiny_recipe(out)
    tasks = {task.name: task for task in build(recipe, rank, ZERO2)[2]}
    batches = list(made_up_batches(recipe, StepPlan(recipe, rank.world), rank, 19))
    agree(19, batches, tasks, rank, False)
    if rank.index == 1:
        batches.reverse()
    try:
        agree(19, batches, tasks, rank, False)
    except ToldError as error:
        return str(error)
    return ""


def test_ranks_that_disagree_are_told(tmp_path):
    for text in run_ranks(planted_disagreement, 2, str(tmp_path)):
        assert "rank 0 is at step 19: look, where, other" in text
        assert "rank 1 is at step 19: other, where, look" in text


def counted(out, stop_rank):
    rank = init_distributed()
    recipe = tiny_recipe(out)
    tasks = {task.name: task for task in build(recipe, rank, ZERO2)[2]}
    batches = list(made_up_batches(recipe, StepPlan(recipe, rank.world), rank, 19))
    weights, stopping = agree(19, batches, tasks, rank, rank.index == stop_rank)
    return weights, stopping, sum(len(batch.labels) for batch in batches if batch.task == "where")


def test_agree_counts_over_all_ranks_and_one_signal_stops_all(tmp_path):
    first, second = run_ranks(counted, 2, str(tmp_path), 1)
    assert first[:2] == second[:2]
    assert first[0]["look"] == 8 and first[0]["where"] == first[2] + second[2]
    assert first[2] != second[2], "equal counts: the test says nothing about unequal ones"
    assert first[1] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_batch_size": 256}, r"train_batch_size=256 contradicts the recipe.*tasks.NAME.batch"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps=4 contradicts"),
        ({"optimizer": {"type": "Adam"}}, "optimizer=.*contradicts the recipe.*optim"),
        ({"gradient_clipping": 2.0}, r"gradient_clipping=2.0 contradicts 0.5 of optim.clip_grad"),
        ({"bf16": {"enabled": True}}, "bf16.enabled contradicts precision=fp32"),
        ({"torch_autocast": {"enabled": True}}, "enabled=true contradicts false of precision=fp32"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype"),
        ({"zero_optimization": {"stage": 3}}, "stage=3; supported are 1, 2"),
        ({"zero_optimization": 3}, "zero_optimization must be an object"),
        ({"managed_gradient_accumulation": True}, "managed_gradient_accumulation=true contradicts"),
    ],
)
def test_a_contradicting_configuration_is_refused(tmp_path, change, message):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | change))
    with pytest.raises(UserError, match=message):
        deepspeed_config(str(path), tiny_recipe(tmp_path))


def refusals(out, paths):
    """What building an engine with each of the configurations says."""
    rank, said = init_distributed(), []
    for path in paths:
        with pytest.raises(UserError) as refused:
            build(tiny_recipe(out), rank, path)
        said.append(str(refused.value))
    return said


def test_what_deepspeed_does_not_accept_is_told(tmp_path):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"zero_optimization": {"stage": 2, "reduce_bucket": 1}}, "reduce_bucket Extra inputs are not permitted"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, "greater than 0"),
        ({"amp": {"enabled": True}}, "AMP integration has been removed"),
        ({"checkpoint": 3}, "does not accept its configuration"),
    ]
    paths = []
    for number, (change, _) in enumerate(cases):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 2}} | change))
        paths.append(str(path))
    said = run_ranks(refusals, 1, str(tmp_path / "run"), paths)[0]
    for text, (_, message) in zip(said, cases, strict=True):
        assert message in text and "--ds" in text


def chosen(out):
    """What each rank goes on from when the newest checkpoint is damaged."""
    rank = init_distributed()
    recipe = tiny_recipe(out)
    engine, config, _ = build(recipe, rank, ZERO2)
    checkpoints = Checkpoints(out, recipe.keep)
    checkpoints.save(1, engine, recipe, config, rank)
    newest = checkpoints.save(2, engine, recipe, config, rank)
    if rank.first:
        (newest / "optimizer-00001-of-00002.safetensors").write_bytes(b"")
    rank.barrier()
    return resume(checkpoints.newest_intact(rank), engine, recipe, config)


def test_all_ranks_fall_back_to_the_same_checkpoint(tmp_path):
    assert run_ranks(chosen, 2, str(tmp_path)) == [1, 1]


def losses(out):
    """Every step's loss of every task, as TensorBoard shows them."""
    board = EventAccumulator(f"{out}/tensorboard")
    board.Reload()
    return {
        (tag, event.step): event.value
        for tag in board.Tags()["scalars"]
        if tag.startswith("loss/")
        for event in board.Scalars(tag)
    }


def test_a_run_goes_on_under_any_engine_and_number_of_ranks(reference, tmp_path):
    """2 ranks, 1 in plain PyTorch, 4; weighted, so that a head's optimizer state does not exist at first."""
    out, options = f"{tmp_path}/run", ["schedule=weighted"]
    for ds, world, until in ((ZERO2, 2, 3), (None, 1, 9), (ZERO1, 4, None)):
        weights = run_ranks(run_several, world, [(out, ds, options, until)])[0][0]
    assert difference(weights, reference["weighted"]) < 2e-6
    ours, theirs = losses(out), losses(reference["folder"] / "weighted")
    assert ours.keys() == theirs.keys() and len({step for _, step in ours}) == 20
    assert max(abs(ours[key] - theirs[key]) for key in ours) < 1e-5  # other clips, or in another order: 1e-1


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a DeepSpeed configuration"), ("[]", "JSON object"), ("[" * 10**5, "not a DeepSpeed configuration")],
)
def test_a_broken_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        deepspeed_config(str(path), tiny_recipe(tmp_path))
    with pytest.raises(UserError, match="no DeepSpeed configuration at"):
        deepspeed_config(str(tmp_path / "none.json"), tiny_recipe(tmp_path))


def nan_step(ds, out):
    """A step with a gradient that is not finite, then a good one."""
    rank = init_distributed()
    recipe = tiny_recipe(out)
    engine, _, _ = build(recipe, rank, ds)
    clip = torch.zeros(1, 3, 4, 32, 32)
    before = [value.clone() for value in engine.module.state_dict().values()]
    engine.backward(engine("look", clip).sum() * float("nan"))
    skipped = engine.step(0.1, {"look": 1.0})
    same = all(torch.equal(a, b) for a, b in zip(before, engine.module.state_dict().values(), strict=True))
    engine.backward(engine("look", clip).sum())
    return skipped, same, engine.step(0.1, {"look": 1.0})


@pytest.mark.parametrize(("ds", "world"), [(None, 1), (ZERO2, 2)])
def test_a_gradient_that_is_not_finite_skips_the_step(tmp_path, ds, world):
    for skipped, same, norm in run_ranks(nan_step, world, ds, str(tmp_path)):
        assert skipped is None and same and norm > 0
