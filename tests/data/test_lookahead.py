"""Shards of remote sets ahead of use: in the order of use, the same for all ranks of a machine, each fetched once."""

import hashlib
import multiprocessing
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import shard_cache, storage
from data.dataset import EvalDataset, TaskData
from data.fetch import RemoteFile
from data.loader import train_loader
from data.lookahead import Lookahead
from data.mixture import StepPlan, build_mixture
from data.order import EpochOrder
from data.recipe import ClipSize, DataRecipe, TaskSource, view_config
from data.schedule import SCHEDULES, NodeShare, Schedule
from data.shard_cache import ShardCache
from data.shards import ShardSet
from data.storage import Retry
from tests.range_server import RangeServer
from tests.tiny_shards import make_classification_set

FORK = multiprocessing.get_context("fork")
QUICK = Retry(attempts=3, first_s=0.01, most_s=0.02)
NAMES = ("kinetics", "moments")
SHARDS, SAMPLES, WINDOW, BATCH, RANKS = 24, 192, 6, 16, 4
VIEW = {"stride": 2}


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, ShardSet]:
    """Two sets of 24 shards of 8 clips each: an epoch of 12 steps, four windows."""
    folder = tmp_path_factory.mktemp("served")
    return {
        name: make_classification_set(folder, name, "train", samples=SAMPLES, shards=SHARDS, frames=8) for name in NAMES
    }


