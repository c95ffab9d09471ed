"""Compares tensors by name and shape, and says in one message what does not fit."""

from collections.abc import Mapping, Sequence
from typing import Final

from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
SHOWN: Final = 4


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that `module` keeps in its state dict."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_fit(what: str, expected: Shapes, found: Shapes) -> None:
    """Raises one ValueError that begins with `what` and sums up missing, unexpected and wrongly shaped tensors."""
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    misshapen = [
        f"{name} is {list(found[name])} and should be {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
    problems = [f"{len(group)} {problem} ({summarise(group)})" for problem, group in groups if group]
    if problems:
        raise ValueError(f"{what}: {'; '.join(problems)}")


def summarise(names: Sequence[str]) -> str:
    """The first few of `names` and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
