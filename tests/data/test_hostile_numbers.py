"""Numbers of an index or a record that no file can have: they cost their own clip, or nothing."""

import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from data import storage
from data.dataset import EvalDataset
from data.fetch import RemoteFile
from data.load import BadSample, TaskData, load_example, load_keyframe
from data.shard_cache import ShardCache
from data.shards import ClassInfo, ShardSet
from data.storage import Damaged, Retry
from data.view import ViewConfig
from tests.tiny_shards import class_video, video_record, write_set

OUT = "the index points out of shard"
QUICK = Retry(attempts=3, first_s=0.01, most_s=0.02)


def task(shards: ShardSet, **changes: Any) -> TaskData:
    view = ViewConfig(**{"num_frames": 4, "image_size": 64, "stride": 2, **changes})
    return TaskData("task", shards.manifest.kind, shards, view)


def trained(data: TaskData, example: int = 0):
    return load_example(data, example, np.random.default_rng(0))


@pytest.mark.parametrize("member", ["json", "video"])
@pytest.mark.parametrize("offset", [2**40, 2**63, 2**64 - 1])
def test_an_index_that_points_out_of_a_shard(localisation, tmp_path, member, offset):
    folder = tmp_path / "copy"
    shutil.copytree(Path(localisation.folder), folder)
    index = np.load(folder / "ava-train.index.npy")
    index[f"{member}_offset"][1] = offset
    np.save(folder / "ava-train.index.npy", index)
    data = task(ShardSet(folder / "ava-train"))
    with pytest.raises(BadSample, match=OUT):
        trained(data, 1)
    with pytest.raises(BadSample, match=OUT):
        load_keyframe(data, 1)
    assert OUT in EvalDataset(data)[1].substitutes[0].reason
    assert torch.equal(trained(data, 2).clip, trained(task(localisation), 2).clip)


@pytest.mark.parametrize("whole_shards", [True, False])
def test_an_index_that_points_out_of_a_remote_shard(classification, tmp_path, monkeypatch, whole_shards):
    monkeypatch.setattr(storage, "RETRY", QUICK)
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{classification.folder}/", "/odd/", recursive=True)
    index = np.array(classification.index)
    index["video_offset"][4] = 2**63
    with filesystem.open("/odd/kinetics-train.index.npy", "wb") as file:
        np.save(file, index)
    shards = ShardSet("memory://odd/kinetics-train", ShardCache(tmp_path / "cache", 10**8, QUICK))
    dataset = EvalDataset(task(shards if whole_shards else shards.by_range()))
    assert OUT in dataset[4].substitutes[0].reason
    assert torch.equal(dataset[5].clip, EvalDataset(task(classification))[5].clip)


@pytest.mark.parametrize("size", [{"width": 10**400}, {"height": 10**400}, {"width": 10**400, "height": 10**400}])
@pytest.mark.parametrize("view", [{}, {"scale": (0.3, 0.4)}, {"short_side": (64, 80)}])
def test_a_size_of_the_record_that_no_video_has_is_not_believed(tmp_path, size, view):
    clips = []
    for number, changed in enumerate(({}, size)):
        record = {"key": "sample", "label": 0, "video": {**video_record(38), **changed}}
        names = [ClassInfo(0, "only")]
        shards = write_set(tmp_path / str(number), "k", "train", "classification", names, [(record, class_video(0, 3))])
        clips.append((trained(task(shards, **view)).clip, EvalDataset(task(shards, **view))[0].clip))
    assert all(torch.equal(one, other) for one, other in zip(*clips, strict=True))


def test_a_file_that_ends_early_where_the_server_says_nothing_of_it(tmp_path):
    """Past its end, such a file system gives no bytes and no error."""
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe("/short/a.tar", bytes(1000))
    cache = ShardCache(tmp_path / "cache", 10**8, QUICK)
    with pytest.raises(Damaged, match="has 1000 bytes, the manifest says 3000: upload it again"):
        cache.read(RemoteFile("memory://short/a.tar", 3000, "a" * 64, None), 0, 10)
