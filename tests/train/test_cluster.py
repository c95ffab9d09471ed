"""Life on a cluster: the batch scripts on two hosts, requeueing, and a rank that is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from data.shards import ShardSet
from tests.shard_tools.raw import PICTURES, video
from tests.slurm import Slurm, directives, wait_for
from tests.train.commands import BIN, MAIN
from train.recipe import PROJECT

TRAIN, EVALUATE = PROJECT / "slurm" / "train.sbatch", PROJECT / "slurm" / "evaluate.sbatch"


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], str]]:
    """Two hosts: their names, and a command that runs others on one (`COMMAND HOST OTHER...`).

    Each has a network, a name and a hosts file of its own where this machine allows (root, ip); elsewhere they are two
    addresses of the loopback.
    """
    names = [f"cf{os.getpid()}{letter}" for letter in "ab"]
    addresses = ["10.231.7.1", "10.231.7.2"]
    files = [Path("/etc/netns") / name / "hosts" for name in names]
    made = []
    command = tmp_path_factory.mktemp("hosts") / "on"
    command.touch(0o755)

    def ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        for name, address, file in zip(names, addresses, files, strict=True):
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            file.parent.mkdir(parents=True)
            lines = [f"{other} {host}" for host, other in zip(names, addresses, strict=True)]
            file.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        subprocess.run(["ip", "netns", "exec", names[0], "unshare", "--uts", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        command.write_text('#!/bin/sh\nshift\nexec "$@"\n')
        yield ["127.0.0.1", "127.0.0.2"], str(command)
    else:
        inside = """'hostname "$0"; exec "$@"'"""
        command.write_text(
            f'#!/bin/sh\nhost=$1\nshift\nexec ip netns exec "$host" unshare --uts sh -c {inside} "$host" "$@"\n'
        )
        yield names, str(command)
    finally:
        for name in made:
            ip("netns", "del", name)
        for file in files:
            shutil.rmtree(file.parent, ignore_errors=True)


def ranks_below(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> dict[int, psutil.Process]:
    """The ranks that a launcher has started, by number. Their loader processes are no children of a launcher."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        above = child.parent()
        if "RANK" in child.environ() and above is not None and "RANK" not in above.environ():
            found[int(child.environ()["RANK"])] = child
    return found


