"""Fetches what will be read next, in a thread beside the reader; and knows from the order what that is."""

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.errors import UserError
from data.fetch import RemoteFile

if TYPE_CHECKING:
    from data.shard_cache import ShardCache

AHEAD_SHARE = 0.75
"""The part of a cache that is filled ahead of use, what is in use now included. The rest is for what other tasks, the
evaluation and slower ranks still read."""


class Prefetcher:
    """One thread that fetches into a cache. It is not there before it is needed, and not after a fork: a forked process
    that needs one starts its own."""

    def __init__(self, cache: "ShardCache") -> None:
        self._cache = cache
        self._owner = 0

    def want(self, files: Sequence[RemoteFile], reader: str) -> None:
        """Replaces the list of files that a reader wants, most urgent first; all of it before what others want."""
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self._changed = threading.Condition()
            self._lists: dict[str, list[RemoteFile]] = {}
            self._wanted: list[RemoteFile] | None = None
            threading.Thread(target=self._work, name="prefetch", daemon=True).start()
        with self._changed:
            self._lists.pop(reader, None)
            self._lists = {reader: list(files), **self._lists}
            self._wanted = [file for wanted in self._lists.values() for file in wanted]
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._wanted is not None)
                wanted, self._wanted = self._wanted, None
            assert wanted is not None
            fitting = within(wanted, AHEAD_SHARE * self._cache.max_bytes)
            self._cache.touch(fitting)
            for file in fitting:
                if self._replaced():
                    break
                try:
                    self._cache.fetch_ahead(file)
                except (OSError, UserError):
                    # For the reader of this file, to whom it matters, it is kept in the cache, or met with again.
                    continue

    def _replaced(self) -> bool:
        return self._wanted is not None


def within(files: Sequence[RemoteFile], budget: float) -> list[RemoteFile]:
    """The first files that have at most `budget` bytes together, each once."""
    chosen: dict[str, RemoteFile] = {}
    total = 0
    for file in files:
        if file.key in chosen:
            continue
        total += file.bytes
        if total > budget:
            break
        chosen[file.key] = file
    return list(chosen.values())
