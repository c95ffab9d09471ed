"""The cache of remote files: what it holds, what it asks the server for, and what kills and rivals do to it."""

import hashlib
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import cache_room, shard_cache
from data.errors import UserError
from data.fetch import RemoteFile
from data.shard_cache import ShardCache
from data.storage import take_counts
from tests.data.cached_files import (
    FORK,
    QUICK,
    SIZE,
    add,
    cache_of,
    content_of,
    ended,
    held,
    numbers,
    parts,
    started,
    until,
    whole,
)


def test_a_file_is_fetched_once(server, files, folder):
    cache = cache_of(folder)
    take_counts()
    for offset, size in ((100, 50), (0, SIZE), (SIZE - 1, 1), (100, 50)):
        assert cache.read(files[0], offset, size) == content_of(0)[offset : offset + size]
    # Another run, another process.
    assert whole(cache_of(folder), files[0]) == content_of(0)
    assert ended(started(lambda: whole(cache_of(folder), files[0]))) == 0
    assert server.sent["0.tar"] == SIZE
    counts = take_counts()
    assert (counts.misses, counts.hits, counts.fetched_bytes) == (1, 4, SIZE) and counts.waited_s > 0
    assert counts.read_bytes == 101 + 2 * SIZE
    assert held(folder) == {files[0].key} and not parts(folder)
    with pytest.raises(OSError, match="cut short"):
        cache.read(files[0], SIZE - 1, 2)


def test_the_same_content_from_two_places_is_one_entry(server, files, folder):
    cache = cache_of(folder)
    whole(cache, files[0])
    moved = RemoteFile("http://127.0.0.1:9/elsewhere.tar", SIZE, files[0].key, files[0].sha256)
    assert whole(cache, moved) == content_of(0)


def test_without_a_checksum(server, files, folder):
    key = hashlib.sha256(b"the index of this manifest").hexdigest()
    unchecked = RemoteFile(files[0].url, SIZE, key, None)
    cache = cache_of(folder)
    assert whole(cache, unchecked) == whole(cache, unchecked) == content_of(0)
    assert server.sent["0.tar"] == SIZE


def test_processes_wait_for_a_fetch_and_do_not_repeat_it(server, files, folder):
    server.gate.clear()

    def read() -> None:
        assert whole(cache_of(folder), files[0]) == content_of(0)

    processes = [started(read) for _ in range(3)]
    assert server.halfway.wait(20)
    processes.append(started(read))
    time.sleep(0.1)
    server.gate.set()
    assert [ended(process) for process in processes] == [0] * 4
    assert server.sent["0.tar"] == SIZE


def test_a_killed_fetch_is_gone_on_with(server, files, folder):
    whole(cache_of(folder), files[1])
    server.faults.extend(["ok", "ok", "stall"])
    victim = started(lambda: whole(cache_of(folder), files[0]))
    assert server.stalled.wait(20)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert numbers(folder, files) == {1} and parts(folder)[0].stat().st_size == 20_000
    assert whole(cache_of(folder), files[0]) == content_of(0)
    # Half of a request was lost.
    assert server.sent["0.tar"] == SIZE + 5000
    assert numbers(folder, files) == {0, 1} and not parts(folder)


def test_kills_at_any_moment_leave_no_poison(server, files, folder):
    """Readers of a cache that is too small for all are killed after random times; what is there is always right."""
    server.always = "slow"
    draw = random.Random(0)
    deadline = time.monotonic() + 3

    def read_on() -> None:
        cache = cache_of(folder, 3.5)
        for number in random.Random(os.getpid()).choices(range(8), k=200):
            assert whole(cache, files[number]) == content_of(number)

    while time.monotonic() < deadline:
        processes = [started(read_on) for _ in range(2)]
        time.sleep(draw.uniform(0.01, 0.4))
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
        held(folder)
    server.always = None
    cache = cache_of(folder, 3.5)
    for number, file in enumerate(files):
        assert whole(cache, file) == content_of(number)
    assert len(held(folder)) <= 3 and sum(path.stat().st_size for path in folder.iterdir()) <= 3.5 * SIZE


@pytest.mark.parametrize("stage", ["before it was verified", "before it had its name", "before the part was gone"])
def test_a_kill_after_the_last_byte(server, files, folder, monkeypatch, stage):
    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def victim() -> None:
        name = {"before it was verified": "fdatasync", "before it had its name": "link"}.get(stage)
        monkeypatch.setattr(os, name, die) if name else monkeypatch.setattr(shard_cache, "remove", die)
        whole(cache_of(folder), files[0])

    assert ended(started(victim)) == -signal.SIGKILL
    assert len(parts(folder)) == 1 and parts(folder)[0].stat().st_size == SIZE
    cache = cache_of(folder, 2)
    if stage == "before the part was gone":
        # One file of two names counts once.
        whole(cache, files[1])
        assert numbers(folder, files) == {0, 1}
    assert whole(cache, files[0]) == content_of(0)
    assert server.sent["0.tar"] == SIZE
    whole(cache, files[2])
    assert numbers(folder, files) == {0, 2} and not parts(folder)


