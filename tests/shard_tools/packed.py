"""Ten clips, the pack command on them, and what is in the shards it writes."""

import json
import subprocess
import sys
import time
from pathlib import Path

import webdataset

from tests.shard_tools.raw import PICTURES, video

ROOT = Path(__file__).parents[2]
ROWS = [f"{'pull ups' if n % 2 else 'air drumming'},id_{n},0,10,train" for n in range(10)]


def many(world, count=10):
    for n in range(count):
        name = "pull_ups" if n % 2 else "air drumming"
        video(world.videos / "train" / name / f"id_{n}_000000_000010.mp4", f"{PICTURES},hue=h={20 * n}")


def read_all(world, name):
    """{key: (JSON, video)} as webdataset reads the shards."""
    files = sorted(str(path) for path in world.out.glob(f"{name}-*.tar"))
    samples = webdataset.WebDataset(files, shardshuffle=False, empty_check=False)
    return {sample["__key__"]: (json.loads(sample["json"]), sample["mp4"]) for sample in samples}


def start(world, *options):
    command = [sys.executable, ROOT / "shard_tools/pack_kinetics.py", "--annotations", world.folder / "kinetics.csv"]
    command += ["--videos", world.videos, "--out", world.out, "--split", "train", "--workers", "1", *options]
    return subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, process):
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.01)
    assert path.exists()
