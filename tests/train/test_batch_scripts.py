"""What the batch scripts do at signals, at preemption and with a site's own lines; their nodes do nothing but wait."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm import START, Slurm, wait_for
from tests.train.test_cluster import EVALUATE, TRAIN, kill_all

NODE = """#!/usr/bin/env bash
save() { echo "saved at $1"; exit 0; }
trap 'save USR1' USR1
trap 'save TERM' TERM
echo "ready with ${SITE:-nothing}"
for ((i = 0; i < 200; i++)); do sleep 0.1; done
exit 1
"""
BEFORE, AFTER = "2026-04-30T23:00:00", "2026-05-01T09:30:00"
Start = Callable[..., tuple[Slurm, "subprocess.Popen[bytes]", Path]]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a batch script in a project whose nodes only wait; cluster, job and log, once the nodes are ready."""
    project, jobs = tmp_path / "project", []
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "activate").touch()
    (project / "slurm").mkdir()
    (project / "slurm" / "node.sh").write_text(NODE)
    (project / "slurm" / "node.sh").chmod(0o755)
    monkeypatch.setenv("COFINETUNING_PROJECT", str(project))

    def begin(script: Path = TRAIN, site: str = "", **env: str) -> tuple[Slurm, "subprocess.Popen[bytes]", Path]:
        if site:
            (project / "slurm" / "site.sh").write_text(site)
        cluster = Slurm(tmp_path / "slurm", ["a", "b"], gpus=1)
        log = tmp_path / "log"
        job = cluster.start(script, "--recipe", "r", job=7, log=log, **env)
        jobs.append(job)
        assert wait_for(lambda: log.read_text().count("ready") == 2, job, 20), log.read_text()
        return cluster, job, log

    yield begin
    for job in jobs:
        kill_all(job)


def test_a_warning_saves_and_requeues(start):
    cluster, job, log = start()
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 0 and log.read_text().count("saved at USR1") == 2
    assert cluster.requeued(7)


def test_a_batch_script_that_is_told_to_end_lets_its_ranks_save(start):
    cluster, job, log = start()
    job.send_signal(signal.SIGTERM)  # scancel --batch --signal=TERM
    assert job.wait(20) == 0 and log.read_text().count("saved at") == 2
    assert not cluster.requeued(7)


@pytest.mark.parametrize(
    ("when", "state", "again"),
    [(AFTER, "RUNNING", True), (START, "RUNNING", True), (BEFORE, "RUNNING", False), (AFTER, "CANCELLED", False)],
)
def test_a_preempted_job_that_saves_within_its_grace_time_is_requeued(start, when, state, again):
    """Not one that was preempted before it was requeued, nor one that is cancelled."""
    cluster, job, log = start(FAKE_STATE=state)
    cluster.preempt(7, when)
    assert job.wait(20) == 0 and log.read_text().count("saved at TERM") == 2
    assert cluster.requeued(7) == again


def test_a_job_that_may_not_be_requeued_says_so_and_fails(start):
    _, job, log = start(FAKE_NO_REQUEUE="1")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 1 and "error: SLURM does not requeue this job" in log.read_text()


def test_an_evaluation_is_not_killed_by_the_signal_that_its_ranks_write_at(start):
    cluster, job, log = start(EVALUATE)
    job.send_signal(signal.SIGTERM)  # scancel: the batch script gets it, and so do the tasks
    cluster.preempt(7, AFTER)
    assert job.wait(20) == 0 and log.read_text().count("saved at TERM") == 2


@pytest.mark.parametrize("script", [TRAIN, EVALUATE], ids=lambda path: path.stem)
def test_a_sites_own_lines_reach_every_node(start, script):
    # Names that are not set are no error in them.
    cluster, job, log = start(script, "export SITE=lines$NOT_SET_ANYWHERE\n")
    assert log.read_text().count("ready with lines") == 2
    cluster.preempt(7, BEFORE)
    job.wait(20)


@pytest.mark.parametrize("script", [TRAIN, EVALUATE, TRAIN.with_name("pack.sbatch")], ids=lambda path: path.stem)
def test_a_job_from_another_folder_says_what_is_wrong(tmp_path, script, monkeypatch):
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(tmp_path))
    monkeypatch.setenv("PROJECT", "/where/a/site/keeps/its/projects")
    done = subprocess.run(["bash", str(script), "x"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {tmp_path} is not the project's folder")