def kill_all(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Ends a test's processes, whatever has happened."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


@pytest.mark.timeout(600)  # three starts of two launchers each
def test_a_job_on_two_hosts_saves_at_the_warning_is_requeued_and_goes_on(world, hosts, tmp_path, monkeypatch):
    nodes, on = hosts
    monkeypatch.chdir(world)
    monkeypatch.setenv("COFINETUNING_PROJECT", str(PROJECT))
    cluster = Slurm(tmp_path / "slurm", nodes, gpus=1, enter=on)
    assert directives(TRAIN)["signal"] == "B:USR1@120" and "requeue" in directives(TRAIN)
    log = tmp_path / "train.log"
    options = ["--recipe", "recipe.yaml", "out=job", "steps=60", "save_every=1000", "log_every=1"]
    job = cluster.start(TRAIN, *options, job=4242, log=log)
    try:
        assert wait_for(lambda: "step 3/60" in log.read_text(), job, 150), log.read_text()
        job.send_signal(signal.SIGUSR1)  # to the batch shell alone
        assert job.wait(150) == 0, log.read_text()
        assert "2 processes on cpu" in log.read_text() and "stopped by" in log.read_text()
        assert cluster.requeued(4242)
        job = cluster.start(TRAIN, *options, job=4242, log=log)
        assert job.wait(150) == 0, log.read_text()
        assert "done: 60 steps" in log.read_text() and not cluster.requeued(4242)
        one = Slurm(tmp_path / "one", nodes[:1], gpus=1, enter=on)
        job = one.start(EVALUATE, "--checkpoint", "job", job=4243, log=log)
        assert job.wait(150) == 0, log.read_text()
    finally:
        kill_all(job)
    steps = [int(number) for number in re.findall(r"^step (\d+)/60", log.read_text(), re.MULTILINE)]
    assert steps == list(range(1, 61)), "each step once"
    assert {"kinetics", "ava"} <= set(json.loads((world / "job" / "eval" / "metrics.json").read_text())["tasks"])


TORCHRUN = """#!{python}
import signal, subprocess, sys
rank = '''
import signal, sys, time
time.sleep(1.5)
print("ready", flush=True)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
time.sleep(60)
sys.exit(1)
'''
sys.exit(subprocess.call([sys.executable, "-c", rank]))
"""


def test_a_warning_reaches_ranks_that_are_still_starting(tmp_path):
    (tmp_path / "torchrun").write_text(TORCHRUN.format(python=sys.executable))
    (tmp_path / "torchrun").chmod(0o755)
    names = {**dict.fromkeys(("HEAD_NODE", "SLURMD_NODENAME"), "here"), "HEAD_PORT": "1", "SLURM_JOB_ID": "1"}
    own = {**os.environ, **names, "SLURM_NNODES": "1", "SLURM_NODEID": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    node = subprocess.Popen([str(PROJECT / "slurm" / "node.sh"), "x"], env=own, stdout=subprocess.PIPE, text=True)
    try:
        assert wait_for(lambda: bool(psutil.Process(node.pid).children(recursive=True)[1:]), node, 20)
        node.send_signal(signal.SIGUSR1)
        out, _ = node.communicate(timeout=40)
    finally:
        kill_all(node)
    assert (node.returncode, out) == (0, "ready\n")


# What `deepspeed --hostfile` calls, but on this machine.
SSH = """#!/bin/bash
while [ "$1" = -o ]; do shift 2; done
host=$1; shift
exec {on} "$host" "$@"
"""
PDSH = """#!/bin/bash
while [ "${{1#-}}" != "$1" ]; do
    case $1 in -S) shift ;; -f) shift 2 ;; -w) IFS=, read -ra hosts <<< "$2"; shift 2 ;; esac
done
ranks=() code=0
for n in "${{!hosts[@]}}"; do
    host=${{hosts[n]}}
    {on} "$host" sh -c "${{*//%n/$n}}" &
    ranks+=($!)
done
for rank in "${{ranks[@]}}"; do wait "$rank" || code=$?; done
exit $code
"""


def test_a_killed_rank_ends_a_job_of_a_hostfile_and_the_log_begins_with_it(world, hosts, tmp_path, monkeypatch):
    """pdsh ends with its last host, DeepSpeed's launcher knows its own host alone: the ranks have to do it."""
    nodes, on = hosts
    for name, text in (("ssh", SSH), ("pdsh", PDSH)):
        (tmp_path / name).write_text(text.format(on=on))
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hostfile").write_text("".join(f"{node} slots=1\n" for node in nodes))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launcher = [str(BIN / "deepspeed"), "--hostfile", str(tmp_path / "hostfile"), "--master_addr", nodes[0], MAIN]
    options = ["--ds", "ds_configs/zero2.json", "--recipe", "recipe.yaml", "out=killed", "steps=100000", "log_every=1"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*launcher, *options], cwd=world, stdout=pipe, stderr=pipe, text=True)
    try:
        assert process.stdout is not None
        assert any(line.startswith("step 2/") for line in process.stdout), process.stderr.read()
        victim = ranks_below(process)[1]
        victim.kill()
        began = time.monotonic()
        _, err = process.communicate(timeout=60)
        assert time.monotonic() - began < 60 and process.returncode != 0
    finally:
        kill_all(process)
    told = [line for line in err.splitlines() if "rank 1" in line or "Traceback" in line]
    assert told[0].startswith(f"error: rank 1 (process {victim.pid} on ") and "died without a word" in told[0]
    assert 'main.py", line' not in err, "a traceback"


def test_a_job_array_packs_a_set(tmp_path, monkeypatch):
    for n in range(4):
        video(tmp_path / "videos" / f"id{n}.mp4", PICTURES, 1.0)
    rows = [f"{'run' if n % 2 else 'jump'},id{n},0,1,train" for n in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["label,youtube_id,time_start,time_end,split", *rows]) + "\n")
    monkeypatch.chdir(tmp_path)
    # From another folder: scripts are looked up in the project too.
    command = [
        "bash",
        PROJECT / "slurm" / "pack.sbatch",
        "shard_tools/pack_kinetics.py",
        "--annotations",
        tmp_path / "list.csv",
    ]
    command += [
        "--videos",
        tmp_path / "videos",
        "--out",
        tmp_path / "out",
        "--split",
        "train",
        "--samples-per-shard",
        "2",
    ]
    array = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
    jobs = [
        subprocess.Popen(
            [str(word) for word in command],
            env={**os.environ, **array, "COFINETUNING_PROJECT": str(PROJECT), "SLURM_ARRAY_TASK_ID": number},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in ("1", "2")
    ]
    told = [job.communicate(timeout=120)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], told
    assert ShardSet(tmp_path / "out" / "kinetics-train").manifest.samples == 4


@pytest.mark.parametrize(
    ("array", "told"),
    [
        # --array=3,7 of the jobs that failed: their parts of 32 would be 0/2 and 4/2
        ({"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_COUNT": "2"}, "--array has gaps"),
        ({}, "submit a job array"),
    ],
)
def test_a_job_array_with_gaps_is_refused(array, told):
    slurm = {"SLURM_SUBMIT_DIR": str(PROJECT), "SLURM_ARRAY_TASK_ID": "7", **array}
    command = ["bash", str(PROJECT / "slurm" / "pack.sbatch"), "shard_tools/pack_kinetics.py"]
    done = subprocess.run(command, env={**os.environ, **slurm}, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "error: " in done.stderr and told in done.stderr
