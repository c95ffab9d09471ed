"""Runs a function on several real gloo ranks, each a fresh process: a fork of one that has imported, and no more."""

import contextlib
import multiprocessing as mp
import os
import pickle
import random
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch

PORTS = 1000
"""For each process that runs tests."""


def free_port() -> int:
    """A port that nothing listens on, and that nobody else takes before the caller does: from a range of this process
    of pytest-xdist's, below those that the system gives away itself."""
    first = 12_000 + PORTS * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = first + random.SystemRandom().randrange(PORTS)
        with socket.socket() as s, contextlib.suppress(OSError):
            s.bind(("127.0.0.1", port))
            return port


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout: float = 240) -> list[Any]:
    """`function(*args)` on `world` ranks under the variables that torchrun sets; what each rank returned, by rank.

    The function must be importable (a module's own), its result picklable. An exception on any rank fails the test
    with that rank's traceback.
    """
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["train.main", "deepspeed"])
    queue = context.Queue()
    port = free_port()
    processes = [
        context.Process(target=_rank, args=(function, rank, world, port, dict(os.environ), queue, args), daemon=False)
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        results = {}
        for _ in processes:
            rank, good, value = queue.get(timeout=timeout)
            if not good:
                raise AssertionError(f"rank {rank} failed:\n{value}")
            results[rank] = pickle.loads(value)  # noqa: S301 - from the process started above
        for process in processes:
            process.join(timeout)
        return [results[rank] for rank in range(world)]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def _rank(
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    environment: dict[str, str],
    queue: Any,
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()  # that of the first test's
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        # As bytes: a tensor's storage would be handed over by a process that has already ended.
        queue.put((rank, True, pickle.dumps(function(*args))))
    except BaseException:  # noqa: BLE001 - handed to the parent, which raises it
        queue.put((rank, False, traceback.format_exc()))
