"""Batches ahead of use, in worker processes: torch's DataLoader, and what it needs to end a run cleanly."""

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data._utils import signal_handling

from data.batch import PADDING, Batch, Example, clip_bytes, collate
from data.counters import count, take, timed
from data.dataset import EvalDataset, MixtureDataset, TaskData
from data.decode import require_ffmpeg
from data.errors import UserError
from data.shared_buffers import SharedBuffers
from data.storage import take_counts

PREFETCH = 4
"""Batches that each worker keeps ready: tasks alternate, and a batch of one costs several times that of another."""

SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1}
"""What launchers and schedulers send to every process of a job. The run decides when it ends, and it still needs its
workers for the step that it is in."""


def train_loader(dataset: MixtureDataset, micro_batches: Iterable[list[tuple[int, int]]], workers: int) -> "Loader":
    """Loads micro-batches of a mixture, in the order given.

    Args:
        micro_batches: for each micro-batch the addresses of its examples: (task index, position), one task in each.
            Iterated once for each pass over the loader, ahead of what has been consumed.
        workers: processes that decode; 0 decodes in this one.
    """
    return Loader(dataset, micro_batches, workers)


def eval_loader(task: TaskData, rank: int, world: int, batch_size: int, workers: int) -> "Loader":
    """Loads one rank's share of a task's examples, evaluation views.

    Each example comes exactly once over all ranks, and every rank gets the same number of batches of the same size,
    filled up with PADDING.
    """
    batches = eval_batches(len(task.shards), rank, world, batch_size, task.view.views)
    return Loader(EvalDataset(task), batches, workers)


