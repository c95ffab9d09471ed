"""Recipes: what a run is, as typed YAML plus `key=value` overrides, read and checked before anything is started."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from data.recipe import ClipSize, DataRecipe, TaskSource, check_data, demand, one_of, parse, view_config
from data.recipe_files import PROJECT, RECIPES, Layer, find_recipe, parse_layer, project_path, read_layers
from data.schedule import apportion

TOY_RECIPE = RECIPES / "toy.yaml"

__all__ = ["PROJECT", "Recipe", "load_recipe", "parse_recipe", "project_path", "view_config"]


@dataclass
class InitRecipe:
    """Where the backbone's first weights come from (nothing: random). docs/weights.md has a line for every family.

    What the recipe leaves open of the backbone's network (the keys of `model` that are None) is as the source has it.
    Where it has other sizes, activations or epsilons, the error names the keys to set; what else it says otherwise
    shows as missing or unexpected tensors. Positions are interpolated to the recipe's clips.
    """

    source: str | None = None
    """A run or checkpoint of this project; a folder or file of Hugging Face's ViViT or VideoMAE; a .pth file of the
    original VideoMAE; an image ViT: timm's name of it, a file, or a folder as on Hugging Face's hub."""
    inflate: str = "central_frame"
    """How an image ViT's 2-D patch kernel becomes a tubelet's: central_frame | average."""
    allow_missing: list[str] = field(default_factory=list)
    """Tensors of the backbone that the source need not have: names, what they begin with, or patterns with *."""
    allow_unexpected: list[str] = field(default_factory=list)
    """Tensors of the source that the backbone need not have. Heads and decoders are left over in any case."""
    source_num_frames: int | None = None
    """Frames that an original VideoMAE file was trained on, where it does not say so itself. None: 16."""
    source_image_size: int | None = None
    """Likewise the image size. None: 224."""


@dataclass(kw_only=True)
class ModelRecipe(ClipSize):
    """The backbone: `models.create_backbone`'s arguments, how it is run, and how clips are normalised for it."""

    name: str = "vit_large"
    """vit_tiny | vit_small | vit_base | vit_large | vit_huge, with timm's widths, depths and heads."""
    tubelet_size: list[int] = field(default_factory=lambda: [2, 16, 16])
    """Frames, rows and columns of a tubelet."""
    embed_dim: int | None = None
    """Width of a token. None, here and in the next two: as the name says."""
    depth: int | None = None
    """Blocks."""
    num_heads: int | None = None
    """Attention heads, of embed_dim / num_heads each."""
    mlp_ratio: float | None = None
    """Width of a block's MLP over embed_dim. None, here and down to final_norm: as `init.source` has it, or else the
    value in brackets [4]."""
    class_token: bool | None = None
    """A learned token in front of the tubelets, for heads with pool: class_token [false, also for image ViTs]."""
    pos_embed: str | None = None
    """learned | sincos (fixed, as VideoMAE's) [learned]."""
    act_layer: str | None = None
    """gelu | gelu_tanh | quick_gelu | relu | silu [gelu]."""
    norm_eps: float | None = None
    """Epsilon of every LayerNorm [1e-6]."""
    qkv_bias: bool | None = None
    """Whether queries, keys and values have a bias [true]."""
    init_values: float | None = None
    """First value of the layer scale [no layer scale]."""
    final_norm: bool | None = None
    """A LayerNorm behind the last block [true]. Finetuned VideoMAE has one behind the mean instead: true takes that."""
    drop_path_rate: float = 0.0
    """Stochastic depth of the last block; linear from 0 at the first one."""
    attention: str = "auto"
    """What computes attention: auto | sdpa | flash_attn | eager. auto is sdpa, PyTorch's own, which has flash kernels;
    flash_attn is a package that requirements-gpu.txt says how to install, for CUDA and precision=bf16."""
    grad_checkpointing: str = "none"
    """none | selective | full: how much of the activations the backward pass computes anew. none keeps what matrix
    products and attention gave, selective only attention's part of it (the MLP is done again), full a block's input."""
    compile: bool = False
    """torch.compile of each block; the first steps wait for the compiler."""
    mean: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """Subtracted from RGB in [0, 1]."""
    std: list[float] = field(default_factory=lambda: [0.5, 0.5, 0.5])
    """What RGB is divided by after that."""
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
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Narrowest and widest shape of a training crop: a factor of a square's or, in localisation, of the frame's."""
    short_side: list[int] | None = None
    """In place of scale and ratio, SlowFast's scale jitter: the frame's short side is resized to a length (pixels) from
    the first to the second, in localisation both sides, and a square of image_size cut out of a random place."""
    min_visible: float = 0.25
    """Localisation drops a person of whose box a smaller share than this can be seen."""
    color_jitter: float = 0.0
    """Largest relative change of brightness, contrast and saturation in training."""
    randaugment_ops: int = 0
    """Operations of RandAugment drawn for a training clip; 0: off. Localisation has no shears and turns among them."""
    randaugment_magnitude: int = 9
    """Their strength, 0 to 30, as in torchvision; timm's `m` times 3."""
    randaugment_prob: float = 1.0
    """The chance of each drawn operation to be applied (timm: 0.5)."""
    random_erasing: float = 0.0
    """The chance of a training clip to have a rectangle of it replaced by noise."""
    mixup: float = 0.0
    """Alpha of mixup; 0: off. Classification only, as are the next four."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0: off."""
    mixup_prob: float = 1.0
    """The chance of a pair of training clips to be mixed, by one of the two."""
    mixup_switch_prob: float = 0.5
    """The chance of CutMix in place of mixup where both are on."""
    eval_views: list[int] = field(default_factory=lambda: [1, 1])
    """Clips of a video that evaluation averages over, in time and in space: [4, 3] is 12 clips a video."""
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
    """In front of the last layer: a probability in [0, 1)."""
    pool: str | None = None
    """classification: mean | class_token; localisation, inside of a box: max | mean. None: mean; max."""
    fc_norm: bool | None = None
    """A LayerNorm behind the pooling, for backbones with final_norm: false; classification only (None: no)."""
    roi_size: int | None = None
    """Side of RoIAlign's grid (None: 7). This and what follows is for localisation only."""
    temporal: str | None = None
    """mean | max over time before RoIAlign, or roi: RoIAlign at each time step, then `pool` (None: mean)."""
    box_scale: float | None = None
    """Sides of the region that is pooled over those of the box, from 1 to 10 (None: 1)."""
    context_heads: int | None = None
    """Heads of a layer through which a box looks at all tokens of its clip (None: no such layer)."""


