"""How a command starts and ends on one process or many: ranks, device, errors told once, signals."""

import argparse
import contextlib
import datetime
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist

from data.errors import UserError
from data.loader import worker_death
from data.schedule import NodeShare
from train import lifeline
from train.launcher_watch import watch_launcher

T = TypeVar("T")

PROCESS_GROUP_TIMEOUT = datetime.timedelta(minutes=30)
"""Longer than torch's 10 minutes: a cold file system can take that long to deliver the first batch to one rank."""
VERDICT_WAIT = 10.0
"""Seconds in which a rank that lost its connections hears which other one has died."""


class ToldError(UserError):
    """A mistake that every rank knows of, so that one telling is enough."""


@dataclass(frozen=True)
class Rank:
    """This process's place: `index` of `world`, and the device that it computes on.

    `control` is a CPU process group for the few numbers that ranks agree on, so that no step waits for the device.
    """

    index: int
    world: int
    device: torch.device
    control: Any = None

    @property
    def first(self) -> bool:
        return self.index == 0

    @property
    def node(self) -> NodeShare:
        """The ranks of this machine, as launchers number them: one machine's after the other's. All of them where
        the launcher does not say."""
        local, here = int(os.environ.get("LOCAL_RANK", "0")), _local_world(self.world)
        first = self.index - local
        return NodeShare(first, here, self.world) if 0 <= first <= self.world - here else NodeShare()

    def gather(self, value: T) -> list[T]:
        """Every rank's `value`, in the order of ranks."""
        if self.world == 1:
            return [value]
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, value, group=self.control)
        return gathered

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier(group=self.control)

    def first_alone(self, work: Callable[[], T], alone: bool = True) -> T:
        """Does `work` on rank 0, then on all others; at once on all where not `alone`. Fails as `together` does.

        For what comes over a network into a folder that ranks share: the others find there what rank 0 has fetched.
        """
        done = self.together(lambda: [work()] if self.first or not alone else [])
        return self.together(lambda: done[0] if done else work())

    def together(self, work: Callable[[], T]) -> T:
        """Does `work` on every rank; where it fails on one, all raise ToldError with the reasons, each told once.

        What fails it is a UserError, or a file that cannot be read or written.
        """
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            problem = file_problem(error)
        problems = {index: text for index, text in enumerate(self.gather(problem)) if text is not None}
        if problems:
            texts = sorted(set(problems.values()))
            if len(problems) < self.world:
                texts = [f"rank {index}: {text}" for index, text in problems.items()]
            raise ToldError("\n".join(texts))
        return result  # type: ignore[return-value]


def init_distributed() -> Rank:
    """Joins the process group that deepspeed or torchrun has laid out; alone, without one, when started by python.

    Raises:
        UserError: more processes of this machine than it has GPUs, or GPUs of a SLURM job that PyTorch cannot use.
    """
    world, index = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.is_available():
        if local >= (gpus := torch.cuda.device_count()):
            raise UserError(
                f"process {local + 1} of its machine has no GPU: it sees {gpus} (CUDA_VISIBLE_DEVICES can hide some); "
                f"start no more processes than that: deepspeed --num_gpus {gpus}, torchrun --nproc_per_node {gpus}"
            )
        torch.cuda.set_device(local)
        device, backend = torch.device("cuda", local), "nccl"
    else:
        _check_not_given_gpus()
        device, backend = torch.device("cpu"), "gloo"
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_world(world)))
    if not dist.is_initialized():
        if "RANK" in os.environ:
            dist.init_process_group(backend, timeout=PROCESS_GROUP_TIMEOUT)
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    control = None
    if world > 1:
        control = (
            dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=PROCESS_GROUP_TIMEOUT)
        )
    rank = Rank(index, world, device, control)
    watch_launcher()
    lifeline.tie(index, world, rank.gather)
    return rank


def _check_not_given_gpus() -> None:
    """A job whose GPUs PyTorch cannot use would hold them for days and train on the CPUs beside them."""
    given = os.environ.get("SLURM_GPUS_ON_NODE", "0")
    if given in ("", "0") or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return
    built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
    raise UserError(
        f"SLURM gave this job {given} GPUs of a machine, and PyTorch can use none: it {built}; compare that with the "
        "driver's version in `nvidia-smi`, and install PyTorch for that driver (README.md, From raw data to AVA mAP). "
        "To run on the CPUs of such a job, set CUDA_VISIBLE_DEVICES= (empty), or, as DeepSpeed's launcher sets that "
        "itself, SLURM_GPUS_ON_NODE=0"
    )


