"""Training as a user starts it: under deepspeed, torchrun and python, on real shards."""

import json
import os
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.range_server import RangeServer
from tests.train.commands import MAIN, run, start, weights
from train.recipe import load_recipe

LOADED = {
    *("clips_per_second", "read_megabytes_per_second", "load_ms", "read_ms", "decode_ms", "view_ms", "send_ms"),
    *("padded_share", "substitutes"),
}
"""What TensorBoard shows of a task's loading; of a remote set there is more."""


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
