"""Examples by address: what they hold, what they depend on, and what takes the place of a bad one."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.batch import PADDING
from data.dataset import ATTEMPTS, EvalDataset, MixtureDataset, TaskData
from data.errors import UserError
from data.shards import ClassInfo, ShardSet
from data.view import ViewConfig
from tests.tiny_shards import box_video, class_video, clock_video, read_clock, video_record, write_set

VIEW = ViewConfig(num_frames=4, stride=3, image_size=64, color_jitter=0.2)
CLASSES = [ClassInfo(1, "stand"), ClassInfo(3, "sit"), ClassInfo(7, "run")]


class Counting:
    """The order in which position and example are the same."""

    def __init__(self, size: int) -> None:
        self.size = size

    def example(self, position: int) -> int:
        return position % self.size


def mixture(*tasks, seed=0):
    return MixtureDataset(tasks, [Counting(len(task.shards)) for task in tasks], seed)


def task(shards, name=None, **changes):
    return TaskData(
        name or shards.manifest.dataset, shards.manifest.kind, shards, ViewConfig(**{**vars(VIEW), **changes})
    )


def evaluated(task, example):
    return EvalDataset(task)[example]


def record(key, label=0, frames=38):
    return {"key": key, "label": label, "video": video_record(frames)}


def keyframe_set(folder: Path, video: bytes, **fields) -> ShardSet:
    """A set of one sample of one keyframe at frame 20, which `fields` change."""
    keyframe = {"timestamp": 902.0, "frame": 20, "boxes": [], "labels": [], "person_ids": [], "proposals": [], **fields}
    sample = {"key": "movie", "video_id": "movie", "video": video_record(38), "keyframes": [keyframe]}
    return write_set(folder, "ava", "train", "localisation", CLASSES, [(sample, video)])


def same(one, other) -> bool:
    boxes = (one.boxes is None and other.boxes is None) or torch.equal(one.boxes, other.boxes)
    named = (one.task, one.key, one.example, one.substitutes) == (
        other.task,
        other.key,
        other.example,
        other.substitutes,
    )
    return named and boxes and torch.equal(one.clip, other.clip) and torch.equal(one.labels, other.labels)


def test_a_classification_example(classification):
    example = mixture(task(classification))[0, 4]
    assert (example.task, example.key, example.example, int(example.labels)) == ("kinetics", "kinetics_00004", 4, 1)
    assert example.clip.shape == (3, 4, 64, 64) and example.clip.dtype == torch.uint8
    assert example.boxes is None and example.info is None and example.substitutes == []


def test_an_address_always_holds_the_same(classification, localisation):
    tasks = task(classification), task(localisation)
    one, other = mixture(*tasks), mixture(*reversed(tasks))
    for position in (9, 0, 3):
        # Neither what was asked before nor the tasks beside it matter.
        assert same(one[0, position], other[1, position])
        assert same(one[1, position], other[0, position])


def test_seed_position_and_name_change_the_view(classification):
    size = len(classification)
    clips = [
        mixture(task(classification), seed=seed)[0, position].clip for seed, position in ((0, 0), (1, 0), (0, size))
    ] + [mixture(task(classification, "kinetigs"))[0, 0].clip]
    for i, clip in enumerate(clips):
        assert not any(torch.equal(clip, other) for other in clips[i + 1 :])


def test_keyframe_is_the_middle_of_the_clip(tmp_path):
    shards = keyframe_set(tmp_path, clock_video())
    for example in (mixture(task(shards, color_jitter=0))[0, 0], evaluated(task(shards), 0)):
        assert read_clock(example.clip.numpy()) == [14, 17, 20, 23]
        assert example.boxes.shape == (0, 4) and example.labels.shape == (0, 3)


@pytest.mark.parametrize(("sampling", "expected"), [("segments", [4, 14, 23, 33]), ("dense", [14, 17, 20, 23])])
def test_sampling_of_a_view(tmp_path, sampling, expected):
    names = [ClassInfo(0, "tick")]
    shards = write_set(tmp_path, "clock", "train", "classification", names, [(record("tick"), clock_video())])
    assert read_clock(evaluated(task(shards, sampling=sampling), 0).clip.numpy()) == expected
    trained = read_clock(mixture(task(shards, sampling=sampling, color_jitter=0))[0, 0].clip.numpy())
    if sampling == "dense":
        assert np.diff(trained).tolist() == [3, 3, 3]
    else:
        assert all(38 * i // 4 <= frame <= 38 * (i + 1) // 4 for i, frame in enumerate(trained))


@pytest.mark.parametrize("flip", [True, False])
def test_boxes_lie_on_the_people_in_the_view(tmp_path, flip):
    box = [0.25, 0.125, 0.5, 0.75]
    shards = keyframe_set(tmp_path, box_video([box]), boxes=[box], labels=[[3, 7]])
    dataset, dropped = mixture(task(shards, flip=flip, scale=(0.2, 1.0), color_jitter=0)), 0
    for position in range(40):
        example = dataset[0, position]
        red, green, _ = example.clip[:, 2].int()
        person = red - green > 90
        if len(example.boxes) == 0:
            dropped += 1
            assert example.labels.shape == (0, 3)
            continue
        assert example.labels.tolist() == [[0, 1, 1]]
        rows, columns = person.any(dim=1).nonzero(), person.any(dim=0).nonzero()
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        # Colour has half of the resolution in the file, so its edges are a pixel of the frame wide.
        np.testing.assert_allclose(np.array(found, dtype=float), example.boxes[0].numpy() * 64, atol=2.6)
    assert 0 < dropped < 30


def test_flip_is_left_alone_when_off(tmp_path):
    """The left half of the picture is red: in no view is the right end redder than the left one."""
    names = [ClassInfo(0, "left")]
    video = box_video([[0, 0, 0.5, 1]])
    shards = write_set(tmp_path, "ssv2", "train", "classification", names, [(record("left"), video)])

    def mirrored(flip: bool) -> int:
        dataset = mixture(task(shards, flip=flip, scale=(0.8, 1.0), color_jitter=0))
        clips = [dataset[0, position].clip.int() for position in range(30)]
        return sum(bool((clip[0] - clip[1])[..., -1].sum() > (clip[0] - clip[1])[..., 0].sum()) for clip in clips)

    assert mirrored(False) == 0
    assert 5 < mirrored(True) < 25


ALL: dict[str, Any] = {
    "color_jitter": 0.3,
    "randaugment_ops": 2,
    "randaugment_magnitude": 15,
    "random_erasing": 0.5,
    "scale": (0.3, 1.0),
}


def test_nothing_leaks_between_examples_or_into_the_process(classification, localisation):
    tasks = task(classification, mixup=0.8, cutmix=1.0, **ALL), task(localisation, **ALL)
    torch.manual_seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first = [mixture(*tasks)[number, position] for position in range(8) for number in (0, 1)]
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()
    threads = torch.get_num_threads()
    torch.manual_seed(99)
    try:
        torch.set_num_threads(3 if threads != 3 else 2)
        dataset = mixture(*reversed(tasks))
        again = [dataset[1 - number, position] for position in reversed(range(8)) for number in (1, 0)]
    finally:
        torch.set_num_threads(threads)
    assert all(same(one, other) for one, other in zip(first, reversed(again), strict=True))


def test_a_view_with_everything_on_keeps_boxes_and_labels_together(localisation):
    dataset, kept = mixture(task(localisation, min_visible=0.5, **ALL)), 0
    for position in range(24):
        example = dataset[0, position]
        assert example.boxes is not None and len(example.boxes) == len(example.labels) <= 1
        assert ((example.boxes >= 0) & (example.boxes <= 1)).all()
        assert (example.boxes[:, 2:] > example.boxes[:, :2]).all()
        kept += len(example.boxes)
    assert 0 < kept < 24


def test_min_visible_says_when_a_person_is_dropped(tmp_path):
    shards = keyframe_set(tmp_path, clock_video(), boxes=[[0.0, 0.0, 0.4, 1.0]], labels=[[3]])
    kept = []
    for least in (0.0, 0.5, 1.0):
        dataset = mixture(task(shards, scale=(0.3, 0.6), min_visible=least))
        kept.append(sum(len(dataset[0, position].boxes) for position in range(20)))
    assert 20 > kept[0] > kept[1] > kept[2] >= 0


def mixed_task(shards, **changes):
    return task(shards, **{"mixup": 0.8, "cutmix": 1.0, **changes})


def test_mixed_clips_are_what_their_pair_makes_of_them(classification):
    plain, mixed = mixture(task(classification)), mixture(mixed_task(classification))
    changed = 0
    for position in range(8):
        own, other, example = plain[0, position], plain[0, position ^ 1], mixed[0, position]
        partner = mixed[0, position ^ 1]
        assert (example.key, example.example) == (own.key, own.example)
        assert example.labels.shape == (3,) and example.labels.dtype == torch.float32
        assert example.labels.sum() == 1 and example.labels[[int(own.labels), int(other.labels)]].sum() >= 1
        # Both of a pair are mixed alike, so that together they are what they were.
        total = example.clip.int() + partner.clip.int() - own.clip.int() - other.clip.int()
        assert total.abs().max() <= 1
        changed += not torch.equal(example.clip, own.clip)
    assert changed >= 6


def test_how_a_batch_is_cut_does_not_matter_to_its_pairs(classification):
    dataset = mixture(mixed_task(classification))
    alone = [dataset[0, position] for position in range(6)]
    for size in (2, 3, 6):
        batches = [range(start, start + size) for start in range(0, 6, size)]
        cut = [example for batch in batches for example in dataset.__getitems__([(0, p) for p in batch])]
        assert all(same(one, other) for one, other in zip(alone, cut, strict=True))


def test_a_pair_in_one_batch_is_decoded_once(classification, monkeypatch):
    from data import dataset as module

    loaded: list[int] = []
    load = module.load_example

    def noted(task, example, rng):
        loaded.append(example)
        return load(task, example, rng)

    monkeypatch.setattr(module, "load_example", noted)
    dataset = mixture(mixed_task(classification))
    dataset.__getitems__([(0, position) for position in range(6)])
    assert loaded == [0, 1, 2, 3, 4, 5]
    loaded.clear()
    dataset.__getitems__([(0, 1), (0, 2)])
    assert sorted(loaded) == [0, 1, 2, 3]
    loaded.clear()
    mixture(mixed_task(classification, mixup_prob=0.0)).__getitems__([(0, 1)])
    assert loaded == [1]


def test_labels_stay_soft_where_a_pair_is_not_mixed(classification):
    example = mixture(mixed_task(classification, mixup_prob=0.0))[0, 4]
    assert example.labels.tolist() == [0, 1, 0]
    assert torch.equal(example.clip, mixture(task(classification))[0, 4].clip)


def test_a_bad_sample_in_a_pair_is_told_once(damaged):
    batch = mixture(mixed_task(damaged)).__getitems__([(0, 0), (0, 1)])
    assert batch[0].substitutes == [] and batch[1].substitutes[0].key == "sample_1"
    assert batch[1].substitutes == mixture(task(damaged))[0, 1].substitutes


def test_padded_frames_are_told(localisation, tmp_path):
    names = [ClassInfo(0, "tick")]
    shards = write_set(tmp_path, "clock", "train", "classification", names, [(record("tick"), clock_video())])
    assert mixture(task(shards))[0, 0].padded == 0
    assert mixture(task(shards, num_frames=16, stride=5))[0, 0].padded == 8
    # Keyframe 8 of 38 frames: offsets -24 .. 21 at stride 3.
    assert (
        mixture(task(localisation, num_frames=16))[0, 0].padded
        == evaluated(task(localisation, num_frames=16), 0).padded
        == 6
    )


def test_views_of_an_evaluation_are_a_grid_in_time_and_space(tmp_path):
    names = [ClassInfo(0, "tick")]
    shards = write_set(
        tmp_path,
        "clock",
        "val",
        "classification",
        names,
        [(record(f"tick{number}"), clock_video()) for number in range(2)],
    )
    dataset = EvalDataset(task(shards, eval_views=(3, 2)))
    assert len(dataset) == 12
    views = dataset.__getitems__(range(12))
    assert [view.example for view in views] == [0] * 6 + [1] * 6
    assert [read_clock(view.clip.numpy())[0] for view in views[:6]] == [0, 0, 14, 14, 28, 28]
    assert all(same(view, dataset[number]) for number, view in enumerate(views))
    # Left and right of a picture whose left half is red.
    video = box_video([[0, 0, 0.5, 1]], size=(192, 64))
    wide = write_set(tmp_path, "wide", "val", "classification", names, [(record("wide"), video)])
    red = [
        float((view.clip[0].float() - view.clip[1].float()).mean())
        for view in (EvalDataset(task(wide, eval_views=(1, 3))).__getitems__(range(3)))
    ]
    assert red[0] > 100 and 40 < red[1] < 100 and red[2] < 10


def test_views_of_the_same_frames_are_decoded_once(classification, monkeypatch):
    from data import load as module

    decoded: list[list[int]] = []
    decode = module.decode

    def noted(video, indices, frames):
        decoded.append(indices.tolist())
        return decode(video, indices, frames)

    monkeypatch.setattr(module, "decode", noted)
    EvalDataset(task(classification, eval_views=(2, 3))).__getitems__(range(6))
    assert len(decoded) == 2 and decoded[0] != decoded[1]


def test_evaluation_takes_proposals_over_the_threshold(localisation):
    example = evaluated(task(localisation), 3)
    info = example.info
    assert (info.video_id, info.timestamp, example.example) == ("movie.1", 903.0, 3)
    assert info.scores.tolist() == [0.95] and info.boxes.tolist() == info.gt_boxes.tolist()
    assert info.gt_labels == [[1]]
    np.testing.assert_allclose(example.boxes.numpy(), info.boxes, atol=1e-6)
    assert example.labels.shape == (1, 3) and example.labels.isnan().all()
    assert len(evaluated(task(localisation, proposal_score_threshold=0.3), 3).boxes) == 2
    assert len(evaluated(task(localisation, proposal_score_threshold=0.96), 3).boxes) == 0
    assert torch.equal(example.clip, evaluated(task(localisation), 3).clip)


def test_evaluation_on_ground_truth(localisation):
    example = evaluated(task(localisation, eval_boxes="groundtruth"), 3)
    assert example.info.scores.tolist() == [1.0] and example.labels.tolist() == [[0, 1, 0]]


def test_training_on_proposals_that_overlap_a_person(tmp_path):
    person, near, far = [0.2, 0.2, 0.6, 0.8], [0.2, 0.2, 0.6, 0.7], [0.5, 0.2, 1.0, 0.8]
    proposals = [[*near, 0.95], [*far, 0.99], [*person, 0.5]]
    # So wide that a crop of any other shape than the frame's would leave something out.
    video = box_video([person], size=(192, 64))
    shards = keyframe_set(tmp_path, video, boxes=[person], labels=[[7]], proposals=proposals)
    changes = {"flip": False, "scale": (1.0, 1.0)}
    assert len(mixture(task(shards, **changes))[0, 0].boxes) == 1
    example = mixture(task(shards, train_proposals=0.9, **changes))[0, 0]
    np.testing.assert_allclose(example.boxes.numpy(), [person, near], atol=1e-6)
    assert example.labels.tolist() == [[0, 0, 1], [0, 0, 1]]


def test_evaluation_of_classification_takes_the_centre_square(tmp_path):
    names = [ClassInfo(0, "edges")]
    # What is left and right of the centre square of 128x96 is red.
    video = box_video([[0, 0, 0.125, 1], [0.875, 0, 1, 1]])
    shards = write_set(tmp_path, "edges", "val", "classification", names, [(record("edges"), video)])
    clip = evaluated(task(shards), 0).clip.int()
    assert (clip[0] - clip[1])[..., 2:-2].max() < 30
    shards = write_set(
        tmp_path, "inner", "val", "classification", names, [(record("inner"), box_video([[0.125, 0, 0.25, 1]]))]
    )
    clip = evaluated(task(shards), 0).clip.int()
    assert (clip[0] - clip[1])[..., :8].min() > 90


@pytest.fixture
def damaged(tmp_path) -> ShardSet:
    """Samples 0, 3, 6 and 7 are good; 1 is no video, 2 no JSON, 4 has a wrong frame count, 5 no label."""
    good = class_video(0, 3)
    entries = [(record(f"sample_{number}"), good) for number in range(8)]
    entries[1] = (record("sample_1"), b"not a video")
    entries[2] = (b'{"key": "samp', good)
    entries[4] = (record("sample_4", frames=99), good)
    entries[5] = (record("sample_5", label=None), good)
    return write_set(tmp_path, "broken", "train", "classification", [ClassInfo(0, "only")], entries, shards=2)


def test_bad_samples_are_replaced_and_told(damaged):
    dataset = mixture(task(damaged))
    examples = [dataset[0, position] for position in range(8)]
    assert all(example.example in (0, 3, 6, 7) for example in examples)
    told = {position: example.substitutes[0] for position, example in enumerate(examples) if example.substitutes}
    assert sorted(told) == [1, 2, 4, 5]
    assert [told[i].key for i in sorted(told)] == ["sample_1", "example 2", "sample_4", "sample_5"]
    reasons = ["cannot be decoded", "not JSON", "38 frames, its record says 99", "no label"]
    for i, reason in zip(sorted(told), reasons, strict=True):
        assert reason in told[i].reason and "\n" not in told[i].reason
    again = mixture(task(damaged))
    assert all(same(example, again[0, position]) for position, example in reversed(list(enumerate(examples))))
    others = [mixture(task(damaged), seed=seed)[0, 1].example for seed in range(12)]
    assert len(set(others)) > 1


def test_bad_samples_of_an_evaluation_are_padding_with_a_reason(damaged):
    dataset = EvalDataset(task(damaged))
    assert [dataset[number].example for number in range(8)] == [0, PADDING, PADDING, 3, PADDING, 5, 6, 7]
    assert [bad.key for number in (1, 2, 4) for bad in dataset[number].substitutes] == [
        "sample_1",
        "example 2",
        "sample_4",
    ]
    assert dataset[1].clip.shape == dataset[0].clip.shape and int(dataset[1].labels) == -1
    assert int(dataset[5].labels) == -1 and dataset[5].substitutes == []
    assert dataset[PADDING].substitutes == []


@pytest.mark.parametrize("damage", ["cut short", "gone"])
def test_shards_that_break_during_a_run(classification, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(Path(classification.folder), folder)
    tar = folder / "kinetics-train-000001.tar"
    if damage == "gone":
        tar.unlink()
    else:
        tar.write_bytes(tar.read_bytes()[:600])
    dataset = mixture(task(ShardSet(folder / "kinetics-train")))
    whole = mixture(task(classification))
    assert same(dataset[0, 1], whole[0, 1])
    assert dataset[0, 6].substitutes[0].key == "example 6" and dataset[0, 6].example < 4


def test_a_set_of_bad_samples_ends_the_run(tmp_path):
    entries = [(record(f"sample_{number}"), b"not a video") for number in range(3)]
    shards = write_set(tmp_path, "broken", "train", "classification", [ClassInfo(0, "only")], entries)
    with pytest.raises(UserError, match=rf"broken: {ATTEMPTS + 1} samples .* in a row could not be used.*sample_\d"):
        mixture(task(shards))[0, 0]


def test_a_missing_index_is_no_bad_sample(tmp_path):
    shards = keyframe_set(tmp_path, clock_video())
    (tmp_path / "ava-train.index.npy").unlink()
    with pytest.raises(UserError, match=r"^\S+/ava-train\.index\.npy cannot be read"):
        mixture(task(shards))[0, 0]


def test_wrong_set_ups_are_refused(classification, tmp_path):
    with pytest.raises(UserError, match="is a localisation task"):
        TaskData("ava", "localisation", classification, VIEW)
    with pytest.raises(UserError, match="distinct"):
        mixture(task(classification), task(classification))
    with pytest.raises(UserError, match="seed"):
        mixture(task(classification), seed=-1)
    with pytest.raises(UserError, match=r"^ava: mixup: is for classification only"):
        TaskData("ava", "localisation", keyframe_set(tmp_path, clock_video()), replace(VIEW, mixup=0.5))
    with pytest.raises(UserError, match="no examples"):
        task(write_set(tmp_path, "none", "train", "classification", [], []))