def _local_world(world: int) -> int:
    """The number of this machine's ranks; torchrun and deepspeed say it by different names."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world)


class Stopped(Exception):
    """All ranks end, as signal `number` asks one of them to."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignal:
    """Turns signals into a flag, so that a run ends after its step, with a checkpoint; a second SIGINT interrupts at
    once.

    SIGUSR1, SLURM's warning, counts from the first moment on; `take_all` adds SIGTERM, SIGINT and SIGHUP, which end a
    process that has not begun to train or to evaluate, and has nothing to save.
    """

    def __init__(self) -> None:
        self.number = 0
        """The signal that came last, 0 for none."""
        signal.signal(signal.SIGUSR1, self._receive)

    def take_all(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.number:
            raise KeyboardInterrupt
        self.number = number


def parse_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line; a mistake in it is told by the first rank alone."""
    if os.environ.get("RANK", "0") == "0":
        return parser.parse_intermixed_args()
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),
        contextlib.redirect_stdout(nowhere),
    ):
        return parser.parse_intermixed_args()


def file_problem(error: OSError) -> str:
    """What went wrong with which file, on one line."""
    return ": ".join(str(part) for part in (error.filename, error.strerror or type(error).__name__) if part)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    """A thread that writes (TensorBoard's) hands its OSError over to the main thread, which tells it."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def command(main: Callable[[], None]) -> NoReturn:
    """Runs an entry point and ends the process: 0; 1 and a message for a user's mistake; 130 for Ctrl-C."""
    threading.excepthook = _thread_failed
    index = int(os.environ.get("RANK", "0"))
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    code, reason = 1, None  # the reason for the other ranks, where they do not know it
    try:
        main()
        code = 0
    except ToldError as error:
        if index == 0:
            _print_error(str(error))
    except UserError as error:
        reason = str(error)
        _print_error(f"rank {index}: {reason}" if several else reason)
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        if error.filename is None and error.errno != errno.ENOSPC:
            traceback.print_exc()
            reason = repr(error)
        else:
            reason = file_problem(error)
            _print_error(f"rank {index}: {reason}")
    except torch.OutOfMemoryError as error:
        reason = f"out of GPU memory; docs/training.md says what helps. It says: {' '.join(str(error).split())[:300]}"
        _print_error(f"rank {index}: {reason}" if several else reason)
    except RuntimeError as error:
        died = worker_death(error)
        if died is not None:
            reason = str(died)
            _print_error(f"rank {index}: {reason}")
        elif several and _lost_others(error):
            if lifeline.verdict(VERDICT_WAIT) is None:
                reason = "another rank has ended; if that one gives no reason, it was killed (out of memory?)"
                if _closed(error):
                    print(f"rank {index}: ends because {reason}", file=sys.stderr, flush=True)
                else:  # what NCCL cannot do, or a port that is taken, can fail all ranks alike
                    reason = f"{error}\n(where that says nothing: {reason})"
                    _print_error(f"rank {index}: {reason}")
        else:
            traceback.print_exc()
            reason = repr(error)
    except Exception as error:  # noqa: BLE001 - the last resort: a defect of the program, shown in full
        traceback.print_exc()
        reason = repr(error)
    if reason is None:
        lifeline.let_go()
    else:
        lifeline.fail(reason)
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized() and code == 0:
        dist.destroy_process_group()
    # Python's end would bring back what SIGUSR1 does by default, and slurm/node.sh repeats it.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    # After a failure, leave at once: destructors of a broken process group and of loader workers can wait forever.
    if code:
        os._exit(code)
    sys.exit(code)


def _print_error(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)


def _lost_others(error: RuntimeError) -> bool:
    """Whether an error is what a collective raises when another rank is gone."""
    return isinstance(error, dist.DistError) or _closed(error)


def _closed(error: RuntimeError) -> bool:
    return any(sign in str(error) for sign in ("Connection closed by peer", "Connection reset by peer"))
