"""Every key of a recipe with its default and its meaning, as the page docs/recipe_keys.md; no key without a meaning.

python -m train.recipe_keys > docs/recipe_keys.md
"""

import argparse
import ast
import dataclasses
import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from omegaconf import OmegaConf

from train.recipe import Recipe

TITLE = """# All keys of a recipe
[recipes.md](recipes.md) says what recipes are, how one builds on another (`base`), and what the project's own set.
Any key can be given on the command line too, with dots between: `optim.lr=3e-4 tasks.ava.view.stride=4`; `TASK`
stands for the name of a task, which is yours. A key that is not here is an error that names the nearest one, and a
value of another type or out of range is one too. A run writes all of them with their values to `RUN/recipe.yaml`.

This page is made from `train/recipe.py` and `data/recipe.py` by `python -m train.recipe_keys > docs/recipe_keys.md`.
"""


@dataclass(frozen=True)
class Key:
    """One key: its name, type and default as YAML ("" where it must be given), and what it means."""

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys that stand together below `prefix` ("" for the recipe itself)."""

    prefix: str
    about: str
    keys: tuple[Key, ...]


def sections(schema: type = Recipe, prefix: str = "") -> list[Section]:
    """A recipe's keys, in the order of its classes; `tasks.TASK` stands for every task.

    Raises:
        ValueError: a key has no docstring.
    """
    types, meanings = get_type_hints(schema), _meanings(schema)
    keys: list[Key] = []
    below: list[Section] = []
    for part in dataclasses.fields(schema):
        kind = types[part.name]
        if dataclasses.is_dataclass(kind):
            below += sections(kind, f"{prefix}{part.name}.")  # type: ignore[arg-type]
        elif part.name == "tasks":
            below += sections(get_args(kind)[1], f"{prefix}tasks.TASK.")
        elif part.name not in meanings:
            raise ValueError(f"{schema.__name__}.{part.name} has no docstring")
        else:
            keys.append(Key(part.name, _type_name(kind), _default(part), meanings[part.name]))
    return [Section(prefix.removesuffix("."), inspect.cleandoc(schema.__doc__ or ""), tuple(keys)), *below]


def page() -> str:
    """docs/recipe_keys.md."""
    parts = [TITLE]
    for section in sections():
        about = _markdown(section.about)
        parts += [f"## `{section.prefix}`" if section.prefix else "## The recipe itself", f"{about}\n"]
        parts += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for key in section.keys:
            default = f"`{key.default}`" if key.default else "must be given"
            parts.append(f"| `{key.name}` | {key.type} | {default} | {_cell(key.meaning)} |")
        parts.append("")
    return "\n".join(parts)


def _meanings(schema: type) -> dict[str, str]:
    """Field -> the string below it, in the class itself and in what it is derived from."""
    found: dict[str, str] = {}
    for each in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(each):
            continue
        (definition,) = ast.parse(inspect.cleandoc(inspect.getsource(each))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                found[field.target.id] = inspect.cleandoc(str(text.value.value))
    return found


def _type_name(kind: Any) -> str:
    """As a reader of YAML would say it."""
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    if kind in names:
        return names[kind]
    if type(None) in get_args(kind):
        (inner,) = (each for each in get_args(kind) if each is not type(None))
        return f"{_type_name(inner)}, or null"
    (inner,) = get_args(kind)
    return f"list of {'texts' if inner is str else f'{_type_name(inner)}s'}"


def _default(part: "dataclasses.Field[Any]") -> str:
    if part.default_factory is not dataclasses.MISSING:
        value = part.default_factory()
    elif part.default is not dataclasses.MISSING:
        value = part.default
    else:
        return ""
    if isinstance(value, list):
        return "[" + ", ".join(f"{each:.4g}" if isinstance(each, float) else str(each) for each in value) + "]"
    return OmegaConf.to_yaml(OmegaConf.create({"value": value})).removeprefix("value: ").strip()


def _markdown(text: str) -> str:
    text = re.sub(r"\bNone\b", "`null`", " ".join(text.split()))
    return re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sys.stdout.write(page())
