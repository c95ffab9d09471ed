"""Costs against what PyTorch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import backbone_cost, create_model, flops_per_clip, task_cost
from models.vit import create_backbone
from tests.models.toy import toy_clips, toy_config


def model_with_heads(**backbone):
    """With the attention whose kernels the counter knows."""
    torch.manual_seed(0)
    config = toy_config(attention="eager", **backbone)
    config["heads"]["crowd"] = {"kind": "localisation", "num_classes": 6, "context_heads": 2}
    return create_model(config)


def boxes_of(clips, per_clip):
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.9]]).repeat(clips * per_clip, 1)
    return boxes, torch.arange(clips).repeat_interleave(per_clip)


@pytest.mark.parametrize("options", [{}, {"class_token": True, "mlp_ratio": 2.5}], ids=["plain", "class token"])
@pytest.mark.parametrize("task", ["clips", "persons", "crowd"])
def test_flops_are_those_that_pytorch_counts(task, options, monkeypatch):
    from models import context, eager_attention

    monkeypatch.setattr(context, "scaled_dot_product_attention", eager_attention)
    model, clips, per_clip = model_with_heads(**options), 3, 4
    arguments = () if task == "clips" else boxes_of(clips, per_clip)
    cost = task_cost(model, task, boxes=per_clip)
    with FlopCounterMode(display=False) as counter:
        logits = model(task, toy_clips(clips), *arguments)
        assert cost.forward_flops * clips == counter.get_total_flops()
        logits.sum().backward()
    assert cost.training_flops * clips == counter.get_total_flops()


def test_parameters_are_the_backbones_and_one_heads():
    model = model_with_heads()
    for task in ("clips", "crowd"):
        trained = [
            param for name, param in model.named_parameters() if name.startswith(("backbone.", f"heads.{task}."))
        ]
        assert task_cost(model, task).parameters == sum(param.numel() for param in trained)
    with pytest.raises(ValueError, match="nearest valid one is 'clips'"):
        task_cost(model, "clip")


def test_a_head_without_a_count_adds_its_parameters_alone():
    model = model_with_heads()
    model.heads["other"] = torch.nn.Linear(16, 3)
    backbone, task = backbone_cost(model.backbone), task_cost(model, "other")
    assert task.parameters - backbone.parameters == 51 and task.training_flops == backbone.training_flops


def test_vit_large_on_the_meta_device():
    with torch.device("meta"):
        backbone = create_backbone("vit_large", 32, 224)
    cost = backbone_cost(backbone)
    # A block is 2 N (12 D^2) + 4 N^2 D, N = 3136, D = 1024; the rest is 0.5 %.
    assert cost.forward_flops == flops_per_clip(backbone)
    assert cost.forward_flops == pytest.approx(24 * (24 * 3136 * 1024**2 + 4 * 3136**2 * 1024), rel=0.005)
    assert 2.99 < cost.training_flops / cost.forward_flops < 3
