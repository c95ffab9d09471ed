"""A rank outlives no launcher: when the process that started it ends, the run ends as on SIGTERM.

`deepspeed` on one machine is two processes, the command that the user types and the one that starts the ranks. A signal
to the command ends it alone; a launcher that is killed leaves its ranks running, and holding their devices.
"""

import contextlib
import os
import signal
import sys
import threading
import time

import psutil

STARTERS = ("deepspeed.launcher.launch", "torch.distributed.run", "torchrun")
POLL = 0.5
"""Seconds."""


def watch_launcher() -> None:
    """Sends this process a SIGTERM when its launcher has ended. Without a launcher, as under plain python, nothing."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process().parent()
        if parent is None or not _runs(parent, STARTERS):
            return
        launchers, above = [parent], parent.parent()
        if above is not None and _runs(parent, STARTERS[:1]) and _runs(above, ("deepspeed",)):
            launchers.append(above)
        threading.Thread(target=_outlive, args=(launchers,), name="launcher-watch", daemon=True).start()


def _outlive(launchers: list[psutil.Process]) -> None:
    while all(map(_lives, launchers)):
        time.sleep(POLL)
    if os.environ.get("LOCAL_RANK") == "0":
        with contextlib.suppress(OSError):  # what the launcher wrote to may be gone as well
            print("the launcher has ended: its ranks end too, as on SIGTERM", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _runs(process: psutil.Process, names: tuple[str, ...]) -> bool:
    """Whether a process is one of these commands, or runs one of these modules."""
    return any(os.path.basename(word) in names for word in process.cmdline()[:6])
