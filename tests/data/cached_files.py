"""Files on a server for a cache to hold, and what its tests look at."""

import hashlib
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path

from data.fetch import RemoteFile
from data.shard_cache import ShardCache
from data.storage import Retry
from tests.range_server import RangeServer

SIZE = 40_000
QUICK = Retry(attempts=3, first_s=0.01, most_s=0.02)
FORK = multiprocessing.get_context("fork")


def content_of(number: int, size: int = SIZE) -> bytes:
    return random.Random(number).randbytes(size)


def add(server: RangeServer, number: int, size: int = SIZE) -> RemoteFile:
    content = content_of(number, size)
    (server.root / f"{number}.tar").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return RemoteFile(f"{server.url}/{number}.tar", size, digest, digest)


def cache_of(folder: Path, shards: float = 100.0) -> ShardCache:
    """A cache with room for so many of the eight files, opened as another run would."""
    return ShardCache(folder, shards * SIZE, QUICK)


def whole(cache: ShardCache, file: RemoteFile) -> bytes:
    return cache.read(file, 0, file.bytes)


def held(folder: Path) -> set[str]:
    """Keys of the whole files in the cache, each of which must be what its name says."""
    found = {path.name for path in folder.iterdir() if len(path.name) == 64}
    for name in found:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == name
    return found


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.part"))


def numbers(folder: Path, files: list[RemoteFile]) -> set[int]:
    keys = held(folder)
    return {number for number, file in enumerate(files) if file.key in keys}


def started(work: Callable[[], object]) -> "multiprocessing.process.BaseProcess":
    process = FORK.Process(target=work, daemon=True)
    process.start()
    return process


def ended(process: "multiprocessing.process.BaseProcess") -> int | None:
    process.join(30)
    return process.exitcode


def until(condition: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
