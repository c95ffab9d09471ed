"""The model of a recipe: its configuration as plain JSON, and its first weights."""

import inspect
import json
import math
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from models import (
    PRESETS,
    CofinetuneModel,
    attention_function,
    check_execution,
    create_model,
    init_backbone,
    load_model,
    read_source,
)
from train.recipe import InitRecipe, Recipe, project_path, view_config
from train.tasks import Task

EXECUTION = ("attention", "grad_checkpointing", "compile")
"""How a machine runs the backbone. Checkpoints do not say it: another machine may lack what this one has."""
ONLY_TRAINING = ("init", "drop_path_rate", "dropout")
"""What changes nothing in a model that is trained."""
DIMENSIONS = ("embed_dim", "depth", "num_heads")
DECIDED = (*DIMENSIONS, "mlp_ratio", "tubelet_size", "act_layer", "norm_eps")
"""Options that a source of weights leaves no choice about. What else differs shows as missing or unexpected tensors,
which the recipe may allow."""


def model_config(recipe: Recipe, tasks: list[Task], resumed: Path | None = None) -> dict[str, Any]:
    """What `models.create_model` takes, and under "tasks" what prediction needs, classes and view of every task, and
    what it was trained on.

    What the recipe leaves open of the backbone is as the source of its weights has it.

    Args:
        resumed: a checkpoint of this run that it goes on from; the source is not looked at then.

    Raises:
        UserError: a source that cannot be read, or that is another network than the recipe's.
    """
    backbone = {key: value for key, value in asdict(recipe.model).items() if value is not None}
    shared = {key: backbone.pop(key) for key in ("mean", "std", "subtract_mean_frame")}
    for key in ("init", *EXECUTION):
        del backbone[key]
    if resumed is not None:
        backbone = {**_resumed_backbone(resumed), **backbone}
    elif recipe.model.init.source is not None:
        backbone = complete_backbone(backbone, recipe.model.init)
    heads = {}
    for task in tasks:
        head = {key: value for key, value in asdict(task.recipe.head).items() if value is not None}
        heads[task.name] = {"kind": task.recipe.kind, "num_classes": len(task.classes), **head}
    told: dict[str, dict[str, Any]] = {}
    for task in tasks:
        view = asdict(view_config(task.recipe.view, recipe.model))
        told[task.name] = {"classes": [asdict(c) for c in task.classes], "view": view}
        if task.train is None:
            continue
        manifest = task.train.shards.manifest
        told[task.name]["train_set"] = {
            "examples": manifest.examples,
            "shards": len(manifest.shards),
            "sha256": manifest.fingerprint,
        }
        packed = manifest.settings.get("pack", {})
        if packed.get("fps"):
            # Clips of any other video are then taken at this rate too.
            told[task.name]["fps"] = packed["fps"]
    return {
        "backbone": backbone,
        "heads": heads,
        **shared,
        "tasks": told,
    }


def build_model(recipe: Recipe, config: dict[str, Any], init: bool = True) -> CofinetuneModel:
    """A model with its first weights: random ones of the recipe's seed, the backbone's from `model.init` if given.

    Args:
        init: false leaves `model.init` out, for a run that goes on from a checkpoint.

    Raises:
        UserError: a configuration that makes no model, attention that cannot run here, or a source of weights that does
            not fit.
    """
    torch.manual_seed(recipe.seed)
    backbone = config["backbone"] | {key: getattr(recipe.model, key) for key in EXECUTION}
    try:
        model = create_model({key: config[key] for key in config if key != "tasks"} | {"backbone": backbone})
        _check_attention(recipe, model)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    first = recipe.model.init
    if init and first.source is not None:
        options = asdict(first)
        del options["source"]
        try:
            init_backbone(model.backbone, _where(first), **options)
        except (ValueError, RuntimeError, OSError) as error:
            raise UserError(f"model.init.source={first.source}: {error}") from error
    return model


def fetches_weights(recipe: Recipe) -> bool:
    """Whether the first weights come from a hub, into a cache of this user."""
    return recipe.model.init.source is not None and isinstance(_where(recipe.model.init), str)


def read_model(weights: Path, recipe: Recipe | None = None) -> tuple[CofinetuneModel, dict[str, Any]]:
    """Model and configuration of a checkpoint.

    Args:
        recipe: of the evaluation: how the backbone is run, and what it says of the model has to be as in training.

    Raises:
        UserError: the checkpoint cannot be read, its model is another than the recipe's, or cannot run so here.
    """
    execution = {} if recipe is None else {key: getattr(recipe.model, key) for key in EXECUTION}
    try:
        if recipe is not None:
            check_execution(**execution)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    try:
        model, config = load_model(weights, **execution)
    except ValueError as error:
        raise UserError(str(error)) from error
    if recipe is not None:
        _check_trained(recipe, model, config)
        try:
            _check_attention(recipe, model)
        except ValueError as error:
            raise UserError(f"model: {error}") from error
    return model, config