def eval_batches(examples: int, rank: int, world: int, batch_size: int, views: int = 1) -> list[list[int]]:
    """Numbers of one rank's views, `example * views + view`, in batches: a run of neighbours, so that reads stay local,
    and all views of an example on one rank."""
    share = -(-examples // world) * views
    own = list(range(min(rank * share, examples * views), min((rank + 1) * share, examples * views)))
    own += [PADDING] * (-(-share // batch_size) * batch_size - len(own))
    return [own[start : start + batch_size] for start in range(0, len(own), batch_size)]


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""

ORPHAN_S = 0.2
"""How often a worker looks whether the process that it belongs to is still there, in seconds."""
END_S = 5.0
"""A killed worker ends at once, unless a file system that does not answer holds it in the kernel; then nobody waits."""

TRIM_CLIPS = 8
"""Clips of a worker after which it gives unused memory back: clips of all sizes leave holes between what stays, so
that what is kept would grow for hours."""


class Loader:
    """Iterates over the batches of a dataset; its workers stay for further passes until `close` or the end.

    Workers are forked. They hold no decoder over a fork, since every clip has its own, and never touch an
    accelerator. They leave signals to the process that they belong to and end with it.

    Raises, while iterating:
        UserError: no usable sample, no room in shared memory, or a worker that died.
    """

    def __init__(self, dataset: Dataset[Example], batches: Iterable[list], workers: int) -> None:
        require_ffmpeg()
        self._batches = batches
        self._buffers = SharedBuffers(workers)
        # For the sockets over which workers hand memory over: from a folder of its own, a killed one takes none along.
        sockets = tempfile.mkdtemp(prefix="loader-") if workers else None
        self._remove = weakref.finalize(self, shutil.rmtree, sockets, ignore_errors=True) if sockets else None
        self._loader: DataLoader | None = DataLoader(
            _Reporting(dataset),
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=_Collate(self._buffers),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=partial(_start_worker, os.getpid(), sockets) if sockets else None,
            # Without one of its own, the loader draws from the global generator, and dropout would then depend on how
            # often a run was interrupted.
            generator=torch.Generator(),
            multiprocessing_context="fork" if workers else None,
            persistent_workers=workers > 0,
            prefetch_factor=PREFETCH if workers else None,
        )

    def __len__(self) -> int:
        """Batches of one pass; TypeError where the batches given have no length."""
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        assert self._loader is not None, "the loader is closed"
        # Workers are born with the signals blocked, so that there is no moment in which one would end them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            batches = iter(self._loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return self._checked(batches)

    def _checked(self, batches: Iterator[Batch | UserError]) -> Iterator[Batch]:
        try:
            for batch in batches:
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except RuntimeError as error:
            reason = worker_death(error)
            if reason is None:
                raise
            raise reason from error
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            raise _died(f"it broke off while it sent a batch ({type(error).__name__})") from error

    def close(self) -> None:
        """Ends the workers at once, whatever they are at, and waits until they are gone. May be called again."""
        if self._loader is not None and self._loader.num_workers:
            # Set by the first pass, since workers are persistent.
            iterator = self._loader._iterator
            if iterator is not None:
                _end_workers(iterator)
        if self._remove is not None:
            self._remove()
        self._loader = None
        self._buffers.close()


def worker_death(error: RuntimeError) -> UserError | None:
    """The reason to show for torch's error about a dead worker, None where the error is another one.

    torch raises it from a signal handler, so it may come up in any line of the main process, not only in the loader.
    """
    return _died(" ".join(str(error).split())) if str(error).startswith("DataLoader worker") else None


def _died(reason: str) -> UserError:
    return UserError(
        f"a process that loads data has died: {reason.rstrip('.')}. If the machine ran out of memory, lower `workers`;"
        " if a video crashes the decoder, find it with shard_tools/verify.py --decode"
    )


class _Reporting(Dataset[Example | UserError]):
    """Hands a UserError over as a result: one raised in a worker would reach the user as a traceback in a message."""

    def __init__(self, dataset: Dataset[Example]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> Example | UserError:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[Any]) -> Sequence[Example | UserError]:
        """All of a batch at once, as torch's DataLoader asks for where it can: its examples may share work."""
        with timed("load_s"):
            try:
                return self.dataset.__getitems__(indices)  # type: ignore[attr-defined]
            except UserError as error:
                return [error]


class _Collate:
    """Puts a batch together: in shared memory where a worker does it, to be sent."""

    def __init__(self, buffers: SharedBuffers) -> None:
        self.buffers = buffers

    def __call__(self, examples: Sequence[Example | UserError]) -> Batch | UserError:
        usable = []
        for example in examples:
            if isinstance(example, UserError):
                return example
            usable.append(example)
        worker = get_worker_info()
        with timed("send_s"):
            if worker is None:
                batch = collate(usable)
            else:
                try:
                    # Otherwise a thread of the worker does this while it sends, and where it fails there the run waits
                    # for ever.
                    storage, slot = self.buffers.take(clip_bytes(usable), worker.id)
                    batch = collate(usable, storage).share_memory_()
                    batch.slot = slot
                except RuntimeError as error:
                    return UserError(
                        f"no room in shared memory for a batch ({error}): lower `workers`, or give the container more"
                        " (docker run --shm-size)"
                    )
        count(
            clips=sum(example.example != PADDING for example in usable),
            padded_clips=sum(example.padded > 0 for example in usable),
            substitutes=len(batch.substitutes),
        )
        batch.counts = {**take(), **vars(take_counts())}
        if worker is not None:
            _trim(len(usable))
        return batch


def _keep_freed_memory() -> None:
    """Has glibc keep what clips free. It would hand it back to the system and get it anew, page by page, for the next
    clip."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**25)  # the most that it takes
        libc.mallopt(M_TRIM_THRESHOLD, 2**29)


_since_trim = 0


def _trim(clips: int) -> None:
    """Gives all unused memory of the heap back, holes included, every TRIM_CLIPS clips: one clip in so many pays for
    memory that comes anew."""
    global _since_trim
    _since_trim += clips
    if _since_trim >= TRIM_CLIPS:
        _since_trim = 0
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def _start_worker(parent: int, sockets: str, _: int) -> None:
    _keep_freed_memory()
    take()  # what the process that it was forked from had counted; storage forgets its own
    multiprocessing.current_process()._config["tempdir"] = sockets  # type: ignore[attr-defined]
    sys.excepthook = partial(_tell_unless_orphaned, parent)
    threading.Thread(target=_end_when_told, args=(parent, sockets), daemon=True).start()


def _tell_unless_orphaned(
    parent: int, kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A process that is killed breaks off what its workers send it; that it died is for others to tell."""
    if isinstance(error, ConnectionError | EOFError):
        time.sleep(2 * ORPHAN_S)  # its connections are closed before it is gone; this worker may end meanwhile
        if os.getppid() != parent:
            return
    sys.__excepthook__(kind, error, trace)


def _end_when_told(parent: int, sockets: str) -> None:
    """Waits for a SIGTERM from the process that this worker belongs to, or for its end; swallows signals of others."""
    told = None
    while os.getppid() == parent and (told is None or told.si_pid != parent):
        told = signal.sigtimedwait({signal.SIGTERM}, ORPHAN_S)
    _forget_shared_memory(os.getpid())
    if os.getppid() != parent:
        _remove_folder(sockets)
    os._exit(0)


def _remove_folder(folder: str) -> None:
    """Removes a folder into which this worker's other thread may just put a socket: then once more."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return


def _forget_shared_memory(pid: int) -> None:
    """Removes what a process has left in /dev/shm: memory has a name from its creation until it is filled."""
    for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
        with contextlib.suppress(OSError):
            path.unlink()


def _end_workers(iterator: Any) -> None:
    """Ends the workers of torch's own iterator over batches.

    Its own way lets each worker finish what it is at, a download perhaps, and joins one after the other with a time-out
    of five seconds. It also sets an event whose lock a worker that was killed may have taken along. A worker has
    nothing to finish: nobody waits for its batch, and a cache survives kills.
    """
    if iterator._shutdown:
        return
    iterator._shutdown = True  # so that the iterator's end is not attempted once more
    if iterator._worker_pids_set:
        iterator._worker_pids_set = False
        signal_handling._remove_worker_pids(id(iterator))  # from here on a dead worker is no error
    pinning = getattr(iterator, "_pin_memory_thread", None)
    if pinning is not None:
        # Before the workers: one that ends while it sends would leave the thread with half a message.
        iterator._pin_memory_thread_done_event.set()
        iterator._worker_result_queue.put((None, None))
        pinning.join(timeout=0.2)
    for worker in iterator._workers:
        worker.kill()
    for worker in iterator._workers:
        worker.join(timeout=END_S)
        _forget_shared_memory(worker.pid)
    for queue in (*iterator._index_queues, iterator._worker_result_queue):
        queue.cancel_join_thread()
        queue.close()
