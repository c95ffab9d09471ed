"""Checkpoints are whole or absent, and only the run that wrote one goes on from it."""

import copy
import json
import resource
import shutil
import signal
import subprocess
import threading

import pytest
import torch

from data.errors import UserError
from models import load_model
from tests.train.tiny_runs import build, made_up, tiny_recipe
from train.checkpoint import Checkpoints
from train.checkpoint_files import find_weights, read_state, whole_checkpoints
from train.launch import Rank
from train.optim_state import optimizer_file
from train.resume import recipe_changes, resume

OPTIMIZER = optimizer_file(0, 1)
ALONE = Rank(0, 1, torch.device("cpu"))


def go_on(run, other=None, config=None):
    recipe, engine, own, checkpoints = run
    return resume(checkpoints.newest_intact(ALONE), engine, other or recipe, config or own)


@pytest.fixture
def run(tmp_path):
    recipe = tiny_recipe(tmp_path / "run")
    engine, config, _ = build(recipe, ALONE, None)
    one_step(engine)
    return recipe, engine, config, Checkpoints(tmp_path / "run", keep=2)


def one_step(engine):
    """Of one task: the heads of the others have no optimizer state."""
    engine.backward(engine("look", torch.rand(2, 3, 4, 32, 32)).square().sum())
    engine.step(0.01, {"look": 1.0})


def test_the_newest_are_kept_and_named(run):
    recipe, engine, config, checkpoints = run
    assert checkpoints.newest() is None
    for step in (1, 2, 10):
        checkpoints.save(step, engine, recipe, config, ALONE)
    assert [path.name for path in whole_checkpoints(checkpoints.folder)] == ["step-000002", "step-000010"]
    assert (checkpoints.folder / "latest").read_text() == "step-000010\n"
    assert find_weights(recipe.out) == find_weights(checkpoints.folder) == checkpoints.newest()
    assert read_state(checkpoints.newest()).step == 10
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
        with pytest.raises(UserError, match=r"step-000002.partial cannot be written.*older ones are.*make room"):
            checkpoints.save(2, engine, recipe, config, ALONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert checkpoints.newest().name == "step-000001"
    assert not list(checkpoints.folder.glob("*.partial")), "what is half written keeps the disk full"
    assert go_on(run) == 1


def test_a_disk_that_is_really_full(run, tmp_path):
    recipe, engine, config, _ = run
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small disk")
    try:
        checkpoints = Checkpoints(small, keep=5)
        with pytest.raises(UserError, match=r"No space left on device.*older ones are.*make room.*--resume goes on"):
            for step in range(1, 20):
                checkpoints.save(step, engine, recipe, config, ALONE)
        last = checkpoints.newest_intact(ALONE)
        assert last is not None and resume(last, engine, recipe, config) == int(last.name[5:])
        shutil.rmtree(checkpoints.folder / "step-000001")
        checkpoints.save(19, engine, recipe, config, ALONE)
        assert checkpoints.newest_intact(ALONE).name == "step-000019"
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=3", "model.depth: 2 -> 3"),
        ("optim.lr=1", "optim.lr: 0.003 -> 1.0"),
        ("tasks.look.batch=16", "tasks.look.batch: 8 -> 16"),
        ("seed=1", "seed: 0 -> 1"),
        ("steps=30", "steps: 20 -> 30"),
        ("schedule=uniform", "schedule: accumulate -> uniform"),
        ("window=2", "window: 16 -> 2"),
        ("tasks.look.view.flip=false", "tasks.look.view.flip: True -> False"),
        ("tasks.where.loss_weight=1", "tasks.where.loss_weight: 3.0 -> 1.0"),
        ("precision=bf16", "precision: fp32 -> bf16"),
    ],
)
def test_another_recipe_is_refused_with_the_difference(run, override, message):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    with pytest.raises(UserError, match=rf"silently change the run:\n  {message}\n  workers: 0 -> 2 \(this one may"):
        go_on(run, tiny_recipe(recipe.out, override, "workers=2"))


