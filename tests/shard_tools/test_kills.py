"""Packing that is killed outright at random moments, over and over, ends with the bytes of a run left alone."""

import os
import random
import shutil
import signal
import time
import traceback

import pytest

from data.decode import require_ffmpeg
from tests.shard_tools.raw import PICTURES, counter_source, video

KILLS = 20


def kinetics(world):
    for n in range(8):
        video(world.videos / f"id_{n}.mp4", f"{PICTURES},hue=h={30 * n}", 1.0)
    rows = [f"{'a' if n % 2 else 'b'},id_{n},0,10,train" for n in range(9)]
    return lambda *options: world.kinetics(rows, "--samples-per-shard", 2, "--max-failures", 0.5, *options)


def ava(world):
    for n in range(4):
        rate = ("10", "24000/1001")[n % 2]
        video(world.videos / f"movie_{n}.mp4", counter_source(rate), 6.0, "-g", "50", "-pix_fmt", "yuv420p")
    # A run of three segments each movie, which go to shards of two; the last keyframes lie beyond the end.
    rows = [f"movie_{n},{t},0.1,0.2,0.5,0.9,12,1" for n in range(5) for t in (901, 902, 904, 907)]
    return lambda *options: world.ava(rows, "--samples-per-shard", 2, "--margin", 0.5, "--max-failures", 0.5, *options)


def start(function, *options):
    """Runs a pack command in a forked process, in which the decoder is loaded already."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        code = function(*options)
    except Exception:  # noqa: BLE001 - what the exit code alone would not say
        traceback.print_exc()
    finally:
        os._exit(code)


@pytest.mark.parametrize("make", [kinetics, ava])
def test_killed_twenty_times_the_result_is_the_same(world, make):
    require_ffmpeg()
    pack = make(world)
    began = time.monotonic()
    assert pack() == 0
    seconds = time.monotonic() - began
    whole = world.contents()
    assert sum(name.endswith(".tar") for name in whole) > 1
    shutil.rmtree(world.out)
    chance, killed, kept = random.Random(0), 0, set()
    while killed < KILLS:
        pid = start(pack, "--workers", chance.randint(1, 3))
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        shown = {name: content for name, content in world.contents().items() if not name.startswith(".")}
        assert shown.items() <= whole.items(), "what has its final name is whole and final"
        if os.WIFSIGNALED(status):
            killed += 1
            kept.add(len(list(world.out.rglob("*"))))
        else:
            assert os.WEXITSTATUS(status) == 0 and world.contents() == whole
            shutil.rmtree(world.out)
    assert pack() == 0 and world.contents() == whole
    assert len(kept) > 2, "killed at different stages"


@pytest.mark.parametrize("make", [kinetics, ava])
def test_parts_at_the_same_time_and_one_that_does_all_end_the_same(world, make):
    require_ffmpeg()
    pack = make(world)
    assert pack() == 0
    whole = world.contents()
    for _ in range(2):
        shutil.rmtree(world.out)
        pids = [start(pack, "--part", f"{part}/3", "--workers", 1) for part in range(3)] + [start(pack)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert codes == [0] * 4 and world.contents() == whole
