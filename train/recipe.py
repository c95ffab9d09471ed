"""Recipes: what a run is, as typed YAML plus `key=value` overrides, read and checked before anything is started."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data.recipe import (
    PROJECT,
    RECIPES,
    ClipSize,
    DataRecipe,
    TaskSource,
    check_data,
    demand,
    find_recipe,
    one_of,
    parse,
    project_path,
    read_recipe,
    view_config,
)

TOY_RECIPE = RECIPES / "toy.yaml"

__all__ = ["PROJECT", "Recipe", "load_recipe", "parse_recipe", "project_path", "view_config"]


@dataclass
class InitRecipe:
    """Where the backbone's first weights come from (nothing: random)."""

    source: str | None = None
    """A run or checkpoint folder of this project, a timm model name, or a file of an image ViT."""
    inflate: str = "central_frame"
    """How a 2-D patch kernel becomes a tubelet's: central_frame | average."""


@dataclass(kw_only=True)
class ModelRecipe(ClipSize):
    """The backbone: `models.create_backbone`'s arguments."""

    name: str = "vit_large"
    tubelet_size: list[int] = field(default_factory=lambda: [2, 16, 16])
    embed_dim: int | None = None
    """None: as the name says. The same holds for depth and num_heads."""
    depth: int | None = None
    num_heads: int | None = None
    class_token: bool = False
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; linear from 0 at the first one."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Subtracted from RGB in [0, 1]; std divides after."""
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    subtract_mean_frame: float = 0.0
    """How much of each clip's mean frame is subtracted, in place of `mean`, 0 to 1: at 1 a still background vanishes,
    motion stays. For small models that start from random weights; pretrained ones want their own mean."""
    init: InitRecipe = field(default_factory=InitRecipe)


@dataclass
class ViewRecipe:
    """How a clip is cut from a video and augmented."""

    stride: int = 2
    """Frames of the packed video from one frame of the clip to the next."""
    sampling: str = "dense"
    """dense | segments (a frame of each of num_frames equal parts). Localisation is always centred on the keyframe."""
    flip: bool = True
    """Horizontal flip in training; false where left and right matter."""
    scale: list[float] = field(default_factory=lambda: [0.5, 1.0])
    """Smallest and largest area of a training crop, as a share of the frame."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation in training."""
    train_proposals: float | None = None
    """Training also takes detected boxes of this score or more that overlap a person, with the person's labels."""
    proposal_score_threshold: float = 0.8
    """Evaluation takes detected boxes of this score or more."""
    eval_boxes: str = "proposals"
    """proposals | groundtruth: the boxes that evaluation classifies."""


@dataclass
class HeadRecipe:
    """A task's head."""

    dropout: float = 0.0
    pool: str | None = None
    """classification: mean | class_token; localisation, inside of a box: max | mean. None: the head's default."""
    roi_size: int = 7
    """Side of RoIAlign's grid; localisation only."""


@dataclass(kw_only=True)
class TaskRecipe(TaskSource):
    """One dataset: its shards, its part of a step, its loss and its head."""

    loss_weight: float = 1.0
    lr_scale: float = 1.0
    """The task's own learning-rate coefficient."""
    view: ViewRecipe = field(default_factory=ViewRecipe)
    head: HeadRecipe = field(default_factory=HeadRecipe)


@dataclass
class OptimRecipe:
    """AdamW and its learning rate: linear warm-up, then cosine, linear or constant."""

    lr: float = 1e-3
    min_lr: float = 0.0
    warmup_steps: int = 0
    schedule: str = "cosine"
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    layer_decay: float = 1.0
    """A block's learning rate is this times the next one's; 1 switches it off."""
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""