def test_a_suspended_fetch_does_not_stop_the_others(server, files, folder, monkeypatch):
    monkeypatch.setattr(cache_room, "STALLED_S", 0.3)
    server.gate.clear()
    sleeper = started(lambda: whole(cache_of(folder), files[0]))
    assert server.halfway.wait(20)
    os.kill(sleeper.pid, signal.SIGSTOP)
    server.gate.set()
    assert whole(cache_of(folder), files[0]) == content_of(0)
    os.kill(sleeper.pid, signal.SIGCONT)
    assert ended(sleeper) == 0
    assert numbers(folder, files) == {0} and not parts(folder)


def test_what_was_used_longest_ago_is_evicted(server, files, folder, monkeypatch):
    monkeypatch.setattr(shard_cache, "TOUCH_S", 0.0)
    cache = cache_of(folder, 3)
    for number in (0, 1, 2, 0, 3):
        whole(cache, files[number])
    assert numbers(folder, files) == {0, 2, 3}
    # A run with a smaller budget, in the same folder.
    whole(cache_of(folder, 2), files[4])
    assert numbers(folder, files) == {3, 4}


@given(
    st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=30),
    st.lists(st.integers(8, 4000), min_size=8, max_size=8),
    st.integers(4000, 12_000),
)
def test_eviction_keeps_the_budget_and_the_order_of_use(tmp_path_factory, reads, sizes, budget):
    folder = tmp_path_factory.mktemp("cache")
    stored: list[RemoteFile] = []
    model: list[int] = []
    for number, size in enumerate(sizes):
        content = content_of(number, size)
        digest = hashlib.sha256(content).hexdigest()
        stored.append(RemoteFile(f"memory://eviction/{digest}", size, digest, digest))
        with fsspec.open(stored[-1].url, "wb") as file:
            file.write(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_cache, "TOUCH_S", 0.0)
        cache = ShardCache(folder, budget, QUICK)
        for number, other_run in reads:
            cache = ShardCache(folder, budget, QUICK) if other_run else cache
            assert whole(cache, stored[number]) == content_of(number, sizes[number])
            if number in model:
                model.remove(number)
            else:
                while sum(sizes[kept] for kept in model) + sizes[number] > budget:
                    model.pop(0)
            model.append(number)
            assert numbers(folder, stored) == set(model)
            assert sum(path.stat().st_size for path in folder.iterdir()) <= budget


def test_a_reader_of_an_evicted_file_reads_on(server, files, folder):
    cache = cache_of(folder, 1)
    with cache.opened(files[0]) as descriptor:
        whole(cache, files[1])
        assert numbers(folder, files) == {1}
        assert os.pread(descriptor, SIZE, 0) == content_of(0)


def test_rivals_for_one_place_all_get_on(server, files, folder):
    """A cache with room for one file, four processes that want six files: slow, but nobody stops or reads amiss."""

    def read(first: int) -> None:
        cache = cache_of(folder, 1.5)
        for number in range(first, first + 6):
            assert whole(cache, files[number % 6]) == content_of(number % 6)

    assert [ended(process) for process in [started(partial(read, first)) for first in range(4)]] == [0] * 4
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 1.5 * SIZE


def test_what_killed_processes_leave_is_evicted(server, files, folder):
    server.gate.clear()
    victim = started(lambda: whole(cache_of(folder), files[0]))
    assert server.halfway.wait(20)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    server.gate.set()
    assert len(parts(folder)) == 1
    cache = cache_of(folder, 1)
    assert whole(cache, files[1]) == content_of(1)
    assert numbers(folder, files) == {1} and not parts(folder)


def test_leftovers_of_a_larger_cache_do_not_make_all_wait(server, files, folder):
    """A run was killed in the middle of three fetches, and goes on with room for one file."""
    folder.mkdir()
    for number in range(3):
        part = folder / f"{files[number].key}-{SIZE}.part"
        part.write_bytes(content_of(number)[:30_000])
        part.chmod(cache_room.ADMITTED)

    def at_work(part: Path) -> bool:
        descriptor = os.open(part, os.O_RDWR)
        try:
            return not cache_room.try_lock(descriptor)
        finally:
            os.close(descriptor)

    caches = [cache_of(folder, 1.5) for _ in range(3)]

    begin = FORK.Event()

    def read(number: int) -> None:
        assert begin.wait(20)
        assert whole(caches[number], files[number]) == content_of(number)

    processes = [started(partial(read, number)) for number in range(3)]
    # None may make room before all are at their own parts, which nobody else can delete then.
    with caches[0]._room.lock():
        begin.set()
        until(lambda: all(map(at_work, parts(folder))))
    assert [ended(process) for process in processes] == [0] * 3


