"""Runs FFmpeg: files that it writes stay in memory, and what it says is kept."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shard_tools.failures import Unpackable

WAITS = (1.0, 5.0)
"""Seconds before a clip is tried again whose FFmpeg was killed."""


@dataclass(frozen=True)
class Ran:
    """A run of FFmpeg.

    Attributes:
        videos: what the files hold (no track where there was no frame).
        status: 0 for a run without any message, -1 for messages but success, 1 for failure.
        messages: lines that it said.
        killed: name of the signal that ended it, as in SIGKILL: the kernel's or a scheduler's, where memory runs out.
    """

    videos: list[bytes]
    status: int
    messages: list[str]
    killed: str | None = None

    @property
    def message(self) -> str:
        """The first one."""
        return self.messages[0]


def run_one_into_memory(command: Callable[[list[str]], list[str]]) -> Ran:
    """Runs FFmpeg for one file, as `run_into_memory`, again where it was killed: others may have needed the memory.

    Raises:
        Unpackable: it died of a signal, the last time.
    """
    for wait in (*WAITS, None):
        ran = run_into_memory(command, 1)
        if ran.killed != "SIGKILL" or wait is None:
            break
        time.sleep(wait)
    if ran.killed:
        reason = "out of memory?" if ran.killed == "SIGKILL" else ran.message
        raise Unpackable("crashed", f"ffmpeg was ended by {ran.killed}: {reason}")
    return ran


def run_into_memory(command: Callable[[list[str]], list[str]], count: int) -> Ran:
    """Runs FFmpeg.

    Args:
        command: makes the command line from the paths of `count` files to write.
    """
    # The muxer seeks in its output, so no pipe; a file in memory leaves nothing behind, however the process ends.
    files = [os.memfd_create("clip") for _ in range(count)]
    try:
        done = subprocess.run(
            command([f"/proc/self/fd/{file}" for file in files]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=files,
            check=False,
        )
        messages = done.stderr.decode(errors="replace").splitlines()
        status = 1 if done.returncode else -1 if messages else 0
        killed = signal.Signals(-done.returncode).name if done.returncode < 0 else None
        return Ran([_read(file) for file in files], status, messages or [f"ffmpeg exit {done.returncode}"], killed)
    finally:
        for file in files:
            os.close(file)


def damaged_share(messages: Sequence[str]) -> float | None:
    """Share of frames that could not be decoded, as FFmpeg 6.1 and later say at the level `verbose`; None where they do
    not."""
    found = [re.search(r"(\d+) frames decoded; (\d+) decode errors", line) for line in messages]
    counts = [(int(match[1]), int(match[2])) for match in found if match]
    frames, errors = sum(frames for frames, _ in counts), sum(errors for _, errors in counts)
    return errors / max(frames + errors, 1) if counts else None


def _read(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as reader:
        reader.seek(0)
        return reader.read()
