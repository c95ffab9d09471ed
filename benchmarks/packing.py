"""Packing against bare FFmpeg, and packed clips against their originals, side by side in one run.

    python benchmarks/packing.py [--videos DIR] [--workers 2] [--clips 48] [--repeats 3]

Throughput: all clips through the pack command's engine, with and without the proof of every clip, against `--workers`
bare ffmpeg processes at a time with the same settings, one clip each. Decoding: 32 frames at stride 2 through the
loader's own decoder, of each original and of its packed clip. Rounds alternate, and medians count.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data.decode import decode, require_ffmpeg
from data.shards import ShardSet
from shard_tools.clip_command import Job, VideoSettings, clip_command
from shard_tools.failures import Unpackable
from shard_tools.ffmpeg_check import require_ffmpeg as ffmpeg_version
from shard_tools.items import Item, Plan
from shard_tools.packing import PackOptions, pack, share_out
from shard_tools.part_store import PartStore
from shard_tools.source_video import probe

FRAMES, STRIDE = 32, 2
# Fine moving detail, as films have it: without the noise, a synthetic picture costs a decoder next to nothing.
SYNTHETIC = "mandelbrot=s=340x256:r=30:start_scale={scale}:end_scale=0.05:end_pts=400,noise=alls=8:allf=t"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", metavar="DIR", help="folder of videos (default: synthetic 340x256 ones, GOP 250)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="processes of both (default: %(default)s)")
    parser.add_argument("--clips", type=int, default=48, metavar="N", help="clips a round (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds (default: %(default)s)")
    arguments = parser.parse_args()
    require_ffmpeg()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ffmpeg {ffmpeg_version()}")
    with tempfile.TemporaryDirectory(prefix="packing-") as scratch:
        videos = Path(arguments.videos or make_videos(Path(scratch) / "videos"))
        items = make_items(videos, arguments.clips)
        print(f"{len(items)} clips of {videos if arguments.videos else 'synthetic video'}")
        shards = throughput(items, Path(scratch), arguments.workers, arguments.repeats)
        decoding(items, shards, arguments.repeats)
    return 0


def make_videos(folder: Path) -> Path:
    """Eight 10 s videos, 340x256 H.264 with a key frame every 250 frames, as downloads come."""
    folder.mkdir()
    for number in range(8):
        source = SYNTHETIC.format(scale=3 - number / 4)
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-t", "10", "-pix_fmt", "yuv420p"]
        subprocess.run([*command, "-c:v", "libx264", "-g", "250", folder / f"{number}.mp4"], check=True)
    return folder


def make_items(videos: Path, count: int) -> list[Item]:
    """`count` items over the videos that can be read, in turn."""
    files = [path for path in sorted(videos.rglob("*")) if path.is_file() and readable(path)]
    if not files:
        sys.exit(f"error: {videos}: no videos there")
    fields = {"dataset": "bench", "label": 0, "class_name": "any"}
    return [
        Item(f"clip-{n}", str(files[n % len(files)].relative_to(videos)), str(files[n % len(files)]), fields)
        for n in range(count)
    ]


def readable(path: Path) -> bool:
    try:
        probe(str(path), 36_000_000)
    except Unpackable:
        return False
    return True


def settings(verify: bool) -> VideoSettings:
    """The pack commands' defaults for classification sets."""
    return VideoSettings(256, None, 23, "veryfast", 30, 8, 36_000_000, verify=verify)


def throughput(items: list[Item], scratch: Path, workers: int, repeats: int) -> ShardSet:
    """Prints clips/s of packing and of bare ffmpeg. Returns a set that was packed."""
    plan = Plan("bench", "train", "classification", [], items)

    def packing(verify: bool) -> Callable[[], None]:
        def run() -> None:
            out = scratch / f"shards-{verify}"
            shutil.rmtree(out, ignore_errors=True)
            shards = share_out(items, 1000, 0)
            options = PackOptions(settings(verify), 1000, 0, workers, (0, 1), 600.0)
            store = PartStore(out, plan, len(shards), {})
            store.begin("any")
            pack(store, shards, options)
            store.merge()

        return run

    def bare() -> None:
        def one(number: int) -> None:
            source = probe(items[number].path, 36_000_000)
            job = Job(items[number].path, source, source.fps)
            subprocess.run(clip_command([job], settings(False), [str(scratch / f"{number}.mp4")]), check=True)

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, range(len(items))))

    contestants = {"bare ffmpeg": bare, "packing, --no-verify": packing(False), "packing": packing(True)}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for name, run in [*contestants.items()] * (repeats + 1):
        begin = time.perf_counter()
        run()
        seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first round warms caches
    print(f"\n{'throughput, ' + str(workers) + ' processes':<28}{'clips/s':>9}{'against bare ffmpeg':>21}")
    for name, median in medians.items():
        print(f"{name:<28}{len(items) / median:>9.2f}{medians['bare ffmpeg'] / median:>21.2f}")
    return ShardSet(scratch / "shards-True" / "bench-train")


def decoding(items: list[Item], shards: ShardSet, repeats: int) -> None:
    """Prints ms per clip of decoding originals and packed clips."""
    paths = {item.key: item.path for item in items}
    pairs: dict[str, tuple[bytes, bytes]] = {}
    for example in range(len(shards)):
        path = paths[shards.read_json(example)["key"]]
        pairs[path] = (Path(path).read_bytes(), shards.read_video(example))
    spent: dict[str, list[list[float]]] = {"original": [], "packed": []}
    for original, packed in pairs.values():
        times: dict[str, list[float]] = {"original": [], "packed": []}
        for _ in range(max(5 * repeats, 5)):
            for name, video in (("original", original), ("packed", packed)):
                frames = count_frames(video)
                span = min(FRAMES * STRIDE - 1, frames)
                indices = (frames - span) // 2 + np.arange(0, span, STRIDE)
                begin = time.perf_counter()
                decode(video, indices, frames)
                times[name].append(time.perf_counter() - begin)
        for name, values in times.items():
            spent[name].append(values)
    medians = {name: [statistics.median(values) for values in clips] for name, clips in spent.items()}
    ratio = statistics.median(a / b for a, b in zip(medians["original"], medians["packed"], strict=True))
    kilobytes = [np.mean([len(pair[n]) for pair in pairs.values()]) / 1e3 for n in (0, 1)]
    print(f"\n{f'decoding {FRAMES} frames at stride {STRIDE}':<34}{'ms/clip':>9}{'kB/clip':>9}{'times as fast':>15}")
    for n, name in enumerate(("original", "packed")):
        times_as_fast = ratio if n else 1.0
        print(f"{name:<34}{1e3 * statistics.median(medians[name]):>9.1f}{kilobytes[n]:>9.0f}{times_as_fast:>15.2f}")


def count_frames(video: bytes) -> int:
    from torchcodec.decoders import VideoDecoder

    return len(VideoDecoder(video, seek_mode="exact"))


if __name__ == "__main__":
    sys.exit(main())
