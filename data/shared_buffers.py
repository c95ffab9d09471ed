"""Shared memory for batches on their way to the main process, used again once they are gone.

New shared memory comes from the system page by page, which costs ten times as much as writing into it.
"""

import itertools
import os
import weakref
from typing import Any

import torch
from torch import Tensor, UntypedStorage

SLOTS = 32
"""Buffers that a worker keeps. Beyond them a batch gets memory of its own."""

Slot = tuple[int, int, int]
"""A buffer: the number of its `SharedBuffers`, the worker that writes into it, and its place there."""

_numbers = itertools.count()
_busy: dict[int, Tensor] = {}
"""uint8 [workers, SLOTS] in shared memory for each open `SharedBuffers`: 1 from a worker's taking a buffer until the
main process has no tensor in it any more."""


class SharedBuffers:
    """The buffers of one loader's workers. Made in the main process before it forks them.

    A worker takes a buffer, writes a batch into it and sends it; the main process calls `free_when_unused` for what it
    receives. Nobody waits: where all buffers are in use, there is new memory.
    """

    def __init__(self, workers: int) -> None:
        self.number = next(_numbers)
        _busy[self.number] = torch.zeros(workers, SLOTS, dtype=torch.uint8).share_memory_()
        self._kept: dict[int, UntypedStorage] = {}

    def take(self, size: int, worker: int) -> tuple[UntypedStorage, Slot | None]:
        """Shared memory of `size` bytes, and which buffer it is; None for memory that will not be used again.

        Raises:
            RuntimeError: no room in shared memory.
        """
        busy = _busy[self.number][worker]
        free = [slot for slot in range(SLOTS) if not busy[slot]]
        fitting = [slot for slot in free if slot in self._kept and self._kept[slot].nbytes() == size]
        if fitting:
            slot = fitting[0]
        else:
            # A buffer of another size gives way only where there is no place left.
            places = sorted(free, key=lambda slot: slot in self._kept)
            storage = self._new(size, free)
            if not places:
                return storage, None
            slot = places[0]
            self._kept[slot] = storage
        busy[slot] = 1
        return self._kept[slot], (self.number, worker, slot)

    def _new(self, size: int, free: list[int]) -> UntypedStorage:
        try:
            return _new_shared(size)
        except RuntimeError:
            for slot in free:
                self._kept.pop(slot, None)
            return _new_shared(size)

    def close(self) -> None:
        """Forgets the buffers; batches that are still in them stay as they are."""
        _busy.pop(self.number, None)


def free_when_unused(tensor: Tensor, slot: Slot) -> None:
    """Gives the buffer that `tensor` lies in back to its worker once no tensor in this process lies in it."""
    done = weakref.finalize(tensor.untyped_storage(), _free, slot, os.getpid())
    done.atexit = False


def _free(slot: Slot, process: int) -> None:
    number, worker, place = slot
    busy = _busy.get(number)
    # A process that was forked meanwhile has the tensor too, and does not speak for this one.
    if busy is not None and os.getpid() == process:
        busy[worker, place] = 0


def _new_shared(size: int) -> UntypedStorage:
    # As torch's own collate function does it.
    storage: Any = UntypedStorage._new_shared(size, device="cpu")
    return storage
