"""Time and peak memory of planning the largest sets: 650,000 Kinetics rows and 1.6 million AVA rows, as a dry run.

    python benchmarks/packing_plan.py [--kinetics 650000] [--ava 1600000] [--scratch DIR]

Annotation files are made up in the real formats. Every video exists as an empty file in the folder that the real one
lies in, so that listing and looking up are what they are on a real disk; five in a hundred are missing. The commands
run as a user runs them, each in a process of its own.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

TOOLS = Path(__file__).resolve().parents[1] / "shard_tools"
CLASSES, MOVIES, FIRST, LAST = 700, 430, 902, 1798
MISSING = 0.05
LIMIT_S, LIMIT_BYTES = 120.0, 2e9
ALPHABET = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinetics", type=int, default=650_000, metavar="N", help="rows (default: %(default)s)")
    parser.add_argument("--ava", type=int, default=1_600_000, metavar="N", help="rows (default: %(default)s)")
    parser.add_argument(
        "--scratch", metavar="DIR", help="where files are made (default: the system's temporary folder)"
    )
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    fine = True
    print(f"{'dry run over':<46}{'seconds':>9}{'peak MB':>9}")
    with tempfile.TemporaryDirectory(prefix="packing-plan-", dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        kinetics = make_kinetics(folder / "kinetics", arguments.kinetics, rng)
        ava = make_ava(folder / "ava", arguments.ava, rng)
        for name, command in (
            (f"{arguments.kinetics} Kinetics rows", kinetics),
            (f"{arguments.ava} AVA rows", ava),
            (f"{arguments.ava} AVA rows and as many proposals", [*ava, "--proposals", f"{folder}/ava/boxes.csv"]),
        ):
            seconds, peak = measure([*command, "--out", f"{scratch}/shards", "--split", "train", "--dry-run"])
            print(f"{name:<46}{seconds:>9.1f}{peak / 1e6:>9.0f}", flush=True)
            fine &= seconds < LIMIT_S and peak < LIMIT_BYTES
    return 0 if fine else 1


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds, and bytes of memory that the process held at most."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    shown = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"error: {command[0]} failed: {shown}")
    return time.perf_counter() - begin, usage.ru_maxrss * 1024


def make_kinetics(folder: Path, rows: int, rng: np.random.Generator) -> list[str]:
    """Writes a training CSV and its videos; returns the command but for its last options."""
    videos = folder / "videos"
    names = [f"class number {n} of seven hundred" for n in range(CLASSES)]
    for name in names:
        (videos / name.replace(" ", "_")).mkdir(parents=True)
    with open(folder / "train.csv", "w") as table:
        table.write("label,youtube_id,time_start,time_end,split\n")
        for n, (video, start, gone) in enumerate(
            zip(make_ids(rows, rng), rng.integers(0, 300, rows), rng.random(rows) < MISSING, strict=True)
        ):
            label = names[n % CLASSES]
            table.write(f"{label},{video},{start},{start + 10},train\n")
            if not gone:
                touch(videos / label.replace(" ", "_") / f"{video}_{start:06d}_{start + 10:06d}.mp4")
    return [f"{TOOLS}/pack_kinetics.py", "--annotations", f"{folder}/train.csv", "--videos", str(videos)]


def make_ava(folder: Path, rows: int, rng: np.random.Generator) -> list[str]:
    """As `make_kinetics`: movies with keyframes at every second, some persons in each with some actions. Also writes
    proposals, boxes.csv."""
    (folder / "videos").mkdir(parents=True)
    movies = list(make_ids(MOVIES, rng))
    for movie in movies[round(MISSING * MOVIES) :]:
        touch(folder / "videos" / f"{movie}.mkv")
    with open(folder / "labels.pbtxt", "w") as labels:
        labels.writelines(f'label {{ name: "action {n}" label_id: {n} }}\n' for n in range(1, 81))
    keyframes = [(movie, second) for movie in movies for second in range(FIRST, LAST + 1)]
    which = np.sort(rng.integers(0, len(keyframes), rows))
    boxes = np.sort(rng.random((rows // 2 + 1, 2, 2)), axis=1).reshape(-1, 4)
    with open(folder / "train.csv", "w") as table, open(folder / "boxes.csv", "w") as detected:
        for n, (keyframe, action) in enumerate(zip(which.tolist(), rng.integers(1, 81, rows).tolist(), strict=True)):
            movie, second = keyframes[keyframe]
            x1, y1, x2, y2 = boxes[n // 2]  # two actions a person
            place = f"{movie},{second:04d},{x1:.3f},{y1:.3f},{x2 + 0.001:.3f},{y2 + 0.001:.3f}"
            table.write(f"{place},{action},{n // 2 % 90}\n")
            detected.write(f"{movie},{second},{x1:.6f},{y1:.6f},{x2:.6f},{y2:.6f},,{n % 1000 / 1000}\n")
    command = [f"{TOOLS}/pack_ava.py", "--annotations", f"{folder}/train.csv", "--labelmap", f"{folder}/labels.pbtxt"]
    return [*command, "--videos", f"{folder}/videos", "--movie-start", "900"]


def make_ids(count: int, rng: np.random.Generator) -> Iterator[str]:
    """Random video ids of eleven characters."""
    return ("".join(row) for row in ALPHABET[rng.integers(0, len(ALPHABET), (count, 11))])


def touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))


if __name__ == "__main__":
    sys.exit(main())
