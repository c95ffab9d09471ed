"""The bar of a process that forks workers."""

import threading
from typing import Any

from tqdm import tqdm


def progress_bar(*arguments: Any, **options: Any) -> "tqdm[Any]":
    """tqdm's bar, without what a fork must not take along: a thread, and a lock that all forks share, with which one of
    them that is killed while it draws would stop every other process at its next bar."""
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    return tqdm(*arguments, **options)
