"""Downloads one remote file into an open local one: resumed, verified while it comes, retried."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from data.storage import Damaged, Retry, count, fetch_range, remote_size, retried

CHUNK = 16 * 2**20
"""Bytes of one request: enough that its latency hardly counts, little enough to lose when it breaks off."""
LEAST_CHUNK = 256 * 2**10
"""So far a request is halved each time that it breaks off: what never lasts for a large one gets on with these."""


@dataclass(frozen=True)
class RemoteFile:
    """A remote file and what it must hold: `bytes` bytes with this hex `sha256`.

    Where no checksum is known `sha256` is None, and `key` (64 hex digits) stands for the content in its place.
    """

    url: str
    bytes: int
    key: str
    sha256: str | None

    def __post_init__(self) -> None:
        # It becomes a file name.
        assert len(self.key) == 64 and set(self.key) <= set("0123456789abcdef")


def download(file: RemoteFile, descriptor: int, retry: Retry, alive: Callable[[], None]) -> None:
    """Completes an open file that holds the beginning of `file`, or nothing yet, and verifies the whole.

    Content that turns out wrong is fetched again once: it may be what a crash left behind, or a proxy's mistake.

    Args:
        alive: called at least once a request, to show others that work goes on.

    Raises:
        Missing, Damaged, UserError: as `retried` does; Damaged also for a checksum that is wrong twice.
        OSError: the local file cannot be written.
    """
    for last in (False, True):
        digest = _complete(file, descriptor, retry, alive)
        if file.sha256 is None or digest == file.sha256:
            return
        if not last:
            os.ftruncate(descriptor, 0)
    raise Damaged(f"{file.url}: its sha256 is {digest}, the manifest says {file.sha256}: upload it again")


def _complete(file: RemoteFile, descriptor: int, retry: Retry, alive: Callable[[], None]) -> str:
    digest = hashlib.sha256()
    done = 0
    while kept := os.pread(descriptor, CHUNK, done):
        digest.update(kept)
        done += len(kept)
    chunk = CHUNK

    def read() -> bytes:
        nonlocal chunk
        try:
            return request(done, min(done + chunk, file.bytes))
        except Exception:
            chunk = min(chunk, max(LEAST_CHUNK, chunk // 2))
            raise

    def request(start: int, end: int) -> bytes:
        content = fetch_range(file.url, start, end)
        if not content:
            # Past the end some file systems give nothing, where others say that there is nothing.
            size = remote_size(file.url)
            if size is not None and size < file.bytes:
                raise Damaged(f"{file.url}: has {size} bytes, the manifest says {file.bytes}: upload it again")
            raise EOFError(f"nothing came of bytes {start} to {end}")
        if len(content) <= end - start:
            return content
        if len(content) != file.bytes:
            raise Damaged(f"{file.url}: has {len(content)} bytes, the manifest says {file.bytes}: upload it again")
        return content[start:]  # from a server that cannot send parts

    while done < file.bytes:
        content = retried(read, file.url, retry, alive)
        _write(descriptor, content, done)
        digest.update(content)
        done += len(content)
        count(fetched_bytes=len(content))
    return digest.hexdigest()


def _write(descriptor: int, content: bytes, offset: int) -> None:
    rest = memoryview(content)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        offset, rest = offset + written, rest[written:]
