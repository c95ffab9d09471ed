"""A fifth classification set and a second localisation set: packed under their own names, added by a recipe alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from shard_tools import pack_ava, pack_kinetics
from shard_tools.verify import verify
from tests.shard_tools.raw import PICTURES, run_command, video
from tests.train.commands import MAIN, make_world

LABELMAP = 'item { name: "walk the dog" id: 3 }\nitem { name: "feed the cat" id: 9 }\n'
NEW = """
base: recipe.yaml
name: new
out: new_run
eval_every: 4
tasks:
  gym: {kind: classification, shards: shards/gym-train, val_shards: shards/gym-val, batch: 4}
  zoo:
    kind: localisation
    shards: shards/zoo-train
    val_shards: shards/zoo-val
    batch: 2
    view: {eval_boxes: groundtruth}
"""


def pack_new_sets(folder: Path, split: str) -> None:
    common = ("--videos", folder / "videos", "--out", folder / "shards", "--split", split, "--workers", 2)
    (folder / "gym.csv").write_text(
        f"label,youtube_id,time_start,time_end,split\nrun,v0,0,2,{split}\njump,v1,0,2,{split}\n"
    )
    assert run_command(pack_kinetics, "--annotations", folder / "gym.csv", "--dataset", "gym", *common) == 0
    (folder / "zoo.csv").write_text("film,0002,0.1,0.1,0.6,0.9,3,0\nfilm,0003,0.1,0.1,0.6,0.9,9,0\n")
    (folder / "zoo.pbtxt").write_text(LABELMAP)
    files = ("--annotations", folder / "zoo.csv", "--labelmap", folder / "zoo.pbtxt", "--movie-start", 0)
    assert run_command(pack_ava, *files, "--dataset", "zoo", *common) == 0


def test_new_sets_are_added_by_a_recipe_alone(tmp_path):
    make_world(tmp_path)
    for name in ("v0", "v1"):
        video(tmp_path / "videos" / f"{name}.mp4", PICTURES, 2.0)
    video(tmp_path / "videos" / "film.mp4", PICTURES, 6.0)
    for split in ("train", "val"):
        pack_new_sets(tmp_path, split)
    assert verify(tmp_path / "shards", True, 1) == 0
    (tmp_path / "new.yaml").write_text(NEW)
    done = subprocess.run(
        [sys.executable, MAIN, "--recipe", "new.yaml"], cwd=tmp_path, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    assert "gym: classification, 2 examples of 2 classes" in done.stdout
    assert "zoo: localisation, 2 examples of 2 classes" in done.stdout
    assert "step 4/4  kinetics " in done.stdout and "gym/top1" in done.stdout and "zoo/mAP" in done.stdout


@pytest.mark.parametrize("name", ["../out", "a/b", "", "a b", "a.b"])
@pytest.mark.parametrize("module", [pack_kinetics, pack_ava])
def test_a_name_that_is_a_path_is_refused(tmp_path, capsys, module, name):
    with pytest.raises(SystemExit) as ended:
        run_command(module, "--dataset", name, "--videos", tmp_path, "--out", tmp_path / "shards", "--split", "train")
    assert ended.value.code == 2 and "more in it than letters, digits, _ and -" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
