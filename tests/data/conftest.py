"""Shard sets that the loader's tests share."""

import pytest

from data.shards import ShardSet
from tests.tiny_shards import make_classification_set, make_localisation_set


@pytest.fixture(scope="session")
def classification(tmp_path_factory) -> ShardSet:
    return make_classification_set(tmp_path_factory.mktemp("shards"), "kinetics", "train", classes=3, samples=7)


@pytest.fixture(scope="session")
def localisation(tmp_path_factory) -> ShardSet:
    return make_localisation_set(tmp_path_factory.mktemp("shards"), "ava", "train", samples=4, keyframes=2)
