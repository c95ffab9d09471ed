"""Tells a video that is lost from storage that fails: what an outage hides is not lost, and must not be recorded so."""

import errno
import os

from shard_tools.workers import StopRunError

# What may be wrong with one file of a folder that is well. All else (EIO, ESTALE, ENOTCONN, ETIMEDOUT, ...) is not.
_OF_ONE_FILE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM}
_CHUNK = 2**24
_GO_ON = "the storage fails; nothing is recorded as lost by it, and with it back the same command goes on where it was"


def require_storage(path: str, source: str) -> None:
    """Makes sure that a video which could not be packed is at fault itself, and not the storage that it is on.

    Args:
        path: the file.
        source: the same, relative to the folder of videos.

    Raises:
        StopRunError: the folder of videos or that of the file cannot be listed any more, the first one is empty, as one
            is whose disk is no longer mounted, or the file cannot be read for a reason that is not its own.
    """
    folder = path.removesuffix(source)
    if not _holds_anything(folder):
        raise StopRunError(f"{folder.rstrip('/')}: the folder of videos is empty now: {_GO_ON}")
    _holds_anything(os.path.dirname(path))  # or nothing, where this was its only file
    try:
        with open(path, "rb", buffering=0) as file:
            # All of it, as what fails may be a stripe in the middle; of a device no more than the beginning.
            left = max(os.fstat(file.fileno()).st_size, 1)
            while left > 0 and (content := file.read(min(left, _CHUNK))):
                left -= len(content)
    except OSError as error:
        stop_for_storage(path, error)


def stop_for_storage(path: str, error: OSError) -> None:
    """Raises StopRunError where `error`, met when the file `path` was read, is not one of that file alone."""
    if error.errno not in _OF_ONE_FILE:
        raise StopRunError(
            f"{path}: {_reason(error)}: {_GO_ON}. Where this file alone cannot be read, put an empty file in its place,"
            " which counts as lost"
        ) from error


def _holds_anything(folder: str) -> bool:
    """Whether there is anything in a folder. Raises StopRunError where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return any(not entry.name.startswith(".") for entry in entries)
    except OSError as error:
        raise StopRunError(f"{folder.rstrip('/')}: {_reason(error)}: {_GO_ON}") from error


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__
