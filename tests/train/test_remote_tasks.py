"""Opening the tasks of a recipe whose shards are remote."""

from pathlib import Path

import fsspec
import pytest

from data.errors import UserError
from tests.tiny_shards import make_classification_set
from train.recipe import Recipe, parse_recipe
from train.tasks import Task, mixture, open_tasks

RECIPE = """
name: remote
out: /tmp/run
steps: 10
data_root: memory://tasks
model: {name: vit_tiny, num_frames: 4, image_size: 32}
tasks:
  kinetics: {kind: classification, shards: "${data_root}/kinetics-train", val_shards: "${data_root}/kinetics-val"}
"""


@pytest.fixture
def remote(tmp_path, monkeypatch):
    monkeypatch.setenv("COFINETUNING_CACHE", str(tmp_path / "cache"))
    shards = make_classification_set(tmp_path / "sets", "kinetics", "train", samples=6, shards=3)
    make_classification_set(tmp_path / "sets", "kinetics", "val", samples=2, shards=1)
    fsspec.filesystem("memory").put(f"{tmp_path}/sets/", "/tasks/", recursive=True)
    return shards


def opened(*overrides: str) -> tuple[Recipe, Task]:
    recipe = parse_recipe(RECIPE, "recipe", list(overrides))
    (task,) = open_tasks(recipe)
    return recipe, task


def test_remote_tasks_share_a_cache(remote, tmp_path):
    recipe, task = opened()
    assert task.train.shards.cache is task.val.shards.cache and task.train.shards.whole_shards
    assert Path(task.train.shards.cache.folder) == tmp_path / "cache" and task.train.shards.cache.max_bytes == 100e9
    assert mixture([task], recipe)[0, 0].key.startswith("kinetics_")
    recipe, task = opened(f"cache.folder={tmp_path}/named", "cache.max_gb=0.5", "cache.whole_shards=false")
    assert Path(task.train.shards.cache.folder) == tmp_path / "named" and task.train.shards.cache.max_bytes == 5e8
    assert not task.train.shards.whole_shards and not task.val.shards.whole_shards
    assert mixture([task], recipe)[0, 0].key.startswith("kinetics_")
    assert [path.name for path in (tmp_path / "named").iterdir() if path.stat().st_size > 1000] == []


def test_a_cache_that_does_not_hold_what_is_read_by_turns_is_refused(remote):
    sizes = sorted(shard.bytes for shard in remote.manifest.shards)
    gigabytes = sum(sizes[1:]) / 1e9
    opened("window=2", f"cache.max_gb={gigabytes * 1.01}")
    with pytest.raises(UserError, match=r"cache\.max_gb=.* is too little: .*window=2.*give cache\.max_gb=1, a smaller"):
        opened("window=2", f"cache.max_gb={gigabytes * 0.99}")
    opened("window=2", f"cache.max_gb={gigabytes * 0.99}", "cache.whole_shards=false")
    opened("window=1", f"cache.max_gb={gigabytes * 0.99}")
    with pytest.raises(UserError, match=r"cache\.max_gb=0.*must be above 0"):
        opened("cache.max_gb=0")
