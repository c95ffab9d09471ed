"""Checks of names and numbers that come from users and files; every message names the nearest valid value."""

import difflib
import math
from collections.abc import Collection, Mapping
from typing import Any


def check_keys(what: str, given: Mapping[Any, Any], valid: Collection[str], required: Collection[str] = ()) -> None:
    """Raises ValueError for a key of `given` outside `valid` or for a key of `required` that is not given."""
    for key in given:
        check_choice(f"{what}: option", key, valid)
    for key in required:
        if key not in given:
            raise ValueError(f"{what}: {key!r} is missing")


def check_choice(what: str, value: object, valid: Collection[str]) -> str:
    """`value` itself. Raises ValueError, naming the nearest, unless it is one of `valid`."""
    if isinstance(value, str) and value in valid:
        return value
    choices = sorted(valid)
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
    hint = f", the nearest valid one is {nearest[0]!r}" if nearest else ""
    raise ValueError(f"{what} {value!r} is unknown{hint} (valid: {', '.join(choices) or 'none'})")


def check_mapping(what: str, value: object) -> Mapping[str, Any]:
    """`value` itself. Raises ValueError unless it is a mapping from strings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{what} must be an object of options, not {value!r}")
    return value


def check_int(what: str, value: object, low: int, high: int) -> int:
    """`value` itself. Raises ValueError unless it is a whole number in [low, high]; bool is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}, not {value!r}")
    return value


def check_number(what: str, value: object, low: float, high: float) -> float:
    """`value` itself. Raises ValueError unless it is a finite number in [low, high]; bool is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{what} must be a number, not {value!r}")
    if not low <= value <= high:
        raise ValueError(f"{what} must lie in [{low}, {high}], not {value!r}")
    return value


def check_bool(what: str, value: object) -> bool:
    """`value` itself. Raises ValueError unless it is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{what} must be true or false, not {value!r}")
    return value


def check_divisible(what: str, value: int, by_what: str, by: int) -> None:
    """Raises ValueError, naming the nearest valid values, unless `value` is a positive multiple of `by`."""
    if value % by == 0:
        return
    below, above = value // by * by, (value // by + 1) * by
    nearest = f"{below} or {above}" if below else f"{above}"
    raise ValueError(f"{what} {value} is not a multiple of {by_what} {by}; the nearest valid: {nearest}")
