"""What a large shard set costs to open: seconds, and memory a process and a node, with forked loader workers; and what
it takes to begin at a far step instead of the first.

    python -m benchmarks.index_scale

Ends with 1 where opening takes 5 s, the node 1 GB, or the far step over 1.5 times the first one, or more.
"""

import argparse
import hashlib
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from data.mixture import StepPlan
from data.order import EpochOrder
from data.recipe import DataRecipe, TaskSource
from data.shards import INDEX_DTYPE, ClassInfo, Manifest, ShardInfo, ShardSet

SHARD_BYTES = 431_000_000


FAR = 1_000_000
BATCH = 512
ROUNDS = 9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=4, help="forked processes (default: %(default)s)")
    parser.add_argument(
        "--reads", type=int, default=200_000, help="positions each worker looks up (default: %(default)s)"
    )
    parser.add_argument("--folder", help="where to write the set (default: a temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        prefix = write(Path(folder), arguments.shards, arguments.examples)
        reached = [measure(prefix, arguments.workers, arguments.reads), seek(prefix)]
    return 0 if all(reached) else 1


def write(folder: Path, shards: int, examples: int) -> str:
    """A manifest and an index as the packers write them, without the tars."""
    counts = np.full(shards, examples // shards)
    counts[: examples % shards] += 1
    infos = [
        ShardInfo(
            f"big-train-{n:06d}.tar", int(count), int(count), SHARD_BYTES, hashlib.sha256(str(n).encode()).hexdigest()
        )
        for n, count in enumerate(counts)
    ]
    manifest = Manifest("big", "train", "classification", [ClassInfo(i, f"class {i}") for i in range(700)], infos)
    (folder / "big-train.manifest.json").write_text(manifest.to_json())
    index = np.lib.format.open_memmap(folder / "big-train.index.npy", "w+", INDEX_DTYPE, (examples,))
    index["shard"] = np.repeat(np.arange(shards), counts)
    within = np.arange(examples) - np.repeat(np.cumsum(counts) - counts, counts)
    index["json_offset"], index["json_bytes"] = 512 + within * 430_000, 700
    index["video_offset"], index["video_bytes"] = 2048 + within * 430_000, 428_000
    index.flush()
    return str(folder / "big-train")


def seek(prefix: str) -> bool:
    """From the recipe to the rows of a step's whole batch, as a process does that starts there: nothing is kept from
    one time to the next. The kinds of steps alternate."""
    shards = ShardSet(prefix)
    _ = shards.index["shard"].max()  # in memory for all
    tasks = {"big": TaskSource(kind="classification", shards=prefix, batch=BATCH, micro_batch=8)}

    def first_batch(step: int, schedule: str) -> float:
        began = time.perf_counter()
        plan = StepPlan(DataRecipe(steps=FAR + 1000, tasks=tasks, schedule=schedule), 8)
        order = EpochOrder(shards.shard_examples, 0, "big", 16, BATCH)
        rows = 0
        for rank in range(8):
            positions = [position for part in plan.micro_steps(step, rank) for position in part.positions]
            rows += len(shards.index[order.examples(np.array(positions))])
        assert rows == BATCH
        return time.perf_counter() - began

    print(f"\nplan, order and the rows of a batch of {BATCH}, median of {ROUNDS}:")
    reached = True
    for schedule in ("accumulate", "weighted"):
        times = [(first_batch(0, schedule), first_batch(FAR, schedule)) for _ in range(ROUNDS)]
        near, far = (float(np.median(part)) for part in zip(*times, strict=True))
        reached = reached and far < 1.5 * near
        print(
            f"  {schedule:<12} step 0 {1e3 * near:6.1f} ms   step {FAR:,} {1e3 * far:6.1f} ms   ratio {far / near:.2f}"
        )
    return reached


def measure(prefix: str, workers: int, reads: int) -> bool:
    before = memory()
    began = time.perf_counter()
    shards = ShardSet(prefix)
    opened = time.perf_counter()
    index = shards.index
    mapped = time.perf_counter()
    order = EpochOrder(shards.shard_examples, 0, "big", 16)
    first = order.example(0)
    ordered = time.perf_counter()
    far = order.example(1_000_003 * 512)
    end = time.perf_counter()
    size = os.path.getsize(f"{prefix}.index.npy")
    print(f"{len(shards.manifest.shards)} shards, {len(shards)} examples, index {size / 1e6:.0f} MB")
    print(f"manifest read and parsed     {opened - began:7.3f} s")
    print(f"index mapped                 {mapped - opened:7.3f} s")
    print(f"order, first position        {ordered - mapped:7.3f} s   (example {first})")
    print(f"a position of a later epoch  {end - ordered:7.3f} s   (example {far})")
    print(f"all                          {end - began:7.3f} s   goal 5 s")
    assert len(index) == len(shards)

    context = multiprocessing.get_context("fork")
    queue, hold = context.Queue(), context.Event()
    processes = [
        context.Process(target=work, args=(shards, order, number, reads, queue, hold)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    lookups = [queue.get() for _ in processes]
    # All alive at once: shared pages count in equal parts.
    main_now = memory()
    used = [memory(process.pid) for process in processes]
    hold.set()
    for process in processes:
        process.join()
    grown = [main_now, *used]
    print(f"\n{workers} forked workers, each looks up {reads} positions: {1e6 * max(lookups) / reads:.1f} us each\n")
    print("MB                     resident   own part   private")
    print(f"main, before           {before['Rss']:8.0f}   {before['Pss']:8.0f}  {before['Private']:8.0f}")
    for name, figures in zip(["main", *(f"worker {n}" for n in range(workers))], grown, strict=True):
        print(f"{name:<21}  {figures['Rss']:8.0f}   {figures['Pss']:8.0f}  {figures['Private']:8.0f}")
    node = sum(figures["Pss"] for figures in grown)
    print(f"node (sum of own parts)           {node:8.0f}   goal 1000; {before['Pss']:.0f} of it before")
    print(f"the index is mapped: its {size / 1e6:.0f} MB are in each resident set, and once in the sum")
    return end - began < 5 and node < 1000


def work(shards: ShardSet, order: EpochOrder, number: int, reads: int, queue: Any, hold: Any) -> None:
    began = time.perf_counter()
    total = 0
    for position in range(number * reads, (number + 1) * reads):
        total += int(shards.index[order.example(position)]["video_bytes"])
    assert total == reads * 428_000
    # The whole index, as an epoch would touch it.
    assert int(shards.index["item"].max()) == 0
    queue.put(time.perf_counter() - began)
    hold.wait()


def memory(pid: int | None = None) -> dict[str, float]:
    """MB of a process: resident, its part of it (shared pages divided by their users), and what is its alone."""
    figures: dict[str, float] = {"Private": 0.0}
    for line in Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text().splitlines()[1:]:
        name, value = line.split(":")
        kilobytes = float(value.split()[0])
        if name in ("Rss", "Pss"):
            figures[name] = kilobytes / 1000
        elif name.startswith("Private_"):
            figures["Private"] += kilobytes / 1000
    return figures


if __name__ == "__main__":
    sys.exit(main())
