"""What a fetch that failed leaves for others in the cache of remote files, and what it does not."""

import time
from dataclasses import replace

import pytest

from data.errors import UserError
from data.storage import Damaged, Missing
from tests.data.cached_files import SIZE, cache_of, content_of, parts, whole


def test_failures_are_told_to_those_who_wait(server, files, folder):
    (server.root / "0.tar").unlink()
    (server.root / "1.tar").write_bytes(bytes(SIZE))
    readers = [cache_of(folder) for _ in range(2)]
    for cache in readers * 2:
        with pytest.raises(Missing, match=r"0\.tar: is not there"):
            whole(cache, files[0])
        with pytest.raises(Damaged, match=r"1\.tar: its sha256 is"):
            whole(cache, files[1])
    # Asked once, and once more for the content that was wrong.
    assert server.gets.count(("0.tar", "bytes=0-9999")) == 1 and server.sent["1.tar"] == 2 * SIZE
    # The same content elsewhere is another matter, and so is a run that begins later.
    (server.root / "elsewhere.tar").write_bytes(content_of(0))
    assert whole(readers[0], replace(files[0], url=f"{server.url}/elsewhere.tar")) == content_of(0)
    (server.root / "1.tar").write_bytes(content_of(1))
    with pytest.raises(Damaged):
        whole(readers[1], files[1])
    time.sleep(0.05)
    assert whole(cache_of(folder), files[1]) == content_of(1)
    assert not parts(folder)


def test_an_outage_while_reading_ahead_is_forgotten(server, files, folder):
    cache = cache_of(folder)
    server.always = 500
    with pytest.raises(UserError, match="cannot be read after 3 attempts"):
        cache.fetch_ahead(files[2])
    server.always = None
    assert whole(cache, files[2]) == content_of(2)
    assert not parts(folder)
