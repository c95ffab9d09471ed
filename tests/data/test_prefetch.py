"""Fetching ahead: in order, within the budget, past what fails, and after a fork."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.fetch import RemoteFile
from data.prefetch import within
from data.storage import Missing, take_counts
from tests.data.cached_files import SIZE, cache_of, content_of, ended, numbers, started, until, whole


def test_prefetch_in_order_and_within_bounds(server, files, folder):
    cache = cache_of(folder, 4)
    cache.prefetch([files[number] for number in (5, 3, 5, 1, 0)], "training")
    until(lambda: numbers(folder, files) == {5, 3, 1})
    names = [name for name, _ in server.gets]
    assert names == ["5.tar"] * 4 + ["3.tar"] * 4 + ["1.tar"] * 4
    take_counts()
    for number in (1, 5, 3):
        assert whole(cache, files[number]) == content_of(number)
    assert take_counts().hits == 3
    # What is wanted next is kept, the rest makes room.
    cache.prefetch([files[number] for number in (3, 6, 7)], "training")
    until(lambda: {3, 6, 7} <= numbers(folder, files))
    assert len(server.gets) == 20


def test_a_new_list_takes_the_place_of_the_old_one(server, files, folder):
    cache = cache_of(folder)
    server.gate.clear()
    cache.prefetch(files[:4], "training")
    assert server.halfway.wait(20)
    cache.prefetch(files[6:], "training")
    server.gate.set()
    until(lambda: {6, 7} <= numbers(folder, files))
    assert numbers(folder, files) == {0, 6, 7}


def test_a_reader_waits_for_what_is_on_its_way(server, files, folder):
    cache = cache_of(folder)
    server.gate.clear()
    cache.prefetch(files[:1], "training")
    assert server.halfway.wait(20)
    threading.Timer(0.1, server.gate.set).start()
    assert whole(cache, files[0]) == content_of(0)
    assert server.sent["0.tar"] == SIZE


def test_prefetch_goes_on_after_what_fails_and_after_a_fork(server, files, folder):
    (server.root / "0.tar").unlink()
    cache = cache_of(folder)
    cache.prefetch(files[:2], "training")
    until(lambda: numbers(folder, files) == {1})

    def child() -> None:
        cache.prefetch(files[2:4], "training")
        until(lambda: numbers(folder, files) == {1, 2, 3})

    assert ended(started(child)) == 0
    with pytest.raises(Missing):
        whole(cache, files[0])
    assert len([get for get in server.gets if get[0] == "0.tar"]) == 1


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 50))), st.integers(0, 200))
def test_within(wanted, budget):
    sizes: dict[int, int] = {}
    listed = [RemoteFile("", sizes.setdefault(key, size), str(key) * 64, None) for key, size in wanted]
    chosen = within(listed, budget)
    unique = list(dict.fromkeys(listed))
    assert chosen == unique[: len(chosen)] and sum(file.bytes for file in chosen) <= budget
    if len(chosen) < len(unique):
        assert sum(file.bytes for file in unique[: len(chosen) + 1]) > budget
