"""A manifest comes from outside: whatever is wrong with it is told where it is read."""

import json
from typing import Any

import pytest

from data.errors import UserError
from data.shards import ClassInfo, Manifest, ShardInfo

CLASSES = [ClassInfo(1, "run"), ClassInfo(3, "sit")]
GOOD = Manifest("ava", "train", "localisation", CLASSES, [ShardInfo("a.tar", 1, 2, 3, "0" * 64)], {"missing": 1})


def read(**changes: Any) -> Manifest:
    return Manifest.from_json(json.dumps(json.loads(GOOD.to_json()) | changes), "the manifest")


def test_a_manifest_comes_back():
    assert read() == GOOD


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": [{"id": [1], "name": "run"}]},
            r"a class needs a whole number as id and a text as name, not \[1\]",
        ),
        ({"classes": [{"id": True, "name": "run"}]}, "a whole number as id"),
        ({"classes": [{"id": 1.0, "name": "run"}]}, "a whole number as id"),
        ({"classes": [{"id": -1, "name": "run"}]}, "a whole number as id"),
        ({"classes": [{"id": 1, "name": ["run"]}]}, "a text as name"),
        ({"classes": [{"id": 1, "name": "run"}, {"id": 1, "name": "sit"}]}, "two classes have one id"),
        ({"classes": 5}, "not a shard manifest"),
        ({"failures": 5}, "failures must be an object of counts, not 5"),
        ({"failures": ["missing"]}, "failures must be an object of counts"),
        ({"failures": {"missing": "1"}}, "failures must be an object of counts"),
        ({"failures": {"missing": [1]}}, "failures must be an object of counts"),
        ({"dataset": 5}, "dataset must be a text, not 5"),
        ({"split": ["train"]}, "split must be a text"),
        ({"settings": 3}, "settings must be an object, not 3"),
    ],
)
def test_what_is_wrong_with_a_manifest_is_told(changes, message):
    with pytest.raises(UserError, match=rf"the manifest: .*{message}.*pack the dataset again"):
        read(**changes)


@pytest.mark.parametrize("name", ["../a.tar", "b/a.tar", "..", "", ".tar", "a\0.tar", "a.tar\n", "a"])
def test_a_shard_is_a_file_beside_the_manifest(name):
    (shard,) = json.loads(GOOD.to_json())["shards"]
    with pytest.raises(UserError, match="is not a plain file name"):
        read(shards=[shard | {"name": name}])
