"""The toy world as files: the same for the same seed, resumable, in the originals' formats, with its planted faults."""

import csv
import errno
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.ava_files import read_annotations, read_excluded, read_labelmap, read_proposals
from data.errors import UserError
from shard_tools import make_toy
from shard_tools.toy import build as build_module
from shard_tools.toy import class_names
from shard_tools.toy.build import SIZES, VERSION, Size, build, plan_world
from shard_tools.toy.clips import make_rng
from shard_tools.toy.faults import FAULTS
from shard_tools.toy.labels import AVA, EPISODES, KINETICS, SSV2
from shard_tools.toy.staging import stage

TINY = Size("tiny", (14, 2), (7, 2), (10, 2), (2, 1), (1, 0), seconds=8, shots=1, fault_share=0.5)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "raw"
    assert build(folder, 5, TINY, workers=2)
    return folder


def digests(raw: Path) -> dict[str, str]:
    files = sorted(path for path in raw.rglob("*") if path.is_file())
    return {str(path.relative_to(raw)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def planted(raw: Path, dataset: str, kind: str) -> list[str]:
    entries = json.loads((raw / "planted.json").read_text())
    return [e["path"] for e in entries if e["dataset"] == dataset and e["kind"] == kind]


def probe(path: Path, *entries: str) -> dict:
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_entries", ":".join(entries), f"file:{path}"]
    return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def test_same_seed_same_bytes_whatever_the_workers(raw, tmp_path):
    build(tmp_path / "again", 5, TINY, workers=1)
    assert digests(tmp_path / "again") == digests(raw)


def test_goes_on_where_it_was_cut_off(raw, tmp_path):
    half = Path(shutil.copytree(raw, tmp_path / "half"))
    whole = digests(half)
    videos = sorted(p for p in half.rglob("*") if p.suffix in (".mp4", ".webm"))
    gone, kept = videos[::2], videos[1::2]
    for path in (*gone, half / ".complete.json", half / "planted.json"):
        path.unlink()
    gone[0].with_name(f".{gone[0].name}.part").write_bytes(b"half a video")
    (half / ".begun.json").write_text(json.dumps({"seed": 5, "size": "tiny", "version": VERSION}))
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert build(half, 5, TINY, workers=2)
    assert digests(half) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == before


def test_finished_is_left_alone_and_another_world_is_refused(raw, tmp_path):
    before = digests(raw)
    assert not build(raw, 5, TINY, workers=1)
    assert digests(raw) == before
    with pytest.raises(UserError, match='"seed": 5'):
        build(raw, 6, TINY, workers=1)
    with pytest.raises(UserError, match="another toy world"):
        build(raw, 5, SIZES["small"], workers=1)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        build(tmp_path, 5, TINY, workers=1)


def test_interrupted_by_the_user(tmp_path):
    command = [sys.executable, make_toy.__file__, "--out", str(tmp_path / "raw"), "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    patience = time.monotonic() + 30
    while not (tmp_path / "raw" / ".begun.json").exists() and time.monotonic() < patience:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted; the same command goes on where it was"
    assert "Traceback" not in errors


def test_command_line_mistakes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["make_toy.py", "--out", str(tmp_path / "raw")])
    with pytest.raises(SystemExit) as caught:
        make_toy.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ffmpeg not found: install it")
    monkeypatch.setattr(sys, "argv", ["make_toy.py", "--out", str(tmp_path / "raw"), "--seed", "-1"])
    with pytest.raises(SystemExit) as caught:
        make_toy.main()
    assert caught.value.code == 2 and "no whole number" in capsys.readouterr().err


def test_a_full_disk_ends_with_1_and_goes_on_later(tmp_path, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "argv", ["make_toy.py", "--out", str(tmp_path / "raw")])
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "..begun.json.part").write_bytes(b"")
    for name in ("_write", "run_ordered"):
        with monkeypatch.context() as patch:
            patch.setattr(build_module, name, full)
            with pytest.raises(SystemExit) as caught:
                make_toy.main()
        assert caught.value.code == 1
        assert "No space left on device\nWith that mended, the same command goes on" in capsys.readouterr().err


def test_kinetics_format(raw):
    for split, count in (("train", 14), ("validate", 2)):
        with open(raw / f"kinetics/annotations/{split}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["label", "youtube_id", "time_start", "time_end", "split"]
        assert len(rows) == count and {row["split"] for row in rows} == {split}
        missing = planted(raw, "kinetics", "missing")
        for row in rows:
            name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}.mp4"
            path = f"kinetics/videos/{split}/{row['label']}/{name}"
            assert len(row["youtube_id"]) == 11 and row["label"] in KINETICS
            assert (raw / path).exists() == (path not in missing)


def test_ids_are_awkward():
    ids = [path.rpartition("/")[2] for _, path in plan_world(0, SIZES["small"]).clips["kinetics", "train"]]
    assert any(name.startswith("-") for name in ids) and any(name.startswith("_") for name in ids)
    assert len(set(ids)) == len(ids)


def test_moments_format(raw):
    names = dict(line.split(",") for line in (raw / "moments/moments_categories.txt").read_text().splitlines())
    assert sorted(map(int, names.values())) == list(range(len(names))) and "handing+over" in names
    assert class_names("moments") == sorted(names, key=lambda name: int(names[name]))
    rows = [line.split(",") for line in (raw / "moments/trainingSet.csv").read_text().splitlines()]
    assert len(rows) == 7 and {row[0].partition("/")[0] for row in rows} <= names.keys()
    there = {str(path.relative_to(raw / "moments/training")) for path in raw.glob("moments/training/*/*.mp4")}
    missing = {path.removeprefix("moments/training/") for path in planted(raw, "moments", "missing")}
    assert there == {row[0] for row in rows} - missing


def test_ssv2_format(raw):
    labels = json.loads((raw / "ssv2/labels.json").read_text())
    assert sorted(map(int, labels.values())) == list(range(len(labels))) and all(
        isinstance(v, str) for v in labels.values()
    )
    assert list(labels) == class_names("ssv2")
    items = json.loads((raw / "ssv2/train.json").read_text())
    missing = planted(raw, "ssv2", "missing")
    for item in items:
        assert item["template"].replace("[", "").replace("]", "") in labels
        assert item["template"].count("[something]") == len(item["placeholders"])
        assert all(thing in item["label"] for thing in item["placeholders"])
        path = f"ssv2/videos/{item['id']}.webm"
        assert (raw / path).exists() == (path not in missing)


def test_codecs_and_sound(raw):
    bad = {e["path"] for e in json.loads((raw / "planted.json").read_text())}
    good = [p for p in raw.rglob("*") if p.suffix in (".mp4", ".webm") and str(p.relative_to(raw)) not in bad]
    entries = ("stream=codec_name,codec_type,r_frame_rate,width,height", "format=duration")
    for folder, codecs in (("ava", ["h264", "aac"]), ("kinetics", ["h264"]), ("ssv2", ["vp9"])):
        path = next(p for p in good if p.is_relative_to(raw / folder))
        found = probe(path, *entries)
        assert [stream["codec_name"] for stream in found["streams"]] == codecs
        assert found["streams"][0]["r_frame_rate"] == "15/1"
        assert min(found["streams"][0]["width"], found["streams"][0]["height"]) >= 96
        if folder == "ava":
            assert float(found["format"]["duration"]) == pytest.approx(8, abs=0.1)


def test_ava_format(raw):
    folder = raw / "ava"
    classes = {c.id: c.name for c in read_labelmap(folder / "ava_action_list_v2.2.pbtxt")}
    assert (
        classes
        == AVA
        == {c.id: c.name for c in read_labelmap(folder / "ava_action_list_v2.2_for_activitynet_2019.pbtxt")}
    )
    rows = read_annotations(folder / "ava_train_v2.2.csv")
    assert set(rows.action_ids.tolist()) <= AVA.keys()
    assert len(rows.odd_lines) == 1  # the planted one
    boxes = rows.boxes
    assert (boxes >= 0).all() and (boxes <= 1).all() and (boxes[:, 2:] > boxes[:, :2]).all()
    times = set(rows.timestamps.tolist())
    assert times <= {902.0, 903.0, 904.0, 905.0}
    (missing,) = planted(raw, "ava", "missing")
    videos = {f"ava/videos/{name}.mp4" for name in rows.video_ids}
    assert {path for path in videos if not (raw / path).exists()} == {missing}

    excluded = read_excluded(folder / "ava_val_excluded_timestamps_v2.2.csv")
    assert excluded and not excluded & read_annotations(folder / "ava_val_v2.2.csv").keyframes()
    # The detector knows nothing of exclusions.
    assert excluded & read_proposals(folder / "ava_val_predicted_boxes.csv").keys()


def test_each_fault_is_what_it_says(raw):
    for dataset, kinds in FAULTS.items():
        there = {kind for kind in kinds if planted(raw, dataset, kind)}
        assert there == set(kinds[: {"kinetics": 7, "moments": 3, "ssv2": 5}[dataset]])
    (path,) = planted(raw, "kinetics", "empty")
    assert (raw / path).stat().st_size == 0
    (path,) = planted(raw, "kinetics", "text")
    assert (raw / path).read_text().startswith("<!DOCTYPE html>")
    (path,) = planted(raw, "kinetics", "no index")
    with pytest.raises(subprocess.CalledProcessError):
        probe(raw / path, "format=duration")
    (path,) = planted(raw, "kinetics", "truncated")
    found = probe(raw / path, "stream=nb_frames,nb_read_frames")["streams"][0]
    counted = ["ffprobe", "-v", "quiet", "-count_frames", "-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]
    done = subprocess.run([*counted, f"file:{raw / path}"], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < int(found["nb_frames"])
    (path,) = planted(raw, "kinetics", "short")
    assert probe(raw / path, "stream=nb_frames")["streams"][0]["nb_frames"] == "3"


def test_rotated_video_is_shown_upright(raw):
    """Autorotation must give the picture that the same clip has without the fault."""
    (path,) = planted(raw, "kinetics", "rotated")
    clip = next(clip for clip, p in plan_world(5, TINY).clips["kinetics", "train"] if p == path)
    command = ["ffmpeg", "-v", "error", "-i", f"file:{raw / path}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    width, height = clip.size
    shown = shown.reshape(clip.frames, height, width, 3)
    rng = make_rng(clip.seed, clip.dataset, clip.split, clip.index)
    first = np.asarray(next(stage(clip.action, clip.frames, rng, clip.size, clip.things).frames()), np.float32)
    assert np.abs(shown[0] - first).mean() < 12
    stored = probe(raw / path, "stream=width,height")["streams"][0]
    assert (stored["width"], stored["height"]) == (height, width)


@pytest.mark.parametrize("size", SIZES.values(), ids=lambda size: size.name)
def test_sizes_keep_their_promises(size):
    """Few faults in every split, every class in every split, and a long tail in AVA."""
    world = plan_world(0, size)
    for (dataset, _), members in world.clips.items():
        assert sum(clip.fault is not None for clip, _ in members) < 0.04 * len(members)
        assert {clip.class_name for clip, _ in members} == set(
            {"kinetics": class_names("kinetics"), "moments": class_names("moments"), "ssv2": list(SSV2)}[dataset]
        )
    for split, files in world.movies.items():
        assert sum(file.missing for file in files) < 0.04 * len(files)
        counts: Counter[int] = Counter()
        for file in files:
            if file.missing:
                continue
            for second in file.plan.keyframes:
                shot = next(shot for shot in file.plan.shots if shot.start <= second < shot.end)
                for turn, roles in zip(shot.turns, shot.roles, strict=True):
                    counts.update(roles[int(second > turn)].ids)
        assert counts.keys() == AVA.keys() and min(counts.values()) >= 5
        if split == "train":
            assert max(counts.values()) > 600 and min(counts.values()) < 25


def test_episodes_use_known_ids():
    assert {number for episode in EPISODES for number in (*episode.ids, *episode.partner_ids)} == AVA.keys()
