"""What cannot be packed: lists, summaries, errors, exit codes."""

import os
import re
import shutil
import time

import numpy as np
import pytest

from data.errors import UserError
from shard_tools import pack_kinetics, run_ffmpeg
from tests.shard_tools.packed import ROWS, many, read_all, start
from tests.shard_tools.raw import PICTURES, ffmpeg, run_command, video


def test_what_cannot_be_packed_is_listed_with_its_reason(world):
    good = video(world.videos / "good.mp4")
    (world.videos / "empty.mp4").touch()
    (world.videos / "page.mp4").write_text("<html>Not found</html>")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", world.videos / "sound.mp4")
    ffmpeg("-i", good, "-c", "copy", "-movflags", "+faststart", world.folder / "whole.mp4")
    whole = (world.folder / "whole.mp4").read_bytes()
    (world.videos / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (world.videos / "end.mp4").write_bytes(good.read_bytes()[:5000])
    video(world.videos / "short.mp4", PICTURES, 0.3)
    names = ["good", "empty", "page", "sound", "cut", "end", "short", "none", "../../etc/passwd", "/etc/passwd"]
    rows = [f"a,{name},0,10,train" for name in names]
    assert world.kinetics(rows) == 1, "more than 5 % are lost"
    reasons = world.failures("kinetics-train")
    assert reasons.pop("cut.mp4") in ("truncated", "decode error")
    assert reasons == {
        "empty.mp4": "empty file",
        "page.mp4": "unreadable",
        "sound.mp4": "no video stream",
        "end.mp4": "unreadable",
        "short.mp4": "too short",
        "a/none_000000_000010": "missing",
        "a/../../etc/passwd_000000_000010": "missing",
        "a//etc/passwd_000000_000010": "missing",
    }
    manifest = world.shards("kinetics-train").manifest
    assert sum(manifest.failures.values()) == 9 and manifest.failures["missing"] == 3 and manifest.examples == 1
    assert world.kinetics(rows, "--max-failures", 0.9) == 0, "packed already; the bound is that of the command"
    assert all(b"/" not in key.encode() for key in read_all(world, "kinetics-train"))


KILLED = """#!/bin/sh
case "$*" in *id_1_*)
    echo >> {runs}
    if [ $(wc -l < {runs}) -le {kills} ]; then kill -9 $$; fi;;
esac
exec {ffmpeg} "$@"
"""


@pytest.mark.parametrize(("kills", "lost"), [(2, {}), (9, {"train/pull_ups/id_1_000000_000010.mp4": "crashed"})])
def test_an_ffmpeg_that_memory_was_taken_from_is_no_damage_of_the_video(world, monkeypatch, kills, lost):
    """The kernel and SLURM kill the largest process, which is FFmpeg and not the worker."""
    many(world, 2)
    program = world.folder / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(KILLED.format(runs=world.folder / "runs", kills=kills, ffmpeg=shutil.which("ffmpeg")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(run_ffmpeg, "WAITS", (0.01, 0.01))
    assert world.kinetics(ROWS[:2], "--max-failures", 0.5) == 0
    assert world.failures("kinetics-train") == lost


def test_a_video_that_takes_too_long_is_a_failure(world, monkeypatch):
    many(world, 2)
    # An FFmpeg that never ends for one of the videos.
    slow = world.folder / "bin" / "ffmpeg"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ncase "$*" in *id_1_*) sleep 60;; *) exec {shutil.which("ffmpeg")} "$@";; esac\n')
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    begin = time.monotonic()
    assert world.kinetics(ROWS[:2], "--time-limit", 2, "--max-failures", 0.5) == 0
    assert time.monotonic() - begin < 20
    assert world.failures("kinetics-train") == {"train/pull_ups/id_1_000000_000010.mp4": "timeout"}


def test_the_summary_says_what_came_in_what_was_lost_and_what_decoding_costs(world, capsys):
    many(world, 4)
    video(world.videos / "short.mp4", PICTURES, 0.4)
    assert world.kinetics([*ROWS[:4], "c,short,0,10,train", "c,none,0,10,train"], "--max-failures", 1) == 0
    shown = capsys.readouterr().out
    assert "in:     6 clips, 0.00 h of video that could be read" in shown
    assert "packed: 4 clips, 0.00 h, 1 shards" in shown
    assert "lost:   2 clips (33.3%): missing 1, too short 1; list: " in shown
    assert "1 of 3 classes of which nothing is left: c" in shown
    assert re.search(r"one thread, median of 4 clips: [\d.]+ ms from the original, [\d.]+ ms packed", shown)
    manifest = world.shards("kinetics-train").manifest
    assert manifest.settings["hours"] == 0.0011 and manifest.settings["hours_lost"] == 0.0001
    assert manifest.settings["per_class"] == [[2, 2], [2, 0], [2, 2]]


def test_a_shard_of_which_nothing_is_left_has_no_tar(world):
    many(world, 3)
    bad = ["b,bad_1,0,10,train", "b,bad_2,0,10,train"]
    for name in ("bad_1", "bad_2"):
        (world.videos / f"{name}.mp4").write_text("nothing")
    assert world.kinetics([*ROWS[:3], *bad], "--samples-per-shard", 1, "--max-failures", 1) == 0
    shards = world.shards("kinetics-train")
    assert len(shards.manifest.shards) == 3 == len(list(world.out.glob("*.tar")))
    assert np.array_equal(shards.index["shard"], [0, 1, 2])
    assert {shards.read_json(n)["key"][:3] for n in range(3)} == {"id_"}


def test_nothing_packed_leaves_only_the_list_of_failures(world, capsys):
    (world.videos / "x.mp4").write_text("nothing")
    assert world.kinetics(["a,x,0,10,train"]) == 1
    assert list(world.contents()) == ["kinetics-train.failures.jsonl"]
    assert "nothing could be packed" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(world, capsys):
    many(world, 2)
    assert world.kinetics([*ROWS[:2], "a,none,0,10,train"], "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "2 clips in 2 samples, 1 shards" in shown and "missing: a/none_000000_000010" in shown
    assert not world.out.exists()


def test_a_folder_without_any_of_the_videos_is_an_error(world):
    video(world.videos / "other.mp4")
    with pytest.raises(UserError, match="none of the annotated videos is among the 1 files"):
        world.kinetics(ROWS)


def test_exit_codes_and_messages_of_the_program(world):
    many(world, 1)
    world.kinetics(ROWS[:1], "--dry-run")
    table = world.folder / "kinetics.csv"
    table.write_text("nonsense\n")
    process = start(world)
    stdout, stderr = process.communicate()
    assert process.returncode == 2 and stdout == ""
    assert (
        stderr
        == f"error: {table}, line 1: 'nonsense' is no header, expected label,youtube_id,time_start,time_end,split\n"
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--part", "2/2"),
        ("--part", "x"),
        ("--split", "a.b"),
        ("--fps", "0"),
        ("--workers", "0"),
        ("--max-failures", "2"),
        ("--crf", "52"),
        ("--max-pixels", str(2**31)),
    ],
)
def test_bad_options_are_refused(world, options, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(pack_kinetics, "--annotations", "x", "--videos", "x", "--out", "x", "--split", "train", *options)
    assert caught.value.code == 2 and options[0] in capsys.readouterr().err
