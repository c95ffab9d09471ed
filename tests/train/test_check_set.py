"""What is looked at before a run: training videos that the validation set evaluates."""

import json

import pytest

from tests.tiny_shards import make_classification_set, make_localisation_set
from train.recipe import parse_recipe
from train.tasks import open_tasks

RECIPE = """
name: small
out: {folder}/run
steps: 10
eval_every: 10
model: {{name: vit_tiny, num_frames: 4, image_size: 32}}
tasks:
  k700: {{kind: classification, shards: {folder}/kinetics-train, batch: 4}}
  people: {{kind: localisation, shards: {folder}/people-train, val_shards: {folder}/people-val, batch: 4}}
"""


@pytest.mark.parametrize(
    ("listed", "dropped", "warned"),
    [
        ("youtube_id\nabc\ndef\n", {}, True),
        ("youtube_id\nabc\ndef\n", {"clips of --exclude-ids": 3}, False),
        ("youtube_id\n", {}, False),
        (None, {}, False),
    ],
)
def test_kinetics_videos_that_are_evaluated_are_warned_of(tmp_path, capsys, listed, dropped, warned):
    make_classification_set(tmp_path, "kinetics", "train")
    for split in ("train", "val"):
        make_localisation_set(tmp_path, "people", split)
    path = tmp_path / "kinetics-train.manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "settings": {**manifest.get("settings", {}), "dropped": dropped}}))
    if listed is not None:
        (tmp_path / "people-val.leaks.txt").write_text(listed)
    # Whether the run evaluates, or a later program.
    open_tasks(parse_recipe(RECIPE.format(folder=tmp_path), "recipe", ["eval_every=0"]))
    told = capsys.readouterr().err
    assert ("warning: " in told) == warned
    assert not warned or ("2 of its videos are training videos of Kinetics" in told and "--exclude-ids" in told)


@pytest.mark.parametrize(("stride", "packed", "warned"), [(4, 16, False), (5, 16, True), (5, None, False)])
def test_clips_longer_than_a_set_was_packed_for_are_warned_of(tmp_path, capsys, stride, packed, warned):
    make_classification_set(tmp_path, "kinetics", "train")
    for split in ("train", "val"):
        make_localisation_set(tmp_path, "people", split)
        path = tmp_path / f"people-{split}.manifest.json"
        settings = {"pack": {} if packed is None else {"window": packed}}
        path.write_text(json.dumps({**json.loads(path.read_text()), "settings": settings}))
    open_tasks(parse_recipe(RECIPE.format(folder=tmp_path), "recipe", [f"tasks.people.view.stride={stride}"]))
    told = [line for line in capsys.readouterr().err.splitlines() if "--window" in line]
    assert len(told) == (2 if warned else 0)
    assert not warned or ("span 16 frames" in told[0] and told[1].endswith("Pack the set anew with --window 20"))
