"""Memory of a run's loader over many batches: the main process and its workers, flat after warm-up or not.

    python -m benchmarks.loader_memory [--batches 2000] [--workers 4] [--batch 2]

The clips are those of benchmarks/loader.py. RSS counts what processes share in each of them; PSS counts a page that n
processes share as 1/n of one in each, so that its sum over the processes is what the machine gives. The slope is that
of a straight line through the points after warm-up (least squares). The verdict: the sum of PSS changes along the line
by less than 5 % from the first of these points to the last. Ends with 1 where it does not.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.loader import Positions, machine, mixture, originals, pack
from data.decode import require_ffmpeg
from data.loader import train_loader

EVERY = 100
WARM_UP = 0.25
"""The share of the batches after which memory should be what it will be."""
FLAT = 0.05


def megabytes(pid: int | str) -> np.ndarray:
    """RSS and PSS of a process in MB, 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return np.zeros(2)
    found = {line.split()[0]: float(line.split()[1]) / 1000 for line in lines[1:]}
    return np.array([found["Rss:"], found["Pss:"]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=2000, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="loader processes (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=2, metavar="N", help="clips of a batch (default: %(default)s)")
    arguments = parser.parse_args()
    require_ffmpeg()
    print(machine(len(os.sched_getaffinity(0))))
    every = min(EVERY, max(arguments.batches // 20, 1))
    with tempfile.TemporaryDirectory(prefix="loader-memory-") as scratch:
        shards = pack(originals(Path(scratch), None), Path(scratch))
        positions = Positions(arguments.batches * arguments.batch, arguments.batch)
        numbers, totals = [], []
        with closing(train_loader(mixture(shards), positions, arguments.workers)) as loader:
            began = time.perf_counter()
            batches = iter(loader)
            pids = sorted(child.pid for child in multiprocessing.active_children() if child.pid)
            names = ["main", *(f"worker {number}" for number in range(len(pids)))]
            print("MB, RSS / PSS")
            print(f"{'batches':>8}{'seconds':>9}" + "".join(f"{name:>14}" for name in names) + f"{'all, PSS':>10}")
            for number, _ in enumerate(batches, 1):
                if number % every == 0 or number == arguments.batches:
                    used = [megabytes("self"), *map(megabytes, pids)]
                    numbers.append(number)
                    totals.append(sum(float(pss) for _, pss in used))
                    cells = "".join(f"{f'{rss:.0f} / {pss:.0f}':>14}" for rss, pss in used)
                    spent = time.perf_counter() - began
                    print(f"{number:>8}{spent:>9.0f}{cells}{totals[-1]:>10.0f}", flush=True)
    after = [place for place, number in enumerate(numbers) if number >= WARM_UP * arguments.batches]
    x, y = np.array([numbers[place] for place in after]), np.array([totals[place] for place in after])
    slope = float(np.polyfit(x, y, 1)[0]) if len(after) > 1 else float("nan")
    change = slope * float(x[-1] - x[0]) / float(y[0])
    flat = abs(change) < FLAT
    print(
        f"after warm-up (from batch {x[0]} on): {y[0]:.0f} MB, at the end {y[-1]:.0f} MB, least {y.min():.0f}, most"
        f" {y.max():.0f}; slope {100 * slope:+.2f} MB per 100 batches, {change:+.1%} over the line"
    )
    print(
        f"{'flat' if flat else 'NOT FLAT'}: {arguments.batches} batches of {arguments.batch} clips of 32 x 224 x 224,"
        f" {arguments.workers} workers"
    )
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
