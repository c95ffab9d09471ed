"""The order of examples: a permutation every epoch, local reads, the same everywhere."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import order as order_module
from data.order import EpochOrder, make_key, permute

counts = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda c: sum(c) > 0)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@given(st.integers(1, 2**40), st.integers(0, 2**64 - 1), st.lists(st.floats(0, 1, exclude_max=True), max_size=20))
def test_permute_treats_each_place_alone(size, key, shares):
    places = np.array([int(share * size) for share in shares], dtype=np.int64)
    one_by_one = [permute(np.array([place]), size, key)[0] for place in places]
    together = permute(places, size, key)
    assert together.tolist() == one_by_one and all(0 <= place < size for place in one_by_one)


def test_permute_of_many_places_is_cut_without_a_seam():
    assert np.array_equal(np.sort(permute(np.arange(20_001), 20_001, 5)), np.arange(20_001))


def test_permute_scatters():
    """Neighbours land far from each other, and keys give unrelated orders."""
    size = 10_000
    first, second = (permute(np.arange(size), size, key) for key in (1, 2))
    assert abs(np.abs(np.diff(first)).mean() / size - 1 / 3) < 0.02  # mean distance of two uniform draws
    assert (first == second).sum() < 10


@pytest.mark.parametrize("place", [-1, 5])
def test_permute_refuses_a_place_outside(place):
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([0, place]), 5, 0)


@given(counts, st.integers(0, 5), st.integers(1, 6), st.integers(0, 3), st.integers(1, 40))
def test_every_example_once_an_epoch(shards, seed, window, epoch, batch):
    order = EpochOrder(shards, seed, "ava", window, batch)
    start = epoch * order.size
    assert sorted(order.examples(np.arange(start, start + order.size))) == list(range(order.size))


@given(counts, st.integers(0, 5), st.integers(1, 6), st.integers(1, 40), st.lists(st.integers(0, 10**12), max_size=9))
def test_a_position_holds_the_same_whoever_asks(shards, seed, window, batch, positions):
    order = EpochOrder(shards, seed, "ava", window, batch)
    assert order.examples(np.array(positions, dtype=np.int64)).tolist() == [order.example(p) for p in positions]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_small_permutation_comes_about_equally_often(size):
    seen = Counter(tuple(permute(np.arange(size), size, make_key("small", key))) for key in range(2400))
    expected = 2400 / math.factorial(size)
    assert len(seen) == math.factorial(size)
    assert all(abs(count / expected - 1) < 0.4 for count in seen.values())


def test_a_batch_holds_each_shard_of_its_window_in_proportion():
    order = EpochOrder([100] * 64, 0, "ava", 16, 64)
    for number in range(100):
        examples = order.examples(np.arange(number * 64, (number + 1) * 64))
        assert set(np.bincount(examples // 100, minlength=64)) == {0, 4}


@pytest.mark.parametrize("shards", [[100] * 64, [83, 120, 97, 101] * 16])
def test_a_rank_reads_from_its_part_of_a_window_alone(shards):
    """8 ranks and windows of 16 shards: two shards a rank and window, and those that lie on a border."""
    world, batch, windows = 8, 64, 4
    order = EpochOrder(shards, 0, "ava", 16, batch)
    owner = np.repeat(np.arange(64), shards)
    positions = np.arange(sum(shards) // batch * batch).reshape(-1, world, batch // world)
    for rank in range(world):
        touched = np.unique(owner[order.examples(positions[:, rank].ravel())])
        assert len(touched) <= windows * 4


@given(counts, st.integers(1, 6), st.integers(1, 40), st.integers(0, 3), st.data())
def test_what_a_part_of_a_batch_reads_next_is_known(shards, window, batch, epoch, data):
    order = EpochOrder(shards, 0, "ava", window, batch)
    first = data.draw(st.integers(0, batch - 1))
    last = data.draw(st.integers(first, batch - 1))
    owner = np.repeat(np.arange(len(shards)), shards)
    positions = np.arange(epoch * order.size, (epoch + 2) * order.size)
    read: dict[tuple[int, int], set[int]] = {}
    for position, example in zip(positions.tolist(), order.examples(positions).tolist(), strict=True):
        part = read.setdefault(order.window_at(position), set())
        if first <= position % batch <= last:
            part.add(int(owner[example]))
    for (epoch_of, number), touched in read.items():
        assert set(next(order.windows_from(epoch_of, number, first, last))) == touched
    ahead = order.windows_from(epoch, 0)
    whole = [shard for _ in range(-(-len(shards) // window)) for shard in next(ahead)]
    assert sorted(whole) == [shard for shard, count in enumerate(shards) if count]


def test_neighbours_in_a_shard_are_scattered_over_the_window():
    order = EpochOrder([100] * 64, 0, "ava", 16, 64)
    window = order.examples(np.arange(1600))
    place = np.empty(6400, dtype=int)
    place[window] = np.arange(1600) // 64
    shards = np.unique(window // 100)
    apart = np.concatenate([np.abs(np.diff(place[shard * 100 : (shard + 1) * 100])) for shard in shards])
    assert abs(apart.mean() / 25 - 1 / 3) < 0.05  # in batches: mean distance of two uniform draws of 25


@given(counts, st.integers(1, 6))
def test_a_window_touches_only_its_shards(shards, window):
    order = EpochOrder(shards, 0, "ava", window)
    owner = [shard for shard, count in enumerate(shards) for _ in range(count)]
    visits = [owner[example] for example in order.examples(np.arange(order.size))]
    spans = {shard: (visits.index(shard), len(visits) - 1 - visits[::-1].index(shard)) for shard in set(visits)}
    for place in range(order.size):
        assert sum(first <= place <= last for first, last in spans.values()) <= window


def test_orders_differ_by_epoch_seed_and_task():
    shards = [50] * 20
    orders = {
        name: order.examples(np.arange(start, start + 1000)).tolist()
        for name, order, start in [
            ("base", EpochOrder(shards, 0, "a", 4), 0),
            ("epoch", EpochOrder(shards, 0, "a", 4), 1000),
            ("seed", EpochOrder(shards, 1, "a", 4), 0),
            ("task", EpochOrder(shards, 0, "b", 4), 0),
        ]
    }
    assert len({tuple(order) for order in orders.values()}) == 4


def test_known_values_stay():
    """Resuming a run with a newer version must not reshuffle it."""
    assert make_key(0, "ava", 3) == KNOWN_KEY
    order = EpochOrder([3, 5, 2], 7, "ava", 2, 4)
    assert [order.example(position) for position in range(20)] == KNOWN_ORDER


def test_survives_pickling():
    order = EpochOrder([3, 5, 2], 7, "ava", 2)
    assert pickle.loads(pickle.dumps(order)).example(13) == order.example(13)  # noqa: S301 - made one line above


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(([0, 0], 0, "ava", 1), "no examples"), (([1], 0, "ava", 0), "window"), (([1], 0, "ava", 1, 0), "batch")],
)
def test_senseless_orders_are_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        EpochOrder(*arguments)


def test_a_far_position_costs_as_little_as_a_near_one(monkeypatch):
    """Counted, not timed: how many places are permuted for a batch."""
    permuted = []

    def counting(places, *rest):
        permuted.append(len(places))
        return places

    monkeypatch.setattr(order_module, "permute", counting)
    order = EpochOrder([1000] * 300, 0, "far", 16, 128)
    for position in (0, 10**12):
        order.example(position)
    assert permuted == [300, 1, 300, 1]


KNOWN_KEY = 14626261515627657984
KNOWN_ORDER = [1, 2, 8, 9, 0, 4, 6, 7, 3, 5, 0, 1, 4, 5, 7, 2, 3, 6, 8, 9]