def test_a_file_that_was_spoilt_on_disk(server, files, folder):
    cache = cache_of(folder)
    whole(cache, files[0])
    os.truncate(folder / files[0].key, 100)
    assert whole(cache, files[0]) == content_of(0)
    assert held(folder) == {files[0].key}


def test_a_folder_that_is_deleted_in_between(server, files, folder):
    cache = cache_of(folder)
    whole(cache, files[0])
    shutil.rmtree(folder)
    assert whole(cache, files[0]) == content_of(0)
    server.gate.clear()
    server.halfway.clear()

    def delete() -> None:
        server.halfway.wait(20)
        shutil.rmtree(folder)
        server.gate.set()

    threading.Thread(target=delete).start()
    assert whole(cache, files[1]) == content_of(1)
    assert whole(cache, files[1]) == content_of(1)
    assert numbers(folder, files) == {1}


def test_a_cache_that_is_too_small(server, files, folder):
    with pytest.raises(UserError, match=r"0\.tar has 4e-05 GB, the cache 2e-05.*cache\.max_gb"):
        whole(cache_of(folder, 0.5), files[0])


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache cannot be used \(Not a directory\): choose a folder"):
        ShardCache(tmp_path / "file" / "cache")


@pytest.mark.parametrize("unset", [None, ""])
def test_a_default_folder_of_someone_else_is_refused(tmp_path, monkeypatch, unset):
    monkeypatch.delenv("COFINETUNING_CACHE", raising=False)
    if unset is not None:
        monkeypatch.setenv("COFINETUNING_CACHE", unset)
    monkeypatch.setattr(shard_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    cache = ShardCache()
    assert Path(cache.folder) == tmp_path / f"video-cofinetuning-{os.getuid()}"
    assert os.stat(cache.folder).st_mode & 0o777 == 0o700
    os.rename(cache.folder, tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", cache.folder)
    with pytest.raises(UserError, match="was made by another user"):
        ShardCache()
    monkeypatch.setenv("COFINETUNING_CACHE", str(tmp_path / "named"))
    assert Path(ShardCache().folder) == tmp_path / "named"


FULL = """
import sys
from data import shard_cache
from data.errors import UserError
from data.fetch import RemoteFile
from data.shard_cache import ShardCache
from data.storage import Retry
cache = ShardCache(sys.argv[1] + "/cache", 1e9, Retry())
for argument in sys.argv[2:]:
    url, size, key = argument.split("|")
    try:
        content = cache.read(RemoteFile(url, int(size), key, key), 0, int(size))
        print(len(content))
    except UserError as error:
        print(error)
"""


def test_a_full_disk(server, tmp_path):
    """In a file system of 256 kB: files are evicted for others though the budget is not used up; one that cannot fit is
    told."""
    mount = 'mkdir "$1/disk" && mount -t tmpfs -o size=256k none "$1/disk"'
    unshare = ["unshare", "-rm", "bash", "-c"]
    (tmp_path / "try").mkdir()
    if subprocess.run([*unshare, mount, "bash", str(tmp_path / "try")], capture_output=True).returncode:
        pytest.skip("no file systems of its own for this user")
    wanted = [add(server, 0, 150_000), add(server, 1, 200_000), add(server, 2, 300_000), add(server, 3, 100_000)]
    arguments = [f"{file.url}|{file.bytes}|{file.key}" for file in wanted]
    script = f'{mount}; disk=$1/disk; shift; exec "$@" '
    command = [sys.executable, "-c", FULL, f"{tmp_path}/disk", *arguments]
    done = subprocess.run(
        [*unshare, script, "bash", str(tmp_path), *command],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert lines[0] == "150000" and lines[1] == "200000" and lines[3] == "100000"
    assert "its disk is full" in lines[2] and "2.tar" in lines[2] and "cache.folder" in lines[2]


def test_a_cache_can_be_sent_to_another_process(folder):
    cache = cache_of(folder)
    cache.prefetch([], "training")
    again = pickle.loads(pickle.dumps(cache))  # noqa: S301 - our own
    assert (again.folder, again.max_bytes, again.retry) == (cache.folder, cache.max_bytes, cache.retry)
