"""Parameter groups, the optimizer and the learning-rate schedule."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from models import layer_index, no_weight_decay
from train.recipe import OptimRecipe


class _Active(torch.optim.Optimizer):
    """Leaves groups with `active` false alone: weights, moments and step counts.

    A head that a step does not train has a zero gradient, not none, under ZeRO. The optimizer would still move it, by
    weight decay and by what is left of its momentum.
    """

    def step(self, closure: Any = None) -> Any:
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["active"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class ActiveAdamW(_Active, torch.optim.AdamW):
    """AdamW that keeps inactive groups still."""


class ActiveSGD(_Active, torch.optim.SGD):
    """SGD with momentum that keeps inactive groups still. Weight decay is added to the gradient, as in torch."""


Optimizer = ActiveAdamW | ActiveSGD


def build_optimizer(model: nn.Module, depth: int, recipe: OptimRecipe) -> Optimizer:
    """The recipe's optimizer over groups that differ in task, layer or weight decay.

    Rules are timm's: no decay for vectors, embeddings and tokens; with `layer_decay` d, layer i learns at
    d ** (depth + 1 - i) times the rate. The embedding is layer 0, the final norm goes with the last block, and
    heads are layer `depth` + 1.

    Each group has `task` (the head's, None for the backbone), `layer_scale` and `active` beside torch's own keys.
    """
    groups: dict[tuple[str | None, int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        task = name.split(".")[1] if name.startswith("heads.") else None
        layer = layer_index(name, depth)
        bare = no_weight_decay(name, parameter)
        group = groups.setdefault(
            (task, layer, bare),
            {
                "params": [],
                "task": task,
                "layer_scale": recipe.layer_decay ** (depth + 1 - layer),
                "weight_decay": 0.0 if bare else recipe.weight_decay,
                "active": True,
            },
        )
        group["params"].append(parameter)
    if recipe.name == "sgd":
        return ActiveSGD(list(groups.values()), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    betas = (recipe.betas[0], recipe.betas[1])
    return ActiveAdamW(list(groups.values()), lr=recipe.lr, betas=betas, fused=True)


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Sets moments and step counts to zero, in place, for others hold them too: as if no step had been taken."""
    with torch.no_grad():
        for state in optimizer.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    value.zero_()
                elif value is not None:
                    state[key] = type(value)(0)


def learning_rate(step: int, steps: int, recipe: OptimRecipe) -> float:
    """The rate of step `step` (from 0) of the run's or a stage's `steps`: linear warm-up from near 0, then the recipe's
    schedule."""
    if step < recipe.warmup_steps:
        return recipe.lr * (step + 1) / recipe.warmup_steps
    if recipe.schedule == "constant":
        return recipe.lr
    done = (step - recipe.warmup_steps) / max(steps - recipe.warmup_steps, 1)
    left = 1 - done if recipe.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * left


def set_step(groups: list[dict[str, Any]], lr: float, lr_scales: dict[str, float]) -> None:
    """Sets rate and activity of all groups for a step that trains the tasks of `lr_scales` (task -> coefficient).

    A head learns at its own task's coefficient, the shared backbone at the mean of those in the step.
    """
    shared = sum(lr_scales.values()) / len(lr_scales)
    for group in groups:
        task = group["task"]
        group["active"] = task is None or task in lr_scales
        group["lr"] = lr * group["layer_scale"] * (shared if task is None else lr_scales.get(task, 0.0))
