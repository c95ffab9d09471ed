"""Recipes: what a run is, as typed YAML plus `key=value` overrides, read and checked before anything is started."""

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.errors import UserError
from data.schedule import SCHEDULES
from data.view import ViewConfig

PROJECT = Path(__file__).resolve().parent.parent
TOY_RECIPE = PROJECT / "train" / "recipes" / "toy.yaml"


@dataclass
class InitRecipe:
    """Where the backbone's first weights come from (nothing: random). docs/weights.md has a line for every family.

    What the recipe leaves open of the backbone's network (the keys of `model` that are None) is as the source has it;
    what it says otherwise is an error that names the keys to set. Positions are interpolated to the recipe's clips.
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


@dataclass
class ModelRecipe:
    """The backbone: `models.create_backbone`'s arguments."""

    name: str = "vit_large"
    num_frames: int = 32
    image_size: int = 224
    tubelet_size: list[int] = field(default_factory=lambda: [2, 16, 16])
    embed_dim: int | None = None
    """None: as the name says. The same holds for depth and num_heads."""
    depth: int | None = None
    num_heads: int | None = None
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
    """What computes attention: auto | sdpa | flash_attn | eager. auto is sdpa, PyTorch's own."""
    grad_checkpointing: str = "none"
    """none | selective | full: how much of the activations the backward pass computes anew. none keeps what matrix
    products and attention gave, selective only attention's part of it (the MLP is done again), full a block's input."""
    compile: bool = False
    """torch.compile of each block; the first steps wait for the compiler."""
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
    ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Narrowest and widest shape of a training crop: a factor of a square's or, in localisation, of the frame's."""
    short_side: list[int] | None = None
    """In place of scale and ratio, SlowFast's scale jitter: the frame's short side is resized to a length (pixels) from
    the first to the second, and a square of image_size cut out of a random place."""
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
    pool: str | None = None
    """classification: mean | class_token; localisation, inside of a box: max | mean. None: the head's default."""
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


@dataclass
class TaskRecipe:
    """One dataset: its shards, its part of a step, its loss and its head."""

    kind: str
    """classification | localisation"""
    shards: str
    """Prefix of the training shards, FOLDER/{dataset}-{split}."""
    val_shards: str | None = None
    """Prefix of the shards to evaluate on."""
    batch: int = 64
    """Clips per optimizer step that trains this task, over all ranks."""
    micro_batch: int = 8
    """Most clips of one forward pass on one rank."""
    share: float = 1.0
    """U_j / U: this task's share of the run's steps (schedules weighted and task_by_task)."""
    loss_weight: float = 1.0
    label_smoothing: float = 0.0
    """Share of a clip's label that is spread over all classes, 0 to 1; classification only."""
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


@dataclass
class CacheRecipe:
    """Where shards that are URLs (s3://, gs://, hf://, https://, ...) are kept on each machine; see docs/storage.md.
    Local paths are read in place."""

    folder: str | None = None
    """A folder on a disk of the machine, shared by all ranks and by other runs. None: $COFINETUNING_CACHE, or else one
    in $TMPDIR (/tmp)."""
    max_gb: float = 100.0
    """Most that the folder holds, in 10^9 bytes; what was used longest ago goes first."""
    whole_shards: bool = True
    """Fetch shards whole, ahead of use, and verify them. False: read each clip on its own when it is needed and keep
    nothing, for so many machines that each uses little of a shard."""


@dataclass
class Recipe:
    """A run. With the seed and the step, it decides every clip and every number of it."""

    name: str
    out: str
    """The run's folder: checkpoints, log, TensorBoard, evaluation."""
    steps: int
    """Optimizer steps."""
    tasks: dict[str, TaskRecipe]
    data_root: str = "."
    """For use in the shards' paths: ${data_root}/kinetics-train."""
    seed: int = 0
    schedule: str = "accumulate"
    precision: str = "fp32"
    """fp32 | bf16 (torch autocast; parameters, gradients and optimizer state stay in fp32)."""
    window: int = 16
    """Shards that are shuffled into each other."""
    cache: CacheRecipe = field(default_factory=CacheRecipe)
    workers: int = 4
    """Loader processes per rank; 0 decodes in the training process."""
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
    where = _find(path)
    try:
        text = where.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"recipe {where}: {error}") from error
    return parse_recipe(text, f"recipe {where}", overrides)


