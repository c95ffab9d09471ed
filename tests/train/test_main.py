"""Training as a user starts it: under deepspeed, torchrun and python, on real shards, with the user's mistakes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.errors import UserError
from tests.dist import free_port
from tests.range_server import RangeServer
from tests.tiny_shards import make_classification_set, make_localisation_set
from train import evaluators, main
from train.checkpoint_files import read_state, whole_checkpoints
from train.evaluators import common
from train.launch import Rank
from train.recipe import PROJECT, load_recipe
from train.tasks import open_tasks
from train.whole_files import write_atomically

BIN = Path(sys.executable).parent
MAIN = str(PROJECT / "train" / "main.py")
ALONE = Rank(0, 1, torch.device("cpu"))
RECIPE = """
name: small
out: {folder}/run
steps: 4
workers: 1
log_every: 2
window: 2
model: {{name: vit_tiny, embed_dim: 32, depth: 2, num_heads: 2, num_frames: 4, image_size: 32}}
tasks:
  kinetics: {{kind: classification, shards: {folder}/kinetics-train, val_shards: {folder}/kinetics-val, batch: 4}}
  ava: {{kind: localisation, shards: {folder}/ava-train, val_shards: {folder}/ava-val, batch: 4, micro_batch: 2}}
"""
LOADED = {
    *("clips_per_second", "read_megabytes_per_second", "load_ms", "read_ms", "decode_ms", "view_ms", "send_ms"),
    *("padded_share", "substitutes"),
}
"""What TensorBoard shows of a task's loading; of a remote set there is more."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with shards and `recipe.yaml`."""
    folder = tmp_path_factory.mktemp("world")
    for split in ("train", "val"):
        make_classification_set(folder, "kinetics", split)
        make_localisation_set(folder, "ava", split)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


def launcher(kind: str) -> list[str]:
    if kind == "python":
        return [sys.executable, MAIN]
    if kind == "torchrun":
        rendezvous = ["--nnodes=1", "--nproc-per-node=2", f"--master-port={free_port()}"]
        return [sys.executable, "-m", "torch.distributed.run", *rendezvous, MAIN]
    return [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port()), MAIN]


