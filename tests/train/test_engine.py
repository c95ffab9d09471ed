"""ZeRO on several ranks against plain PyTorch on one: same weights, same resumption, same errors."""

import json
import signal
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.errors import UserError
from tests.dist import run_ranks
from tests.train.tiny_runs import (
    ZERO1,
    ZERO2,
    ZERO2_OFFLOAD,
    ZERO3,
    build,
    made_up_batches,
    run_several,
    tiny_recipe,
    weights,
)
from train.checkpoint import Checkpoints
from train.ds_config import deepspeed_config
from train.launch import ToldError, init_distributed
from train.loop import StepPlan, agree
from train.optim import set_step
from train.resume import resume


def difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


# Of the tiny recipe: a run of 7, 3 and 2 steps, each with its own warm-up.
STAGES = ["schedule=task_by_task", "optim.per_stage=true", "optim.warmup_steps=1", "steps=12"]
RESUMED = {
    # Weighted, so that a head's optimizer state may not exist yet when the checkpoint is written.
    "zero2": (ZERO2, 2, ["schedule=weighted", "steps=12", "model.drop_path_rate=0.2", "tasks.look.head.dropout=0.2"]),
    "zero3": (ZERO3, 5, ["schedule=weighted", "steps=12"]),
    "offload": (ZERO2_OFFLOAD, 5, ["schedule=accumulate", "steps=12"]),
    "within a stage": (ZERO2, 8, [*STAGES, "ema=0.9"]),
    "between stages": (ZERO2, 7, STAGES),
}
"""Configuration, steps before the interruption, overrides."""


def test_resuming_is_bitwise(tmp_path):
    jobs = []
    for name, (ds, until, options) in RESUMED.items():
        jobs += [(f"{tmp_path}/{name}/whole", ds, options, None), (f"{tmp_path}/{name}/cut", ds, options, until)]
    ranks = run_ranks(run_several, 2, jobs, timeout=300)
    again = run_ranks(run_several, 2, [(out, ds, options, None) for out, ds, options, _ in jobs[1::2]], timeout=300)
    for first, second in zip(ranks, again, strict=True):
        for i, name in enumerate(RESUMED):
            assert difference(first[2 * i], first[2 * i + 1]) > 1e-4, name
            assert difference(first[2 * i], second[i]) == 0, name


def idle_head_moves(cases):
    """For each (run's folder, configuration, overrides): how far each head moves in a step of `look` alone, after steps
    that gave all heads momentum."""
    return [_idle_head_moves(*case) for case in cases]


def _idle_head_moves(out, ds, overrides):
    rank = init_distributed()
    recipe = tiny_recipe(out, *overrides)
    engine, _, tasks = build(recipe, rank, ds)
    by_name = {task.name: task for task in tasks}
    batches = list(made_up_batches(tiny_recipe(out, "steps=3"), StepPlan(recipe, rank.world), rank, 18))
    before = {}
    for only in (None, None, "look"):
        before = weights(engine)
        scales = {}
        for batch in batches:
            if only in (None, batch.task):
                logits = engine(batch.task, batch.clips, batch.boxes, batch.box_clip)
                engine.backward(by_name[batch.task].loss(logits, batch))
                scales[batch.task] = 1.0
        engine.step(0.01, scales)
    after = weights(engine)
    return {
        name: max(float((after[key] - before[key]).abs().max()) for key in after if key.startswith(f"heads.{name}."))
        for name in by_name
    }


@pytest.mark.parametrize(("configs", "world"), [([None], 1), ([ZERO2, ZERO3, ZERO2_OFFLOAD], 2)], ids=["plain", "zero"])
def test_a_head_outside_of_the_step_does_not_move(tmp_path, configs, world):
    optimizers: dict[str, list[str]] = {"adamw": [], "sgd": ["optim.name=sgd", "optim.nesterov=true"]}
    cases = [(f"{tmp_path}/{i}{name}", ds, optimizers[name]) for i, ds in enumerate(configs) for name in optimizers]
    for moves in run_ranks(idle_head_moves, world, cases):
        for moved in moves:
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
    agree(19, batches, tasks, rank, 0)
    if rank.index == 1:
        batches.reverse()
    try:
        agree(19, batches, tasks, rank, 0)
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
    weights, stopping = agree(19, batches, tasks, rank, signal.SIGTERM if rank.index == stop_rank else 0)
    return weights, stopping, sum(len(batch.labels) for batch in batches if batch.task == "where")