@dataclass(kw_only=True)
class TaskRecipe(TaskSource):
    """One dataset: its shards, its part of a step, its loss and its head."""

    loss_weight: float = 1.0
    """What the mean loss of the task's clips, or boxes in localisation, is multiplied by."""
    label_smoothing: float = 0.0
    """Share of a clip's label that is spread over all classes, 0 to 1; classification only."""
    lr_scale: float = 1.0
    """The task's own learning-rate coefficient."""
    view: ViewRecipe = field(default_factory=ViewRecipe)
    head: HeadRecipe = field(default_factory=HeadRecipe)


@dataclass
class OptimRecipe:
    """The optimizer and its learning rate: linear warm-up, then cosine, linear or constant."""

    name: str = "adamw"
    """adamw | sgd. The latter adds weight_decay times the weights to the gradient, as torch's SGD does."""
    momentum: float = 0.9
    """For sgd."""
    nesterov: bool = False
    """For sgd: Nesterov's momentum."""
    lr: float = 1e-3
    """After the warm-up: of the heads, and of all layers where layer_decay is 1."""
    min_lr: float = 0.0
    """Where cosine and linear end."""
    warmup_steps: int = 0
    """Steps over which the rate rises in even steps to lr."""
    schedule: str = "cosine"
    """cosine | linear | constant, after the warm-up."""
    weight_decay: float = 0.05
    """Not of biases, norms, positions and tokens, as in timm."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """For adamw."""
    layer_decay: float = 1.0
    """A block's learning rate is this times the next one's; 1 switches it off."""
    clip_grad: float = 1.0
    """Largest norm of the gradient; 0 switches clipping off."""
    per_stage: bool = False
    """For the schedule task_by_task: each task's steps are like a run of their own that takes over the backbone. The
    optimizer's state begins anew, and so does the learning rate, with warm-up and decay over the task's own steps.
    False: one optimizer and one learning-rate schedule over all tasks."""


@dataclass(kw_only=True)
class Recipe(DataRecipe):
    """A run. With the seed and the step, it decides every clip and every number of it."""

    name: str
    """Of the run, for its lines and logs."""
    out: str
    """The run's folder: checkpoints, log, TensorBoard, evaluation."""
    # OmegaConf fills it with TaskRecipe alone, so that nothing less gets in by way of the base class.
    tasks: dict[str, TaskRecipe]  # type: ignore[assignment]
    precision: str = "fp32"
    """fp32 | bf16 (torch autocast; parameters, gradients and optimizer state stay in fp32)."""
    max_bad_share: float = 0.01
    """The run ends when a greater share of a rank's clips could not be read."""
    max_skipped_steps: int = 20
    """A step whose loss or gradient is not finite is left out; the run ends when there are more than so many."""
    ema: float = 0.0
    """Decay of a moving average of the weights, evaluated beside them (metrics ema/{task}/{metric}) and kept in
    checkpoints as ema.safetensors; every rank holds it, 4 bytes a parameter. 0: none."""
    log_every: int = 20
    """Steps between lines of the log."""
    gradients_every: int = 0
    """Every so many steps of a task, TensorBoard gets the norm of its gradient on its head and on the backbone, and
    under accumulate the cosine of every two tasks' on the backbone; docs/training.md says what it costs. 0: never."""
    save_every: int = 1000
    """Steps between checkpoints; one is always written at the end."""
    keep: int = 2
    """Number of newest checkpoints that are kept."""
    keep_best: list[str] = field(default_factory=list)
    """Metrics of the evaluation, as in [ava/mAP], the higher the better: the best checkpoint of each is kept too, and
    written for it where none is due; checkpoints/best.json names them. Needs eval_every."""
    eval_every: int = 0
    """Steps between evaluations; 0: none during training."""
    eval_batch: int = 16
    """Clips of one forward pass on one rank in evaluation."""
    eval_keyframes: int = 8
    """Keyframes of each localisation task that an evaluation during training draws for TensorBoard, ground truth beside
    detections; always the same ones. 0: none."""
    model: ModelRecipe = field(default_factory=ModelRecipe)
    optim: OptimRecipe = field(default_factory=OptimRecipe)


