"""Checkpoints are whole or absent, and only the run that wrote one goes on from it."""

import copy
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


def resume(run, other=None):
    recipe, engine, config, checkpoints = run
    return checkpoints.resume(engine, other or recipe, config, checkpoints.newest_intact(ALONE))


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
    assert resume(run) == 1


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
        resume(run, tiny_recipe(recipe.out, override))


def test_what_changes_no_number_may_change(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(3, engine, recipe, config, ALONE)
    harmless = ["workers=2", "tasks.look.micro_batch=2", "tasks.look.shards=elsewhere", "save_every=7"]
    assert resume(run, tiny_recipe(recipe.out, *harmless)) == 3


def flipped(whole):
    return whole[:-1] + bytes([whole[-1] ^ 1])


@pytest.mark.parametrize("name", ["state.json", "config.json", "model.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize("change", [lambda whole: whole[:1000], lambda whole: b"", flipped, None])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(run, capsys, name, change):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    file = checkpoints.save(2, engine, recipe, config, ALONE) / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    assert resume(run) == 1
    if name != "state.json" or change is not None:  # without it, nothing says that there was one
        assert "step-000002 is damaged" in capsys.readouterr().err
        assert (checkpoints.folder / "step-000002.damaged").is_dir()


def test_no_run_begins_anew_unasked(run):
    recipe, engine, config, checkpoints = run
    (checkpoints.save(1, engine, recipe, config, ALONE) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint of .* is intact"):
        resume(run)


def test_classes_in_another_order_are_refused(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    other = copy.deepcopy(config)
    other["tasks"]["look"]["classes"].reverse()
    with pytest.raises(UserError, match=r"tasks.look.shards: its classes.*class 0 was '0' and is '4'"):
        checkpoints.resume(engine, recipe, other, checkpoints.newest())


def test_the_best_of_each_metric_is_kept(run):
    recipe, engine, config, _ = run
    checkpoints = Checkpoints(recipe.out, 1, ["look/top1", "where/mAP"])
    for step, metrics in enumerate([(0.1, 0.5), (0.3, 0.2), (0.2, 0.1), (0.2, 0.3)], start=1):
        scored = dict(zip(checkpoints.keep_best, metrics, strict=True))
        assert checkpoints.is_best(scored) == (step in (1, 2))
        checkpoints.save(step, engine, recipe, config, ALONE)
        checkpoints.score(step, scored, ALONE)
    assert [path.name[-1] for path in whole_checkpoints(checkpoints.folder)] == ["1", "2", "4"]


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
