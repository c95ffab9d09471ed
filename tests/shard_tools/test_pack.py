"""The pack commands from raw files to shards: what is in them, resuming, parts, failures, exit codes."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import webdataset
from torchcodec.decoders import VideoDecoder

from data.errors import UserError
from shard_tools import cli, pack_kinetics
from tests.shard_tools.raw import PICTURES, counter_source, ffmpeg, read_counter, run_command, video

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


def test_kinetics_shards_hold_what_the_annotations_say(world):
    many(world)
    assert world.kinetics(ROWS, "--samples-per-shard", 4) == 0
    shards = world.shards("kinetics-train")
    assert [c.name for c in shards.manifest.classes] == ["air drumming", "pull ups"]
    assert sorted(shard.samples for shard in shards.manifest.shards) == [3, 3, 4]
    samples = read_all(world, "kinetics-train")
    assert len(samples) == 10
    for n in range(10):
        sample, content = samples[f"id_{n}_000000_000010"]
        folder = "pull_ups" if n % 2 else "air drumming"
        assert sample == {
            "key": f"id_{n}_000000_000010",
            "dataset": "kinetics",
            "source": f"train/{folder}/id_{n}_000000_000010.mp4",
            "label": n % 2,
            "class_name": "pull ups" if n % 2 else "air drumming",
            "video": {"frames": 15, "fps": [15, 1], "width": 128, "height": 96, "keyframes": [0]},
        }
        assert content[4:8] == b"ftyp"
    for example in range(len(shards)):
        sample = shards.read_json(example)
        assert shards.read_video(example) == samples[sample["key"]][1]
    assert world.failures("kinetics-train") == {}
    assert {path.name for path in world.out.iterdir() if path.name.startswith(".")} == set()


def test_clips_are_cut_out_of_whole_videos(world):
    video(world.videos / "a-b_c.mp4", counter_source("25"), 20.0, "-g", "250", "-pix_fmt", "yuv420p")
    video(world.videos / "own_000001_000003.mp4", counter_source("25"), 2.0, "-pix_fmt", "yuv420p")
    rows = [f"run,a-b_c,{times},train" for times in ("0,3", "7,10", "7.6,8.6", "18,28", "40,50")]
    rows += ["run,own,1,3,train"]
    with pytest.raises(UserError, match=r"a-b_c.mp4 has 20 s, its clip 3 s: give --whole-videos"):
        world.kinetics(rows)
    assert world.kinetics(rows, "--whole-videos", "--max-failures", 0.2) == 0
    seen = {}
    for sample, content in read_all(world, "kinetics-train").values():
        frames = VideoDecoder(content)
        assert len(frames) == sample["video"]["frames"]
        seen[sample["key"]] = (read_counter(frames[0].numpy()), len(frames))
    assert seen == {
        "a-b_c_000000_000003": (0, 75),
        "a-b_c_000007_000010": (175, 75),
        "a-b_c_000007_000008": (190, 25),
        "a-b_c_000018_000028": (450, 50),
        "own_000001_000003": (0, 50),
    }
    assert world.failures("kinetics-train") == {"a-b_c.mp4": "outside the file"}


def test_a_whole_video_with_two_extensions_is_one_too(world):
    video(world.videos / "film.mkv", counter_source("25"), 20.0, "-g", "250", "-pix_fmt", "yuv420p")
    (world.videos / "film.mkv").rename(world.videos / "film.mp4.mkv")
    video(world.videos / "own_000001_000003.mp4", counter_source("25"), 2.0, "-pix_fmt", "yuv420p")
    (world.videos / "own_000001_000003.mp4").rename(world.videos / "own_000001_000003.mkv.mp4")
    rows = [f"run,{name},train" for name in ("film,0,3", "film,7,10", "own,1,3")]
    with pytest.raises(UserError, match=r"film.mp4.mkv has 20 s, its clip 3 s: give --whole-videos"):
        world.kinetics(rows)
    assert world.kinetics(rows, "--whole-videos") == 0
    seen = {
        key: (read_counter(VideoDecoder(content)[0].numpy()), sample["video"]["frames"])
        for key, (sample, content) in read_all(world, "kinetics-train").items()
    }
    assert seen == {
        "film_000000_000003": (0, 75),
        "film_000007_000010": (175, 75),
        "own_000001_000003": (0, 50),
    }
    assert world.shards("kinetics-train").manifest.settings["dropped"] == {}


def test_a_clip_that_its_whole_video_does_not_hold_is_a_failure(world):
    whole = video(world.videos / "cut.mkv", counter_source("25"), 20.0, "-g", "25", "-pix_fmt", "yuv420p")
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) * 6 // 10])
    rows = [f"run,cut,{times},train" for times in ("0,3", "8,18")]
    assert world.kinetics(rows, "--whole-videos", "--max-failures", 0.5) == 0
    assert list(read_all(world, "kinetics-train")) == ["cut_000000_000003"]
    assert world.failures("kinetics-train") == {"cut.mkv": "truncated"}


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_plan_is_told(world, damage):
    video(world.videos / "own_000001_000003.mp4")
    parts = world.out / ".kinetics-train.parts"
    parts.mkdir(parents=True)
    (parts / "plan.json").write_text(damage)
    with pytest.raises(UserError, match=r"plan\.json is damaged .*rm -r"):
        world.kinetics(["run,own,1,3,train"])


def test_moments_and_ssv2_and_unlabelled_clips(world):
    video(world.videos / "training" / "adult+female+singing" / "yt-a.b_1.mp4")
    video(world.videos / "training" / "clapping" / "yt-a.b_1.mp4", f"{PICTURES},negate")
    assert (
        world.moments(
            "clapping/yt-a.b_1.mp4,1\nadult+female+singing/yt-a.b_1.mp4,1\n", "clapping,0\nadult+female+singing,1\n"
        )
        == 0
    )
    found = {key: (s["label"], s["source"]) for key, (s, _) in read_all(world, "moments-train").items()}
    assert found == {
        "yt-a_b_1": (0, "training/clapping/yt-a.b_1.mp4"),
        "yt-a_b_1-2": (1, "training/adult+female+singing/yt-a.b_1.mp4"),
    }
    video(world.videos / "7.webm", PICTURES, 1.0, "-c:v", "libvpx", "-deadline", "realtime")
    video(world.videos / "8.webm", PICTURES, 1.0, "-c:v", "libvpx", "-deadline", "realtime")
    items = [{"id": "7", "template": "Spinning [something] fast"}, {"id": "8"}]
    assert world.ssv2(json.dumps(items), '{"Spinning something fast": "0"}') == 0
    found = {key: s["label"] for key, (s, _) in read_all(world, "ssv2-train").items()}
    assert found == {"7": 0, "8": None}


def test_a_clip_whose_name_is_there_in_the_folder_of_another_class_alone_is_missing(world):
    video(world.videos / "train" / "waving" / "001.mp4")
    video(world.videos / "train" / "big_dance" / "002.mp4")
    video(world.videos / "train" / "003.mp4")
    # With its times the name is that of one clip, whose class an older edition called otherwise.
    video(world.videos / "train" / "waving" / "004_000000_000001.mp4")
    rows = [f"{row},0,1,train" for row in ("clapping,001", "waving,001", "big dance,002", "train,003", "clapping,004")]
    assert world.kinetics(rows, "--max-failures", 0.3) == 0
    found = {s["source"]: s["class_name"] for s, _ in read_all(world, "kinetics-train").values()}
    # A class may be named as a split: folders of that name say nothing.
    assert found == {
        "train/waving/001.mp4": "waving",
        "train/big_dance/002.mp4": "big dance",
        "train/003.mp4": "train",
        "train/waving/004_000000_000001.mp4": "clapping",
    }
    (line,) = (world.out / "kinetics-train.failures.jsonl").read_text().splitlines()
    lost = json.loads(line)
    assert (lost["source"], lost["reason"]) == ("clapping/001_000000_000001", "missing")
    assert lost["detail"] == "train/waving/001.mp4 is in the folder of another class"


def test_ava_samples_hold_boxes_labels_persons_and_proposals(world):
    video(world.videos / "m.1.mkv", "testsrc2=s=160x96:r=15", 6.0)
    rows = [
        "m.1,0902,0.1,0.2,0.5,0.9,12,1",
        "m.1,0902,0.1,0.2,0.5,0.9,80,1",
        "m.1,0903",
        "m.1,0904,0.2,0.2,0.6,0.9,99,2",
    ]
    proposals = world.file("boxes.csv", "m.1,0902,0.1,0.2,0.5,0.9,,0.25\nm.1,903,0.3,0.2,0.6,0.9,,0.97\n")
    excluded = world.file("excluded.csv", "m.1,0904\n")
    assert world.ava(rows, "--proposals", proposals, "--excluded", excluded, split="val") == 0
    ((key, (sample, _)),) = read_all(world, "ava-val").items()
    assert (key, sample["video_id"], sample["source"]) == ("m_1_0902", "m.1", "m.1.mkv")
    assert sample["start"] == 900.0  # the file begins within half a window of 32 frames
    first, second = sample["keyframes"]
    assert first == {
        "timestamp": 902.0,
        "frame": 30,
        "boxes": [[0.1, 0.2, 0.5, 0.9]],
        "labels": [[12, 80]],
        "person_ids": [1],
        "proposals": [[0.1, 0.2, 0.5, 0.9, 0.25]],
    }
    assert (second["frame"], second["boxes"], second["proposals"]) == (45, [], [[0.3, 0.2, 0.6, 0.9, 0.97]])
    shards = world.shards("ava-val")
    assert [(c.id, c.name) for c in shards.manifest.classes] == [
        (12, "stand"),
        (17, "carry/hold (an object)"),
        (80, "watch (a person)"),
    ]
    assert len(shards) == 2 and shards.index["item"].tolist() == [0, 1]
    assert shards.manifest.settings["dropped"]["excluded keyframes, dropped"] == 1
    assert world.ava(rows, split="train") == 0
    assert len(world.shards("ava-train")) == 1, "in training, keyframes without a box are of no use"
    assert world.ava(rows, split="Train_mini") == 0
    assert len(world.shards("ava-Train_mini")) == 1, "a split of training whatever follows"


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
    assert caught.value.code == 1
    assert f"no space left for {world.out} (disk full, or over quota)" in capsys.readouterr().err
    left = world.contents()
    assert {n: c for n, c in left.items() if n.endswith(".tar")}.items() <= whole.items()
    assert not any(name.endswith((".tmp", "manifest.json")) for name in left)
    assert world.kinetics(ROWS, "--samples-per-shard", 2) == 0 and world.contents() == whole


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
    ],
)
def test_bad_options_are_refused(world, options, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(pack_kinetics, "--annotations", "x", "--videos", "x", "--out", "x", "--split", "train", *options)
    assert caught.value.code == 2 and options[0] in capsys.readouterr().err
