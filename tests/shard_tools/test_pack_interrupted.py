"""Packing in parts, and after it was cut off: the same bytes in the end, or an error that says why not."""

import errno
import os
import shutil
import signal
import sys
from itertools import count

import pytest

from data.errors import UserError
from shard_tools import cli, pack_kinetics
from tests.shard_tools.packed import ROWS, many, read_all, start, wait_for
from tests.shard_tools.raw import only_newer_ffmpeg, video


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_plan_is_told(world, damage):
    video(world.videos / "own_000001_000003.mp4")
    parts = world.out / ".kinetics-train.parts"
    parts.mkdir(parents=True)
    (parts / "plan.json").write_text(damage)
    with pytest.raises(UserError, match=r"plan\.json is damaged .*rm -r"):
        world.kinetics(["run,own,1,3,train"])


def test_the_same_input_gives_the_same_bytes_whatever_the_workers_and_parts(world):
    many(world)
    assert world.kinetics(ROWS, "--samples-per-shard", 3, "--workers", 1) == 0
    alone = world.contents()
    shutil.rmtree(world.out)
    assert world.kinetics([*reversed(ROWS)], "--samples-per-shard", 3, "--workers", 3) == 0
    together = world.contents()
    # The order of the rows does not matter either, but it is another annotation file, which the manifest remembers.
    assert {n: c for n, c in together.items() if "manifest" not in n} == {
        n: c for n, c in alone.items() if "manifest" not in n
    }
    shutil.rmtree(world.out)
    assert world.kinetics(ROWS, "--samples-per-shard", 3, "--part", "2/3") == 0
    assert world.kinetics(ROWS, "--samples-per-shard", 3, "--part", "0/3") == 0
    assert not (world.out / "kinetics-train.manifest.json").exists()
    assert world.kinetics(ROWS, "--samples-per-shard", 3, "--part", "1/3") == 0
    assert world.contents() == alone
    assert world.kinetics(ROWS, "--samples-per-shard", 3, "--part", "1/3") == 0, (
        "a part that runs again changes nothing"
    )
    assert world.contents() == alone


def test_several_versions_of_ffmpeg_are_told(world, monkeypatch, capsys):
    many(world)
    assert world.kinetics(ROWS, "--part", "0/2", "--samples-per-shard", 5) == 0
    monkeypatch.setenv("PATH", f"{only_newer_ffmpeg(world.folder)}:{os.environ['PATH']}")
    assert world.kinetics(ROWS, "--part", "1/2", "--samples-per-shard", 5) == 0
    versions = world.shards("kinetics-train").manifest.settings["ffmpeg"].split(", ")
    assert len(versions) == 2 and f"took part ({', '.join(versions)})" in capsys.readouterr().err


def test_another_seed_gives_another_order_of_the_same_samples(world):
    many(world)
    world.kinetics(ROWS)
    first = list(read_all(world, "kinetics-train"))
    shutil.rmtree(world.out)
    world.kinetics(ROWS, "--seed", 1)
    second = list(read_all(world, "kinetics-train"))
    assert first != second and sorted(first) == sorted(second) and first != sorted(first)


def test_a_run_that_was_killed_goes_on_and_ends_the_same(world):
    many(world)
    world.kinetics(ROWS, "--samples-per-shard", 2)
    whole = world.contents()
    shutil.rmtree(world.out)
    process = start(world, "--samples-per-shard", "2")
    parts = world.out / ".kinetics-train.parts"
    wait_for(parts / "000001.json", process)
    process.kill()
    process.communicate()
    assert not (world.out / "kinetics-train.manifest.json").exists()
    done = {
        path.name: path.stat().st_mtime_ns
        for path in world.out.glob("*.tar")
        if (parts / f"{path.stem[-6:]}.json").exists()
    }
    assert done and all(content == whole[name] for name, content in world.contents().items() if name in done)
    assert world.kinetics(ROWS, "--samples-per-shard", 2) == 0
    assert world.contents() == whole
    assert all((world.out / name).stat().st_mtime_ns == when for name, when in done.items()), "nothing is done twice"


def test_ctrl_c_stops_cleanly_and_says_how_to_go_on(world):
    many(world)
    world.kinetics(ROWS, "--dry-run")
    process = start(world, "--samples-per-shard", "2")
    wait_for(world.out / ".kinetics-train.parts" / "000000.json", process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted; the same command goes on" in stderr and "Traceback" not in stderr
    assert not list(world.out.rglob("*.tmp"))


def test_a_full_disk_is_said_and_packing_goes_on_once_there_is_space(world, monkeypatch, capsys):
    many(world)
    world.kinetics(ROWS, "--samples-per-shard", 2)
    whole = world.contents()
    shutil.rmtree(world.out)
    syncs = count()

    def sync(file):
        if next(syncs) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    command = ["pack_kinetics.py", "--annotations", world.folder / "kinetics.csv", "--videos", world.videos, "--out"]
    command += [world.out, "--split", "train", "--samples-per-shard", "2"]
    monkeypatch.setattr(sys, "argv", [str(word) for word in command])
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of this process; workers have their own
    with pytest.raises(SystemExit) as caught:
        cli.main(pack_kinetics.options(), pack_kinetics.make_plan)
    assert caught.value.code == 2
    assert f"no space left for {world.out} (disk full, or over quota)" in capsys.readouterr().err
    left = world.contents()
    assert {n: c for n, c in left.items() if n.endswith(".tar")}.items() <= whole.items()
    assert not any(name.endswith((".tmp", "manifest.json")) for name in left)
    assert world.kinetics(ROWS, "--samples-per-shard", 2) == 0 and world.contents() == whole


def test_other_settings_or_annotations_are_refused_with_what_changed(world):
    many(world)
    # In no class's folder, as in that of another class it would be another video.
    (world.videos / "train" / "pull_ups" / "id_9_000000_000010.mp4").rename(world.videos / "id_9_000000_000010.mp4")
    world.kinetics(ROWS)
    with pytest.raises(UserError, match=r"--crf changed \(was 23, is 30\).*rm "):
        world.kinetics(ROWS, "--crf", 30)
    with pytest.raises(UserError, match=r"the number of items changed \(was 10, is 9\)"):
        world.kinetics(ROWS[:9])
    with pytest.raises(UserError, match="the annotations, or which videos were found changed"):
        world.kinetics([*ROWS[:9], ROWS[9].replace("pull ups", "air drumming")])
    shutil.rmtree(world.out)
    world.kinetics(ROWS, "--part", "1/2", "--samples-per-shard", 5)
    with pytest.raises(UserError, match=r"--samples-per-shard changed \(was 5, is 2\).*rm -r"):
        world.kinetics(ROWS, "--part", "0/2", "--samples-per-shard", 2)