def test_another_task_is_refused(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    other = copy.deepcopy(recipe)
    other.tasks["more"] = other.tasks.pop("other")
    with pytest.raises(UserError, match=r"tasks.more.batch: None -> 4"):
        go_on(run, other)


@pytest.mark.parametrize("schedule", ["accumulate", "task_by_task"])
def test_tasks_in_another_order_are_refused(run, schedule):
    """Their order decides what a step trains, and in which stage."""
    recipe, engine, config, checkpoints = run
    recipe.schedule = schedule
    checkpoints.save(1, engine, recipe, config, ALONE)
    other = copy.deepcopy(recipe)
    other.tasks["look"] = other.tasks.pop("look")
    with pytest.raises(UserError, match=r"tasks: in the order look, where, other -> where, other, look\n"):
        go_on(run, other)


def test_an_older_checkpoint_that_cannot_be_read_costs_no_newer_one(run, capsys):
    recipe, engine, config, checkpoints = run
    checkpoints = Checkpoints(recipe.out, keep=1, keep_best=("look/top1",))
    for step in (1, 2):
        checkpoints.save(step, engine, recipe, config, ALONE)
        checkpoints.note(step, {"look/top1": 1 - step / 10}, ALONE)
    (checkpoints.folder / "step-000001" / "state.json").write_text("{}")
    for step in (3, 4):
        checkpoints.save(step, engine, recipe, config, ALONE)
        checkpoints.note(step, {"look/top1": 0.1}, ALONE)
    assert checkpoints.is_best({"look/top1": 0.85}, ALONE)
    kept = [path.name for path in whole_checkpoints(checkpoints.folder)]
    assert kept == ["step-000001", "step-000002", "step-000004"], "the best that can be read, the newest, the damaged"
    assert capsys.readouterr().err.count("warning: ") == 1


def test_what_changes_no_number_may_change_and_is_shown(run):
    recipe, engine, config, checkpoints = run
    folder = checkpoints.save(3, engine, recipe, config, ALONE)
    harmless = ["workers=2", "tasks.look.micro_batch=2", "tasks.look.shards=elsewhere", "model.grad_checkpointing=full"]
    changed = tiny_recipe(recipe.out, *harmless)
    assert go_on(run, changed) == 3
    assert recipe_changes(folder, changed) == [
        "model.grad_checkpointing: none -> full",
        "tasks.look.micro_batch: 4 -> 2",
        "tasks.look.shards: none -> elsewhere",
        "workers: 0 -> 2",
    ]


def flipped(whole):
    """One bit, in a tensor or in a value of the JSON."""
    place = whole.find(b"vit_tiny") if b"vit_tiny" in whole else len(whole) - 1
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


@pytest.mark.parametrize("name", ["state.json", "config.json", "model.safetensors", OPTIMIZER])
@pytest.mark.parametrize("change", [lambda whole: whole[:700], lambda whole: b"", flipped, None])
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(run, capsys, name, change):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    file = checkpoints.save(2, engine, recipe, config, ALONE) / name
    if change is None:
        file.unlink()
    else:
        file.write_bytes(change(file.read_bytes()))
    assert go_on(run) == 1
    told = capsys.readouterr().err
    assert "step-000002 is damaged" in told and "going on from step-000001" in told
    assert (checkpoints.folder / "step-000002.damaged").is_dir()
    assert (checkpoints.folder / "latest").read_text() == "step-000001\n"


def test_a_checkpoint_that_is_gone_is_missed_by_nobody(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    shutil.rmtree(checkpoints.save(2, engine, recipe, config, ALONE))
    assert go_on(run) == 1


def test_no_run_begins_anew_unasked(run):
    recipe, engine, config, checkpoints = run
    (checkpoints.save(1, engine, recipe, config, ALONE) / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"is intact:\n  step-000001: model.safetensors has 0 bytes"):
        go_on(run)
    assert (checkpoints.folder / "step-000001").is_dir(), "only the user moves the last one"


def test_a_checkpoint_of_an_earlier_format_is_told(run):
    recipe, engine, config, checkpoints = run
    folder = checkpoints.save(1, engine, recipe, config, ALONE)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({key: state[key] for key in ("step", "world", "recipe")}))
    with pytest.raises(UserError, match=r"step-000001 has format 1 of checkpoints.*model\.init\.source"):
        go_on(run)
    assert read_state(folder).step == 1, "evaluation reads it"


def test_a_set_packed_with_its_classes_in_another_order_is_refused(run):
    recipe, engine, config, checkpoints = run
    checkpoints.save(1, engine, recipe, config, ALONE)
    other = copy.deepcopy(config)
    other["tasks"]["look"]["classes"].reverse()
    with pytest.raises(UserError, match=r"look.shards: .*5 classes then, 5 now; class 0 was '0' \(id 0\) and is '4'"):
        go_on(run, config=other)


def test_other_clips_are_refused(run):
    recipe, engine, config, checkpoints = run
    config["tasks"]["look"]["train_set"] = {"examples": 9, "shards": 2, "sha256": "a"}
    checkpoints.save(1, engine, recipe, config, ALONE)
    other = copy.deepcopy(config)
    assert go_on(run, config=other) == 1
    other["tasks"]["look"]["train_set"]["sha256"] = "b"
    with pytest.raises(UserError, match=r"9 examples in 2 shards now, and the tars are others"):
        go_on(run, config=other)
    other["tasks"]["look"]["train_set"]["examples"] = 8
    with pytest.raises(UserError, match=r"9 examples in 2 shards then, 8 examples in 2 shards now\)"):
        go_on(run, config=other)


def test_the_best_of_each_metric_is_kept(run):
    recipe, engine, config, _ = run
    checkpoints = Checkpoints(recipe.out, 1, ["look/top1", "where/mAP"])
    figures = [(0.1, 0.5), (0.3, 0.2), (0.2, 0.1), (0.2, float("nan"))]
    for step, metrics in enumerate(figures, start=1):
        scored = dict(zip(checkpoints.keep_best, metrics, strict=True))
        assert checkpoints.is_best(scored, ALONE) == (step in (1, 2))
        checkpoints.save(step, engine, recipe, config, ALONE)
        assert read_state(checkpoints.newest()).metrics is None
        checkpoints.note(step, scored, ALONE)
    assert [path.name for path in whole_checkpoints(checkpoints.folder)] == [f"step-00000{i}" for i in (1, 2, 4)]
    assert json.loads((checkpoints.folder / "best.json").read_text()) == {
        "look/top1": {"checkpoint": "step-000002", "value": 0.3},
        "where/mAP": {"checkpoint": "step-000001", "value": 0.5},
    }
    assert read_state(checkpoints.newest()).metrics == {"look/top1": 0.2}
    assert go_on((recipe, engine, config, checkpoints)) == 4, "noting a score damages nothing"


def test_scores_of_another_validation_set_are_not_compared(run):
    recipe, engine, config, _ = run
    checkpoints = Checkpoints(recipe.out, 1, ["look/top1", "ema/look/top1"])
    names = lambda: [path.name for path in whole_checkpoints(checkpoints.folder)]  # noqa: E731
    scores = [("easy", 0.9), ("easy", 0.8), ("full", 0.3), ("full", 0.2), ("full", 0.4)]
    for step, (val_set, score) in enumerate(scores, start=1):
        checkpoints.val_sets = {"look": val_set, "where": "the same"}
        metrics = {"look/top1": score, "ema/look/top1": score}
        assert checkpoints.is_best(metrics, ALONE) == (step in (1, 3, 5))
        checkpoints.save(step, engine, recipe, config, ALONE)
        if step == 3:
            assert names() == ["step-000001", "step-000003"], "the best so far stays until there is another"
        checkpoints.note(step, metrics, ALONE)
        if step == 4:
            assert names() == ["step-000003", "step-000004"]
    assert names() == ["step-000005"]
    checkpoints.val_sets = {}  # as checkpoints had it before they told: compared as ever
    assert checkpoints.is_best({"look/top1": 0.5}, ALONE) and not checkpoints.is_best({"look/top1": 0.3}, ALONE)


def test_what_is_best_no_longer_goes_at_the_end_too(run):
    recipe, engine, config, _ = run
    checkpoints = Checkpoints(recipe.out, 1, ["look/top1"])
    for step in (1, 2, 3):
        checkpoints.save(step, engine, recipe, config, ALONE)
        checkpoints.note(step, {"look/top1": step / 10}, ALONE)
    assert [path.name for path in whole_checkpoints(checkpoints.folder)] == ["step-000003"]


def test_a_checkpoint_is_of_the_step_at_which_it_was_begun(run):
    """Training goes on, in place, while it is written."""
    recipe, engine, config, checkpoints = run
    written = threading.Event()
    checkpoints._writer.submit(written.wait)  # nothing is written before
    before = {name: value.clone() for name, value in engine.module.state_dict().items()}
    momentum = copy.deepcopy(engine.optimizer.state_dict()["state"])
    checkpoints.begin(1, engine, recipe, config, ALONE)
    one_step(engine)
    assert checkpoints.finish(ALONE, wait=False) is None and checkpoints.newest() is None
    written.set()
    assert checkpoints.finish(ALONE) == checkpoints.newest()
    after = engine.optimizer.state_dict()["state"]
    assert not all(torch.equal(before[name], value) for name, value in engine.module.state_dict().items())
    assert go_on(run) == 1
    assert all(torch.equal(before[name], value) for name, value in engine.module.state_dict().items())
    loaded = engine.optimizer.state_dict()["state"]
    assert loaded.keys() == momentum.keys() == after.keys()
    for index, state in momentum.items():
        assert state.keys() == loaded[index].keys()
        assert all(torch.equal(value, loaded[index][key]) for key, value in state.items())


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
