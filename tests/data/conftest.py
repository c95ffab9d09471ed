"""Shard sets that the loader's tests share."""

import pytest
from hypothesis import settings

from data.shards import ShardSet
from tests.tiny_shards import make_classification_set, make_localisation_set

# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def classification(tmp_path_factory) -> ShardSet:
    return make_classification_set(tmp_path_factory.mktemp("shards"), "kinetics", "train", classes=3, samples=7)


@pytest.fixture(scope="session")
def localisation(tmp_path_factory) -> ShardSet:
    return make_localisation_set(tmp_path_factory.mktemp("shards"), "ava", "train", samples=4, keyframes=2)
