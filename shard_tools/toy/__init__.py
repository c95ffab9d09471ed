"""The toy world: figures that act, rendered to raw datasets in the originals' formats."""

from shard_tools.toy.labels import class_names

__all__ = ["class_names"]
