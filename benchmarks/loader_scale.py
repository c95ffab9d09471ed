"""The mixture at full size, by simulation on real index files: balance, exactness, planning, shards touched, cache.

    python -m benchmarks.loader_scale [--world 1024] [--hours 1] [--nodes 8] [--cache-gb 100] [--clips-per-second 10]

Writes index files and manifests of the real sets' sizes (no videos) and opens them as a run does. Plans are looked at
for all ranks, in steps drawn from the whole run. Shards and caches are followed for the ranks of a few nodes, spread
evenly over the run's, through hours that begin in the middle of the run: which shards a rank reads, and which reads the
node's cache of whole shards, empty at first and evicted by age of last use, answers without looking ahead. Bytes per
sample are drawn around what the packers' defaults give. Beside it, the same for a plain shuffle of each window, whose
batches have no columns. How it goes with a large index: benchmarks/index_scale.py.
"""

import argparse
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
from data.schedule import SCHEDULES, NodeShare, apportion
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
FIRST_STEP = 20_000
BLOCK = 64


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
    """Time to know what one rank loads in a step: the plan, its positions, and the shard and sample of each."""
    opened = list(sets.values())
    print(f"  {'schedule':<14}{'steps':<18}{'plan, ms':>10}{'all: median':>13}{'99 %':>8}{'longest':>9}")
    for name in SCHEDULES:
        wanted = recipe(sets, world, name, 16)
        plan, streams = StepPlan(wanted, world), orders(sets, wanted, True)

        def one(step: int, plan: StepPlan = plan, streams: list[EpochOrder] = streams) -> tuple[float, float]:
            began = time.perf_counter()
            parts = plan.micro_steps(step, world // 2)
            planned = time.perf_counter()
            for task in dict.fromkeys(part.task for part in parts):
                own = [position for part in parts if part.task == task for position in part.positions]
                rows = opened[task].index[streams[task].examples(np.array(own))]
                assert len(list(zip(rows["shard"].tolist(), rows["video_offset"].tolist(), strict=True))) == len(own)
            return 1e3 * (planned - began), 1e3 * (time.perf_counter() - began)

        one(0)
        for steps in (range(1, 1001), range(59_000, 60_000)):
            planned, whole = (sorted(part) for part in zip(*map(one, steps), strict=True))
            print(
                f"  {name:<14}{f'{steps[0]} to {steps[-1]}':<18}{statistics.median(planned):>10.3f}"
                f"{statistics.median(whole):>13.3f}{whole[989]:>8.3f}{whole[-1]:>9.1f}"
                f"   {'under' if statistics.median(whole) < 1 else 'OVER'} 1 ms"
            )


class NodeCache:
    """A node's cache of whole shards."""

    def __init__(self, most: float) -> None:
        self.most, self.filled, self.fetched, self.hits, self.reads = most, 0, 0, 0, 0
        self.shards: OrderedDict[tuple[int, int], int] = OrderedDict()

    def read(self, shard: tuple[int, int], times: int, size: int) -> None:
        self.reads += times
        if shard in self.shards:
            self.hits += times
            self.shards.move_to_end(shard)
            return
        self.hits += times - 1
        self.fetched += size
        self.filled += size
        self.shards[shard] = size
        while self.filled > self.most:
            self.filled -= self.shards.popitem(last=False)[1]


def follow(
    sets: dict[str, ShardSet], world: int, window: int, sort: bool, steps: int, cache_bytes: float, watched: list[int]
) -> dict[str, float]:
    """Shards touched by the ranks of some nodes, and what these nodes' caches do, over `steps` steps."""
    wanted = recipe(sets, world, "accumulate", window)
    streams = orders(sets, wanted, sort)
    infos = [shards.manifest.shards for shards in sets.values()]
    here = min(GPUS_PER_NODE, world)
    touched = np.zeros((len(watched), here, sum(map(len, infos))), dtype=bool)
    caches = [NodeCache(cache_bytes) for _ in watched]
    used = 0.0
    for first in range(FIRST_STEP, FIRST_STEP + steps, BLOCK):
        block = np.arange(first, min(first + BLOCK, FIRST_STEP + steps))
        for place, node in enumerate(watched):
            read = []
            for task, order in enumerate(streams):
                batch = list(wanted.tasks.values())[task].batch
                near, far = NodeShare(node * here, here, world).places(batch)
                positions = block[:, None] * batch + np.arange(near, far + 1)
                shard = np.searchsorted(order._first, order.examples(positions.ravel()), side="right") - 1
                shard = shard.reshape(len(block), -1)
                ranks = np.repeat(np.arange(here), shard.shape[1] // here)
                touched[place, np.broadcast_to(ranks, shard.shape), sum(map(len, infos[:task])) + shard] = True
                read.append(shard)
            for row in range(len(block)):
                for task, shard in enumerate(read):
                    names, counts = np.unique(shard[row], return_counts=True)
                    for name, count in zip(names.tolist(), counts.tolist(), strict=True):
                        info = infos[task][name]
                        used += count * info.bytes / info.examples
                        caches[place].read((task, name), count, info.bytes)
    per_rank = touched.sum(axis=2)
    return {
        "shards": float(per_rank.mean()),
        "most": float(per_rank.max()),
        "node": float(touched.any(axis=1).sum(axis=1).mean()),
        "hit_rate": sum(cache.hits for cache in caches) / sum(cache.reads for cache in caches),
        "fetched_gb": sum(cache.fetched for cache in caches) / len(caches) / 1e9,
        "amplification": sum(cache.fetched for cache in caches) / used,
    }


def locality(sets: dict[str, ShardSet], arguments: argparse.Namespace) -> None:
    world = arguments.world
    nodes = max(world // GPUS_PER_NODE, 1)
    watched = np.unique(np.linspace(0, nodes - 1, arguments.nodes).astype(int)).tolist()
    clips = sum(-(-batch // world) for batch in BATCHES)
    steps = max(round(arguments.hours * 3600 * arguments.clips_per_second / clips), 1)
    print(
        f"  {arguments.hours:g} h at {arguments.clips_per_second:g} clips/s a rank: {steps} steps from {FIRST_STEP} on,"
        f" {clips} clips a rank and step\n  sampled: {len(watched)} of {nodes} nodes of"
        f" {min(GPUS_PER_NODE, world)} ranks; cache of {arguments.cache_gb:g} GB a node\n  shards: of a rank or node in"
        " an hour; GB: fetched by a node in an hour; fetched / read: in bytes"
    )
    print(
        f"  {'window':>8}{'batch':>10}{'shards/rank':>13}{'most':>7}{'shards/node':>13}{'hit rate':>10}{'GB/node':>9}"
        f"{'fetched / read':>16}"
    )
    for sort in (True, False):
        for window in arguments.windows:
            told = follow(sets, world, window, sort, steps, arguments.cache_gb * 1e9, watched)
            hourly = 1 / arguments.hours
            print(
                f"  {window:>8}{'columns' if sort else 'plain':>10}{told['shards'] * hourly:>13.0f}"
                f"{told['most'] * hourly:>7.0f}{told['node'] * hourly:>13.0f}{told['hit_rate']:>10.4f}"
                f"{told['fetched_gb'] * hourly:>9.0f}{told['amplification']:>16.2f}",
                flush=True,
            )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--world", type=int, default=1024, metavar="N", help="ranks (default: %(default)s)")
    add("--hours", type=float, default=1.0, metavar="H", help="part of the run to follow (default: %(default)s)")
    add("--clips-per-second", type=float, default=10.0, metavar="X", help="clips/s of a rank (default: %(default)s)")
    add("--cache-gb", type=float, default=100.0, metavar="GB", help="cache of a node (default: %(default)s)")
    add("--nodes", type=int, default=8, metavar="N", help="nodes whose caches are followed (default: %(default)s)")
    add("--windows", type=int, nargs="+", default=[16, 64, 256], metavar="W", help="windows (default: 16 64 256)")
    arguments = parser.parse_args()
    began = time.perf_counter()
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
    print(f"\nall of it took {(time.perf_counter() - began) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
