"""Reads byte ranges: of local files in place, and of whatever fsspec opens, with retries; and counts what was read."""

import errno
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs

from data.errors import UserError

T = TypeVar("T")

STALL_S = 60.0
"""A server that sends nothing for so long is asked again."""
QUIET_FAILURES = 3
"""From this one on, failed attempts are told: nobody should sit before a silent program."""
LOCAL_ATTEMPTS = 4
PASSING = (errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT)
"""Errors of a network file system that often pass: a server that fails over, a file handle gone stale."""
EXTRA_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs"}
"""What fsspec needs for a protocol beyond what this project requires."""


class Missing(FileNotFoundError):
    """A remote file that is not there."""


class Damaged(OSError):
    """A remote file whose content is not what it should be, also when it is read again."""


@dataclass(frozen=True)
class Retry:
    """How often a remote read is repeated: `attempts` in a row without a byte, first after about `first_s` seconds,
    then twice as long each time up to `most_s`. Half of each wait is drawn, so that ranks do not come back in step."""

    attempts: int = 8
    first_s: float = 1.0
    most_s: float = 60.0

    def wait_s(self, failures: int) -> float:
        return min(self.first_s * 2 ** (failures - 1), self.most_s) * _JITTER.uniform(0.5, 1.0)


# Not the global generator: how often a server failed must not change what a run draws.
_JITTER = random.Random()
RETRY = Retry()


@dataclass
class ReadCounts:
    """What this process has read."""

    read_bytes: int = 0
    """Bytes handed to readers."""
    hits: int = 0
    """Reads of remote files that were in the cache."""
    misses: int = 0
    """Reads that had to wait for a shard, or went to the server themselves."""
    fetched_bytes: int = 0
    """Bytes that came from a server, ahead of use included."""
    waited_s: float = 0.0
    """Seconds that readers waited for shards or servers."""


_counts, _counts_lock = ReadCounts(), threading.Lock()


def _forget_counts() -> None:
    global _counts, _counts_lock
    _counts, _counts_lock = ReadCounts(), threading.Lock()


# A forked process has read nothing yet, and may have been born while another thread held the lock.
os.register_at_fork(after_in_child=_forget_counts)


def count(**amounts: float) -> None:
    """Adds to this process's counts, as in count(hits=1)."""
    with _counts_lock:
        for name, amount in amounts.items():
            setattr(_counts, name, getattr(_counts, name) + amount)


def take_counts() -> ReadCounts:
    """What this process has read since the last call."""
    global _counts
    with _counts_lock:
        taken, _counts = _counts, ReadCounts()
    return taken


def is_remote(path: str) -> bool:
    """Whether `path` is a URL (`s3://...`, `https://...`) and not a path of this machine."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> str:
    """A path of this machine without the `file://` that it may begin with."""
    return path.removeprefix("file://")


def read_head(url: str, size: int) -> bytes:
    """The first `size` bytes of a remote file, or all of a shorter one. Raises as `read_range` does."""
    content = retried(lambda: fetch_range(url, 0, size), url)[:size]
    count(fetched_bytes=len(content))
    return content


def read_range(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Reads `size` bytes from `offset` on (all that follow where `size` is None), and tries again where that may help.

    Raises:
        FileNotFoundError: nothing there.
        OSError: fewer than `size` bytes could be read.
        UserError: a remote file that cannot be reached: no access, no such protocol, or no answer from the server.
    """
    if is_remote(path):
        began = time.monotonic()
        end = None if size is None else offset + size
        content = retried(lambda: fetch_range(path, offset, end), path)
        count(fetched_bytes=len(content), waited_s=time.monotonic() - began)
        if size is not None and len(content) > size:
            content = content[offset : offset + size]
    else:
        content = _read_local(local_path(path), offset, size)
    if size is not None and len(content) != size:
        raise OSError(f"{path}: {len(content)} bytes at offset {offset}, expected {size}: the file is cut short")
    return content


def _read_local(path: str, offset: int, size: int | None) -> bytes:
    for attempt in range(1, LOCAL_ATTEMPTS + 1):
        try:
            # Opened anew each time: a stale handle stays stale.
            with open(path, "rb", buffering=0) as file:
                if size is not None:
                    return read_at(file.fileno(), offset, size)
                file.seek(offset)
                return file.read()
        except OSError as error:
            if error.errno not in PASSING or attempt == LOCAL_ATTEMPTS:
                raise
            time.sleep(0.2 * 4**attempt * _JITTER.uniform(0.5, 1.0))
    raise AssertionError("unreachable")


