"""The model of a recipe: its configuration as plain JSON, and its first weights."""

from dataclasses import asdict
from typing import Any

import torch

from data.errors import UserError
from models import (
    CofinetuneModel,
    attention_function,
    backbone_from_checkpoint,
    create_model,
    init_from_image_vit,
)
from train.checkpoint import find_weights
from train.recipe import Recipe, project_path, view_config
from train.tasks import Task

EXECUTION = ("attention", "grad_checkpointing", "compile")
"""How a machine runs the backbone. Checkpoints do not say it: another machine may lack what this one has."""


def model_config(recipe: Recipe, tasks: list[Task]) -> dict[str, Any]:
    """What `models.create_model` takes, and under "tasks" what prediction needs: classes and view of every task."""
    backbone = asdict(recipe.model)
    shared = {key: backbone.pop(key) for key in ("mean", "std", "subtract_mean_frame")}
    for key in ("init", *EXECUTION):
        del backbone[key]
    heads = {}
    for task in tasks:
        head = {key: value for key, value in asdict(task.recipe.head).items() if value is not None}
        heads[task.name] = {"kind": task.recipe.kind, "num_classes": len(task.classes), **head}
    told: dict[str, dict[str, Any]] = {}
    for task in tasks:
        view = asdict(view_config(task.recipe.view, recipe.model))
        told[task.name] = {"classes": [asdict(c) for c in task.classes], "view": view}
        packed = task.train.shards.manifest.settings.get("pack", {}) if task.train is not None else {}
        if packed.get("fps"):
            # Clips of any other video are then taken at this rate too.
            told[task.name]["fps"] = packed["fps"]
    return {
        "backbone": {key: value for key, value in backbone.items() if value is not None},
        "heads": heads,
        **shared,
        "tasks": told,
    }


def build_model(recipe: Recipe, config: dict[str, Any]) -> CofinetuneModel:
    """A model with its first weights: random ones of the recipe's seed, the backbone's from `model.init` if given.

    Raises:
        UserError: a configuration that makes no model, attention that cannot run here, or a source of weights that does
            not fit.
    """
    torch.manual_seed(recipe.seed)
    backbone = config["backbone"] | {key: getattr(recipe.model, key) for key in EXECUTION}
    try:
        model = create_model({key: config[key] for key in config if key != "tasks"} | {"backbone": backbone})
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        attention_function(recipe.model.attention, device, dtype, model.backbone.head_dim)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    source = recipe.model.init.source
    if source is not None:
        try:
            if project_path(source).is_dir():
                size = {"num_frames": recipe.model.num_frames, "image_size": recipe.model.image_size}
                trained = backbone_from_checkpoint(find_weights(project_path(source)), **size)
                model.backbone.load_state_dict(trained.state_dict())
            else:
                average = recipe.model.init.inflate == "average"
                init_from_image_vit(model.backbone, source, "average" if average else "central_frame")
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"model.init.source={source}: {error}") from error
    return model
