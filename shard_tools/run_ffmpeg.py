"""Runs FFmpeg: files that it writes stay in memory, and what it says is kept."""

import os
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ran:
    """A run of FFmpeg.

    Attributes:
        videos: what the files hold (no track where there was no frame).
        status: 0 for a run without any message, -1 for messages but success, 1 for failure.
        messages: lines that it said.
    """

    videos: list[bytes]
    status: int
    messages: list[str]

    @property
    def message(self) -> str:
        """The first one."""
        return self.messages[0]


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
        return Ran([_read(file) for file in files], status, messages or [f"ffmpeg exit {done.returncode}"])
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
