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


def decode_errors(messages: Sequence[str]) -> int:
    """How often the decoder of FFmpeg 6.1 and later has told of a packet or frame that it could not decode."""
    errors, counted = 0, False
    for line in messages:
        if repeated := re.match(r"\s*Last message repeated (\d+) times", line):
            errors += int(repeated[1]) * counted
        else:
            counted = "[dec:" in line
            errors += counted
    return errors


def _read(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as reader:
        reader.seek(0)
        return reader.read()
