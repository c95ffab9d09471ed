"""What a recipe says of the data, and how recipe files are read: typed YAML plus `key=value` overrides, checked.

`train/recipe.py` adds what training needs to these classes. Where only the data matter, `load_data_recipe` reads the
same files and passes over the rest.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from data.errors import UserError
from data.recipe_files import PROJECT, Layer, find_recipe, read_layers
from data.schedule import SCHEDULES
from data.view import ViewConfig


@dataclass(kw_only=True)
class ClipSize:
    """The clips that the model takes."""

    num_frames: int = 32
    """Frames of a clip."""
    image_size: int = 224
    """Height and width of a clip, in pixels."""


@dataclass(kw_only=True)
class TaskSource:
    """One dataset: its shards and its part of a step."""

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
    """The task's part of the run's steps is this over the sum of all tasks': U_j / U (schedules weighted and
    task_by_task)."""
    view: Any = field(default_factory=dict)
    """How a clip is cut from a video and augmented: keys of ViewConfig."""


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


@dataclass(kw_only=True)
class DataRecipe:
    """What decides the clips of every step of a run."""

    steps: int
    """Optimizer steps."""
    tasks: dict[str, TaskSource]
    data_root: str = "."
    """For use in the shards' paths: ${data_root}/kinetics-train."""
    seed: int = 0
    """Of the first weights, the order and the augmentation; below 2^63."""
    schedule: str = "accumulate"
    """accumulate (every step sees every task) | weighted | alternating | uniform | task_by_task: docs/training.md."""
    window: int = 16
    """Shards that are shuffled into each other."""
    workers: int = 4
    """Loader processes per rank; 0 decodes in the training process."""
    cache: CacheRecipe = field(default_factory=CacheRecipe)
    model: ClipSize = field(default_factory=ClipSize)


R = TypeVar("R", bound=DataRecipe)


def load_data_recipe(path: str | Path, overrides: Sequence[str] = ()) -> DataRecipe:
    """Reads what a recipe file says of the data, with `key=value` overrides.

    Raises:
        UserError: no such file, not YAML, a value of the wrong type or out of range, or an unknown key that looks like
            a mistyped one; other unknown keys are taken for training's.
    """
    where = find_recipe(path)
    recipe = parse(read_layers(where), overrides, DataRecipe, strict=False)
    check_data(recipe, f"recipe {where}")
    return recipe


def view_config(view: Any, clip: ClipSize) -> ViewConfig:
    """A task's view (a dataclass or a mapping) at the model's number of frames and image size.

    Raises:
        UserError: an unknown key, or a value out of range; it begins with the key.
    """
    settings: dict[str, Any] = dict(view or {}) if isinstance(view, dict | None) else dataclasses.asdict(view)
    known = {part.name for part in dataclasses.fields(ViewConfig)} - {"num_frames", "image_size"}
    for key in settings:
        if key not in known:
            raise UserError(f"{key}: unknown key; {_hint(str(key), str(key), sorted(known))}")
    return ViewConfig(num_frames=clip.num_frames, image_size=clip.image_size, **settings)


def parse(layers: Sequence[Layer], overrides: Sequence[str], schema: type[R], strict: bool = True) -> R:
    """The recipe that layers of keys make together, of the right keys and types; values are not checked.

    `${project:}` in a recipe is the project's folder; other relative paths are relative to the working directory. A
    task that is null at the end is left out.

    Args:
        layers: later ones override earlier ones; the last one names the recipe in errors.
        schema: the recipe's class; its `tasks` says the class of a task.
        strict: whether every key must be the schema's; otherwise those that look like none of its keys are left out.

    Raises:
        UserError: an unknown key (names the nearest right one), a missing one, or a value of the wrong type.
    """
    where = layers[-1].where
    OmegaConf.register_resolver("project", lambda: str(PROJECT), replace=True)
    for layer in layers:
        _check_keys(OmegaConf.to_container(layer.keys), schema, layer.where, "", strict)
    loaded = _merged(layers)
    for override in overrides:
        _apply(loaded, override, schema, strict)
    _leave_out_null_tasks(loaded, layers)
    task_schema = get_args(get_type_hints(schema)["tasks"])[1]
    try:
        if not strict:
            # Resolved first: what stays may refer to what goes.
            loaded = OmegaConf.create(_known_part(OmegaConf.to_container(loaded, resolve=True), schema))
        merged = OmegaConf.merge(OmegaConf.structured(schema), loaded)
        for name in merged.tasks:
            merged.tasks[name] = OmegaConf.merge(OmegaConf.structured(task_schema), merged.tasks[name])
        recipe = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError) as error:  # the latter for keys where a list belongs
        key = getattr(error, "full_key", None)
        reason = (getattr(error, "msg", None) or str(error)).splitlines()[0]
        if "is not Optional" in reason or "Incompatible value 'None'" in reason:
            reason = "must not be null: give it a value, or leave it out of the recipe"
        elif isinstance(error, MissingMandatoryValue):
            reason = "is missing, and has no default"
        raise UserError(f"{where}: {key or 'value'}: {reason}") from error
    assert isinstance(recipe, schema)
    return recipe


def _merged(layers: Sequence[Layer]) -> DictConfig:
    merged = OmegaConf.create({})
    for layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer.keys)  # type: ignore[assignment]
        except (OmegaConfBaseException, TypeError) as error:  # a list where a base has keys, or the other way round
            raise UserError(f"{layer.where} does not fit its base: {str(error).splitlines()[0]}") from error
    return merged