def _check_attention(recipe: Recipe, model: CofinetuneModel) -> None:
    """Raises ValueError where the recipe's kind of attention cannot run here."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    attention_function(recipe.model.attention, device, dtype, model.backbone.head_dim)


def _check_trained(recipe: Recipe, model: CofinetuneModel, config: dict[str, Any]) -> None:
    """Raises UserError where a recipe says something else of the model than it was trained with: it would count for
    nothing."""
    parts = [("model", asdict(recipe.model), {**asdict(model.backbone.config), **config["backbone"], **config})]
    for name, head in config["heads"].items():
        if name in recipe.tasks:
            options = inspect.signature(type(model.heads[name])).parameters
            defaults = {key: option.default for key, option in options.items()}
            parts.append((f"tasks.{name}.head", asdict(recipe.tasks[name].head), defaults | head))
    for part, said, trained in parts:
        for key, wanted in said.items():
            if key in (*EXECUTION, *ONLY_TRAINING) or wanted is None or key not in trained:
                continue
            if not _same(wanted, trained[key]):
                told = f"{part}.{key}={_plain(wanted)}, the checkpoint {_plain(trained[key])}"
                raise UserError(f"the recipe has {told}: give the run's own recipe")


def describe_init(recipe: Recipe, model: CofinetuneModel) -> str | None:
    """What became of the source's tensors, and what to look at; None where the weights are random."""
    report = model.backbone.load_report
    if report is None:
        return None
    told = f"model.init.source={recipe.model.init.source}: {report}"
    if report.normalisation is not None and not recipe.model.subtract_mean_frame:
        theirs = report.normalisation
        ours = (recipe.model.mean, recipe.model.std)
        if not all(_same(a, b) for a, b in zip(theirs, ours, strict=True)):
            mean, std = ([round(value, 4) for value in values] for values in theirs)
            told += (
                f"\n  note: it was trained with model.mean={mean} model.std={std}; the recipe has {ours[0]}, {ours[1]}"
            )
    return told


def complete_backbone(backbone: dict[str, Any], init: InitRecipe) -> dict[str, Any]:
    """`backbone`, arguments of `create_backbone`, with all that it leaves open from `init.source`.

    Raises:
        UserError: a source that cannot be read or is another network; names the keys to set.
    """
    effective = {**PRESETS.get(backbone["name"], {}), **backbone}
    try:
        source = read_source(
            _where(init), effective.get("num_heads"), init.source_num_frames, init.source_image_size
        ).options
    except (ValueError, RuntimeError, OSError) as error:
        raise UserError(f"model.init.source={init.source}: {error}") from error
    wrong = [k for k in DECIDED if k in source and k in effective and not _same(source[k], effective[k])]
    if wrong:
        has = ", ".join(f"{key}={_plain(source[key])}" for key in wrong)
        ours = ", ".join(f"{key}={_plain(effective[key])}" for key in wrong)
        raise UserError(f"model.init.source={init.source} has {has}; the recipe has {ours}: {_advice(source, wrong)}")
    return {**{key: _plain(value) for key, value in source.items() if value is not None}, **effective}


def _advice(source: dict[str, Any], wrong: Collection[str]) -> str:
    keys = [key for key in wrong if key not in DIMENSIONS]
    parts = [f"model.{key}={str(_plain(source[key])).replace(' ', '')}" for key in keys]
    if len(keys) < len(wrong):
        sizes = {key: source[key] for key in DIMENSIONS if key in source}
        names = [name for name, preset in PRESETS.items() if sizes.items() <= preset.items()]
        parts = ([f"model.name={names[0]}"] if names else [f"model.{k}={v}" for k, v in sizes.items()]) + parts
    return f"set {' '.join(parts)}"


def _resumed_backbone(folder: Path) -> dict[str, Any]:
    try:
        backbone = json.loads((folder / "config.json").read_text())["backbone"]
        return dict(backbone)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error}): the checkpoint is not whole") from error


def _where(init: InitRecipe) -> Path | str:
    """A file or folder, or else the source as it is: a timm model's name."""
    assert init.source is not None
    path = project_path(init.source)
    return path if path.exists() else init.source


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6)
    return bool(a == b)
