"""The mixture at full size, by simulation on real index files: balance, exactness, shards touched, cache, planning.

    python -m benchmarks.loader_scale [--world 1024] [--hours 0.2] [--cache-gb 100] [--clips-per-second 10]

Writes index files and manifests of the real sets' sizes (no videos), opens them as a run does, and follows every rank
through a part of the run: which shards it reads, and which of its reads a node's cache of whole shards, evicted by age
of last use, would have answered. Bytes per sample are drawn around what the packers' defaults give. Beside it, the same
for a plain shuffle of each window, whose batches have no columns.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from data.mixture import StepPlan
from data.order import EpochOrder
from data.recipe import DataRecipe, TaskSource
from data.schedule import apportion
from data.shards import INDEX_DTYPE, Kind, Manifest, ShardInfo, ShardSet

SETS: dict[str, tuple[Kind, int, int, int, int]] = {
    "kinetics": ("classification", 542_000, 500, 1, 430_000),
    "moments": ("classification", 791_000, 1000, 1, 150_000),
    "ssv2": ("classification", 169_000, 1000, 1, 120_000),
    "ava": ("localisation", 210_000, 100, 8, 860_000),
}
"""Task -> kind, examples, samples per shard, examples per sample, mean bytes of a sample's video."""
BATCHES = (2048, 2048, 1024, 1024)
GPUS_PER_NODE = 8


