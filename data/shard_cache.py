"""A bounded folder of verified remote files, shared by all processes of a machine: of one run and of several.

    FOLDER/{key}                a whole file that was verified; its modification time is that of its last use
    FOLDER/{key}-{bytes}.part   one on its way. Whoever fetches it holds its flock, which ends with the process
    FOLDER/{key}.failed         why there is no such file at a URL, for those who waited for it
    FOLDER/lock                 held while room is made

A file's key is its sha256, so the same content from two places is one entry and a new version is another. Reading one
that is there takes no lock: open, pread, close. Evicting is unlinking: a reader that has the file open reads on. What a
killed process leaves is a part without a lock: the next one who wants it verifies and completes it, and it is evicted
like any other. The folder belongs to one user: its content is trusted once it was verified.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data import cache_room
from data.cache_room import ADMITTED, NEW, VERIFIED, CacheRoom, is_at, mark_used, remove, try_lock
from data.errors import UserError
from data.fetch import RemoteFile, download
from data.prefetch import Prefetcher
from data.storage import RETRY, Damaged, Missing, Retry, count, read_at

GB = 10**9
DEFAULT_GB = 100.0
FOLDER_VARIABLE = "COFINETUNING_CACHE"
TOUCH_S = 30.0
"""A process renews a file's time of last use no more often."""
POLL_S = 0.1
DISK_FULL_ATTEMPTS = 4

_FULL = (errno.ENOSPC, errno.EDQUOT)


def default_folder() -> str:
    """$COFINETUNING_CACHE, or else a folder of this user in $TMPDIR (/tmp)."""
    return os.environ.get(FOLDER_VARIABLE) or f"{tempfile.gettempdir()}/video-cofinetuning-{os.getuid()}"


