"""Training examples by address: what they hold and what they depend on."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.dataset import TaskData
from data.errors import UserError
from data.shards import ClassInfo
from tests.data.examples import VIEW, evaluated, keyframe_set, mixture, record, same, task
from tests.tiny_shards import box_video, clock_video, read_clock, write_set


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
