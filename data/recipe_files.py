"""Recipe files: where they lie, and the files that they build on.

`base: FILE` or `base: [FILE, ...]` in a recipe names files, relative to itself, whose keys it takes over and overrides.
Later ones override earlier ones. A file that is reached twice counts at its first place alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
RECIPES = PROJECT / "train" / "recipes"


@dataclass(frozen=True)
class Layer:
    """The keys of one recipe file; `where` names it in errors."""

    where: str
    keys: DictConfig


def project_path(path: str | Path) -> Path:
    """`path` from the working directory, or else from the project's folder, so that commands work from any folder."""
    here = Path(path)
    return here if here.exists() or here.is_absolute() or not (PROJECT / here).exists() else PROJECT / here


def find_recipe(path: str | Path) -> Path:
    """Where a recipe lies. Raises UserError, with the names of the project's own, where there is none."""
    found = project_path(path)
    if not found.is_file():
        known = ", ".join(sorted(f"train/recipes/{p.name}" for p in RECIPES.glob("*.yaml")))
        raise UserError(f"no recipe at {path}; the project's own are {known}")
    return found


def read_layers(path: Path) -> list[Layer]:
    """A recipe file and all that it builds on, in the order in which later ones override earlier ones.

    Raises:
        UserError: a file that cannot be read or is no mapping in YAML, a base that is not there, or files that build on
            each other in a circle.
    """
    layers: dict[Path, Layer] = {}
    _collect(path, (), layers)
    return list(layers.values())


def parse_layer(text: str, where: str) -> Layer:
    """The keys of a YAML text. Raises UserError where it is no mapping in YAML."""
    try:
        loaded = OmegaConf.create(text)
    except Exception as error:  # the YAML reader's errors share no narrower base class
        raise UserError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, DictConfig):
        raise UserError(f"{where}: must be a mapping of keys to values")
    return Layer(where, loaded)


def _collect(path: Path, above: tuple[Path, ...], layers: dict[Path, Layer]) -> None:
    where, real = f"recipe {path}", path.resolve()
    if real in above:
        circle = " -> ".join(each.name for each in (*above[above.index(real) :], real))
        raise UserError(f"{where}: base: the files build on each other in a circle: {circle}")
    if real in layers:
        return
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: {error}") from error
    layer = parse_layer(text, where)
    for name in _bases(layer):
        base = path.parent / name
        if not base.is_file():
            raise UserError(f"{where}: base: no file at {base}; its path is relative to the recipe that names it")
        _collect(base, (*above, real), layers)
    layers[real] = layer


def _bases(layer: Layer) -> list[str]:
    named: Any = OmegaConf.to_container(layer.keys).get("base")  # type: ignore[union-attr]
    layer.keys.pop("base", None)
    names = [named] if isinstance(named, str) else named or []
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise UserError(f"{layer.where}: base: must be a file or a list of files, not {named!r}")
    return names