class ShardCache:
    """Files fetched whole, once per machine.

    Args:
        folder: on a disk of this machine; made when missing. None: `default_folder()`.
        max_bytes: the cache's size, files that are on their way included. Processes that share a folder should agree.
        retry: how failed reads are repeated.

    Raises:
        UserError: the folder cannot be made or written.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, max_bytes: float = DEFAULT_GB * GB, retry: Retry = RETRY
    ) -> None:
        own = folder is None and not os.environ.get(FOLDER_VARIABLE)
        self.folder = os.path.abspath(folder if folder is not None else default_folder())
        self.max_bytes, self.retry = int(max_bytes), retry
        self._room = CacheRoom(self.folder, self.max_bytes)
        self.began = time.time()
        self._touched: dict[str, float] = {}
        self._prefetcher = Prefetcher(self)
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            found = os.lstat(self.folder)
            with self._room.lock():
                pass
        except OSError as error:
            raise self._problem(error) from error
        # Everyone can write to /tmp, and could have made this folder before us.
        if own and (found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode)):
            raise UserError(
                f"cache folder {self.folder} was made by another user: choose another (cache.folder=FOLDER)"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardCache, (self.folder, self.max_bytes, self.retry)

    def read(self, file: RemoteFile, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset` on, which is fetched first where it is not there.

        Raises:
            OSError: the file is not there, its content is wrong, or it ends too early.
            UserError: the server cannot be reached, or the cache is too small or cannot be written.
        """
        for again in (True, False):
            with self.opened(file) as descriptor:
                content = read_at(descriptor, offset, size)
            if len(content) == size:
                count(read_bytes=size)
                return content
            if offset + size <= file.bytes and again:
                # Cut short after it was verified.
                remove(self._path(file))
        raise OSError(f"{file.url}: {len(content)} bytes at offset {offset}, expected {size}: it is cut short")

    def read_if_there(self, file: RemoteFile, offset: int, size: int) -> bytes | None:
        """As `read`, but None where the file would have to be fetched."""
        descriptor = self._open_hit(file)
        if descriptor is None:
            return None
        try:
            content = read_at(descriptor, offset, size)
        finally:
            os.close(descriptor)
        if len(content) < size:
            return None
        count(read_bytes=size, hits=1)
        return content

    @contextlib.contextmanager
    def opened(self, file: RemoteFile) -> Iterator[int]:
        """A descriptor of the whole verified file, fetched first where it is not there. Raises as `read` does."""
        descriptor = self._open_hit(file)
        if descriptor is None:
            began = time.monotonic()
            descriptor = self._fetch(file, wait=True)
            assert descriptor is not None
            count(misses=1, waited_s=time.monotonic() - began)
        else:
            count(hits=1)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def prefetch(self, files: Sequence[RemoteFile], reader: str) -> None:
        """Fetches files in the background, in the order given.

        Replaces what an earlier call of this `reader` has left undone; what other readers of this process want comes
        after it.

        As many as fit into the cache with room to spare; those that are there already are kept longest. What is not
        there, or wrong, is told to the one who reads the file, who tries anew after any other failure. Works in any
        process; the thread starts with the first call.
        """
        self._prefetcher.want(files, reader)

    def fetch_ahead(self, file: RemoteFile) -> bool:
        """Fetches a file unless it is there, someone else is at it, or there is no room. Returns whether it did."""
        if os.path.exists(self._path(file)):
            return False
        descriptor = self._fetch(file, wait=False)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def touch(self, files: Sequence[RemoteFile]) -> None:
        """Marks files as used now, the first ones last, so that they outlive the others."""
        for file in reversed(files):
            with contextlib.suppress(OSError):
                mark_used(self._path(file))

    def _path(self, file: RemoteFile) -> str:
        return f"{self.folder}/{file.key}"

    def _open_hit(self, file: RemoteFile) -> int | None:
        try:
            descriptor = os.open(self._path(file), os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._problem(error) from error
        now = time.monotonic()
        if now - self._touched.get(file.key, -TOUCH_S) >= TOUCH_S:
            self._touched[file.key] = now
            with contextlib.suppress(OSError):
                mark_used(descriptor)
        return descriptor

    def _fetch(self, file: RemoteFile, wait: bool) -> int | None:
        """A descriptor of the file once it is whole. None, unless `wait`, where others fetch it or there is no room."""
        if file.bytes > self.max_bytes:
            raise UserError(
                f"{file.url} has {file.bytes / GB:.3g} GB, the cache {self.max_bytes / GB:.3g}: give it room for many"
                " such files (cache.max_gb=...)"
            )
        path, part = self._path(file), f"{self._path(file)}-{file.bytes}.part"
        self._raise_failure(file)
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)  # someone may have tidied up
            while True:
                descriptor, keep = os.open(part, os.O_RDWR | os.O_CREAT, NEW), False
                try:
                    if not self._lock_part(descriptor, part, wait):
                        if not wait:
                            return None
                        continue
                    # From here on nobody else fetches it, unless this process seems dead.
                    if _mode(descriptor) == VERIFIED:
                        self._publish(descriptor, path, part)
                        keep = True
                    elif not is_at(descriptor, part):
                        continue
                    elif os.path.exists(path):
                        remove(part)
                        there = self._open_hit(file)
                        if there is not None:
                            return there
                        continue
                    else:
                        self._raise_failure(file)
                        if not self._admit(file, descriptor, part, wait):
                            remove(part)
                            return None
                        self._download(file, descriptor, part, wait)
                        self._publish(descriptor, path, part)
                        keep = True
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                    return descriptor
                finally:
                    if not keep:
                        os.close(descriptor)
        except (Missing, Damaged):
            raise
        except OSError as error:
            raise self._problem(error) from error

    def _lock_part(self, descriptor: int, part: str, wait: bool) -> bool:
        """Takes a part's lock. Without it after all: False, and where that took too long, the part is no more."""
        seen, since = None, time.monotonic()
        while not try_lock(descriptor):
            if not wait:
                return False
            state = os.fstat(descriptor)
            if (alive := (state.st_size, state.st_mtime_ns)) != seen:
                seen, since = alive, time.monotonic()
            elif time.monotonic() - since > cache_room.STALLED_S:
                remove(part)
                return False
            time.sleep(POLL_S)
        return True

    def _download(self, file: RemoteFile, descriptor: int, part: str, wait: bool) -> None:
        """Completes and verifies a part whose lock is held."""
        for attempt in range(1, DISK_FULL_ATTEMPTS + 1):
            try:
                download(file, descriptor, self.retry, lambda: mark_used(descriptor))
                # Before it counts as verified: after a power cut a file may be as long as it was and hold zeros.
                os.fdatasync(descriptor)
                os.fchmod(descriptor, VERIFIED)
                mark_used(descriptor)
                return
            except (Missing, Damaged, UserError) as error:
                if isinstance(error, (Missing, Damaged)):
                    self._note_failure(file, error)
                remove(part)
                raise
            except OSError as error:
                # Others may have filled the disk since there was room.
                full = error.errno in _FULL and attempt < DISK_FULL_ATTEMPTS
                if not (full and self._admit(file, descriptor, part, wait)):
                    raise

    def _publish(self, descriptor: int, path: str, part: str) -> None:
        """Gives a verified file its name: the one behind the descriptor, whatever the part's name stands for by now."""
        with contextlib.suppress(FileExistsError, FileNotFoundError), _directory(self.folder) as folder:
            # Python follows the link to the open file only where it is given a folder too.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=folder, follow_symlinks=True)
        if is_at(descriptor, part):
            remove(part)

    def _admit(self, file: RemoteFile, descriptor: int, part: str, wait: bool) -> bool:
        """Makes room for a part whose lock is held. False, unless `wait`, while there is none to be made."""
        while True:
            mark_used(descriptor)
            with self._room.lock():
                lacking, busy = self._room.make(file.bytes, os.fstat(descriptor).st_size, part)
                if not lacking:
                    os.fchmod(descriptor, ADMITTED)
                    return True
                # What others left in their parts, too, when they were killed in a larger cache: were it kept, all who
                # wait here would wait for one another.
                os.ftruncate(descriptor, 0)
                os.fchmod(descriptor, NEW)
            if lacking == "disk" and not busy:
                raise UserError(
                    f"cache folder {self.folder}: its disk is full, and nothing of the cache is left to delete for"
                    f" {file.url} ({file.bytes / GB:.2f} GB): free some, or choose another folder (cache.folder=FOLDER)"
                )
            if not wait:
                return False
            time.sleep(POLL_S)

    def _note_failure(self, file: RemoteFile, error: Missing | Damaged) -> None:
        told = {"url": file.url, "kind": type(error).__name__, "reason": str(error)}
        temporary = f"{self._path(file)}.failed.{os.getpid()}"
        with contextlib.suppress(OSError):
            Path(temporary).write_text(json.dumps(told))
            os.replace(temporary, f"{self._path(file)}.failed")

    def _raise_failure(self, file: RemoteFile) -> None:
        """Raises what another process has met with lately at this URL, so that a thousand samples do not each ask for
        one shard. The same content may lie elsewhere too, and who has no access, or met with an outage while it read
        ahead, says nothing about what others will find."""
        path = f"{self._path(file)}.failed"
        try:
            noted = os.stat(path).st_mtime
            if noted < self.began or time.time() - noted > cache_room.FAILED_S:
                return
            failure = json.loads(Path(path).read_text())
            url, kind, reason = failure["url"], failure["kind"], failure["reason"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if url == file.url:
            raise {"Missing": Missing, "Damaged": Damaged}[kind](reason)

    def _problem(self, error: OSError) -> UserError:
        return UserError(
            f"cache folder {self.folder} cannot be used ({error.strerror or error}): choose a folder on a disk of this"
            f" machine that you can write (cache.folder=FOLDER, or ${FOLDER_VARIABLE})"
        )


def _mode(descriptor: int) -> int:
    return os.fstat(descriptor).st_mode & 0o777


@contextlib.contextmanager
def _directory(path: str) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
