"""A user's mistakes, and sets that are damaged, told once and before any work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.errors import UserError
from tests.tiny_shards import make_classification_set
from tests.train.commands import run
from train.recipe import load_recipe
from train.tasks import open_tasks


def test_shards_that_were_packed_again_in_another_way_are_refused(world, train_here):
    train_here("out=packed", "workers=0")
    folder = world / "again"
    folder.mkdir()
    make_classification_set(folder, "kinetics", "train")
    change_manifest(folder / "kinetics-train.manifest.json", sha256="0" * 64)
    with pytest.raises(UserError, match=r"tasks.kinetics.shards: not the set that .* was trained on \(6 examples in"):
        train_here("out=packed", "--resume", f"tasks.kinetics.shards={folder}/kinetics-train")
    shutil.copytree(world, folder / "moved", ignore=shutil.ignore_patterns("again", "packed", "best"))
    train_here("out=packed", "--resume", f"tasks.kinetics.shards={folder}/moved/kinetics-train")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tasks.ava.shards=none/ava-train"], "no shards at none/ava-train"),
        (["optim.lrr=1"], "unknown key optim.lrr; did you mean optim.lr?"),
        (["tasks.ava.batch=3", "tasks.ava.micro_batch=1"], "tasks.ava.batch=3 does not divide over 2 ranks"),
        (
            ["tasks.ava.shards=kinetics-train"],
            "tasks.ava.kind=localisation, but shards=kinetics-train is a classification",
        ),
        (["model.num_heads=5"], "model: backbone"),
    ],
)
def test_a_mistake_is_told_once(world, args, message):
    done = run("torchrun", "--ds", "ds_configs/zero2.json", "--recipe", "recipe.yaml", "out=bad", *args, cwd=world)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and message in errors[0], done.stderr
    assert 'main.py", line' not in done.stderr, "a traceback"
    assert not (world / "bad").exists()


def change_index(path: Path, field: str, value: int) -> None:
    index = np.load(path)
    index[field] = value
    np.save(path, index)


def change_manifest(path: Path, **fields: object) -> None:
    manifest = json.loads(path.read_text())
    manifest["shards"][0] |= fields
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder, tar: tar.unlink(), "1 of .* tars of .* are missing .*000000.tar: No such file"),
        (lambda folder, tar: tar.write_bytes(tar.read_bytes()[:2000]), "000000.tar has 2000 bytes and not"),
        (lambda folder, tar: (folder / "kinetics-train.index.npy").unlink(), "index.npy cannot be read"),
        (
            lambda folder, tar: change_index(folder / "kinetics-train.index.npy", "shard", 7),
            "index.npy is not of these",
        ),
        (lambda folder, tar: change_index(folder / "kinetics-train.index.npy", "json_offset", 2**63), "6 of 6"),
        (lambda folder, tar: change_index(folder / "kinetics-train.index.npy", "video_bytes", 2**31), "6 of 6"),
        (lambda folder, tar: change_manifest(folder / "kinetics-train.manifest.json", examples="6"), "whole numbers"),
        (lambda folder, tar: change_manifest(folder / "kinetics-train.manifest.json", bytes=-1), "whole numbers"),
    ],
)
def test_a_set_that_is_not_whole_is_told_before_the_run(world, tmp_path, damage, message):
    shards = make_classification_set(tmp_path, "kinetics", "train")
    damage(tmp_path, tmp_path / shards.manifest.shards[0].name)
    recipe = load_recipe(world / "recipe.yaml", [f"tasks.kinetics.shards={tmp_path}/kinetics-train"])
    with pytest.raises(UserError, match=message):
        open_tasks(recipe)


def test_damage_that_a_run_can_bear_is_a_warning(world, tmp_path, capsys):
    shards = make_classification_set(tmp_path, "kinetics", "train")
    tar = tmp_path / shards.manifest.shards[0].name
    tar.write_bytes(tar.read_bytes()[:2000])
    recipe = load_recipe(world / "recipe.yaml", [f"tasks.kinetics.shards={tmp_path}/kinetics-train", "max_bad_share=1"])
    assert len(open_tasks(recipe, check=False)) == 2 and capsys.readouterr().err == ""
    assert len(open_tasks(recipe)) == 2
    assert "warning: tasks.kinetics.shards: 1 of" in (told := capsys.readouterr().err) and "cannot be read" in told


def test_without_shards_it_says_what_to_run(tmp_path):
    """The first thing that a newcomer may type."""
    done = run(
        "deepspeed", "--ds", "ds_configs/zero2.json", f"data_root={tmp_path}/none", f"out={tmp_path}/run", cwd=tmp_path
    )
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "pack_" in errors[0], done.stderr


def test_a_dead_rank_ends_the_job_with_its_reason(world):
    """A clip budget that one rank exceeds: its reason is told, and the others do not hang."""
    broken = world / "broken"
    broken.mkdir()
    shards = make_classification_set(broken, "kinetics", "train")
    for shard in shards.manifest.shards:
        tar = broken / shard.name
        tar.write_bytes(tar.read_bytes().replace(b"moov", b"mxxv"))
    done = run(
        "torchrun", "--ds", "ds_configs/zero2.json", "--recipe", "recipe.yaml", "out=dead",
        f"tasks.kinetics.shards={broken}/kinetics-train", cwd=world,
    )  # fmt: skip
    assert done.returncode != 0
    assert "samples of" in done.stderr and "in a row could not be used" in done.stderr
    assert 'main.py", line' not in done.stderr, "a traceback"
