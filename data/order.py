"""The order of a task's examples by arithmetic alone: position -> example, without state and without replay."""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

ROUNDS = 4
"""Luby and Rackoff, 1988: four Feistel rounds of a pseudo-random function give a strong pseudo-random permutation."""

_CHUNK = 8192  # places at a time: few enough that the work stays in the processor's cache


def make_key(*parts: int | str) -> int:
    """A 64-bit key from numbers and names. The same on every machine and in every version of Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): a bijection of uint64 that scatters all bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def permute(places: np.ndarray, size: int, key: int) -> np.ndarray:
    """The elements at `places` of a pseudo-random permutation of range(size) that `key` chooses.

    A Feistel network on pairs of numbers whose ranges multiply to `size` or little more (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002). A result outside of the range is sent through again ("cycle walking"), which
    ends because the network is a bijection, and is rare: no more than about one in sqrt(size) is outside. So it is
    O(1) a place.

    Args:
        places: int64 [n], in range(size).
        key: 64 bits.

    Returns:
        int64 [n].

    Raises:
        ValueError: a place is outside of the range.
    """
    if len(places) and not 0 <= places.min() <= places.max() < size:
        raise ValueError(f"places from {places.min()} to {places.max()} are outside of range({size})")
    if len(places) > _CHUNK:
        parts = (places[start : start + _CHUNK] for start in range(0, len(places), _CHUNK))
        return np.concatenate([permute(part, size, key) for part in parts])
    width = math.isqrt(max(size - 1, 0)) + 1
    height = -(-size // width)
    keys = mix(np.uint64(key) ^ mix(np.arange(ROUNDS, dtype=np.uint64)))
    found = _feistel(places.astype(np.uint64), width, height, keys)
    outside = np.flatnonzero(found >= size)
    while len(outside):
        found[outside] = _feistel(found[outside], width, height, keys)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _feistel(values: np.ndarray, width: int, height: int, keys: np.ndarray) -> np.ndarray:
    """One pass through the network, a bijection of range(width * height), with a round for each key."""
    left, right = np.divmod(values, np.uint64(height))
    here, there = np.uint64(width), np.uint64(height)
    for key in keys:
        # Half of the 64 bits' range, so that the sum cannot run over.
        left, right = right, (left + (mix(key ^ right) >> np.uint64(1))) % here
        here, there = there, here
    joined: np.ndarray = left * np.uint64(height) + right
    return joined


class EpochOrder:
    """The order in which a task meets its examples: every example once an epoch, another order in each epoch.

    An epoch is a shuffle of the shards, cut into windows of `window` shards, and a shuffle of the examples inside of
    each window. So reads stay within a few shards at a time, and neighbours in a step come from all of a window.
    The examples of one global batch, whose order no gradient depends on, stand sorted by their place in the window:
    a rank's slice of them then comes from few shards, whatever the number of ranks.

    Args:
        shard_examples: number of examples of each shard.
        seed: the run's seed.
        task: the task's name; tasks of one run have unrelated orders.
        window: number of shards that are mixed with each other.
        batch: clips of a global batch: positions k * batch to (k + 1) * batch - 1 are one.

    Raises:
        ValueError: there is no example at all, or the window holds no shard, or the batch no clip.
    """

    def __init__(
        self, shard_examples: Sequence[int] | np.ndarray, seed: int, task: str, window: int, batch: int = 1
    ) -> None:
        self.counts = np.asarray(shard_examples, dtype=np.int64)
        self.size = int(self.counts.sum())
        if self.size == 0:
            raise ValueError(f"task {task!r} has no examples")
        if window < 1:
            raise ValueError(f"window must be at least 1 shard, not {window}")
        if batch < 1:
            raise ValueError(f"batch must be at least 1 clip, not {batch}")
        self.seed, self.task, self.window, self.batch = seed, task, window, batch
        self._first = np.concatenate([[0], np.cumsum(self.counts)])

    def example(self, position: int) -> int:
        """The example (row of the index) at `position` of the task's endless stream, counted from 0."""
        number, place = divmod(position, self.batch)
        return int(_batch(self, number)[place])

    def examples(self, number: int) -> np.ndarray:
        """int64 [batch]: the examples of global batch `number`, counted from 0."""
        epochs, places = np.divmod(np.arange(number * self.batch, (number + 1) * self.batch), self.size)
        return np.concatenate([self._sorted(int(epoch), places[epochs == epoch]) for epoch in np.unique(epochs)])

    def _sorted(self, epoch: int, places: np.ndarray) -> np.ndarray:
        """The examples at some places of an epoch, sorted by where they lie in the epoch's order of shards."""
        shards, starts = _epoch(self, epoch)
        windows = (np.searchsorted(starts, places, side="right") - 1) // self.window
        shuffled = np.empty_like(places)
        for window in np.unique(windows).tolist():
            begin = window * self.window
            low, high = int(starts[begin]), int(starts[min(begin + self.window, len(shards))])
            own = windows == window
            key = make_key(self.seed, self.task, epoch, "window", begin)
            shuffled[own] = low + permute(places[own] - low, high - low, key)
        shuffled.sort()
        shard = np.searchsorted(starts, shuffled, side="right") - 1
        examples: np.ndarray = self._first[shards[shard]] + shuffled - starts[shard]
        return examples

    # The caches are keyed by the order itself, so equal orders share their entries.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EpochOrder):
            return NotImplemented
        return self._settings == other._settings and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((*self._settings, self.size))

    @property
    def _settings(self) -> tuple[int, str, int, int]:
        return self.seed, self.task, self.window, self.batch


@lru_cache(maxsize=32)
def _epoch(order: EpochOrder, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The epoch's shards in their order [shards], and where each one's examples begin, with the end [shards + 1]."""
    count = len(order.counts)
    shards = permute(np.arange(count), count, make_key(order.seed, order.task, epoch, "shards"))
    return shards, np.concatenate([[0], np.cumsum(order.counts[shards])])


@lru_cache(maxsize=64)
def _batch(order: EpochOrder, number: int) -> np.ndarray:
    """A worker asks for the clips of a global batch one by one."""
    return order.examples(number)