def write_set(folder: Path, name: str, kind: Kind, examples: int, per_shard: int, items: int, size: int) -> ShardSet:
    """An index and a manifest as the packers write them."""
    rng = np.random.default_rng(0)
    samples = -(-examples // items)
    index = np.zeros(examples, dtype=INDEX_DTYPE)
    sample = np.arange(examples) // items
    shard = sample // per_shard
    video_bytes = (size * rng.lognormal(-0.08, 0.4, samples)).astype(np.int64)
    padded = 1536 + -(-video_bytes // 512) * 512
    ends = np.cumsum(padded)
    first_of_shard = (np.arange(samples) // per_shard) * per_shard
    offsets = ends - padded - np.where(first_of_shard > 0, ends[first_of_shard - 1], 0)
    index["shard"], index["item"] = shard, np.arange(examples) % items
    index["json_offset"], index["json_bytes"] = offsets[sample] + 512, 400
    index["video_offset"], index["video_bytes"] = offsets[sample] + 1536, video_bytes[sample]
    np.save(folder / f"{name}-train.index.npy", index)
    counts = np.bincount(shard)
    sizes = np.bincount(np.arange(samples) // per_shard, weights=padded).astype(int)
    infos = [
        ShardInfo(f"{name}-train-{n:06d}.tar", -(-int(count) // items), int(count), int(total), "0" * 64)
        for n, (count, total) in enumerate(zip(counts, sizes, strict=True))
    ]
    (folder / f"{name}-train.manifest.json").write_text(Manifest(name, "train", kind, [], infos).to_json())
    return ShardSet(folder / f"{name}-train")


def recipe(sets: dict[str, ShardSet], world: int, schedule: str, window: int) -> DataRecipe:
    tasks = {}
    for (name, shards), batch in zip(sets.items(), BATCHES, strict=True):
        clips = -(-batch // world) * world
        share = float(SETS[name][1])
        tasks[name] = TaskSource(
            kind=shards.manifest.kind, shards=shards.prefix, batch=clips, micro_batch=4, share=share
        )
    return DataRecipe(steps=60_000, tasks=tasks, schedule=schedule, window=window)


def orders(sets: dict[str, ShardSet], wanted: DataRecipe, sort: bool) -> list[EpochOrder]:
    return [
        EpochOrder(shards.shard_examples, wanted.seed, name, wanted.window, wanted.tasks[name].batch if sort else 1)
        for name, shards in sets.items()
    ]


def balance(sets: dict[str, ShardSet], world: int) -> None:
    """Every rank has equal batches, and together they have the plan; the mixture's counts are exact."""
    for name in ("accumulate", "weighted", "alternating", "uniform", "task_by_task"):
        wanted = recipe(sets, world, name, 16)
        began = time.perf_counter()
        plan = StepPlan(wanted, world)
        spent = time.perf_counter() - began
        for step in np.random.default_rng(0).integers(wanted.steps, size=5).tolist():
            ranks = [plan.micro_steps(step, rank) for rank in range(world)]
            shapes = {tuple((part.task, len(part.positions)) for part in rank) for rank in ranks}
            assert len(shapes) == 1, f"step {step}: the ranks' batches differ"
            taken = sorted((part.task, position) for rank in ranks for part in rank for position in part.positions)
            planned = [(p.task, p.first + i) for p in plan.schedule.plan(step) for i in range(p.clips)]
            assert taken == planned, f"step {step}: the ranks do not take the plan"
        counts = [plan.schedule.steps_of(task) for task in range(len(sets))]
        shares = [task.share for task in wanted.tasks.values()]
        exact = {
            "accumulate": [wanted.steps] * len(sets),
            "weighted": apportion(wanted.steps, shares),
            "task_by_task": apportion(wanted.steps, shares),
            "alternating": [wanted.steps // len(sets)] * len(sets),
        }.get(name)
        assert exact is None or counts == exact, f"{name}: {counts}, should be {exact}"
        verdict = "drawn" if exact is None else "exact"
        print(f"  {name:<14} steps of each task {counts} ({verdict}), laid out in {1e3 * spent:.1f} ms")
    print(
        f"  in each of them {world} ranks have equal batches, and together exactly the plan (5 steps of each looked at)"
    )


def planning(sets: dict[str, ShardSet], world: int) -> None:
    """Time to know one rank's examples of a step."""
    wanted = recipe(sets, world, "accumulate", 16)
    plan, streams = StepPlan(wanted, world), orders(sets, wanted, True)

    def one(step: int) -> tuple[float, float]:
        began = time.perf_counter()
        parts = plan.micro_steps(step, world // 2)
        planned = time.perf_counter()
        for part in parts:
            streams[part.task].examples(np.array(part.positions))
        return 1e3 * (planned - began), 1e3 * (time.perf_counter() - began)

    one(0)
    for title, steps in (("steps 1 to 1000", range(1, 1001)), ("steps 59000 to 59999", range(59_000, 60_000))):
        times = [one(step) for step in steps]
        planned, whole = (sorted(part) for part in zip(*times, strict=True))
        print(
            f"  {title:<22} plan {statistics.median(planned):.3f} ms; plan and the examples of a rank: median"
            f" {statistics.median(whole):.3f} ms, 99 % under {whole[989]:.3f} ms, longest {whole[-1]:.1f} ms"
        )


def follow(
    sets: dict[str, ShardSet], world: int, window: int, sort: bool, steps: int, cache_bytes: float, watched: int
) -> dict[str, float]:
    """Shards touched per rank, and what the caches of some nodes do, over `steps` steps."""
    wanted = recipe(sets, world, "accumulate", window)
    streams = orders(sets, wanted, sort)
    touched = [np.zeros((world, len(shards.manifest.shards)), dtype=bool) for shards in sets.values()]
    sizes = [[shard.bytes for shard in shards.manifest.shards] for shards in sets.values()]
    nodes = max(world // GPUS_PER_NODE, 1)
    chosen = np.unique(np.linspace(0, nodes - 1, watched).astype(int)).tolist()
    caches: list[OrderedDict[tuple[int, int], int]] = [OrderedDict() for _ in chosen]
    filled = [0] * len(chosen)
    hits = reads = fetched = used = 0
    start = 20_000
    for step in range(start, start + steps):
        for task, (order, shards) in enumerate(zip(streams, sets.values(), strict=True)):
            batch = wanted.tasks[list(sets)[task]].batch
            examples = order.examples(np.arange(step * batch, (step + 1) * batch))
            shard = np.searchsorted(order._first, examples, side="right") - 1
            ranks = np.repeat(np.arange(world), batch // world)
            touched[task][ranks, shard] = True
            by_node = shard.reshape(nodes, -1)
            for place, node in enumerate(chosen):
                cache = caches[place]
                names, counts = np.unique(by_node[node], return_counts=True)
                for name, count in zip(names.tolist(), counts.tolist(), strict=True):
                    reads += count
                    used += count * sizes[task][name] / shards.manifest.shards[name].examples
                    if (task, name) in cache:
                        hits += count
                        cache.move_to_end((task, name))
                        continue
                    hits += count - 1
                    fetched += sizes[task][name]
                    cache[task, name] = sizes[task][name]
                    filled[place] += sizes[task][name]
                    while filled[place] > cache_bytes:
                        filled[place] -= cache.popitem(last=False)[1]
    per_rank = sum(part.sum(axis=1) for part in touched)
    return {
        "shards": float(np.mean(per_rank)),
        "most": float(np.max(per_rank)),
        "hit_rate": hits / reads,
        "fetched_gb": fetched / len(chosen) / 1e9,
        "amplification": fetched / used,
    }


def locality(sets: dict[str, ShardSet], arguments: argparse.Namespace) -> None:
    world = arguments.world
    clips = sum(-(-batch // world) for batch in BATCHES)
    steps = max(round(arguments.hours * 3600 * arguments.clips_per_second / clips), 1)
    print(
        f"  {arguments.hours:g} h at {arguments.clips_per_second:g} clips/s a rank: {steps} steps of {clips} clips each"
        f" ({steps * clips * world / 1e6:.1f} million clips);\n  nodes of {GPUS_PER_NODE} ranks, cache"
        f" {arguments.cache_gb:g} GB a node"
    )
    print(
        f"  {'window':>8}{'batch':>10}{'shards/rank':>13}{'most':>7}{'hit rate':>10}{'GB/node':>9}{'read / used':>13}"
    )
    for sort in (True, False):
        for window in arguments.windows:
            told = follow(sets, world, window, sort, steps, arguments.cache_gb * 1e9, arguments.nodes)
            hourly = 1 / arguments.hours
            print(
                f"  {window:>8}{'columns' if sort else 'plain':>10}{told['shards']:>13.0f}{told['most']:>7.0f}"
                f"{told['hit_rate']:>10.4f}{told['fetched_gb'] * hourly:>14.0f}{told['amplification']:>13.1f}"
            )


def memory(pid: int | str = "self") -> tuple[float, float]:
    """Resident and private megabytes of a process."""
    wanted = {"Rss:": 0.0, "Private_Clean:": 0.0, "Private_Dirty:": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if name in wanted:
            wanted[name] = float(rest.split()[0]) / 1024
    return wanted["Rss:"], wanted["Private_Clean:"] + wanted["Private_Dirty:"]


def large_index(folder: Path) -> None:
    """Opening 10,000 shards of 10 million examples, and what it costs a node and a worker."""
    write_set(folder, "large", "classification", 10_000_000, 1000, 1, 100_000)
    before = memory()[0]
    began = time.perf_counter()
    shards = ShardSet(folder / "large-train")
    order = EpochOrder(shards.shard_examples, 0, "large", 16, 128)
    first = shards.index[order.example(0)]
    opened = time.perf_counter() - began
    far = time.perf_counter()
    last = shards.index[order.example(128 * 1_000_000)]
    far = time.perf_counter() - far
    int(shards.index["video_bytes"].sum())  # every page of it read once
    after = memory()[0]
    pipe, child = multiprocessing.Pipe()
    worker = multiprocessing.get_context("fork").Process(target=_worker, args=(shards, order, child))
    worker.start()
    private = pipe.recv()
    worker.join()
    print(f"  10,000 shards, 10 million examples: opened, and the first example found, in {opened:.2f} s;")
    print(f"  that of step 1,000,000 in {1e3 * far:.1f} ms more (shards {first['shard']} and {last['shard']})")
    print(
        f"  resident after reading all of the index: {after - before:.0f} MB more, mapped and shared by all processes"
    )
    print(f"  of a node; a forked worker that reads all of it too holds {private:.0f} MB of its own")


def _worker(shards: ShardSet, order: EpochOrder, pipe: "multiprocessing.connection.Connection") -> None:
    begin = memory()[1]
    int(shards.index["video_bytes"].sum())
    for position in range(0, 128 * 1000, 128):
        order.example(position)
    pipe.send(memory()[1] - begin)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--world", type=int, default=1024, metavar="N", help="ranks (default: %(default)s)")
    add("--hours", type=float, default=0.2, help="part of the run to follow (default: %(default)s)")
    add("--clips-per-second", type=float, default=10.0, metavar="X", help="clips/s of a rank (default: %(default)s)")
    add("--cache-gb", type=float, default=100.0, metavar="GB", help="cache of a node (default: %(default)s)")
    add("--nodes", type=int, default=8, metavar="N", help="nodes whose caches are followed (default: %(default)s)")
    add("--windows", type=int, nargs="+", default=[16, 64, 256], metavar="W", help="windows (default: 16 64 256)")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, numpy {np.__version__}")
    with tempfile.TemporaryDirectory(prefix="loader-scale-") as scratch:
        sets = {name: write_set(Path(scratch), name, *settings) for name, settings in SETS.items()}
        for name, shards in sets.items():
            gigabytes = sum(shard.bytes for shard in shards.manifest.shards) / 1e9
            print(f"  {name:<10}{len(shards):>8} examples, {len(shards.manifest.shards):>5} shards, {gigabytes:.0f} GB")
        print(f"\nbalance and exactness, {arguments.world} ranks, {recipe(sets, 1, 'weighted', 16).steps} steps")
        balance(sets, arguments.world)
        print("\nplanning one step")
        planning(sets, arguments.world)
        print("\nlocality, schedule accumulate")
        locality(sets, arguments)
        print("\na large index")
        large_index(Path(scratch))
    return 0


if __name__ == "__main__":
    sys.exit(main())
