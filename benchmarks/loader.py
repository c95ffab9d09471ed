"""This loader on packed shards against loading the original files, side by side in one run on the same cores.

    python -m benchmarks.loader [--videos DIR] [--cores 2] [--clips 64] [--repeats 5]

Everyone gives batches of 32 frames at stride 2, cut to 224x224 by the random resized crop, from as many workers as
there are cores. The shards are packed from the same files by shard_tools/pack_kinetics.py at its defaults. The limit is
ffmpeg, one process per core, which decodes as many frames as the spans have, one packed clip after the other with
nothing to seek, and throws them away. Rounds alternate, and medians count. Peers that are not installed
(requirements-bench.txt) are left out.
"""

import argparse
import itertools
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loader_peers import SCALE, ClipShape, peers
from benchmarks.packing import make_videos
from data.counters import add, figures
from data.dataset import MixtureDataset, TaskData
from data.decode import decode, require_ffmpeg
from data.loader import Loader, train_loader
from data.order import EpochOrder
from data.shards import ShardSet
from data.view import ViewConfig

PROJECT = Path(__file__).resolve().parent.parent
SHAPE = ClipShape(frames=32, stride=2, size=224)
SPAN = (SHAPE.frames - 1) * SHAPE.stride + 1
FAR_STEP = 1_000_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", metavar="DIR", help="folder of videos (default: synthetic 340x256 ones, GOP 250)")
    parser.add_argument("--cores", type=int, default=2, metavar="N", help="cores, and workers (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=64, metavar="N", help="clips a round (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="clips of a batch (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    require_ffmpeg()
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores]
    os.sched_setaffinity(0, cores)
    print(machine(len(cores)))
    with tempfile.TemporaryDirectory(prefix="loader-") as scratch:
        videos = originals(Path(scratch), arguments.videos)
        shards = pack(videos, Path(scratch))
        print(f"{len(videos)} videos, {'of ' + arguments.videos if arguments.videos else 'synthetic'}; ", end="")
        print(f"{arguments.clips} clips a round, {arguments.repeats} rounds, {len(cores)} workers")
        limit = throughput(videos, shards, Path(scratch), len(cores), arguments)
        profile(shards, limit)
        seek(shards, arguments.repeats)
    return 0


def machine(cores: int) -> str:
    """One line on the machine and the versions that matter."""
    name = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    version = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    import torchcodec

    codec = f"torchcodec {torchcodec.__version__}"
    return f"{name}, {cores} of {os.cpu_count()} cores, ffmpeg {version}, torch {torch.__version__}, {codec}"


def originals(scratch: Path, folder: str | None) -> list[Path]:
    """The original files under names that pack_kinetics.py knows."""
    source = Path(folder) if folder else make_videos(scratch / "made")
    files = [path for path in sorted(source.rglob("*")) if path.suffix in (".mp4", ".webm", ".mkv", ".avi", ".mov")]
    if not files:
        sys.exit(f"error: {source}: no videos there")
    named = scratch / "videos" / "any"
    named.mkdir(parents=True)
    links = []
    for number, path in enumerate(files):
        links.append(named / f"video{number:06d}_000000_000010{path.suffix}")
        links[-1].symlink_to(path.resolve())
    return links


def pack(videos: list[Path], scratch: Path) -> ShardSet:
    """Packs them with the real command."""
    table = scratch / "train.csv"
    rows = [f"any,{video.name[:11]},0,10,train" for video in videos]
    table.write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    command: list[str | Path] = [sys.executable, PROJECT / "shard_tools" / "pack_kinetics.py"]
    command += ["--annotations", table, "--videos"]
    command += [videos[0].parent.parent, "--out", scratch / "shards", "--split", "train"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {done.stdout}{done.stderr}")
    return ShardSet(scratch / "shards" / "kinetics-train")


class Positions:
    """Micro-batches of `clips` clips for each pass, every pass further on in the order."""

    def __init__(self, clips: int, batch: int) -> None:
        self.clips, self.batch, self.next = clips, batch, 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for _ in range(self.clips // self.batch):
            yield [(0, self.next + place) for place in range(self.batch)]
            self.next += self.batch


def mixture(shards: ShardSet) -> MixtureDataset:
    view = ViewConfig(num_frames=SHAPE.frames, stride=SHAPE.stride, image_size=SHAPE.size, scale=SCALE)
    data = TaskData("bench", "classification", shards, view)
    return MixtureDataset([data], [EpochOrder(shards.shard_examples, 0, "bench", 16)], seed=0)


class FfmpegLimit:
    """ffmpeg decodes as many frames as `clips` spans have: one process a core, one thread each, all thrown away."""

    def __init__(self, files: list[tuple[Path, int]], cores: int, clips: int, scratch: Path) -> None:
        scratch.mkdir(exist_ok=True)
        self.lists = []
        for core in range(cores):
            lines, left = ["ffconcat version 1.0"], clips // cores * SPAN
            for number in itertools.count(core):
                path, frames = files[number % len(files)]
                lines.append(f"file '{path}'")
                left -= frames
                if left <= 0:
                    break
            self.lists.append(scratch / f"files-{core}.txt")
            self.lists[-1].write_text("\n".join(lines) + "\n")
        self.frames = clips // cores * SPAN

    def __call__(self) -> None:
        with ThreadPoolExecutor(len(self.lists)) as pool:
            list(pool.map(self._decode, self.lists))

    def _decode(self, spans: Path) -> None:
        # File names of a list may be absolute only where they are not checked: they are this script's own.
        command = ["ffmpeg", "-v", "error", "-threads", "1", "-f", "concat", "-safe", "0", "-i", str(spans)]
        subprocess.run([*command, "-an", "-frames:v", str(self.frames), "-f", "null", "-"], check=True)


def lengths(paths: Iterable[Path]) -> list[tuple[Path, int]]:
    """(file, number of frames) of video files."""
    from torchcodec.decoders import VideoDecoder

    return [(path, len(VideoDecoder(str(path), seek_mode="exact"))) for path in paths]


def throughput(videos: list[Path], shards: ShardSet, scratch: Path, cores: int, arguments: argparse.Namespace) -> float:
    """Prints clips/s of all. Returns that of the limit."""
    packed = []
    for example in range(len(shards)):
        packed.append(scratch / f"packed-{example}.mp4")
        packed[-1].write_bytes(shards.read_video(example))
    tars = originals_as_tars(videos, scratch)
    clips = arguments.clips // (arguments.batch * cores) * arguments.batch * cores
    loader = train_loader(mixture(shards), Positions(clips, arguments.batch), cores)
    counts: dict[str, float] = {}

    def ours() -> None:
        counts.clear()
        for batch in loader:
            add(counts, batch.counts)

    limit = "ffmpeg on packed clips (the limit)"
    contestants: dict[str, Callable[[], None]] = {
        limit: FfmpegLimit(lengths(packed), cores, clips, scratch / "limit"),
        "this loader": ours,
        "ffmpeg on the original files": FfmpegLimit(lengths(videos), cores, clips, scratch / "limit-original"),
    }
    naive = []
    for name, start in peers(videos, tars, SHAPE, cores, arguments.batch, clips).items():
        if start is None:
            print(f"{name}: not installed, left out (requirements-bench.txt)")
            continue
        naive.append(name)
        contestants[name] = drain(name, start, clips)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    told: list[dict[str, float]] = []
    for number in range(arguments.repeats + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            # The first round starts workers and warms caches.
            if number:
                seconds[name].append(time.perf_counter() - began)
                if name == "this loader":
                    told.append(figures(counts, seconds[name][-1]))
    loader.close()
    rates = {name: clips / statistics.median(times) for name, times in seconds.items()}
    best = max((rates[name] for name in naive), default=float("nan"))
    print(f"\n{'':<38}{'clips/s':>9}{'of the limit':>14}{'of the best peer':>18}")
    for name, rate in sorted(rates.items(), key=lambda item: -item[1]):
        print(f"{name:<38}{rate:>9.2f}{rate / rates[limit]:>14.2f}{rate / best:>18.2f}")
    print(f"\nthis loader, ms of one core per clip (1000 x {cores} cores / clips/s):")
    wall = 1000 * cores / rates["this loader"]
    means = {key: statistics.median(part[key] for part in told) for key in told[0]}
    parts = [(part, means[f"{part}_ms"]) for part in ("read", "decode", "view")]
    parts.append(("rest of a clip", means["load_ms"] - sum(value for _, value in parts)))
    parts.append(("batch, shared memory", means["send_ms"]))
    parts.append(("waiting, main process", wall - means["load_ms"] - means["send_ms"]))
    for name, value in [*parts, ("together", wall)]:
        print(f"  {name:<24}{value:>8.2f}{value / wall:>8.0%}")
    print(f"  {'the limit':<24}{1000 * cores / rates[limit]:>8.2f}{rates['this loader'] / rates[limit]:>8.0%}")
    return rates[limit] / cores


def drain(name: str, start: Callable[[], Iterator[Any]], clips: int) -> Callable[[], None]:
    """A function that takes all clips of a pass, and checks that it got them."""

    def run() -> None:
        found = 0
        for batch in start():
            tensor = batch[0] if isinstance(batch, list | tuple) else batch
            assert tensor.shape[1:] == (3, SHAPE.frames, SHAPE.size, SHAPE.size), (name, tensor.shape)
            found += len(tensor)
        assert found == clips, (name, found, clips)

    return run


def originals_as_tars(videos: list[Path], scratch: Path) -> str:
    """The original files as plain webdataset tars; a brace pattern."""
    from webdataset import ShardWriter

    folder = scratch / "plain"
    folder.mkdir()
    with ShardWriter(str(folder / "%06d.tar"), maxcount=-(-len(videos) // 4), verbose=0) as writer:
        for video in videos:
            writer.write({"__key__": video.stem, "mp4": video.read_bytes()})
    count = len(list(folder.glob("*.tar")))
    return f"{folder}/{{000000..{count - 1:06d}}}.tar"


def profile(shards: ShardSet, limit_per_core: float) -> None:
    """Prints where decoding spends its time, in one process: median ms over 40 clips."""
    from torchcodec.decoders import VideoDecoder

    rng = np.random.default_rng(0)
    opened, whole = [], []
    for _ in range(40):
        video = shards.read_video(int(rng.integers(len(shards))))
        began = time.perf_counter()
        frames = len(VideoDecoder(video, seek_mode="exact", num_ffmpeg_threads=1))
        opened.append(time.perf_counter() - began)
        start = int(rng.integers(max(frames - SPAN, 0) + 1))
        indices = np.minimum(start + SHAPE.stride * np.arange(SHAPE.frames), frames - 1)
        began = time.perf_counter()
        decode(video, indices, frames)
        whole.append(time.perf_counter() - began)
    total, opening = 1e3 * statistics.median(whole), 1e3 * statistics.median(opened)
    bare = 1e3 / limit_per_core
    print("\ndecoding one clip in one process, ms:")
    print(f"  open, and scan for exact seeking {opening:>7.2f}")
    print(f"  bare ffmpeg, both cores busy     {bare:>7.2f}")
    print(f"  together                         {total:>7.2f}")


def seek(shards: ShardSet, repeats: int) -> None:
    """Prints the time from nothing to the first batch, at the run's begin and far into it."""
    times: dict[int, list[float]] = {0: [], FAR_STEP: []}
    for _ in range(repeats + 1):
        for step, spent in times.items():
            began = time.perf_counter()
            first = [(0, 8 * step + place) for place in range(8)]
            loader: Loader = train_loader(mixture(shards), [first], 0)
            next(iter(loader))
            spent.append(time.perf_counter() - began)
    print("\nfirst batch of 8 clips, from opening the order on, no workers:")
    for step, spent in times.items():
        print(f"  step {step:>9,}  {statistics.median(spent[1:]):.3f} s")


if __name__ == "__main__":
    sys.exit(main())
