"""Fixtures of the pack tests."""

from pathlib import Path

import pytest

from tests.shard_tools.raw import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
