"""Which shards a mixture of tasks reads next: known from the order, so fetched before they are needed."""

import os
from collections.abc import Sequence

from data.fetch import RemoteFile
from data.order import EpochOrder
from data.shard_cache import ShardCache
from data.shards import ShardSet


class Lookahead:
    """Follows the positions that this process is asked for, and tells the cache what comes after them.

    All processes of a machine are at about the same positions, so they want the same shards; whoever comes first
    fetches one, and so they share the work. A process takes the same places of every global batch, and of a window only
    the shards that these places read (see `EpochOrder`). Local sets, and those that are read by range, need nothing of
    this.

    Args:
        sets: of the tasks.
        orders: of the tasks; only what an EpochOrder orders is known ahead.
    """

    def __init__(self, sets: Sequence[ShardSet], orders: Sequence[object]) -> None:
        self._remote: dict[int, tuple[ShardSet, ShardCache, EpochOrder]] = {}
        for number, (shards, order) in enumerate(zip(sets, orders, strict=True)):
            if shards.cache is not None and shards.whole_shards and isinstance(order, EpochOrder):
                self._remote[number] = (shards, shards.cache, order)
        self._windows: dict[int, tuple[int, int]] = {}
        self._places: dict[int, tuple[int, int]] = {}
        self._owner = os.getpid()

    def at(self, number: int, position: int) -> None:
        """Position `position` of task `number` is about to be read."""
        if number not in self._remote:
            return
        if self._owner != os.getpid():
            self._owner, self._windows, self._places = os.getpid(), {}, {}
        cache, order = self._remote[number][1:]
        window, place = order.window_at(position), position % order.batch
        first, last = self._places.get(number, (place, place))
        places = (min(first, place), max(last, place))
        if (self._windows.get(number), self._places.get(number)) != (window, places):
            self._windows[number], self._places[number] = window, places
            cache.prefetch(self.upcoming(cache))

    def upcoming(self, cache: ShardCache) -> list[RemoteFile]:
        """What will be read of a cache, soonest first, as much as it can hold: the windows that tasks are in, then the
        next window of each task, and so on."""
        parts = [
            (
                shards,
                order.windows_from(*self._windows[number], *self._places[number]),
                -(-len(order.counts) // order.window),
            )
            for number, (shards, kept_in, order) in self._remote.items()
            if kept_in is cache and number in self._windows
        ]
        found: dict[str, RemoteFile] = {}
        room = cache.max_bytes
        # The rest of this epoch and the whole of the next one is all there is.
        for number in range(2 * max(count for _, _, count in parts)):
            for shards, windows, count in parts:
                if number >= 2 * count:
                    continue
                for shard in next(windows):
                    file = shards.shard_file(shard)
                    if file.key not in found:
                        found[file.key] = file
                        room -= file.bytes
            if room < 0:
                break
        return list(found.values())