@dataclass(kw_only=True)
class Recipe(DataRecipe):
    """A run. With the seed and the step, it decides every clip and every number of it."""

    name: str
    out: str
    """The run's folder: checkpoints, log, TensorBoard, evaluation."""
    # OmegaConf fills it with TaskRecipe alone, so that nothing less gets in by way of the base class.
    tasks: dict[str, TaskRecipe]  # type: ignore[assignment]
    precision: str = "fp32"
    """fp32 | bf16 (torch autocast; parameters, gradients and optimizer state stay in fp32)."""
    max_bad_share: float = 0.01
    """The run ends when a greater share of a rank's clips could not be read."""
    log_every: int = 20
    save_every: int = 1000
    """Steps between checkpoints; one is always written at the end."""
    keep: int = 2
    """Number of newest checkpoints that are kept."""
    eval_every: int = 0
    """Steps between evaluations; 0: none during training."""
    eval_batch: int = 16
    """Clips of one forward pass on one rank in evaluation."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)


def load_recipe(path: str | Path | None = None, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe file (None: the toy recipe) and lays `key=value` overrides over it.

    `${project:}` in a recipe is the project's folder; other relative paths are relative to the working directory.

    Raises:
        UserError: no such file, not YAML, an unknown key (names the nearest right one), a value of the wrong type or
            out of range.
    """
    where = TOY_RECIPE if path is None else find_recipe(path)
    return parse_recipe(read_recipe(where), f"recipe {where}", overrides)


def parse_recipe(text: str, where: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML text; `where` names it in errors. Raises UserError as `load_recipe` does."""
    recipe = parse(text, where, overrides or [], Recipe)
    check_data(recipe, where)
    _check_training(recipe, where)
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """The whole recipe, defaults and overrides included, as YAML. Shards under `data_root` stay so, for the day when
    they move and `data_root=FOLDER` says where to."""
    dumped = OmegaConf.structured(recipe)
    root = f"{recipe.data_root}/"
    for name, task in recipe.tasks.items():
        for key in ("shards", "val_shards"):
            prefix = getattr(task, key)
            if prefix is not None and recipe.data_root and prefix.startswith(root):
                dumped.tasks[name][key] = "${data_root}/" + prefix.removeprefix(root)
    return OmegaConf.to_yaml(dumped)


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """`key: old -> new` of every value that differs."""
    before, after = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    keys = sorted(before.keys() | after.keys())
    return [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def _check_training(recipe: Recipe, where: str) -> None:
    for key in ("log_every", "save_every", "keep", "eval_batch"):
        demand(getattr(recipe, key) >= 1, where, key, getattr(recipe, key), "must be at least 1")
    demand(recipe.eval_every >= 0, where, "eval_every", recipe.eval_every, "must not be below 0")
    demand(0 <= recipe.max_bad_share <= 1, where, "max_bad_share", recipe.max_bad_share, "must be a share from 0 to 1")
    one_of(where, "precision", recipe.precision, ("fp32", "bf16"))
    optim = recipe.optim
    one_of(where, "optim.schedule", optim.schedule, ("cosine", "linear", "constant"))
    one_of(where, "model.init.inflate", recipe.model.init.inflate, ("central_frame", "average"))
    demand(optim.lr > 0, where, "optim.lr", optim.lr, "must be above 0")
    demand(0 < optim.layer_decay <= 1, where, "optim.layer_decay", optim.layer_decay, "must be in (0, 1]")
    for key in ("clip_grad", "weight_decay"):
        demand(getattr(optim, key) >= 0, where, f"optim.{key}", getattr(optim, key), "must not be below 0")
    demand(len(optim.betas) == 2, where, "optim.betas", optim.betas, "must be two numbers")
    for name, task in recipe.tasks.items():
        for part in ("loss_weight", "lr_scale"):
            demand(getattr(task, part) >= 0, where, f"tasks.{name}.{part}", getattr(task, part), "must not be below 0")


def _flatten(raw: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(raw, dict):
        return {prefix[:-1]: raw}
    return {k: v for key, value in raw.items() for k, v in _flatten(value, f"{prefix}{key}.").items()}