def parse_recipe(text: str, where: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML text; `where` names it in errors. Raises UserError as `load_recipe` does."""
    OmegaConf.register_resolver("project", lambda: str(PROJECT), replace=True)
    try:
        loaded = OmegaConf.create(text)
    except Exception as error:  # the YAML reader's errors share no narrower base class
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{where}: must be a mapping of keys to values")
    _check_keys(OmegaConf.to_container(loaded), Recipe, where, "")
    for override in overrides or []:
        _apply(loaded, override)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), loaded)
        for name in merged.tasks:
            merged.tasks[name] = OmegaConf.merge(OmegaConf.structured(TaskRecipe), merged.tasks[name])
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        reason = (getattr(error, "msg", None) or str(error)).splitlines()[0]
        if "is not Optional" in reason or "Incompatible value 'None'" in reason:
            reason = "must not be null: give it a value, or leave it out of the recipe"
        raise UserError(f"{where}: {key or 'value'}: {reason}") from error
    assert isinstance(recipe, Recipe)
    _check_values(recipe, where)
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


def view_config(view: ViewRecipe, model: ModelRecipe) -> ViewConfig:
    """A task's view at the model's number of frames and image size. Raises UserError that begins with the key."""
    return ViewConfig(num_frames=model.num_frames, image_size=model.image_size, **dataclasses.asdict(view))


def project_path(path: str | Path) -> Path:
    """`path` from the working directory, or else from the project's folder, so that commands work from any folder."""
    here = Path(path)
    return here if here.exists() or here.is_absolute() or not (PROJECT / here).exists() else PROJECT / here


def _find(path: str | Path | None) -> Path:
    if path is None:
        return TOY_RECIPE
    found = project_path(path)
    if not found.is_file():
        known = ", ".join(sorted(f"train/recipes/{p.name}" for p in TOY_RECIPE.parent.glob("*.yaml")))
        raise UserError(f"no recipe at {path}; the project's own are {known}")
    return found


def _apply(config: DictConfig, override: str) -> None:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not an override: write key=value, as in optim.lr=1e-4")
    try:
        value = OmegaConf.from_dotlist([override])
    except Exception as error:  # the YAML reader's errors share no narrower base class
        raise UserError(f"override {override!r}: its value is not YAML: {' '.join(str(error).split())}") from error
    try:
        container = OmegaConf.to_container(value)
        tasks = list(config.get("tasks") or {})
        _check_keys(container, Recipe, "override", "", tasks)
        OmegaConf.update(config, key, OmegaConf.select(value, key), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from error


def _check_keys(raw: Any, schema: Any, where: str, prefix: str, tasks: list[str] | None = None) -> None:
    """Every key of `raw` is one of `schema`'s; `tasks`, when given, are the only names that `tasks.` may have."""
    if not isinstance(raw, dict):
        if raw is not None and not (isinstance(raw, str) and raw.startswith("${")):
            raise UserError(f"{where}: {prefix.rstrip('.')} must hold keys ({', '.join(get_type_hints(schema))})")
        return
    types = get_type_hints(schema)
    for key, value in raw.items():
        if key not in types:
            _unknown(f"{prefix}{key}", key, list(types), where)
        kind = types[key]
        if dataclasses.is_dataclass(kind):
            _check_keys(value, kind, where, f"{prefix}{key}.")
        elif get_origin(kind) is dict and isinstance(value, dict):
            for name, entry in value.items():
                if tasks is not None and name not in tasks:
                    _unknown(f"{prefix}{key}.{name}", str(name), tasks, where)
                _check_keys(entry, get_args(kind)[1], where, f"{prefix}{key}.{name}.")


def _unknown(full: str, key: str, known: list[str], where: str) -> None:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    hint = f"did you mean {full.removesuffix(str(key))}{near[0]}?" if near else f"known here: {', '.join(known)}"
    raise UserError(f"{where}: unknown key {full}; {hint}")


def _check_values(recipe: Recipe, where: str) -> None:
    def demand(good: bool, key: str, value: Any, expected: str) -> None:
        if not good:
            raise UserError(f"{where}: {key}={value}: {expected}")

    def one_of(key: str, value: str, names: tuple[str, ...]) -> None:
        demand(value in names, key, value, f"must be one of {', '.join(names)}")

    for key, number in _flatten(dataclasses.asdict(recipe)).items():
        for value in number if isinstance(number, list) else [number]:
            demand(not isinstance(value, float) or math.isfinite(value), key, number, "must be finite")
    demand(bool(recipe.tasks), "tasks", "{}", "a recipe needs at least one task")
    demand(recipe.steps >= 1, "steps", recipe.steps, "must be at least 1")
    demand(0 <= recipe.seed < 2**63, "seed", recipe.seed, "must be at least 0 and below 2 ** 63")
    for key in ("window", "log_every", "save_every", "keep", "eval_batch"):
        demand(getattr(recipe, key) >= 1, key, getattr(recipe, key), "must be at least 1")
    for key in ("workers", "eval_every"):
        demand(getattr(recipe, key) >= 0, key, getattr(recipe, key), "must not be below 0")
    demand(recipe.cache.max_gb > 0, "cache.max_gb", recipe.cache.max_gb, "must be above 0")
    demand(0 <= recipe.max_bad_share <= 1, "max_bad_share", recipe.max_bad_share, "must be a share from 0 to 1")
    one_of("schedule", recipe.schedule, SCHEDULES)
    one_of("precision", recipe.precision, ("fp32", "bf16"))
    one_of("optim.schedule", recipe.optim.schedule, ("cosine", "linear", "constant"))
    one_of("model.init.inflate", recipe.model.init.inflate, ("central_frame", "average"))
    demand(recipe.optim.lr > 0, "optim.lr", recipe.optim.lr, "must be above 0")
    demand(0 < recipe.optim.layer_decay <= 1, "optim.layer_decay", recipe.optim.layer_decay, "must be in (0, 1]")
    demand(recipe.optim.clip_grad >= 0, "optim.clip_grad", recipe.optim.clip_grad, "must not be below 0")
    demand(recipe.optim.weight_decay >= 0, "optim.weight_decay", recipe.optim.weight_decay, "must not be below 0")
    betas = recipe.optim.betas
    demand(len(betas) == 2 and all(0 <= b < 1 for b in betas), "optim.betas", betas, "must be two numbers in [0, 1)")
    least = recipe.optim.min_lr
    demand(0 <= least <= recipe.optim.lr, "optim.min_lr", least, "must be from 0 to optim.lr")
    demand(recipe.optim.warmup_steps >= 0, "optim.warmup_steps", recipe.optim.warmup_steps, "must not be below 0")
    for name, task in recipe.tasks.items():
        key = f"tasks.{name}"
        demand(name.replace("_", "").replace("-", "").isalnum(), key, name, "a name of letters, digits, - and _")
        one_of(f"{key}.kind", task.kind, ("classification", "localisation"))
        for part in ("batch", "micro_batch"):
            demand(getattr(task, part) >= 1, f"{key}.{part}", getattr(task, part), "must be at least 1")
        for part in ("share", "loss_weight", "lr_scale"):
            demand(getattr(task, part) >= 0, f"{key}.{part}", getattr(task, part), "must not be below 0")
        smoothing = task.label_smoothing
        demand(0 <= smoothing <= 1, f"{key}.label_smoothing", smoothing, "must be a share from 0 to 1")
        good = not smoothing or task.kind == "classification"
        demand(good, f"{key}.label_smoothing", smoothing, "is for classification only")
        try:
            view_config(task.view, recipe.model).check_kind(task.kind)
        except UserError as error:
            raise UserError(f"{where}: {key}.view.{error}") from error


def _flatten(raw: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(raw, dict):
        return {prefix[:-1]: raw}
    return {k: v for key, value in raw.items() for k, v in _flatten(value, f"{prefix}{key}.").items()}
