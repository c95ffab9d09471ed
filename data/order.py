"""The order of a task's examples by arithmetic alone: position -> example, without state and without replay."""

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np

ROUNDS = 6
"""Four Feistel rounds of a pseudo-random function give a strong pseudo-random permutation (Luby and Rackoff, 1988); in
ranges of a few numbers, as columns of a window are, two more even out how often each permutation comes."""

_CHUNK = 8192  # places at a time: few enough that the work stays in the processor's cache
_EPOCHS_KEPT = 4


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


def permute(places: np.ndarray, size: int, key: int | np.ndarray) -> np.ndarray:
    """The elements at `places` of a pseudo-random permutation of range(size) that a key chooses.

    A Feistel network on pairs of numbers whose ranges multiply to `size` or little more (Black and Rogaway, "Ciphers
    with arbitrary finite domains", 2002). A result outside of the range is sent through again ("cycle walking"), which
    ends because the network is a bijection, and is rare in all but the smallest ranges. So it is O(1) a place.

    Args:
        places: int64 [n], in range(size).
        key: 64 bits; or uint64 [n], a key for each place.

    Returns:
        int64 [n].

    Raises:
        ValueError: a place is outside of the range.
    """
    if len(places) and not 0 <= places.min() <= places.max() < size:
        raise ValueError(f"places from {places.min()} to {places.max()} are outside of range({size})")
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), places.shape)
    width = math.isqrt(max(size - 1, 0)) + 1
    height = -(-size // width)
    found, parts = np.empty(len(places), dtype=np.uint64), range(0, len(places), _CHUNK)
    for part in (slice(start, start + _CHUNK) for start in parts):
        found[part] = _feistel(places[part].astype(np.uint64), width, height, keys[part])
    outside = np.flatnonzero(found >= size)
    while len(outside):
        found[outside] = _feistel(found[outside], width, height, keys[outside])
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _feistel(values: np.ndarray, width: int, height: int, keys: np.ndarray) -> np.ndarray:
    """One pass through the network, a bijection of range(width * height)."""
    left, right = np.divmod(values, np.uint64(height))
    here, there = np.uint64(width), np.uint64(height)
    for _ in range(ROUNDS):
        keys = mix(keys)
        # Half of the 64 bits' range, so that the sum cannot run over.
        left, right = right, (left + (mix(keys ^ right) >> np.uint64(1))) % here
        here, there = there, here
    joined: np.ndarray = left * np.uint64(height) + right
    return joined


class EpochOrder:
    """The order in which a task meets its examples: every example once an epoch, another order in each epoch.

    An epoch is a shuffle of the shards, cut into windows of `window` shards. The n examples of a window are shared out
    among the places of a global batch: place j draws, without replacement and in random order, from the j-th of `batch`
    equal parts of the window. So every batch holds a sample of all of the window, each shard in proportion; and a rank,
    which takes neighbouring places, reads from a `1 / world` part of the window alone, whatever the number of ranks.

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
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def example(self, position: int) -> int:
        """The example (row of the index) at `position` of the task's endless stream, counted from 0."""
        return int(self.examples(np.array([position]))[0])

    def examples(self, positions: np.ndarray) -> np.ndarray:
        """The examples at int64 positions [n]: int64 [n]."""
        found = np.empty_like(positions)
        epochs = positions // self.size
        for epoch in np.unique(epochs).tolist():
            shards, starts = self._epoch(epoch)
            own = epochs == epoch
            places = self._shuffled(epoch, positions[own], starts)
            shard = np.searchsorted(starts, places, side="right") - 1
            found[own] = self._first[shards[shard]] + places - starts[shard]
        return found

    def window_at(self, position: int) -> tuple[int, int]:
        """The window that `position` lies in: its epoch, and its number in the epoch."""
        epoch, place = divmod(position, self.size)
        _, starts = self._epoch(epoch)
        return epoch, (int(np.searchsorted(starts, place, side="right")) - 1) // self.window

    def window_span(self, epoch: int, number: int) -> tuple[int, int]:
        """The first position of a window, and the one after its last."""
        _, starts = self._epoch(epoch)
        low, high = starts[number * self.window], starts[min((number + 1) * self.window, len(starts) - 1)]
        return epoch * self.size + int(low), epoch * self.size + int(high)

    def windows_from(self, epoch: int, number: int, first: int = 0, last: int | None = None) -> Iterator[list[int]]:
        """The shards of a window that places `first` to `last` of global batches (default: all) read, those of the
        window after it, and so on without end: what a reader of these places will need next."""
        last = self.batch - 1 if last is None else last
        while True:
            shards, starts = self._epoch(epoch)
            for begin in range(number * self.window, len(shards), self.window):
                low, high = int(starts[begin]), int(starts[min(begin + self.window, len(shards))])
                ends = self._column_starts(
                    np.array([first, last + 1]), epoch * self.size + low, epoch * self.size + high
                )
                near, far = (low + ends).tolist()
                # Where the window is shorter than a batch, a place of it may read nothing; and a shard may be empty.
                part = (starts[1:] > near) & (starts[:-1] < far) & (starts[1:] > starts[:-1]) & (near < far)
                yield shards[part].tolist()
            epoch, number = epoch + 1, 0

    def _column_starts(self, columns: np.ndarray, low: int, high: int) -> np.ndarray:
        """Where columns begin in the window of positions low to high - 1 (see `_shuffled_window`)."""
        (first_batch, before), (last_batch, after) = divmod(low, self.batch), divmod(high, self.batch)
        starts: np.ndarray = (
            columns * (last_batch - first_batch) + np.minimum(columns, after) - np.minimum(columns, before)
        )
        return starts

    def _shuffled(self, epoch: int, positions: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Where in the epoch's order of shards the examples of some of its positions lie."""
        begin = epoch * self.size
        windows = (np.searchsorted(starts, positions - begin, side="right") - 1) // self.window
        places = np.empty_like(positions)
        for window in np.unique(windows).tolist():
            shard = window * self.window
            low, high = int(starts[shard]), int(starts[min(shard + self.window, len(starts) - 1)])
            key = make_key(self.seed, self.task, epoch, "window", shard)
            own = windows == window
            places[own] = low + self._shuffled_window(positions[own], begin + low, begin + high, key)
        return places

    def _shuffled_window(self, positions: np.ndarray, low: int, high: int, key: int) -> np.ndarray:
        """Places in a window of the positions low to high - 1.

        The place of a position in its batch is its column, and the positions of a column, a batch apart, are a run of
        neighbouring places in a random order. Columns differ in length by one at most, since the window begins and
        ends anywhere in a batch.
        """
        (first_batch, before), (last_batch, after) = divmod(low, self.batch), divmod(high, self.batch)
        row, column = np.divmod(positions, self.batch)
        row = row - first_batch - (column < before)
        length = last_batch - first_batch + (column < after).astype(np.int64) - (column < before)
        keys = mix(mix(column.astype(np.uint64)) ^ np.uint64(key))
        shuffled = np.empty_like(positions)
        for size in np.unique(length).tolist():
            own = length == size
            shuffled[own] = permute(row[own], size, keys[own])
        return self._column_starts(column, low, high) + shuffled

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's shards in order [shards], and where each one's examples begin, with the end [shards + 1]."""
        if epoch not in self._epochs:
            while len(self._epochs) >= _EPOCHS_KEPT:
                del self._epochs[next(iter(self._epochs))]
            count = len(self.counts)
            shards = permute(np.arange(count), count, make_key(self.seed, self.task, epoch, "shards"))
            self._epochs[epoch] = shards, np.concatenate([[0], np.cumsum(self.counts[shards])])
        return self._epochs[epoch]
