"""Shard sets that the loader's tests share, good and bad, and files on a server for the cache's."""

from pathlib import Path

import pytest
from hypothesis import settings

from data import fetch, shard_cache
from data.fetch import RemoteFile
from data.shards import ClassInfo, ShardSet
from tests.data.cached_files import add
from tests.data.examples import record
from tests.range_server import RangeServer
from tests.tiny_shards import class_video, make_classification_set, make_localisation_set, write_set

# A busy machine is no failure.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def classification(tmp_path_factory) -> ShardSet:
    return make_classification_set(tmp_path_factory.mktemp("shards"), "kinetics", "train", classes=3, samples=7)


@pytest.fixture(scope="session")
def localisation(tmp_path_factory) -> ShardSet:
    return make_localisation_set(tmp_path_factory.mktemp("shards"), "ava", "train", samples=4, keyframes=2)


@pytest.fixture
def damaged(tmp_path) -> ShardSet:
    """Samples 0, 3, 6 and 7 are good; 1 is no video, 2 no JSON, 4 has a wrong frame count, 5 no label."""
    good = class_video(0, 3)
    entries = [(record(f"sample_{number}"), good) for number in range(8)]
    entries[1] = (record("sample_1"), b"not a video")
    entries[2] = (b'{"key": "samp', good)
    entries[4] = (record("sample_4", frames=99), good)
    entries[5] = (record("sample_5", label=None), good)
    return write_set(tmp_path, "broken", "train", "classification", [ClassInfo(0, "only")], entries, shards=2)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CHUNK", 10_000)
    monkeypatch.setattr(shard_cache, "POLL_S", 0.01)
    (tmp_path / "served").mkdir()
    with RangeServer(tmp_path / "served") as running:
        yield running


@pytest.fixture
def files(server) -> list[RemoteFile]:
    """Eight files of 40 kB on the server."""
    return [add(server, number) for number in range(8)]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"
