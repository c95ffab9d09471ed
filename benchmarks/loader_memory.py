"""Memory of a run's loader over many batches: the main process and its workers, after warm-up and at the end.

    python -m benchmarks.loader_memory [--batches 2000] [--workers 4] [--batch 2]

The clips are those of benchmarks/loader.py. Memory is what the processes hold on their own plus their part of what they
share (PSS), of all of them together.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.loader import Positions, machine, mixture, originals, pack
from data.decode import require_ffmpeg
from data.loader import train_loader

WARM_UP = 0.25
"""The share of the batches after which memory should be what it will be."""


def megabytes(pid: int | str) -> float:
    """PSS of a process, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2000, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="loader processes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="clips of a batch (default: %(default)s)")
    arguments = parser.parse_args()
    require_ffmpeg()
    print(machine(len(os.sched_getaffinity(0))))
    with tempfile.TemporaryDirectory(prefix="loader-memory-") as scratch:
        shards = pack(originals(Path(scratch), None), Path(scratch))
        total = arguments.batches * arguments.batch
        loader = train_loader(mixture(shards), Positions(total, arguments.batch), arguments.workers)
        seen: dict[int, tuple[float, float]] = {}
        began = time.perf_counter()
        print(f"{'batches':>9}{'seconds':>9}{'main, MB':>10}{'workers, MB':>13}{'together':>10}")
        for number, _ in enumerate(loader, 1):
            if number % max(arguments.batches // 20, 1) == 0 or number == arguments.batches:
                pids = [child.pid for child in multiprocessing.active_children() if child.pid]
                seen[number] = megabytes("self"), sum(map(megabytes, pids))
                main, workers = seen[number]
                spent = time.perf_counter() - began
                print(f"{number:>9}{spent:>9.0f}{main:>10.0f}{workers:>13.0f}{main + workers:>10.0f}", flush=True)
        loader.close()
    after = [sum(parts) for number, parts in seen.items() if number >= WARM_UP * arguments.batches]
    print(
        f"after warm-up: {after[0]:.0f} MB, at the end {after[-1]:.0f} MB ({after[-1] / after[0] - 1:+.1%});"
        f" least {min(after):.0f}, most {max(after):.0f}; {arguments.workers} workers,"
        f" {total} clips of 32 x 224 x 224"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
