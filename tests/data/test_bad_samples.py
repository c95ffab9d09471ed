"""What takes the place of a bad sample, and when a run ends over them."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from data import shards as shards_module
from data.batch import PADDING
from data.dataset import ATTEMPTS, EvalDataset
from data.errors import UserError
from data.shards import ClassInfo, ShardSet
from tests.data.examples import keyframe_set, mixture, record, same, task
from tests.tiny_shards import clock_video, write_set


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


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOTCONN])
def test_what_is_not_the_samples_fault_ends_the_run(classification, monkeypatch, number):
    """Its clips are good: others in their place would change what is learned."""

    def fails(*args):
        raise OSError(number, os.strerror(number), "x.tar")

    monkeypatch.setattr(shards_module, "read_range", fails)
    with pytest.raises(UserError, match=f"x.tar: {os.strerror(number)}: .* can be resumed later"):
        mixture(task(classification))[0, 1]


def test_a_set_of_bad_samples_ends_the_run(tmp_path):
    entries = [(record(f"sample_{number}"), b"not a video") for number in range(3)]
    shards = write_set(tmp_path, "broken", "train", "classification", [ClassInfo(0, "only")], entries)
    with pytest.raises(UserError, match=rf"broken: {ATTEMPTS + 1} samples .* in a row could not be used.*sample_\d"):
        mixture(task(shards))[0, 0]


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\x80\x04.", b""])
def test_an_index_that_is_something_else(tmp_path, content):
    shards = keyframe_set(tmp_path, clock_video())
    (tmp_path / "ava-train.index.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"ava-train\.index\.npy cannot be read .*: pack the dataset again"):
        mixture(task(shards))[0, 0]
    with (tmp_path / "ava-train.index.npy").open("wb") as file:
        np.savez(file, index=np.zeros(3))
    with pytest.raises(UserError, match=r"ava-train\.index\.npy cannot be read .*: pack the dataset again"):
        mixture(task(ShardSet(tmp_path / "ava-train")))[0, 0]


def test_a_missing_index_is_no_bad_sample(tmp_path):
    shards = keyframe_set(tmp_path, clock_video())
    (tmp_path / "ava-train.index.npy").unlink()
    with pytest.raises(UserError, match=r"^\S+/ava-train\.index\.npy cannot be read"):
        mixture(task(shards))[0, 0]
