"""Time and peak memory of AVA's frame mAP on files of the size of AVA's validation set, against the official algorithm.

    python -m benchmarks.ava_map [--detections 3000000] [--movies 64] [--share 1.0] [--scratch DIR]

Files are made up in the official formats: one keyframe a second from 902 to 1798 of every movie, persons with the
long-tailed actions of AVA's 80 classes, detections without tied scores. `train/ava_map.py` runs on the whole of them as
a user runs it, start-up included, on one core. The loops over images and classes (`benchmarks/ava_map_loops.py`) run
on the same files, or both run on the same share of the movies, and must give the same AP for every class.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

OURS = [str(Path(__file__).resolve().parents[1] / "train" / "ava_map.py")]
LOOPS = ["-m", "benchmarks.ava_map_loops"]
CLASSES, FIRST, LAST = 80, 902, 1798
LIMIT_S, LIMIT_BYTES, LIMIT_RATIO, LIMIT_ERROR = 30.0, 3e9, 20.0, 1e-9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", type=int, default=3_000_000, metavar="N", help="rows (default: %(default)s)")
    parser.add_argument("--movies", type=int, default=64, metavar="N", help="of 897 keyframes (default: %(default)s)")
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="S", help="of movies for the comparison (default: %(default)s)"
    )
    parser.add_argument("--scratch", metavar="DIR", help="for the files (default: the system's temporary folder)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ava-map-", dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        make_files(folder, arguments.movies, arguments.detections)
        some = max(1, round(arguments.share * arguments.movies))
        part = folder if some == arguments.movies else take_movies(folder, some)

        print(f"{'':<66}{'seconds':>9}{'peak MB':>9}{'mAP, %':>9}")
        keyframes = arguments.movies * (LAST - FIRST + 1)
        ours = whole = measure([*OURS, *options(folder)])
        show(f"train/ava_map.py, {keyframes} keyframes, {arguments.detections} detections", *whole)
        name = f"{some} of {arguments.movies} movies"
        loops = measure([*LOOPS, *(str(part / file) for file in FILES.values())])
        show(f"official algorithm in loops, {name}", *loops)
        if part != folder:
            ours = measure([*OURS, *options(part)])
            show(f"train/ava_map.py, {name}", *ours)

    ratio = loops[0] / ours[0]
    error = difference(loops[2]["per_class"], ours[2]["per_class"])
    fine = whole[0] < LIMIT_S and whole[1] < LIMIT_BYTES and ratio >= LIMIT_RATIO and error <= LIMIT_ERROR
    print(f"faster than the loops by a factor of {ratio:.1f}; greatest difference of a class's AP {error:.1e}")
    return 0 if fine else 1


FILES = {"--groundtruth": "truth.csv", "--detections": "found.csv", "--labelmap": "labels.pbtxt"}


def options(folder: Path) -> list[str]:
    return [part for option, name in FILES.items() for part in (option, str(folder / name))]


def show(name: str, seconds: float, peak: float, result: dict) -> None:
    print(f"{name:<66}{seconds:>9.1f}{peak / 1e6:>9.0f}{100 * result['mAP']:>9.4f}", flush=True)


def difference(loops: dict[str, float], ours: dict[str, float | None]) -> float:
    """Of two results by class; classes without ground truth are null or not there."""
    known = {name.removeprefix("action "): value for name, value in ours.items() if value is not None}
    return max(abs(known[number] - value) for number, value in loops.items()) if known.keys() == loops.keys() else 1.0


def measure(command: list[str]) -> tuple[float, float, dict]:
    """Seconds, bytes of memory that the process held at most, and the result in its last line; on one core."""
    core = min(os.sched_getaffinity(0))
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as shown:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=shown,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        shown.seek(0)
        text = shown.read()
    if status:
        sys.exit(f"error: {' '.join(command)} failed: {text}")
    return seconds, usage.ru_maxrss * 1024, json.loads(text.splitlines()[-1])


def make_files(folder: Path, movies: int, detections: int) -> None:
    """Writes truth.csv, found.csv and labels.pbtxt.

    Every person has one to three actions, drawn as 1 / (rank + 2) falls. A detector's box is a person's, moved by some
    percent, or one beside; it has rows of its actions' classes more often than of others, and with higher scores.
    """
    rng = np.random.default_rng(0)
    names = [f"movie{n:06d}" for n in range(movies)]
    keyframes = np.repeat(np.arange(movies), LAST - FIRST + 1), np.tile(np.arange(FIRST, LAST + 1), movies)
    frame = np.repeat(np.arange(len(keyframes[0])), rng.integers(1, 4, len(keyframes[0])))
    corners = rng.random((len(frame), 2)) * 0.6
    boxes = np.concatenate([corners, corners + 0.1 + 0.3 * rng.random((len(frame), 2))], axis=1)
    frequency = 1 / (np.arange(CLASSES) + 2.0)
    labels = rng.choice(CLASSES, (len(frame), 3), p=frequency / frequency.sum())
    has = np.zeros((len(frame), CLASSES), dtype=bool)
    for column in range(3):
        kept = rng.random(len(frame)) < (1, 0.6, 0.2)[column]
        has[np.flatnonzero(kept), labels[kept, column]] = True

    def write(path: Path, person: np.ndarray, where: np.ndarray, label: np.ndarray, last: list[str]) -> None:
        with path.open("w") as file:
            at, second = keyframes[0][frame[person]].tolist(), keyframes[1][frame[person]].tolist()
            for movie, time_s, box, number, end in zip(
                at, second, where.tolist(), (label + 1).tolist(), last, strict=True
            ):
                place = f"{box[0]:.6f},{box[1]:.6f},{box[2]:.6f},{box[3]:.6f}"
                file.write(f"{names[movie]},{time_s:04d},{place},{number},{end}\n")

    person, label = np.nonzero(has)
    write(folder / "truth.csv", person, np.round(boxes, 3)[person], label, [str(p % 90) for p in person.tolist()])

    moved = boxes + rng.normal(0, 0.03, boxes.shape)
    moved[rng.random(len(moved)) < 0.1] += 0.2
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 0.01)
    weight = np.where(has, np.inf, rng.random(has.shape)).ravel()
    chosen = np.sort(np.argsort(-weight, kind="stable")[:detections])
    person, label = np.divmod(chosen, CLASSES)
    evidence = rng.normal(0, 1, len(chosen)) + 2.5 * has[person, label]
    rank = np.empty(len(chosen))
    rank[np.argsort(evidence)] = np.arange(len(chosen))
    write(folder / "found.csv", person, moved[person], label, [f"{(r + 0.5) / len(rank):.9f}" for r in rank.tolist()])
    labelmap = "".join(f'item {{\n  name: "action {n}"\n  id: {n}\n}}\n' for n in range(1, CLASSES + 1))
    (folder / "labels.pbtxt").write_text(labelmap)


def take_movies(folder: Path, count: int) -> Path:
    """A folder with the rows of the first movies."""
    part = folder / "part"
    part.mkdir()
    for name in ("truth.csv", "found.csv"):
        with (folder / name).open() as source, (part / name).open("w") as target:
            target.writelines(line for line in source if int(line[5:11]) < count)
    (part / "labels.pbtxt").write_text((folder / "labels.pbtxt").read_text())
    return part


if __name__ == "__main__":
    sys.exit(main())
