"""The order of a task's examples by arithmetic alone: position -> example, without state and without replay."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

ROUNDS = 4
"""Luby and Rackoff, 1988: four Feistel rounds of a pseudo-random function give a strong pseudo-random permutation."""

_MASK = (1 << 64) - 1


def make_key(*parts: int | str) -> int:
    """A 64-bit key from numbers and names. The same on every machine and in every version of Python."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(value: int) -> int:
    """SplitMix64's finaliser (Steele, Lea and Flood, 2014): a bijection of 64-bit integers that scatters all bits."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def permute(place: int, size: int, key: int) -> int:
    """The element at `place` of a pseudo-random permutation of range(size) that `key` chooses.

    A balanced Feistel network on the next even number of bits; a result outside of the range is sent through again
    ("cycle walking"), which ends because the network is a bijection. Expected O(1): the network's domain is less than
    four times the range.
    """
    if not 0 <= place < size:
        raise ValueError(f"place {place} is outside of range({size})")
    half = (max(size - 1, 1).bit_length() + 1) // 2
    mask = (1 << half) - 1
    while True:
        left, right = place >> half, place & mask
        for number in range(ROUNDS):
            left, right = right, left ^ (mix(key ^ mix(number << 56 | right)) & mask)
        place = left << half | right
        if place < size:
            return place


class EpochOrder:
    """The order in which a task meets its examples: every example once an epoch, another order in each epoch.

    An epoch is a shuffle of the shards, cut into windows of `window` shards, and a shuffle of the examples inside of
    each window. So reads stay within a few shards at a time, and neighbours in a step come from all of a window.

    Args:
        shard_examples: number of examples of each shard.
        seed: the run's seed.
        task: the task's name; tasks of one run have unrelated orders.
        window: number of shards that are mixed with each other.

    Raises:
        ValueError: there is no example at all, or the window holds no shard.
    """

    def __init__(self, shard_examples: Sequence[int] | np.ndarray, seed: int, task: str, window: int) -> None:
        self.counts = np.asarray(shard_examples, dtype=np.int64)
        self.size = int(self.counts.sum())
        if self.size == 0:
            raise ValueError(f"task {task!r} has no examples")
        if window < 1:
            raise ValueError(f"window must be at least 1 shard, not {window}")
        self.seed, self.task, self.window = seed, task, window
        self._first = np.concatenate([[0], np.cumsum(self.counts)])

    def example(self, position: int) -> int:
        """The example (row of the index) at `position` of the task's endless stream, counted from 0."""
        epoch, place = divmod(position, self.size)
        shards, starts = _epoch(self, epoch)
        shard = int(np.searchsorted(starts, place, side="right")) - 1
        begin = shard - shard % self.window
        end = min(begin + self.window, len(shards))
        low, high = int(starts[begin]), int(starts[end])
        key = make_key(self.seed, self.task, epoch, "window", begin)
        place = low + permute(place - low, high - low, key)
        shard = int(np.searchsorted(starts, place, side="right")) - 1
        return int(self._first[shards[shard]] + place - starts[shard])

    def window_at(self, position: int) -> tuple[int, int]:
        """The window that `position` lies in: its epoch, and its number in the epoch."""
        epoch, place = divmod(position, self.size)
        _, starts = _epoch(self, epoch)
        return epoch, (int(np.searchsorted(starts, place, side="right")) - 1) // self.window

    def windows_from(self, epoch: int, number: int) -> Iterator[list[int]]:
        """The shards of a window, of the one after it, and so on without end: what will be read next."""
        while True:
            shards, _ = _epoch(self, epoch)
            for begin in range(number * self.window, len(shards), self.window):
                yield shards[begin : begin + self.window].tolist()
            epoch, number = epoch + 1, 0

    # The cache of epochs is keyed by the order itself, so equal orders share their entries.
    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EpochOrder):
            return NotImplemented
        same = (self.seed, self.task, self.window) == (other.seed, other.task, other.window)
        return same and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.seed, self.task, self.window, self.size))


@lru_cache(maxsize=32)
def _epoch(order: EpochOrder, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The epoch's shards in their order [shards], and where each one's examples begin, with the end [shards + 1]."""
    key = make_key(order.seed, order.task, epoch, "shards")
    count = len(order.counts)
    shards = np.fromiter((permute(place, count, key) for place in range(count)), dtype=np.int64, count=count)
    return shards, np.concatenate([[0], np.cumsum(order.counts[shards])])
