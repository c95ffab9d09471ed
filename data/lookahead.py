"""Which shards the ranks of a machine read next: known from the schedule and the order, so fetched before their use."""

import heapq
import os
from collections.abc import Iterator, Sequence

from data.fetch import RemoteFile
from data.order import EpochOrder
from data.schedule import NodeShare, Schedule
from data.shard_cache import ShardCache
from data.shards import ShardSet


class Lookahead:
    """Follows the positions that this process is asked for, and tells the cache what its machine reads after them.

    The list of shards is a function of the step and of the machine's place among the ranks: the same in all processes
    of the machine, whichever tasks and clips come to each. So they share the work, and nobody evicts what another one
    has fetched ahead. Of a window only the shards are wanted that the machine's places of the global batch read (see
    `EpochOrder`), and windows come in the order in which the schedule gets to them. Local sets, and those that are read
    by range, need nothing of this.

    Args:
        sets: of the tasks.
        orders: of the tasks, with the batches of the schedule.
        schedule: of the run.
        node: the machine's part of a global batch.
    """

    def __init__(
        self, sets: Sequence[ShardSet], orders: Sequence[EpochOrder], schedule: Schedule, node: NodeShare
    ) -> None:
        self._schedule = schedule
        self._remote: dict[int, tuple[ShardSet, ShardCache, EpochOrder]] = {}
        self._places: dict[int, tuple[int, int]] = {}
        for number, (shards, order) in enumerate(zip(sets, orders, strict=True)):
            if shards.cache is not None and shards.whole_shards:
                self._remote[number] = (shards, shards.cache, order)
                self._places[number] = node.places(order.batch)
        self._valid: dict[int, tuple[int, int]] = {}
        self._owner = os.getpid()

    def at(self, number: int, position: int) -> None:
        """Position `position` of task `number` is about to be read."""
        if number not in self._remote:
            return
        batch = position // self._remote[number][2].batch
        since, until = self._valid.get(number, (0, 0))
        if since <= batch < until and self._owner == os.getpid():
            return
        step = self._schedule.step_of(number, batch)
        for cache in {id(cache): cache for _, cache, _ in self._remote.values()}.values():
            cache.prefetch(self.upcoming(cache, step), "training")
        # The list stays as it is until the machine is done with a window.
        end = min(self._left(task, step) for task in self._remote)
        done = self._schedule.done
        self._valid = {task: (done(task, step), done(task, end)) for task in self._remote}
        self._owner = os.getpid()

    def upcoming(self, cache: ShardCache, step: int) -> list[RemoteFile]:
        """What will be read of a cache from optimizer step `step` on, soonest first, as much as it can hold."""
        windows = [self._windows(number, step) for number, (_, kept_in, _) in self._remote.items() if kept_in is cache]
        found: dict[str, RemoteFile] = {}
        room = cache.max_bytes
        for _, number, shards in heapq.merge(*windows):
            for shard in shards:
                file = self._remote[number][0].shard_file(shard)
                if file.key not in found:
                    found[file.key] = file
                    room -= file.bytes
            if room < 0:
                break
        return list(found.values())

    def _windows(self, number: int, step: int) -> Iterator[tuple[int, int, list[int]]]:
        """(first step, task, shards) of a task's windows, from the one that the machine is in at `step`."""
        order, (first, last) = self._remote[number][2], self._places[number]
        if self._schedule.done(number, step) >= self._schedule.steps_of(number):
            return
        epoch, window = self._window(number, step)
        count = -(-len(order.counts) // order.window)
        windows = order.windows_from(epoch, window, first, last)
        # The rest of this epoch and the whole of the next one is all there is.
        for _ in range(2 * count):
            begin, _ = order.window_span(epoch, window)
            began = self._schedule.step_of(number, max(-(-(begin - last) // order.batch), 0))
            if began >= self._schedule.steps:
                return
            yield began, number, next(windows)
            epoch, window = (epoch, window + 1) if window + 1 < count else (epoch + 1, 0)

    def _left(self, number: int, step: int) -> int:
        """The step before which the machine is done with the window that it is in at `step`, or with the task."""
        order, plan = self._remote[number][2], self._schedule
        if plan.done(number, step) >= plan.steps_of(number):
            return plan.steps
        _, end = order.window_span(*self._window(number, step))
        batches = -(-(end - self._places[number][0]) // order.batch)
        return plan.step_of(number, min(batches, plan.steps_of(number)) - 1) + 1

    def _window(self, number: int, step: int) -> tuple[int, int]:
        """The window of the machine's first place in the batch that comes next at `step`."""
        order = self._remote[number][2]
        return order.window_at(self._schedule.done(number, step) * order.batch + self._places[number][0])
