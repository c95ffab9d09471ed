"""The page of all keys: those and the defaults that a recipe really has, each with a meaning."""

import dataclasses
from typing import Any

import pytest
from omegaconf import OmegaConf

from data.recipe_files import PROJECT
from train.recipe import dump_recipe, parse_recipe
from train.recipe_keys import page, sections

LEAST = """
name: least
out: runs/least
steps: 10
tasks:
  TASK: {kind: classification, shards: k-train}
"""


def leaves(keys: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in keys.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def test_the_page_in_the_docs_is_the_recipe_classes():
    assert (PROJECT / "docs" / "recipe_keys.md").read_text() == page()


def test_keys_and_defaults_are_those_of_a_recipe_that_gives_nothing_else():
    told = {f"{s.prefix}.{key.name}".removeprefix("."): key.default for s in sections() for key in s.keys}
    real = leaves(OmegaConf.to_container(OmegaConf.create(dump_recipe(parse_recipe(LEAST, "least")))))
    assert told.keys() == real.keys()
    given = {key for key, default in told.items() if not default}
    assert given == {"name", "out", "steps", "tasks.TASK.kind", "tasks.TASK.shards"}
    for key in told.keys() - given:
        expected = pytest.approx(real[key], rel=1e-3) if isinstance(real[key], list | float) else real[key]
        assert OmegaConf.create(f"value: {told[key]}").value == expected, key


def test_a_key_without_a_meaning_is_refused():
    @dataclasses.dataclass
    class Bare:
        """Something."""

        told: int = 1
        """This one is told."""
        bare: int = 2

    with pytest.raises(ValueError, match=r"Bare\.bare has no docstring"):
        sections(Bare)
