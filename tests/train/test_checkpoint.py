"""Checkpoints are whole or absent, and only the run that wrote one goes on from it."""

import json
import resource
import signal

import pytest
import torch

from data.errors import UserError
from models import load_model
from tests.train.tiny_runs import build, made_up, tiny_recipe
from train.checkpoint import Checkpoints, find_weights, read_state, whole_checkpoints
from train.launch import Rank

ALONE = Rank(0, 1, torch.device("cpu"))


@pytest.fixture
def run(tmp_path):
    recipe = tiny_recipe(tmp_path / "run")
    engine, config, _ = build(recipe, ALONE, None)
    return recipe, engine, config, Checkpoints(tmp_path / "run", keep=2)


def test_the_newest_are_kept_and_named(run):
    recipe, engine, config, checkpoints = run
    assert checkpoints.newest() is None
    for step in (1, 2, 10):
        checkpoints.save(step, engine, recipe, config, ALONE)
    assert [path.name for path in whole_checkpoints(checkpoints.folder)] == ["step-000002", "step-000010"]
    assert (checkpoints.folder / "latest").read_text() == "step-000010\n"
    assert find_weights(recipe.out) == find_weights(checkpoints.folder) == checkpoints.newest()
    assert read_state(checkpoints.newest())["step"] == 10
    assert not list(checkpoints.folder.glob("*.partial"))


def test_the_weights_stand_on_their_own(run):
    recipe, engine, config, checkpoints = run
    folder = checkpoints.save(1, engine, recipe, config, ALONE)
    model, loaded = load_model(folder)
    clip = made_up(recipe, "look", 0).clip[None]
    assert torch.equal(model.eval()("look", clip), engine.module.eval()("look", clip))
    assert loaded["tasks"]["look"]["classes"][1] == {"id": 1, "name": "1"}
    assert loaded["tasks"]["where"]["view"]["num_frames"] == 4


def test_a_checkpoint_that_was_cut_off_is_not_there(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    cut = checkpoints.folder / "step-000002.partial"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes(b"half")
    assert checkpoints.newest().name == "step-000001"
    checkpoints.save(2, engine, recipe, config, ALONE)
    assert checkpoints.newest().name == "step-000002" and not cut.exists()


def test_a_full_disk_leaves_the_older_one(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write past the limit is an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"step-000002.partial cannot be written.*older ones are untouched"):
            checkpoints.save(2, engine, recipe, config, ALONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert checkpoints.newest().name == "step-000001"
    assert checkpoints.resume(engine, recipe) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=3", "model.depth: 2 -> 3"),
        ("optim.lr=1", "optim.lr: 0.003 -> 1.0"),
        ("tasks.look.batch=16", "tasks.look.batch: 8 -> 16"),
    ],
)
def test_another_recipe_is_refused_with_the_difference(run, override, message):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    with pytest.raises(UserError, match=message):
        checkpoints.resume(engine, tiny_recipe(recipe.out, override))


def test_what_changes_no_number_may_change(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(3, engine, recipe, config, ALONE)
    harmless = ["workers=2", "tasks.look.micro_batch=2", "tasks.look.shards=elsewhere", "save_every=7"]
    assert checkpoints.resume(engine, tiny_recipe(recipe.out, *harmless)) == 3


def test_a_damaged_state_is_told(run):
    recipe, engine, config, checkpoints = run
    folder = checkpoints.save(1, engine, recipe, config, ALONE)
    (folder / "state.json").write_text(json.dumps({"step": "x"}))
    with pytest.raises(UserError, match=r"state.json cannot be read"):
        checkpoints.resume(engine, recipe)


@pytest.mark.parametrize("damage", [lambda whole: whole[:2000], lambda whole: b"", lambda whole: b"\x80\x02K\x01."])
def test_a_damaged_file_is_told(run, damage):
    recipe, engine, config, checkpoints = run
    file = checkpoints.save(1, engine, recipe, config, ALONE) / "plain.pt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"plain.pt cannot be loaded.*move step-000001"):
        checkpoints.resume(engine, recipe)


def test_no_weights_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        find_weights(tmp_path)


def test_another_run_can_start_from_its_backbone(run, tmp_path):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    longer = tiny_recipe(tmp_path / "second", f"model.init.source={recipe.out}", "model.num_frames=8", "seed=5")
    second = build(longer, ALONE, None)[0].module
    for name, value in engine.module.backbone.state_dict().items():
        if name != "pos_embed":  # interpolated over time
            assert torch.equal(second.backbone.state_dict()[name], value), name
    head = "heads.look.fc.weight"
    assert not torch.equal(second.state_dict()[head], engine.module.state_dict()[head])


def test_a_source_that_does_not_fit_is_told(run, tmp_path):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    other = tiny_recipe(tmp_path / "second", f"model.init.source={recipe.out}", "model.depth=3")
    with pytest.raises(UserError, match=r"model\.init\.source"):
        build(other, ALONE, None)
