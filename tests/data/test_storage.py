"""Reading ranges of local and remote files, and downloads: what is repeated, what is resumed and what is told."""

import errno
import hashlib
import importlib.util
import os
import socket

import fsspec
import pytest

from data import fetch, storage
from data.errors import UserError
from data.fetch import RemoteFile, download
from data.storage import Damaged, Missing, Retry, read_range, take_counts
from tests.range_server import RangeServer

CONTENT = bytes(range(256)) * 400
QUICK = Retry(attempts=3, first_s=0.01, most_s=0.02)


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "RETRY", QUICK)
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "a.tar").write_bytes(CONTENT)
    with RangeServer(tmp_path / "served") as running:
        yield running


def test_ranges_of_a_server(server):
    url = f"{server.url}/a.tar"
    take_counts()
    assert read_range(url) == CONTENT
    assert read_range(url, 300) == CONTENT[300:]
    assert read_range(url, 300, 1000) == CONTENT[300:1300]
    assert read_range(url, 0, 10) == CONTENT[:10]
    assert server.sent["a.tar"] == take_counts().fetched_bytes == 2 * len(CONTENT) - 300 + 1010
    assert take_counts().fetched_bytes == 0
    server.ranges = False
    assert read_range(url, 300, 1000) == CONTENT[300:1300]


@pytest.mark.parametrize("faults", [[500], [503, 500], ["cut"], ["slow"], [429, "cut"]])
def test_what_passes_is_tried_again(server, faults):
    server.faults.extend(faults)
    assert read_range(f"{server.url}/a.tar", 7, 5000) == CONTENT[7:5007]
    assert not server.faults


def test_a_silent_server_is_asked_again(server, monkeypatch):
    monkeypatch.setattr(storage, "STALL_S", 0.2)
    server.faults.append("stall")
    assert read_range(f"{server.url}/a.tar", 7, 5000) == CONTENT[7:5007]
    assert len(server.gets) == 2


def test_what_does_not_pass_is_told_at_once(server):
    with pytest.raises(FileNotFoundError, match=r"b\.tar: is not there"):
        read_range(f"{server.url}/b.tar", 0, 10)
    with pytest.raises(OSError, match="cut short"):
        read_range(f"{server.url}/a.tar", len(CONTENT) - 5, 10)
    with pytest.raises(Damaged, match="shorter than its manifest"):
        read_range(f"{server.url}/a.tar", len(CONTENT) + 5, 10)
    server.faults.append(403)
    with pytest.raises(UserError, match="credentials"):
        read_range(f"{server.url}/a.tar", 0, 10)
    assert len(server.gets) == 4


def test_a_server_that_does_not_answer(server):
    server.always = 500
    with pytest.raises(UserError, match=r"a\.tar: cannot be read after 3 attempts .*500"):
        read_range(f"{server.url}/a.tar", 0, 10)
    assert len(server.gets) == 3
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="the network or the server is at fault"):
            read_range(f"http://127.0.0.1:{unused.getsockname()[1]}/a.tar", 0, 10)


def test_a_protocol_that_is_not_known():
    with pytest.raises(UserError, match="fsspec knows no s4://"):
        read_range("s4://bucket/a.tar", 0, 10)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_a_package_that_is_missing():
    with pytest.raises(UserError, match="pip install gcsfs"):
        read_range("gs://bucket/a.tar", 0, 10)


def test_memory():
    with fsspec.open("memory://box/a.tar", "wb") as file:
        file.write(CONTENT)
    assert read_range("memory://box/a.tar", 3, 4) == CONTENT[3:7]
    with pytest.raises(FileNotFoundError):
        read_range("memory://box/b.tar")


def test_local_files(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    assert read_range(str(path), 3, 4) == read_range(f"file://{path}", 3, 4) == CONTENT[3:7]
    assert read_range(str(path)) == CONTENT and read_range(str(path), len(CONTENT) - 3) == CONTENT[-3:]
    with pytest.raises(OSError, match="cut short"):
        read_range(str(path), len(CONTENT) - 3, 4)
    with pytest.raises(FileNotFoundError):
        read_range(f"{path}.no", 0, 4)
    # Some bytes a call, as a signal or a network file system may do.
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, size, offset: pread(descriptor, min(size, 7), offset))
    assert read_range(str(path), 3, 100) == CONTENT[3:103]


