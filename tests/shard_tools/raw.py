"""Tiny raw videos and annotation files, and pack commands run in this process."""

import argparse
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import lru_cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import imageio_ffmpeg
import numpy as np

from data.shards import ShardSet
from shard_tools import cli, pack_ava, pack_ava_kinetics, pack_kinetics, pack_moments, pack_ssv2
from shard_tools.items import Plan

PICTURES = "testsrc2=s=128x96:r=15"
LABELMAP = """label {
  name: "stand"
  label_id: 12
  label_type: PERSON_MOVEMENT
}
label {
  name: "carry/hold (an object)"
  label_id: 17
}
label { name: "watch (a person)" label_id: 80 }
"""

_FFMPEG = shutil.which("ffmpeg") or "ffmpeg"  # the system's, whatever a test puts onto the path
_RENDERED = TemporaryDirectory(prefix="raw-videos-")
_NUMBERS = count()


def ffmpeg(*arguments: object, stdout: Path | None = None) -> None:
    """Runs FFmpeg; what it writes to `pipe:1` goes to the file `stdout`."""
    command = [_FFMPEG, "-v", "error", "-y", *map(str, arguments)]
    with open(stdout or os.devnull, "wb") as file:
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=file)


def only_newer_ffmpeg(folder: Path) -> Path:
    """A folder to put in front of the path, with the FFmpeg of imageio-ffmpeg."""
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    return folder


@lru_cache
def _rendered(source: str, seconds: float, suffix: str, options: tuple[str, ...]) -> Path:
    path = Path(_RENDERED.name) / f"{next(_NUMBERS)}{suffix}"
    ffmpeg("-f", "lavfi", "-i", source, "-t", seconds, *(options or ("-pix_fmt", "yuv420p")), path)
    return path


def video(path: Path, source: str = PICTURES, seconds: float = 1.0, *options: str) -> Path:
    """Writes a video of an FFmpeg source; the same one is rendered once a test run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(_rendered(source, seconds, path.suffix, options), path))


def counter_source(rate: str) -> str:
    """Pictures of 96x48 that show their number in the film in twelve bars, the lowest bit at the left."""
    return f"color=c=black:s=96x48:r={rate},geq=lum='if(mod(floor(N/pow(2,floor(X/8))),2),235,16)':cb=128:cr=128"


def read_counter(frame: np.ndarray) -> int:
    """The number in a picture [3, H, W] of `counter_source`, of any size."""
    light = frame.mean(axis=(0, 1))
    centres = ((np.arange(12) + 0.5) * len(light) / 12).astype(int)
    return int(sum(int(light[x] > 128) << bit for bit, x in enumerate(centres)))


def run_command(module: ModuleType, *arguments: object) -> int:
    """Runs a pack command in this process; returns its exit code."""
    parse: Callable[[], argparse.ArgumentParser] = module.options
    plan: Callable[[argparse.Namespace], Plan] = module.make_plan
    return cli.run(parse().parse_args([str(a) for a in arguments]), plan)


class World:
    """A folder with raw data and shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.videos = folder / "videos"
        self.videos.mkdir()
        self.out = folder / "shards"

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        # Left alone where it is there: processes that pack at the same time would find it empty for a moment.
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
        return path

    def kinetics(self, rows: list[str], *options: object, split: str = "train") -> int:
        table = self.file("kinetics.csv", "\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
        return self._run(pack_kinetics, split, "--annotations", table, *options)

    def moments(self, table: str, categories: str, *options: object) -> int:
        files = ("--annotations", self.file("set.csv", table), "--categories", self.file("cat.txt", categories))
        return self._run(pack_moments, "train", *files, *options)

    def ssv2(self, items: str, labels: str, *options: object) -> int:
        files = ("--annotations", self.file("set.json", items), "--labels", self.file("labels.json", labels))
        return self._run(pack_ssv2, "train", *files, *options)

    def ava(self, rows: list[str], *options: object, split: str = "train") -> int:
        return self._run(pack_ava, split, *self._keyframes(rows), *options)

    def ava_kinetics(self, rows: list[str], *options: object, split: str = "train") -> int:
        return self._run(pack_ava_kinetics, split, *self._keyframes(rows), *options)

    def _keyframes(self, rows: list[str]) -> tuple[object, ...]:
        table = self.file("ava.csv", "\n".join(rows) + "\n")
        return "--annotations", table, "--labelmap", self.file("labels.pbtxt", LABELMAP)

    def _run(self, module: ModuleType, split: str, *options: object) -> int:
        common = ("--videos", self.videos, "--out", self.out, "--split", split, "--workers", 2)
        return run_command(module, *common, *options)

    def shards(self, name: str) -> ShardSet:
        return ShardSet(self.out / name)

    def failures(self, name: str) -> dict[str, str]:
        """{source: reason} of the list of failures."""
        lines = (self.out / f"{name}.failures.jsonl").read_text().splitlines()
        return {entry["source"]: entry["reason"] for entry in map(json.loads, lines)}

    def contents(self) -> dict[str, bytes]:
        """Every file of the folder of shards."""
        return {p.relative_to(self.out).as_posix(): p.read_bytes() for p in sorted(self.out.rglob("*")) if p.is_file()}
