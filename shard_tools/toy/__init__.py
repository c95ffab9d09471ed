"""The toy world: figures that act, rendered to raw datasets in the originals' formats."""
