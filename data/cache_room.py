"""The room of a cache folder: what lies in it, what that counts, and what goes when something else has to come in."""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

STALLED_S = 300.0
"""A fetch that shows no sign of life for so long (its process is suspended, say) is begun anew by who waits for it."""
FAILED_S = 600.0
"""For so long nobody tries again what has failed since the process began."""
LOCK_S = 30.0

# The state of an entry is its mode, which goes with the file itself and not with its name.
NEW, ADMITTED, VERIFIED = 0o600, 0o640, 0o644
"""No room made for it yet; counted with its full size; whole and right."""

_ENTRY = re.compile(r"([0-9a-f]{64})(?:-(\d+)\.part|(\.failed))?")


@dataclass(frozen=True)
class Entry:
    """A file of the cache as seen in a scan; `counted` is what it counts against the budget, in bytes."""

    path: str
    used_ns: int
    counted: int
    disk: int
    part: bool


class CacheRoom:
    """The entries of a cache folder, and its budget of `max_bytes`."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        descriptor = os.open(f"{self.folder}/lock", os.O_RDWR | os.O_CREAT, NEW)
        try:
            # A process that was suspended just now must not stop all others: without the lock, no more than the
            # budget is at risk.
            until = time.monotonic() + LOCK_S
            while not try_lock(descriptor) and time.monotonic() < until:
                time.sleep(0.01)
            yield
        finally:
            os.close(descriptor)

    def make(self, size: int, written: int, part: str) -> tuple[str, bool]:
        """Evicts, under the lock, what was used longest ago until `size` bytes fit; `written` of them are in `part`.

        Returns:
            What is lacking all the same ("", "budget" or "disk"), and whether others are fetching.
        """
        entries = [entry for entry in self._scan() if entry.path != part]
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize - sum(e.counted - e.disk for e in entries if e.part and e.counted)
        used, busy = sum(entry.counted for entry in entries), False
        for entry in sorted(entries, key=lambda entry: entry.used_ns):
            if used + size <= self.max_bytes and size - written <= free:
                break
            if self._evict(entry):
                used, free = used - entry.counted, free + entry.counted
            else:
                busy = busy or entry.counted > 0
        if size - written > free:
            return "disk", busy
        return ("budget" if used + size > self.max_bytes else ""), busy

    def _scan(self) -> list[Entry]:
        found = []
        with os.scandir(self.folder) as listing:
            for item in listing:
                match = _ENTRY.fullmatch(item.name)
                if match is None:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    state = item.stat()
                    if match[3]:
                        if time.time() - state.st_mtime > FAILED_S:
                            remove(item.path)
                        continue
                    size, mode = state.st_size, state.st_mode & 0o777
                    if match[2] and mode == VERIFIED and state.st_nlink > 1:
                        remove(item.path)  # its process ended just before it would have done so
                        continue
                    if match[2] and mode == ADMITTED:
                        size = int(match[2])
                    found.append(Entry(item.path, state.st_mtime_ns, size, state.st_size, match[2] is not None))
        return found

    def _evict(self, entry: Entry) -> bool:
        """Deletes an entry; a part only where nobody is at it. Returns whether its room is free."""
        if not entry.part:
            remove(entry.path)
            return True
        try:
            descriptor = os.open(entry.path, os.O_RDWR)
        except FileNotFoundError:
            return True
        try:
            if not try_lock(descriptor) and time.time() - entry.used_ns / 1e9 < STALLED_S:
                return False
            if is_at(descriptor, entry.path):
                remove(entry.path)
            return True
        finally:
            os.close(descriptor)


def mark_used(file: int | str) -> None:
    # In nanoseconds: the kernel's own time stamps are some milliseconds coarse, and the order counts.
    os.utime(file, ns=(time.time_ns(), time.time_ns()))


def try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: str) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