def test_agree_counts_over_all_ranks_and_one_signal_stops_all(tmp_path):
    first, second = run_ranks(counted, 2, str(tmp_path), 1)
    assert first[:2] == second[:2]
    assert first[0]["look"] == 8 and first[0]["where"] == first[2] + second[2]
    assert first[2] != second[2], "equal counts: the test says nothing about unequal ones"
    assert first[1] == signal.SIGTERM


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
        ({"zero_optimization": {"stage": 0}}, "stage=0; supported are 1, 2, 3"),
        ({"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}, 'device="nvme"; supported are none'),
        (
            {"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}},
            "offload_param needs .*stage=3",
        ),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}}, "DeepSpeed's own"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": True}}, "offload_optimizer must be an object"),
        ({"zero_optimization": {"stage": 2, "zenflow": {}}}, "zenflow needs DeepSpeed's own optimizer"),
        ({"zero_optimization": 3}, "zero_optimization must be an object"),
        ({"managed_gradient_accumulation": True}, "managed_gradient_accumulation=true contradicts"),
        (
            {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
            "compute_grad_norm=false contradicts true of the loop",
        ),
        ({"gradient_allreduce_op": "sum"}, 'gradient_allreduce_op="sum" contradicts "mean" of the loop'),
        (
            {"zero_optimization": {"stage": 1, "round_robin_gradients": True}},
            "round_robin_gradients=true contradicts false of checkpoints",
        ),
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


def built_with(out, path):
    """The name of the engine that one process builds with a configuration."""
    engine, _, _ = build(tiny_recipe(out), init_distributed(), path)
    return type(engine).__name__


def test_an_offload_of_null_is_none(tmp_path):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "offload_optimizer": None}}))
    assert run_ranks(built_with, 1, str(tmp_path / "run"), str(path)) == ["DeepSpeedEngine"]


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


def test_a_run_goes_on_under_any_engine_and_number_of_ranks(tmp_path):
    """2 ranks, 1 in plain PyTorch, 2 under stage 3, 4; weighted, so that a head's optimizer state does not exist at
    first."""
    out, whole, options = f"{tmp_path}/run", f"{tmp_path}/whole", ["schedule=weighted"]
    (reference,) = run_ranks(run_several, 1, [(whole, None, options, None)])[0]
    for ds, world, until in ((ZERO2, 2, 3), (None, 1, 9), (ZERO3, 2, 14), (ZERO1, 4, None)):
        end = run_ranks(run_several, world, [(out, ds, options, until)])[0][0]
    assert difference(end, reference) < 2e-6
    ours, theirs = losses(out), losses(whole)
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


def nan_steps(cases):
    """For each (run's folder, configuration): a step with a gradient that is not finite, then a good one."""
    return [_nan_step(*case) for case in cases]


def _nan_step(out, ds):
    rank = init_distributed()
    recipe = tiny_recipe(out)
    engine, _, _ = build(recipe, rank, ds)
    clip = torch.zeros(1, 3, 4, 32, 32)
    before = weights(engine)
    engine.backward(engine("look", clip).sum() * (float("nan") if rank.first else 1))
    skipped = engine.step(0.1, {"look": 1.0})
    same = difference(before, weights(engine)) == 0
    engine.backward(engine("look", clip).sum())
    return skipped, same, engine.step(0.1, {"look": 1.0})


@pytest.mark.parametrize(("configs", "world"), [([None], 1), ([ZERO2, ZERO3, ZERO2_OFFLOAD], 2)], ids=["plain", "zero"])
def test_a_gradient_that_is_not_finite_skips_the_step(tmp_path, configs, world):
    """On all ranks, where it is so on one."""
    for steps in run_ranks(nan_steps, world, [(f"{tmp_path}/{i}", ds) for i, ds in enumerate(configs)]):
        for skipped, same, norm in steps:
            assert skipped is None and same and norm > 0
