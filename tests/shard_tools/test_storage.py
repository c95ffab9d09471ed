"""Storage that fails while it is packed from: the run stops, nothing is recorded as lost, and it goes on later."""

import errno
import os
import shutil

import pytest

from shard_tools import storage
from shard_tools.failures import Unpackable
from shard_tools.source_video import check_container
from shard_tools.storage import require_storage
from shard_tools.workers import StopRunError
from tests.shard_tools.raw import PICTURES, counter_source, video

GONE = "mv {videos} {videos}.away"
EMPTY = f"{GONE}; mkdir {{videos}}"  # as the place of a disk that is no longer mounted is


def kinetics(world, *options):
    for n in range(10):
        video(world.videos / "train" / f"id_{n}.mp4", f"{PICTURES},hue=h={20 * n}")
    rows = [f"{'a' if n % 2 else 'b'},id_{n},0,10,train" for n in range(10)]
    fixed = ("--samples-per-shard", 2, "--max-failures", 0.5, "--workers", 1)
    return lambda: world.kinetics(rows, *fixed, *options), "kinetics-train"


def copied(world):
    return kinetics(world, "--copy")


def ava(world):
    for n in range(3):
        video(world.videos / f"id_{n}.mp4", counter_source("10"), 6.0, "-pix_fmt", "yuv420p")
    rows = [f"id_{n},{t},0.1,0.2,0.5,0.9,12,1" for n in range(3) for t in (901, 904)]
    return lambda: world.ava(rows, "--samples-per-shard", 2, "--margin", 0.5, "--workers", 1), "ava-train"


@pytest.fixture
def once(world, monkeypatch):
    """Has FFmpeg run a shell command first, once, when it is to open a video."""
    real, tool, armed = shutil.which("ffmpeg"), world.folder / "bin" / "ffmpeg", world.folder / "armed"
    tool.parent.mkdir()
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")

    def arm(source, command):
        armed.touch()
        act = f"*/{source}*) if rm {armed} 2>/dev/null; then {command}; fi;;"
        tool.write_text(f'#!/bin/sh\ncase "$*" in {act} esac\nexec {real} "$@"\n')
        tool.chmod(0o755)

    return arm


def last_packed(world, name):
    shards = world.shards(name)
    return shards.read_json(len(shards) - 1)["source"]


@pytest.mark.parametrize("outage", [GONE, EMPTY])
@pytest.mark.parametrize("make", [kinetics, copied, ava])
def test_an_outage_stops_the_run_and_the_same_command_goes_on(world, once, make, outage):
    pack, name = make(world)
    assert pack() == 0
    whole = world.contents()
    last = "id_2.mp4" if make is ava else last_packed(world, name)
    shutil.rmtree(world.out)
    once(last, outage.format(videos=world.videos))
    with pytest.raises(StopRunError, match=f"^{world.videos}: .*the same command goes on where it was"):
        pack()
    left = world.contents()
    assert {n: content for n, content in left.items() if n.endswith(".tar")}.items() < whole.items()
    done = [content for n, content in left.items() if n.endswith(("0.json", "0.spool"))]
    assert done and not any(b'"reason"' in content for content in done)
    assert not any(n.endswith((".tmp", "manifest.json")) for n in left)
    shutil.rmtree(world.videos, ignore_errors=True)
    world.videos.with_name("videos.away").rename(world.videos)
    assert pack() == 0 and world.contents() == whole


def test_a_single_file_that_goes_is_lost_alone(world, once):
    pack, name = kinetics(world)
    assert pack() == 0
    last = last_packed(world, name)
    shutil.rmtree(world.out)
    once(last, f"rm {world.videos / last}")
    assert pack() == 0
    assert list(world.failures(name)) == [last] and len(world.shards(name)) == 9


@pytest.mark.parametrize(("number", "stops"), [(errno.ESTALE, True), (errno.ETIMEDOUT, True), (errno.EACCES, False)])
def test_only_what_a_single_file_may_have_is_its_own_fault(world, monkeypatch, number, stops):
    pack, name = kinetics(world)
    opened = open

    def refuse(path, *options, **named):
        if str(path).endswith("id_3.mp4"):
            raise OSError(number, os.strerror(number))
        return opened(path, *options, **named)

    monkeypatch.setattr("builtins.open", refuse)  # root reads everything, and no disk here goes stale
    with pytest.raises(StopRunError if stops else Unpackable, match=os.strerror(number)):
        check_container(str(world.videos / "train" / "id_3.mp4"))
    if not stops:
        assert pack() == 0 and world.failures(name) == {"train/id_3.mp4": "unreadable"}


def test_a_file_that_the_storage_does_not_give_in_its_middle(tmp_path, monkeypatch):
    """As where one of the disks that it is striped over is down."""
    (tmp_path / "x.mp4").write_bytes(bytes(100))
    require_storage(str(tmp_path / "x.mp4"), "x.mp4")
    opened = open

    class Striped:
        def __init__(self, *args, **options):
            self.file = opened(*args, **options)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def fileno(self):
            return self.file.fileno()

        def read(self, size):
            if 40 <= self.file.tell() < 60:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return self.file.read(size)

    monkeypatch.setattr(storage, "_CHUNK", 10)
    monkeypatch.setattr("builtins.open", Striped)
    with pytest.raises(StopRunError, match=r"x\.mp4: Input/output error"):
        require_storage(str(tmp_path / "x.mp4"), "x.mp4")


def test_one_file_that_the_disk_does_not_give_can_be_given_up(world):
    pack, name = kinetics(world)
    bad = world.videos / "train" / "id_3.mp4"
    bad.unlink()
    bad.symlink_to("/proc/self/mem")  # whose first byte nobody can read
    with pytest.raises(StopRunError, match=f"^{bad}: Input/output error: .*put an empty file in its place"):
        pack()
    bad.unlink()
    bad.touch()
    assert pack() == 0 and world.failures(name) == {"train/id_3.mp4": "empty file"}
