"""The pack commands from raw files to shards: what is in the shards of each dataset."""

import json

import pytest
from torchcodec.decoders import VideoDecoder

from data.errors import UserError
from tests.shard_tools.packed import ROWS, many, read_all
from tests.shard_tools.raw import PICTURES, counter_source, read_counter, video


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
