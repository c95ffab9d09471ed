"""Shard sets on real servers: the same examples as from the local files, fetched once, ahead of use."""

import logging
import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from data import storage
from data.batch import Batch
from data.dataset import EvalDataset, MixtureDataset
from data.errors import UserError
from data.loader import train_loader
from data.lookahead import Lookahead
from data.order import EpochOrder
from data.schedule import NodeShare, Schedule
from data.shard_cache import ShardCache
from data.shards import ShardSet
from data.storage import Retry, take_counts
from tests.data.examples import same, task
from tests.range_server import RangeServer
from tests.tiny_shards import make_classification_set

QUICK = Retry(attempts=3, first_s=0.01, most_s=0.02)
SHARDS = 5


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> ShardSet:
    return make_classification_set(tmp_path_factory.mktemp("served"), "kinetics", "train", samples=10, shards=SHARDS)


@pytest.fixture
def server(local, tmp_path, monkeypatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(storage, "RETRY", QUICK)
    shutil.copytree(local.folder, tmp_path / "served")
    with RangeServer(tmp_path / "served") as running:
        yield running


@pytest.fixture
def cache(tmp_path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 10**8, QUICK)


@pytest.fixture(scope="module")
def s3(local) -> Iterator[str]:
    """The set's folder in a bucket of a real S3-compatible server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        filesystem = fsspec.filesystem("s3")
        filesystem.mkdir("bucket")
        filesystem.put(f"{local.folder}/", "bucket/shards/", recursive=True)
        yield "s3://bucket/shards"
    running.stop()


def orders(shards: ShardSet) -> list[EpochOrder]:
    return [EpochOrder(shards.shard_examples, 0, "kinetics", 2)]


def mixture(shards: ShardSet) -> MixtureDataset:
    ahead = Lookahead([shards], orders(shards), Schedule("accumulate", [1], 20, 0, [1]), NodeShare())
    return MixtureDataset([task(shards)], orders(shards), 0, ahead)


def equal(one: Batch, other: Batch) -> bool:
    return one.keys == other.keys and torch.equal(one.clips, other.clips) and not one.substitutes


def shards_asked(server: RangeServer) -> list[str]:
    return sorted(name for name, _ in server.gets if name.endswith(".tar"))


def until_still(server: RangeServer) -> None:
    """Waits for the background to have nothing left to fetch."""
    before = -1
    while before != len(server.gets):
        before = len(server.gets)
        time.sleep(0.2)


MICRO_BATCHES = [[(0, position), (0, position + 1)] for position in range(0, 20, 2)]


def test_s3_with_workers(s3, local, cache):
    there = ShardSet(f"{s3}/kinetics-train", cache)
    assert there.manifest == local.manifest and np.array_equal(there.index, local.index)
    expected = list(train_loader(mixture(local), MICRO_BATCHES, workers=0))
    # The main process has talked to the server before its workers are forked.
    loader = train_loader(mixture(there), MICRO_BATCHES, workers=2)
    assert all(equal(one, other) for one, other in zip(expected, loader, strict=True))
    loader.close()
    again = train_loader(mixture(ShardSet(f"{s3}/kinetics-train", cache)), MICRO_BATCHES, workers=0)
    take_counts()
    batches = list(again)
    assert all(equal(one, other) for one, other in zip(expected, batches, strict=True))
    # A record and a video of each, and the index.
    assert [sum(batch.counts[name] for batch in batches) for name in ("misses", "hits")] == [0, 41]


def test_what_s3_does_not_have(s3, cache, monkeypatch):
    with pytest.raises(UserError, match="no shards at s3://bucket/shards/ava-train"):
        ShardSet(f"{s3}/ava-train", cache)
    with pytest.raises(UserError, match="no shards at s3://other/kinetics-train"):
        ShardSet("s3://other/kinetics-train", cache)


def test_memory(local, cache):
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{local.folder}/", "/remote-shards/", recursive=True)
    there = mixture(ShardSet("memory://remote-shards/kinetics-train", cache))
    assert all(same(there[0, position], mixture(local)[0, position]) for position in range(4))


def test_each_shard_is_asked_for_once(server, local, cache):
    there, here = mixture(ShardSet(f"{server.url}/kinetics-train", cache)), mixture(local)
    for position in (0, 1, 2, 7, 3, 19, 9):
        assert same(there[0, position], here[0, position])
    until_still(server)
    assert shards_asked(server) == sorted(shard.name for shard in local.manifest.shards)
    # For the size of the index, and for the index; another process of this machine asks for the size alone.
    assert len([name for name, _ in server.gets if name.endswith(".npy")]) == 2
    _ = ShardSet(f"{server.url}/kinetics-train", ShardCache(cache.folder, 10**8)).index
    assert len([name for name, _ in server.gets if name.endswith(".npy")]) == 3


def test_what_comes_next_is_fetched_ahead(server, local, cache):
    (order,) = orders(local)
    there = mixture(ShardSet(f"{server.url}/kinetics-train", cache))
    _ = there[0, 0]
    until_still(server)
    take_counts()
    for position in range(1, 10):
        _ = there[0, position]
    counts = take_counts()
    assert counts.misses == 0 and counts.hits == 18 and counts.fetched_bytes == 0
    assert sorted({int(local.index["shard"][order.example(p)]) for p in range(10)}) == list(range(SHARDS))


def test_evaluation_reads_ahead_as_far_as_it_needs(server, local, cache):
    dataset = EvalDataset(task(ShardSet(f"{server.url}/kinetics-train", cache)))
    assert same(dataset[0], EvalDataset(task(local))[0])
    until_still(server)
    assert shards_asked(server) == [shard.name for shard in local.manifest.shards[:3]]


def test_sparse_use_reads_single_samples(server, local, cache):
    dataset = EvalDataset(task(ShardSet(f"{server.url}/kinetics-train", cache).by_range()))
    assert same(dataset[4], EvalDataset(task(local))[4])
    row = local.index[4]
    name = local.manifest.shards[row["shard"]].name
    # In one request, the tar's own header of the video included.
    assert shards_asked(server) == [name]
    assert 512 <= server.sent[name] - row["json_bytes"] - row["video_bytes"] < 1024
    assert same(dataset[5], EvalDataset(task(local))[5]) and len(shards_asked(server)) == 2
    # What is in the cache anyway is taken from there.
    whole = ShardSet(f"{server.url}/kinetics-train", cache)
    assert whole.read_video(0) == whole.by_range().read_video(0) == local.read_video(0)
    assert len(shards_asked(server)) == 3


def test_a_damaged_shard_costs_only_its_own_samples(server, local, cache):
    bad = local.manifest.shards[1].name
    (server.root / bad).write_bytes(bytes(local.manifest.shards[1].bytes))
    (server.root / local.manifest.shards[3].name).unlink()
    there, here = mixture(ShardSet(f"{server.url}/kinetics-train", cache)), mixture(local)
    (order,) = orders(local)
    reasons = {1: "its sha256 is", 3: "is not there"}
    for position in range(10):
        example = there[0, position]
        shard = int(local.index["shard"][order.example(position)])
        if shard in reasons:
            assert reasons[shard] in example.substitutes[0].reason
            assert int(local.index["shard"][example.example]) not in reasons
        else:
            assert same(example, here[0, position])
    assert server.sent[bad] == 2 * local.manifest.shards[1].bytes


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_goes_away_ends_the_run(server, cache, workers):
    """A substitute would change what the run learns, for a reason that has nothing to do with the sample."""
    dataset = mixture(ShardSet(f"{server.url}/kinetics-train", cache))
    _ = dataset.tasks[0].shards.index
    server.always = 503
    loader = train_loader(dataset, MICRO_BATCHES[:1], workers)
    with pytest.raises(UserError, match=r"tar: cannot be read after 3 attempts .*503.*can be resumed") as caught:
        list(loader)
    traceback.clear_frames(caught.tb)
    loader.close()


def test_an_index_that_does_not_fit(server, cache):
    index = np.load(server.root / "kinetics-train.index.npy")
    np.save(server.root / "kinetics-train.index.npy", index[:-1])
    with pytest.raises(UserError, match="the manifest says 10 examples"):
        _ = ShardSet(f"{server.url}/kinetics-train", cache).index
    (server.root / "kinetics-train.index.npy").write_bytes(b"not an array" * 500)
    with pytest.raises(UserError, match=r"index\.npy cannot be read .*pack the dataset again"):
        _ = ShardSet(f"{server.url}/kinetics-train", ShardCache(Path(cache.folder) / "other", 10**8, QUICK)).index
    (server.root / "kinetics-train.index.npy").unlink()
    with pytest.raises(UserError, match="is not there"):
        _ = ShardSet(f"{server.url}/kinetics-train", ShardCache(Path(cache.folder) / "third", 10**8, QUICK)).index


def test_no_thread_for_local_shards(local):
    before = threading.active_count()
    _ = mixture(local)[0, 0], EvalDataset(task(local))[0]
    local.prefetch(range(3))
    assert threading.active_count() <= before