@pytest.fixture
def server(local, tmp_path, monkeypatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(storage, "RETRY", QUICK)
    monkeypatch.setattr(shard_cache, "POLL_S", 0.01)
    shutil.copytree(local["kinetics"].folder, tmp_path / "served")
    with RangeServer(tmp_path / "served") as running:
        yield running


def recipe(**changes) -> DataRecipe:
    tasks = {
        name: TaskSource(kind="classification", shards="", batch=BATCH, micro_batch=BATCH, view=VIEW) for name in NAMES
    }
    return DataRecipe(
        **{"steps": 24, "tasks": tasks, "window": WINDOW, "model": ClipSize(num_frames=2, image_size=32), **changes}
    )


def opened(server: RangeServer, cache: ShardCache, wanted: DataRecipe) -> list[TaskData]:
    sets = [ShardSet(f"{server.url}/{name}-train", cache) for name in NAMES]
    return [
        TaskData(name, "classification", shards, view_config(VIEW, wanted.model))
        for name, shards in zip(NAMES, sets, strict=True)
    ]


def shards_asked(server: RangeServer) -> Counter[str]:
    return Counter(name for name, _ in server.gets if name.endswith(".tar"))


def until_still(server: RangeServer) -> None:
    """Waits for the background to have nothing left to fetch."""
    before = -1
    while before != len(server.gets):
        before = len(server.gets)
        time.sleep(0.3)


def test_each_shard_is_downloaded_once_for_all_ranks_of_a_machine(server, local, tmp_path):
    """Four ranks in step, with a worker for each task, and a cache for little more than what they are at."""
    wanted = recipe(steps=12)
    most = max(shard.bytes for shards in local.values() for shard in shards.manifest.shards)
    cache = ShardCache(tmp_path / "cache", 17 * most, QUICK)
    sets = opened(server, cache, wanted)
    for data in sets:
        _ = data.shards.index
    server.gets.clear()
    server.always = "slow"
    plan, node, in_step, loaded = (
        StepPlan(wanted, 2 * RANKS),
        NodeShare(RANKS, RANKS, 2 * RANKS),
        FORK.Barrier(RANKS),
        FORK.Queue(),
    )

    def train(rank: int) -> None:
        loader = train_loader(build_mixture(sets, wanted, node), plan.batches(0, rank), workers=2)
        for number, batch in enumerate(loader):
            loaded.put((batch.task, batch.examples.tolist()))
            if number % len(NAMES) == len(NAMES) - 1:
                in_step.wait(60)
        loader.close()

    # Those of the second of two machines.
    ranks = [FORK.Process(target=train, args=(rank,)) for rank in range(RANKS, 2 * RANKS)]
    for rank in ranks:
        rank.start()
    batches = [loaded.get(timeout=60) for _ in range(RANKS * wanted.steps * len(NAMES))]
    for rank in ranks:
        rank.join(30)
    assert [rank.exitcode for rank in ranks] == [0] * RANKS
    read = {f"{name}-train-{local[name].index[n]['shard']:06d}.tar" for name, own in batches for n in own}
    asked = shards_asked(server)
    assert 24 <= len(read) <= 34, "of 48: half of each window, and a shard on each border"
    # Windows of three steps are so short that a worker may be at the one after the next of another's, most of all on a
    # busy machine. What each of the four ranks reads, added up, is twice as much.
    assert set(asked) == read and sum(asked.values()) <= 1.5 * len(read)


def test_an_evaluation_does_not_take_the_place_of_training(server, local, tmp_path):
    """Both in one process, as without workers."""
    wanted = recipe()
    sets = opened(server, ShardCache(tmp_path / "cache", 10**8, QUICK), wanted)
    dataset = build_mixture(sets, wanted)
    server.gate.clear()
    begun = threading.Thread(target=lambda: dataset[0, 0])
    begun.start()
    assert server.halfway.wait(20)
    evaluation = threading.Thread(target=lambda: EvalDataset(sets[0])[0])
    evaluation.start()
    time.sleep(0.2)
    server.gate.set()
    begun.join()
    evaluation.join()
    until_still(server)
    assert set(shards_asked(server).values()) == {1} and len(shards_asked(server)) == len(NAMES) * SHARDS


class Recorder:
    """A cache that notes what it is asked for."""

    def __init__(self, max_bytes: float) -> None:
        self.max_bytes = max_bytes
        self.asked: list[list[RemoteFile]] = []

    def prefetch(self, files: list[RemoteFile], reader: str) -> None:
        self.asked.append(files)


@dataclass
class Remote:
    """Shards that are nowhere, each of one byte."""

    cache: Recorder
    name: str
    whole_shards: bool = True

    def shard_file(self, shard: int) -> RemoteFile:
        return RemoteFile(self.name, 1, hashlib.sha256(f"{self.name} {shard}".encode()).hexdigest(), None)


@settings(max_examples=60)
@given(
    shards=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any), min_size=1, max_size=3),
    schedule=st.sampled_from(SCHEDULES),
    window=st.integers(1, 4),
    part=st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(1, 4)),
    seed=st.integers(0, 9),
    room=st.integers(1, 20),
)
def test_what_a_machine_reads_next_is_known(shards, schedule, window, part, seed, room):
    first, ranks, world = part[0], part[1], part[0] + part[1] + part[2]
    node = NodeShare(first, ranks, world)
    batches = [world * (1 + task) for task in range(len(shards))]
    orders = [
        EpochOrder(counts, seed, str(task), window, batch)
        for task, (counts, batch) in enumerate(zip(shards, batches, strict=True))
    ]
    plan = Schedule(schedule, batches, 12, seed, [1 + task for task in range(len(shards))])
    cache = Recorder(room)
    sets = [Remote(cache, str(task)) for task in range(len(shards))]
    ahead = Lookahead(sets, orders, plan, node)

    # Window by window, in the order in which the schedule gets to them: what the machine's places read.
    began: dict[tuple[int, int, int], int] = {}
    left: dict[tuple[int, int, int], int] = {}
    for step in range(plan.steps):
        for part in plan.plan(step):
            near, far = (part.first + place for place in node.places(part.clips))
            for position in range(near, far + 1):
                name = (part.task, *orders[part.task].window_at(position))
                began.setdefault(name, step)
                left[name] = step
    held = {name: next(orders[name[0]].windows_from(*name[1:], *node.places(batches[name[0]]))) for name in began}

    for step in range(plan.steps):
        for part in plan.plan(step):
            for place in node.places(part.clips):
                ahead.at(part.task, part.first + place)
        listed = cache.asked[-1]
        assert listed == ahead.upcoming(cache, step), "told as soon as it changes"
        coming = sorted((name for name in began if left[name] >= step), key=lambda name: (began[name], name))
        # The windows of two epochs of each task are enough of a list.
        nexts = [plan.done(task, step) * batch + node.places(batch)[0] for task, batch in enumerate(batches)]
        here = [order.window_at(position) for order, position in zip(orders, nexts, strict=True)]
        coming = [name for name in coming if name[1:] < (here[name[0]][0] + 2, here[name[0]][1])]
        expected = dict.fromkeys(sets[name[0]].shard_file(shard) for name in coming for shard in held[name])
        assert listed == list(expected)[: len(listed)]
        assert len(listed) == len(expected) or len(listed) > room
    assert len(cache.asked) <= len(began)
