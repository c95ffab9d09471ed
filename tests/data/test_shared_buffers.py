"""Shared buffers: used again when nothing lies in them any more, and not a moment earlier."""

import copy
import os

import pytest
import torch
from torch import Tensor

from data import shared_buffers
from data.batch import Batch
from data.shared_buffers import SLOTS, SharedBuffers, Slot, free_when_unused


@pytest.fixture
def buffers():
    made = SharedBuffers(workers=2)
    yield made
    made.close()


def filled(buffers: SharedBuffers, size: int, worker: int = 0) -> tuple[Tensor, Slot | None]:
    storage, slot = buffers.take(size, worker)
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,)), slot  # type: ignore[call-overload]


def test_a_buffer_comes_back_when_its_last_view_goes(buffers):
    tensor, slot = filled(buffers, 100)
    assert slot is not None and tensor.is_shared()
    free_when_unused(tensor, slot)
    view = tensor[10:20].numpy()
    del tensor
    # The worker itself holds on to its storages; the main process has its own object for each batch it receives.
    buffers._kept.clear()
    _, other = filled(buffers, 100)
    assert other != slot, "a view still lies in it"
    del view
    _, again = filled(buffers, 100)
    assert again == slot


def test_a_buffer_that_is_free_is_the_same_memory(buffers):
    first, slot = filled(buffers, 100)
    assert slot is not None
    address = first.data_ptr()
    shared_buffers._free(slot, os.getpid())
    assert filled(buffers, 50)[0].data_ptr() != address
    again, same_slot = filled(buffers, 100)
    assert (again.data_ptr(), same_slot) == (address, slot)


def test_workers_have_buffers_of_their_own(buffers):
    (_, first), (_, second) = filled(buffers, 10, worker=0), filled(buffers, 10, worker=1)
    assert first is not None and second is not None and first[1:] == (0, 0) and second[1:] == (1, 0)


def test_with_all_buffers_in_use_there_is_memory_all_the_same(buffers):
    slots = [filled(buffers, 10)[1] for _ in range(SLOTS)]
    assert None not in slots and len(set(slots)) == SLOTS
    tensor, slot = filled(buffers, 10)
    assert slot is None and tensor.is_shared()
    shared_buffers._free(slots[3], os.getpid())
    # A buffer of another size gives way only now that there is no place left.
    assert filled(buffers, 20)[1] == slots[3] and buffers._kept[slots[3][2]].nbytes() == 20


def test_a_full_shared_memory_takes_what_is_not_in_use(buffers, monkeypatch):
    made: list[int] = []

    def new(size: int) -> torch.UntypedStorage:
        if len(made) == 2 and buffers._kept:
            raise RuntimeError("No space left on device")
        made.append(size)
        return torch.UntypedStorage(size)

    monkeypatch.setattr(shared_buffers, "_new_shared", new)
    for _ in range(2):
        shared_buffers._free(buffers.take(10, 0)[1], os.getpid())
        shared_buffers._free(buffers.take(20, 0)[1], os.getpid())
    assert made == [10, 20] and buffers.take(30, 0)[1] is not None and made == [10, 20, 30]


def test_a_process_that_was_forked_does_not_free_for_its_parent(buffers):
    tensor, slot = filled(buffers, 10)
    assert slot is not None
    free_when_unused(tensor, slot)
    buffers._kept.clear()
    child = os.fork()
    if not child:
        del tensor
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert filled(buffers, 10)[1] != slot


def test_a_copy_of_a_batch_does_not_free_its_buffer(buffers):
    tensor, slot = filled(buffers, 12)
    batch = Batch("any", tensor.view(1, 3, 1, 2, 2), ["key"], torch.tensor([0]), torch.tensor([0]), slot=slot)
    del tensor
    received = Batch.__new__(Batch)
    received.__setstate__(batch.__dict__ | {})
    del batch
    buffers._kept.clear()
    copied = copy.deepcopy(received)
    del copied
    assert received.slot is None and filled(buffers, 12)[1] != slot
    del received
    assert filled(buffers, 12)[1] == slot


def test_after_closing_nothing_is_freed_and_nothing_fails(buffers):
    tensor, slot = filled(buffers, 10)
    assert slot is not None
    free_when_unused(tensor, slot)
    buffers.close()
    buffers._kept.clear()
    del tensor
