"""A signal to one rank stops an evaluation on all of them, at the same batch."""

from typing import Any, cast

import pytest

from data.batch import Batch
from tests.dist import run_ranks
from train.evaluators.common import HEED_EVERY, until_stopped
from train.launch import Rank, Stopped, StopSignal, init_distributed

BATCHES = cast(list[Batch], list(range(5 * HEED_EVERY)))


def stopped_at(signalled: int, after: int) -> tuple[int, int]:
    """How many batches a rank had, and by which signal it was stopped; rank `signalled` gets 10 in batch `after`."""
    rank, stop, had = init_distributed(), StopSignal(), 0
    try:
        for _ in until_stopped(BATCHES, rank, stop):
            had += 1
            if rank.index == signalled and had == after:
                stop.number = 10
    except Stopped as asked:
        return had, asked.number
    return had, 0


@pytest.mark.parametrize(("after", "had"), [(3, HEED_EVERY), (HEED_EVERY + 1, 2 * HEED_EVERY)])
def test_all_ranks_stop_at_the_same_batch(after: int, had: int) -> None:
    assert run_ranks(stopped_at, 2, 1, after) == [(had, 10), (had, 10)]


def test_nobody_stops_without_a_signal() -> None:
    assert run_ranks(stopped_at, 2, 7, 1) == [(len(BATCHES), 0)] * 2


def test_an_evaluation_of_its_own_has_nobody_to_ask() -> None:
    assert len(list(until_stopped(BATCHES, cast(Rank, cast(Any, None)), None))) == len(BATCHES)
