"""precision: bf16 computes in bf16; weights, gradients, their sums, boxes and losses are in fp32."""

import json
from typing import Any

import torch

from models import regions
from tests.dist import run_ranks
from tests.train.tiny_runs import ZERO2, ZERO3, build, made_up_batches, run_several, tiny_recipe
from train.engine import DeepSpeedEngine
from train.launch import init_distributed
from train.loop import StepPlan

BF16 = ["precision=bf16", "optim.name=sgd", "optim.momentum=0", "optim.lr=1", "optim.warmup_steps=0", "steps=1"]
"""One step of plain SGD, so that a difference of gradients is one of weights and is not blown up."""
SAME_MICRO_BATCHES = ["tasks.other.micro_batch=2"]
"""On one rank as on two: bf16 rounds every micro-batch's gradient, so only with the same ones the sums can agree."""


def difference(first, second):
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_gradients_are_summed_in_fp32(tmp_path):
    rounded = tmp_path / "rounded.json"
    autocast = {"lower_precision_safe_modules": ["torch.nn.Linear"]}
    rounded.write_text(json.dumps({"zero_optimization": {"stage": 2}, "torch_autocast": autocast}))
    options = [*BF16, *SAME_MICRO_BATCHES]
    plain, start, fp32 = run_ranks(
        run_several,
        1,
        [
            (f"{tmp_path}/plain", None, options, None),
            (f"{tmp_path}/start", None, [*options, "optim.lr=1e-30"], None),
            (f"{tmp_path}/fp32", None, [*options, "precision=fp32"], None),
        ],
    )[0]
    configs = {"zero2": ZERO2, "zero3": ZERO3, "rounded": str(rounded)}
    ranks = run_ranks(run_several, 2, [(f"{tmp_path}/{name}", ds, options, None) for name, ds in configs.items()])
    for zero2, zero3, in_bf16 in ranks:
        assert difference(zero2, plain) < 1e-6 and difference(zero3, plain) < 1e-6
        assert difference(in_bf16, plain) > 3e-6, "sums in bf16 look the same: the test says nothing"
    assert difference(plain, start) > 1e-2 and difference(plain, fp32) > 3e-6


def dtypes(out):
    """What a micro-batch of `where` is computed in."""
    rank = init_distributed()
    recipe = tiny_recipe(out, "precision=bf16")
    engine, _, tasks = build(recipe, rank, ZERO2)
    seen: dict[str, Any] = {}
    boxes: dict[str, torch.Tensor] = {}
    own = regions.roi_align

    def roi_align(planes, rois, *args, **kwargs):
        boxes["rois"] = rois
        seen["planes"] = planes.dtype
        return own(planes, rois, *args, **kwargs)

    regions.roi_align = roi_align
    blocks = engine.module.backbone.blocks
    handle = blocks[0].attn.register_forward_hook(lambda module, inputs, output: seen.update(attention=output.dtype))
    batch = next(b for b in made_up_batches(recipe, StepPlan(recipe, 1), rank, 0) if b.task == "where")
    task = next(task for task in tasks if task.name == "where")
    logits = engine("where", batch.clips, batch.boxes, batch.box_clip)
    loss = task.loss(logits, batch)
    engine.backward(loss)
    regions.roi_align = own
    handle.remove()
    assert isinstance(engine, DeepSpeedEngine)
    zero = engine.engine.optimizer
    assert not torch.equal(logits, logits.bfloat16().float()), "logits were rounded to bf16"
    seen |= {"logits": logits.dtype, "loss": loss.dtype, "boxes": boxes["rois"].dtype}
    seen["gradients"] = zero.gradient_accumulation_dtype
    engine.step(1e-3, {"where": 1.0})
    seen["weights"] = {value.dtype for value in engine.module.parameters()}
    seen["masters"] = {value.dtype for value in zero.single_partition_of_fp32_groups}
    seen["moments"] = {value.dtype for state in zero.optimizer.state.values() for value in state.values()}
    assert batch.boxes is not None
    grid = engine.module.backbone.grid
    scale = torch.tensor([grid[2], grid[1], grid[2], grid[1]])
    return seen, torch.equal(boxes["rois"][:, 1:], batch.boxes * scale)


def test_what_is_in_which_precision(tmp_path):
    ((seen, exact),) = run_ranks(dtypes, 1, str(tmp_path))
    assert seen.pop("attention") == torch.bfloat16, "nothing ran in bf16: the test says nothing"
    fp32 = torch.float32
    assert seen == {
        **dict.fromkeys(("planes", "logits", "loss", "boxes", "gradients"), fp32),
        **{key: {fp32} for key in ("weights", "masters", "moments")},
    }
    assert exact, "box coordinates were rounded"
