"""The order of examples: a permutation every epoch, local reads, the same everywhere."""

import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.order import EpochOrder, make_key, permute

counts = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(lambda c: sum(c) > 0)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(place, size, key) for place in range(size)) == list(range(size))


def test_permute_scatters():
    """Neighbours land far from each other, and keys give unrelated orders."""
    size = 10_000
    first, second = ([permute(place, size, key) for place in range(size)] for key in (1, 2))
    steps = [abs(a - b) for a, b in itertools.pairwise(first)]
    assert abs(sum(steps) / len(steps) / size - 1 / 3) < 0.02  # mean distance of two uniform draws
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10


def test_permute_refuses_a_place_outside():
    with pytest.raises(ValueError, match="outside"):
        permute(5, 5, 0)


@given(counts, st.integers(0, 5), st.integers(1, 6), st.integers(0, 3))
def test_every_example_once_an_epoch(shards, seed, window, epoch):
    order = EpochOrder(shards, seed, "ava", window)
    start = epoch * order.size
    assert sorted(order.example(start + place) for place in range(order.size)) == list(range(order.size))


@given(counts, st.integers(1, 6))
def test_a_window_touches_only_its_shards(shards, window):
    order = EpochOrder(shards, 0, "ava", window)
    owner = [shard for shard, count in enumerate(shards) for _ in range(count)]
    visits = [owner[order.example(place)] for place in range(order.size)]
    spans = {shard: (visits.index(shard), len(visits) - 1 - visits[::-1].index(shard)) for shard in set(visits)}
    for place in range(order.size):
        assert sum(first <= place <= last for first, last in spans.values()) <= window


def test_orders_differ_by_epoch_seed_and_task():
    shards = [50] * 20
    orders = {
        name: [order.example(start + place) for place in range(1000)]
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
    order = EpochOrder([3, 5, 2], 7, "ava", 2)
    assert [order.example(position) for position in range(20)] == KNOWN_ORDER


def test_survives_pickling():
    order = EpochOrder([3, 5, 2], 7, "ava", 2)
    assert pickle.loads(pickle.dumps(order)).example(13) == order.example(13)  # noqa: S301 - made one line above


def test_empty_tasks_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        EpochOrder([0, 0], 0, "ava", 1)


KNOWN_KEY = 14626261515627657984
KNOWN_ORDER = [6, 7, 9, 3, 5, 8, 4, 2, 1, 0, 5, 7, 6, 9, 3, 8, 4, 0, 2, 1]