def test_a_stale_handle_of_a_network_file_system(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    path.write_bytes(CONTENT)
    pread, failures = os.pread, [errno.ESTALE, errno.EIO]

    def flaky(*args):
        if failures:
            raise OSError(failures.pop(), "injected")
        return pread(*args)

    monkeypatch.setattr(os, "pread", flaky)
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    assert read_range(str(path), 3, 4) == CONTENT[3:7]
    failures += [errno.EIO] * storage.LOCAL_ATTEMPTS
    with pytest.raises(OSError, match="injected"):
        read_range(str(path), 3, 4)
    assert not failures


def remote(url: str, content: bytes = CONTENT) -> RemoteFile:
    digest = hashlib.sha256(content).hexdigest()
    return RemoteFile(url, len(content), digest, digest)


@pytest.fixture
def fetched(server, tmp_path, monkeypatch):
    """Downloads a.tar, over a beginning that is there already, and returns the local file's content."""
    monkeypatch.setattr(fetch, "CHUNK", 16384)

    def work(beginning: bytes = b"", content: bytes = CONTENT) -> bytes:
        path = tmp_path / "part"
        path.write_bytes(beginning)
        with open(path, "r+b") as file:
            download(remote(f"{server.url}/a.tar", content), file.fileno(), QUICK, lambda: None)
        return path.read_bytes()

    return work


@pytest.mark.parametrize("faults", [[], ["slow"], [500, 503, "ok", "cut", "ok", 500], ["ok", "cut", "cut"]])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download(server, fetched, faults, ranges):
    server.ranges = ranges
    server.faults.extend(faults)
    assert fetched() == CONTENT
    # Only what broke off comes again.
    broken = faults.count("cut") * (8192 if ranges else len(CONTENT) // 2)
    assert server.sent["a.tar"] <= len(CONTENT) + broken


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_stopped(server, fetched, ranges):
    server.ranges = ranges
    assert fetched(CONTENT[:50000]) == CONTENT
    assert server.gets[0] == ("a.tar", f"bytes=50000-{50000 + 16383}")
    assert server.sent["a.tar"] == (len(CONTENT) - 50000 if ranges else len(CONTENT))


def test_a_link_that_never_lasts_for_a_whole_request(server, fetched, monkeypatch):
    """A proxy that cuts every answer at a third of a request: with smaller ones there is an end to it."""
    monkeypatch.setattr(fetch, "LEAST_CHUNK", 1024)
    own = storage.fetch_range

    def cut(url: str, start: int, end: int) -> bytes:
        if end - start > 16384 // 3:
            raise ConnectionResetError("cut")
        return own(url, start, end)

    monkeypatch.setattr(fetch, "fetch_range", cut)
    assert fetched() == CONTENT
    assert max(int(get[1].partition("-")[2]) - int(get[1][6:].partition("-")[0]) for get in server.gets) < 16384 // 3


def test_a_spoilt_beginning_is_fetched_again(server, fetched):
    assert fetched(bytes(50000)) == CONTENT
    assert fetched(bytes(len(CONTENT))) == CONTENT
    assert server.sent["a.tar"] == len(CONTENT) - 50000 + 2 * len(CONTENT)


def test_wrong_bytes(server, fetched):
    server.faults.extend(["ok", "wrong"])
    assert fetched() == CONTENT
    assert server.sent["a.tar"] == 2 * len(CONTENT)
    server.always = "wrong"
    with pytest.raises(Damaged, match=r"a\.tar: its sha256 is .*, the manifest says .*upload it again"):
        fetched()
    assert server.sent["a.tar"] == 4 * len(CONTENT)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_of_another_size(server, fetched, ranges):
    server.ranges = ranges
    for content in (CONTENT + b"more", CONTENT[:-9] + b"other"):
        with pytest.raises(Damaged):
            fetched(content=content)


def test_a_file_that_is_gone(server, fetched):
    (server.root / "a.tar").unlink()
    with pytest.raises(Missing):
        fetched()
    assert len(server.gets) == 1


def test_waits_grow_and_differ():
    waits = [Retry(first_s=1, most_s=60).wait_s(failures) for failures in range(1, 12)]
    assert all(0.5 * min(2**n, 60) <= wait <= min(2**n, 60) for n, wait in enumerate(waits))
    assert len({Retry().wait_s(3) for _ in range(5)}) == 5
