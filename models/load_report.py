"""What became of a checkpoint's tensors, and the rule that a mismatch is an error unless it is allowed by name."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from models.fit import summarise


@dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a checkpoint or an image model.

    Attributes:
        loaded: the backbone's tensors that were set from it, by the backbone's names.
        interpolated: those of them that had to be interpolated.
        left_over: the source's tensors without a place in the backbone (its head or decoder, say), by its own names.
        missing: the backbone's tensors that it did not have; they keep their random initialisation.
        notes: whatever else a user should know, a sentence each.
    """

    loaded: tuple[str, ...]
    interpolated: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for what in ("interpolated", "left_over", "missing"):
            if names := getattr(self, what):
                parts.append(f"{len(names)} {what.replace('_', ' ')} ({summarise(names)})")
        return "; ".join([", ".join(parts), *self.notes])


def allowed(name: str, patterns: Iterable[str]) -> bool:
    """Whether `name` is, or lies below, or matches one of `patterns`: "norm" and "norm.*" both allow "norm.weight"."""
    return any(fnmatchcase(name, pattern) or name.startswith(f"{pattern.rstrip('.')}.") for pattern in patterns)


def check_patterns(what: str, patterns: Collection[str]) -> Sequence[str]:
    """`patterns` as a tuple. Raises ValueError for a bare string, whose letters would be taken for names."""
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(f"{what} must be a list of names, not {patterns!r}")
    return tuple(patterns)