def _leave_out_null_tasks(loaded: DictConfig, layers: Sequence[Layer]) -> None:
    tasks = OmegaConf.to_container(loaded).get("tasks")  # type: ignore[union-attr]
    for name in [name for name, task in tasks.items() if task is None] if isinstance(tasks, dict) else []:
        given: set[str] = set()
        for layer in layers:
            own = OmegaConf.to_container(layer.keys).get("tasks")  # type: ignore[union-attr]
            given |= {str(key) for key, task in own.items() if task is not None} if isinstance(own, dict) else set()
        if str(name) not in given:
            where = f"{layers[-1].where}: null takes a task away, and there is none of that name"
            raise _unknown(f"tasks.{name}", str(name), sorted(given), where)
        del loaded.tasks[name]


def demand(good: bool, where: str, key: str, value: Any, expected: str) -> None:
    """Raises UserError unless `good`."""
    if not good:
        raise UserError(f"{where}: {key}={value}: {expected}")


def one_of(where: str, key: str, value: str, names: tuple[str, ...]) -> None:
    demand(value in names, where, key, value, f"must be one of {', '.join(names)}")


def check_data(recipe: DataRecipe, where: str) -> None:
    """Raises UserError for a value that is out of range, naming its key."""
    demand(bool(recipe.tasks), where, "tasks", "{}", "a recipe needs at least one task")
    demand(recipe.steps >= 1, where, "steps", recipe.steps, "must be at least 1")
    demand(0 <= recipe.seed < 2**63, where, "seed", recipe.seed, "must be at least 0 and below 2 ** 63")
    demand(recipe.window >= 1, where, "window", recipe.window, "must be at least 1")
    demand(recipe.workers >= 0, where, "workers", recipe.workers, "must not be below 0")
    demand(recipe.cache.max_gb > 0, where, "cache.max_gb", recipe.cache.max_gb, "must be above 0")
    one_of(where, "schedule", recipe.schedule, SCHEDULES)
    for name, task in recipe.tasks.items():
        key = f"tasks.{name}"
        plain = name.replace("_", "").replace("-", "").isalnum()
        demand(plain, where, key, name, "a name of letters, digits, - and _")
        one_of(where, f"{key}.kind", task.kind, ("classification", "localisation"))
        for part in ("batch", "micro_batch"):
            demand(getattr(task, part) >= 1, where, f"{key}.{part}", getattr(task, part), "must be at least 1")
        # Of numbers near the largest there is, the sum would be infinite.
        demand(0 <= task.share <= 1e9, where, f"{key}.share", task.share, "must be a finite number from 0 to 1e9")
        good = isinstance(task.view, dict | None) or dataclasses.is_dataclass(task.view)
        demand(good, where, f"{key}.view", task.view, f"must hold keys; give one of them, as in {key}.view.stride=2")
        try:
            view_config(task.view, recipe.model).check_kind(task.kind)
        except UserError as error:
            raise UserError(f"{where}: {key}.view.{error}") from error


def _apply(config: DictConfig, override: str, schema: type, strict: bool) -> None:
    key, equals, _ = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not an override: write key=value, as in tasks.ava.batch=32")
    try:
        value = OmegaConf.from_dotlist([override])
    except Exception as error:  # the YAML reader's errors share no narrower base class
        raise UserError(f"override {override!r}: its value is not YAML: {' '.join(str(error).split())}") from error
    try:
        container = OmegaConf.to_container(value)
        if OmegaConf.select(value, key) == {}:
            raise UserError(f"override {override!r} changes nothing: name what is in it, as in {key}.KEY=VALUE")
        tasks = list(config.get("tasks") or {})
        _check_keys(container, schema, "override", "", strict, tasks)
        OmegaConf.update(config, key, OmegaConf.select(value, key), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise UserError(f"override {override!r}: {str(error).splitlines()[0]}") from error


def _check_keys(raw: Any, schema: Any, where: str, prefix: str, strict: bool, tasks: list[str] | None = None) -> None:
    """Every key of `raw` is one of `schema`'s; `tasks`, when given, are the only names that `tasks.` may have."""
    if not isinstance(raw, dict):
        if raw is not None and not (isinstance(raw, str) and raw.startswith("${")):
            raise UserError(f"{where}: {prefix.rstrip('.')} must hold keys ({', '.join(get_type_hints(schema))})")
        return
    types = get_type_hints(schema)
    for key, value in raw.items():
        if key not in types:
            if strict or difflib.get_close_matches(str(key), types, n=1, cutoff=0.75):
                raise _unknown(f"{prefix}{key}", key, list(types), where)
            continue
        kind = types[key]
        if dataclasses.is_dataclass(kind):
            _check_keys(value, kind, where, f"{prefix}{key}.", strict)
        elif get_origin(kind) is dict:
            if not isinstance(value, dict):
                raise UserError(f"{where}: {prefix}{key} must hold names, each with its keys")
            for name, entry in value.items():
                if tasks is not None and name not in tasks:
                    raise _unknown(f"{prefix}{key}.{name}", str(name), tasks, where)
                _check_keys(entry, get_args(kind)[1], where, f"{prefix}{key}.{name}.", strict)


def _known_part(raw: Any, schema: Any) -> Any:
    """`raw` without the keys that are not `schema`'s."""
    types, kept = get_type_hints(schema), {}
    for key in raw.keys() & types.keys() if isinstance(raw, dict) else ():
        kind, value = types[key], raw[key]
        if dataclasses.is_dataclass(kind) and value is not None:
            value = _known_part(value, kind)
        elif get_origin(kind) is dict and isinstance(value, dict):
            value = {name: _known_part(entry, get_args(kind)[1]) for name, entry in value.items()}
        kept[key] = value
    return kept


def _unknown(full: str, key: str, known: list[str], where: str) -> UserError:
    return UserError(f"{where}: unknown key {full}; {_hint(full, str(key), known)}")


def _hint(full: str, key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {full.removesuffix(key)}{near[0]}?" if near else f"known here: {', '.join(known)}"