def read_at(descriptor: int, offset: int, size: int) -> bytes:
    """`size` bytes of an open file from `offset` on; fewer at its end."""
    content = os.pread(descriptor, size, offset)
    # One call may return less: after a signal, on a network file system, above 2 GiB.
    while len(content) < size:
        more = os.pread(descriptor, size - len(content), offset + len(content))
        if not more:
            break
        content += more
    return content


def fetch_range(url: str, start: int, end: int | None) -> bytes:
    """One read of a remote file's bytes [start, end), or of what follows `start` where `end` is None.

    Returns fewer bytes where the file or the server ends early, and the whole file where a server cannot send parts:
    more than was asked for is never anything else.
    """
    filesystem, name = _filesystem(url)
    content: bytes = filesystem.cat_file(name, start=start or None, end=end)
    return content


def remote_size(url: str) -> int | None:
    """Bytes of a remote file, asked for anew; None where the file system does not tell."""
    filesystem, name = _filesystem(url)
    filesystem.invalidate_cache()
    size = filesystem.info(name).get("size")
    return None if size is None else int(size)


def _filesystem(url: str) -> tuple[Any, str]:
    options: dict[str, Any] = {}
    protocol = url.partition("://")[0]
    if protocol in ("http", "https") and "client_kwargs" not in fsspec.config.conf.get(protocol, {}):
        import aiohttp

        # The default limits the whole of a request, however well it goes, and lets a dead connection wait for minutes.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
        options["client_kwargs"] = {"timeout": timeout}
    filesystem, name = url_to_fs(url, **options)
    return filesystem, name


def retried(read: Callable[[], T], url: str, retry: Retry | None = None, alive: Callable[[], None] | None = None) -> T:
    """`read()`, repeated as `retry` says while it fails in a way that may pass.

    Args:
        alive: called before each attempt.

    Raises:
        Missing: the file is not there.
        Damaged: the file is shorter than what is asked of it.
        UserError: anything else that does not pass.
    """
    retry, failures = retry or RETRY, 0
    while True:
        try:
            if alive is not None:
                alive()
            return read()
        except Exception as caught:  # noqa: BLE001 - every file system of fsspec has errors of its own
            error = caught
            failures += 1
            lasting = _lasting(url, error)
            if lasting is not None:
                raise lasting from error
            if failures >= retry.attempts:
                raise UserError(
                    f"{url}: cannot be read after {failures} attempts ({describe(error)}); the network or the server is"
                    " at fault, so the run stops here and can be resumed later"
                ) from error
        wait = retry.wait_s(failures)
        if failures >= QUIET_FAILURES:
            reason = f"attempt {failures} of {retry.attempts} failed ({describe(error)})"
            print(f"{url}: {reason}, the next one in {wait:.0f} s", file=sys.stderr, flush=True)
        time.sleep(wait)


def _lasting(url: str, error: Exception) -> Exception | None:
    """What to raise for an error that another attempt would not mend; None for all others."""
    protocol = url.partition("://")[0]
    status = getattr(error, "status", None) or getattr(error, "code", None)
    if isinstance(error, (Missing, Damaged, UserError)):
        return error
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return Missing(f"{url}: is not there")
    if isinstance(error, ImportError):
        package = EXTRA_PACKAGES.get(protocol)
        todo = f"pip install {package}" if package else "install what it names"
        return UserError(f"{url}: {protocol}:// needs another package ({describe(error)}): {todo}")
    if isinstance(error, ValueError) and protocol not in _protocols():
        return UserError(f"{url}: fsspec knows no {protocol}://; it knows {', '.join(sorted(_protocols()))}")
    # By name: the packages of these are optional.
    names = {kind.__name__ for kind in type(error).__mro__}
    refused = {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ProfileNotFound"}
    if isinstance(error, PermissionError) or status in (401, 403) or names & refused:
        return UserError(f"{url}: access is refused ({describe(error)}): check this machine's credentials for it")
    if status == 416 or "InvalidRange" in str(error) or "InvalidRange" in repr(error.__cause__):
        return Damaged(f"{url}: is shorter than its manifest says")
    return None


@lru_cache(maxsize=1)
def _protocols() -> frozenset[str]:
    return frozenset(fsspec.available_protocols())


def describe(error: BaseException) -> str:
    """An error of any library on one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].rstrip(": ")