def load_recipe(path: str | Path | None = None, overrides: list[str] | None = None) -> Recipe:
    """Reads a recipe file (None: the toy recipe) and lays `key=value` overrides over it.

    `base` in a file names others that it builds on (`data.recipe_files`). `${project:}` is the project's folder; other
    relative paths are relative to the working directory.

    Raises:
        UserError: no such file, not YAML, an unknown key (names the nearest right one), a value of the wrong type or
            out of range.
    """
    where = TOY_RECIPE if path is None else find_recipe(path)
    return _checked(read_layers(where), overrides)


def parse_recipe(text: str, where: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML text; `where` names it in errors. Raises UserError as `load_recipe` does."""
    return _checked([parse_layer(text, where)], overrides)


def _checked(layers: list[Layer], overrides: list[str] | None) -> Recipe:
    recipe, where = parse(layers, overrides or [], Recipe), layers[-1].where
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
    """`key: old -> new` of every value that differs, and of the tasks' order, which decides what a step trains."""
    before, after = _flatten(dataclasses.asdict(old)), _flatten(dataclasses.asdict(new))
    keys = sorted(before.keys() | after.keys())
    differences = [f"{k}: {before.get(k)} -> {after.get(k)}" for k in keys if before.get(k) != after.get(k)]
    if old.tasks.keys() == new.tasks.keys() and list(old.tasks) != list(new.tasks):
        differences.append(f"tasks: in the order {', '.join(old.tasks)} -> {', '.join(new.tasks)}")
    return differences


def _check_training(recipe: Recipe, where: str) -> None:
    def check(good: bool, key: str, value: Any, expected: str) -> None:
        demand(good, where, key, value, expected)

    for key, number in _flatten(dataclasses.asdict(recipe)).items():
        for value in number if isinstance(number, list) else [number]:
            check(not isinstance(value, float) or math.isfinite(value), key, number, "must be finite")
    for key in ("log_every", "save_every", "keep", "eval_batch"):
        check(getattr(recipe, key) >= 1, key, getattr(recipe, key), "must be at least 1")
    for key in ("eval_every", "eval_keyframes", "gradients_every", "max_skipped_steps"):
        check(getattr(recipe, key) >= 0, key, getattr(recipe, key), "must not be below 0")
    good = not recipe.keep_best or recipe.eval_every > 0
    check(good, "keep_best", recipe.keep_best, "needs evaluations during training: give eval_every")
    check(0 <= recipe.max_bad_share <= 1, "max_bad_share", recipe.max_bad_share, "must be a share from 0 to 1")
    check(0 <= recipe.ema < 1, "ema", recipe.ema, "must be in [0, 1)")
    one_of(where, "precision", recipe.precision, ("fp32", "bf16"))
    one_of(where, "model.init.inflate", recipe.model.init.inflate, ("central_frame", "average"))
    optim = recipe.optim
    one_of(where, "optim.name", optim.name, ("adamw", "sgd"))
    check(0 <= optim.momentum < 1, "optim.momentum", optim.momentum, "must be in [0, 1)")
    check(not optim.nesterov or optim.momentum > 0, "optim.nesterov", optim.nesterov, "needs optim.momentum above 0")
    one_of(where, "optim.schedule", optim.schedule, ("cosine", "linear", "constant"))
    check(optim.lr > 0, "optim.lr", optim.lr, "must be above 0")
    check(0 <= optim.min_lr <= optim.lr, "optim.min_lr", optim.min_lr, "must be from 0 to optim.lr")
    check(0 < optim.layer_decay <= 1, "optim.layer_decay", optim.layer_decay, "must be in (0, 1]")
    for key in ("clip_grad", "weight_decay", "warmup_steps"):
        check(getattr(optim, key) >= 0, f"optim.{key}", getattr(optim, key), "must not be below 0")
    staged = optim.per_stage and recipe.schedule != "task_by_task"
    check(not staged, "optim.per_stage", optim.per_stage, f"is for schedule=task_by_task, not {recipe.schedule}")
    if optim.per_stage and any(task.share for task in recipe.tasks.values()):
        steps = apportion(recipe.steps, [task.share for task in recipe.tasks.values()])
        for name, count in zip(recipe.tasks, steps, strict=True):
            expected = f"must be below the {count} steps of tasks.{name}, over which each stage warms up and decays"
            check(count == 0 or optim.warmup_steps < count, "optim.warmup_steps", optim.warmup_steps, expected)
    good = len(optim.betas) == 2 and all(0 <= beta < 1 for beta in optim.betas)
    check(good, "optim.betas", optim.betas, "must be two numbers in [0, 1)")
    for name, task in recipe.tasks.items():
        key = f"tasks.{name}"
        for part in ("loss_weight", "lr_scale"):
            check(getattr(task, part) >= 0, f"{key}.{part}", getattr(task, part), "must not be below 0")
        smoothing = task.label_smoothing
        check(0 <= smoothing <= 1, f"{key}.label_smoothing", smoothing, "must be a share from 0 to 1")
        good = not smoothing or task.kind == "classification"
        check(good, f"{key}.label_smoothing", smoothing, "is for classification only")


def _flatten(raw: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(raw, dict):
        return {prefix[:-1]: raw}
    return {k: v for key, value in raw.items() for k, v in _flatten(value, f"{prefix}{key}.").items()}