def start(kind: str, *args: str, cwd: Path) -> subprocess.Popen[str]:
    # Without what an outer launcher may have set, and from a folder that is not the project's.
    outer = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
    env = {key: value for key, value in os.environ.items() if key not in outer}
    return subprocess.Popen(
        [*launcher(kind), *args], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(kind: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    process = start(kind, *args, cwd=cwd)
    try:
        out, err = process.communicate(timeout=150)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def weights(run_folder: Path) -> dict[str, torch.Tensor]:
    newest = (run_folder / "checkpoints" / "latest").read_text().strip()
    return load_file(run_folder / "checkpoints" / newest / "model.safetensors")


@pytest.fixture(scope="module")
def plain(world):
    """The run in one plain process."""
    done = run("python", "--recipe", "recipe.yaml", "out=plain", cwd=world)
    assert done.returncode == 0, done.stderr
    return world / "plain", done


def test_plain_python_trains(plain):
    folder, done = plain
    assert "kinetics: classification, 6 examples of 3 classes" in done.stdout
    assert "step 4/4" in done.stdout and "data wait" in done.stdout
    assert load_recipe(folder / "recipe.yaml").steps == 4
    (started,) = [json.loads(line) for line in (folder / "environment.jsonl").read_text().splitlines()]
    assert started["command"] == f"{MAIN} --recipe recipe.yaml out=plain" and started["from_step"] == 0
    assert started["ranks"] == 1 and started["hosts"] == {socket.gethostname(): {"cpu": 1}}
    assert started["python"] in sys.version and started["packages"]["torch"] == version("torch")
    assert f"torch {version('torch')}" in (folder / "log.txt").read_text()
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    wanted = {"loss/kinetics", "loss/ava", "train/lr", "train/gradient_norm", "speed/clips_per_second"}
    wanted |= {"speed/data_wait_share", "speed/tflops_per_rank", "speed/utilisation"}
    wanted |= {*(f"data/{task}/{name}" for task in ("kinetics", "ava") for name in LOADED)}
    assert wanted <= set(board.Tags()["scalars"])
    for event in board.Scalars("data/ava/load_ms"):
        parts = [board.Scalars(f"data/ava/{part}_ms") for part in ("read", "decode", "view")]
        own = [value.value for part in parts for value in part if value.step == event.step]
        assert all(value > 0 for value in own) and sum(own) <= event.value
    assert [event.step for event in board.Scalars("loss/ava")] == [2, 4]


def test_what_a_remote_set_costs_is_told(world, tmp_path):
    with RangeServer(world) as server:
        remote = f"tasks.kinetics.shards={server.url}/kinetics-train"
        options = ["--recipe", "recipe.yaml", "out=remote", "steps=2", f"cache.folder={tmp_path}", remote]
        done = run("python", *options, cwd=world)
    assert done.returncode == 0, done.stderr
    board = EventAccumulator(str(world / "remote" / "tensorboard"))
    board.Reload()
    extra = {"data/kinetics/cache_hit_rate", "data/kinetics/fetched_megabytes_per_second"}
    assert extra | {f"data/kinetics/{name}" for name in LOADED} <= set(board.Tags()["scalars"])
    assert not any(tag.startswith("data/ava/cache") for tag in board.Tags()["scalars"])
    assert all(0 < event.value <= 1 for event in board.Scalars("data/kinetics/cache_hit_rate"))


def test_a_worker_that_is_killed_ends_the_run_with_its_reason(world):
    process = start("python", "--recipe", "recipe.yaml", "out=killed", "steps=100000", "workers=2", cwd=world)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                break
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [int(pid) for pid in children if b"main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in errors, errors
    last = errors.splitlines()[-1]  # "rank 0" is in it where torch told of it in the middle of a step
    assert last.startswith("error: ") and "a process that loads data has died: " in last, errors
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_any_step_of_a_run_can_be_looked_at(world, plain):
    command = [sys.executable, "-m", "data.preview", "plain/recipe.yaml", "--step", "3", "--image", "step.png"]
    done = subprocess.run(command, cwd=world, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("step 3 of 4") and "loaded 8 clips" in done.stdout and (world / "step.png").exists()
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("  kinetics ", "  ava "))]
    assert [(row[0], int(row[1])) for row in rows] == [(t, p) for t in ("kinetics", "ava") for p in range(12, 16)]


@pytest.mark.parametrize("kind", ["deepspeed", "torchrun"])
def test_the_same_run_under_other_launchers(world, plain, kind):
    ds = "ds_configs/zero2.json"  # found in the project, wherever the command is given
    # Evaluations, with all that they show, change nothing of what is trained.
    more = ("eval_every=2", "eval_keyframes=1")
    done = run(kind, "--ds", ds, "--recipe", "recipe.yaml", f"out={kind}", *more, cwd=world)
    assert done.returncode == 0, done.stderr
    first, second = weights(plain[0]), weights(world / kind)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=2e-6)
    board = EventAccumulator(str(world / kind / "tensorboard")).Reload()
    pictures = ["kinetics/confusion", "ava/ap_by_frequency", "ava_keyframes/movie.2, 902 s"]
    assert {tag: [e.step for e in board.Images(tag)] for tag in board.Tags()["images"]} == {p: [2, 4] for p in pictures}
    assert [e.step for e in board.Scalars("ava_AP/action 7")] == [2, 4]


def test_a_finished_run_is_not_overwritten(world, plain):
    refused = run("python", "--recipe", "recipe.yaml", "out=plain", cwd=world)
    assert refused.returncode == 1
    assert (
        refused.stderr.strip() == "error: plain holds checkpoints: add --resume to go on, or out=FOLDER for another run"
    )
    again = run("python", "--recipe", "recipe.yaml", "out=plain", "--resume", cwd=world)
    assert again.returncode == 0 and "from step 4 on" in again.stdout
    started = [json.loads(line)["from_step"] for line in (world / "plain" / "environment.jsonl").open()]
    assert started == [0, 4], "a line for every start"
    other = run("python", "--recipe", "recipe.yaml", "out=plain", "--resume", "model.depth=3", cwd=world)
    assert other.returncode == 1
    assert "model.depth: 2 -> 3" in other.stderr and "Traceback" not in other.stderr


@pytest.fixture
def train_here(world, monkeypatch):
    """Runs train/main.py in this process."""
    monkeypatch.chdir(world)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    yield lambda *args: main.run(main.parser().parse_intermixed_args(["--recipe", "recipe.yaml", *args]), ALONE)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_best_checkpoint_is_kept_and_a_missed_evaluation_is_made_up_for(world, train_here, capsys):
    options = ("out=best", "keep=1", "save_every=3", "eval_every=2", "keep_best=[ava/mAP]", "workers=0")
    with pytest.raises(UserError, match=r"keep_best: ava/map is no metric of .*: kinetics/top1, .*, ava/mAP"):
        train_here(*options, "keep_best=[ava/map]")
    with pytest.raises(UserError, match="needs evaluations during training: give eval_every"):
        train_here(*options, "eval_every=0")
    assert not (world / "best").exists()
    train_here(*options)
    folder = world / "best" / "checkpoints"
    best = json.loads((folder / "best.json").read_text())["ava/mAP"]
    kept = {path.name: read_state(path).metrics for path in whole_checkpoints(folder)}
    assert best["value"] == kept[best["checkpoint"]]["ava/mAP"] == max(m["ava/mAP"] for m in kept.values())
    assert set(kept) == {best["checkpoint"], "step-000004"}
    assert "checkpoint best/checkpoints/step-000002" in capsys.readouterr().out, "best so far, though none was due"

    last = folder / "step-000004"
    metrics, state = kept["step-000004"], replace(read_state(last), metrics=None)  # as if killed before the evaluation
    write_atomically(last / "state.json", state.to_json())
    with (world / "best" / "recipe.yaml").open() as before:  # who reads it meanwhile has it whole: it is replaced
        train_here(*options, "--resume", "log_every=1", "eval_keyframes=2")
        assert "eval_keyframes: 8\n" in before.read()
    out = capsys.readouterr().out
    assert (
        "step 4: kinetics/top1" in out
        and "changed since best/checkpoints/step-000004:\n  eval_keyframes: 8 -> 2\n" in out
    )
    assert read_state(last).metrics == metrics
    train_here(*options, "--resume")
    assert "step 4: kinetics/top1" not in capsys.readouterr().out


def test_an_evaluation_that_breaks_off_costs_no_checkpoint(world, train_here, monkeypatch, capsys):
    def break_off(*args, **options):
        raise KeyboardInterrupt

    options = ("out=cut-short", "save_every=2", "eval_every=2", "workers=0")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(main, "evaluate_tasks", break_off)
        train_here(*options)
    folder = world / "cut-short" / "checkpoints"
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["step-000002"]
    train_here(*options, "--resume")
    assert ", from step 2 on" in (out := capsys.readouterr().out) and "step 2: kinetics/top1" in out
    assert read_state(folder / "step-000002").metrics is not None


@pytest.mark.parametrize(
    ("number", "ends"), [(signal.SIGUSR1, nullcontext), (signal.SIGINT, lambda: pytest.raises(KeyboardInterrupt))]
)
def test_a_signal_during_an_evaluation_ends_the_run_with_a_checkpoint_to_evaluate(
    number, ends, world, train_here, monkeypatch, capsys
):
    """SLURM's warning leaves less time than an evaluation of the full sets takes."""

    def warned(batches, *others):
        for batch in batches:
            yield batch
            os.kill(os.getpid(), number)

    out = f"out=warned-{number}"
    options = (out, "save_every=100", "eval_every=2", "workers=0", "eval_batch=1")
    monkeypatch.setattr(common, "HEED_EVERY", 1)
    with monkeypatch.context() as patch, ends():
        patch.setattr(evaluators, "progress", warned)
        train_here(*options)
    folder = world / out.partition("=")[2] / "checkpoints"
    assert [path.name for path in whole_checkpoints(folder)] == ["step-000002"]
    assert read_state(folder / "step-000002").metrics is None
    assert f"stopped by {number.name} in the evaluation after step 2;" in capsys.readouterr().out
    train_here(*options, "--resume")
    out = capsys.readouterr().out
    assert "step 2: kinetics/top1" in out and "step 4: kinetics/top1" in out and "done: 4 steps" in out
    assert read_state(folder / "step-000002").metrics is not None


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


def test_sigterm_saves_and_resume_is_bitwise(world):
    options = ["--ds", "ds_configs/zero2.json", "--recipe", "recipe.yaml", "steps=60", "save_every=1000", "log_every=1"]
    whole = run("deepspeed", *options, "out=whole", cwd=world)
    assert whole.returncode == 0, whole.stderr
    process = start("deepspeed", *options, "out=cut", cwd=world)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 3/"):
                # The command that the user sees: it ends alone, and its ranks have to notice.
                process.terminate()
                break
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert "stopped by SIGTERM after step" in out, out + err
    state = json.loads(next((world / "cut" / "checkpoints").glob("step-*/state.json")).read_text())
    assert 3 <= state["step"] < 60
    again = run("deepspeed", *options, "out=cut", "--resume", cwd=world)
    assert again.returncode == 0, again.stderr
    first, second = weights(world / "whole"), weights(world / "cut")
    assert all(torch.equal(first[name], second[name]) for name in first)


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
