"""A stand-in for SLURM: runs batch scripts on 'nodes' of this machine as slurmctld, slurmd and srun would.

What it keeps of the real one: variables, one task a node, signals that reach the batch shell alone (`--signal=B:`) or
the first process of each task alone (proctrack/cgroup), an srun that hands SIGUSR1 on to its tasks but kills them at
SIGTERM and SIGHUP, `--kill-on-bad-exit`, preemption with a grace time, requeueing under the same job id, and that only
SLURM_CPUS_PER_TASK's twin SRUN_CPUS_PER_TASK reaches srun.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

KILL_WAIT = 10.0
"""Seconds from SIGTERM to SIGKILL."""
START = "2026-05-01T08:00:00"
"""When every job has started."""


class Slurm:
    """A cluster of `nodes`, each with `gpus`.

    Args:
        folder: for the commands (`bin`) and for what they tell each other.
        enter: a command that runs others on a node (`ENTER NODE OTHER...`); none: on this machine.
    """

    def __init__(self, folder: Path, nodes: Sequence[str], gpus: int, enter: str = "") -> None:
        self.folder, self.nodes, self.gpus = folder, nodes, gpus
        bin_folder = folder / "bin"
        bin_folder.mkdir(parents=True)
        for name in ("srun", "scontrol"):
            script = bin_folder / name
            script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(__file__)} {name} "$@"\n')
            script.chmod(0o755)
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "RANK", "MASTER"))},
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "FAKE_SLURM": json.dumps({"folder": str(folder), "nodes": list(nodes), "enter": enter}),
            "SLURM_JOB_NUM_NODES": str(len(nodes)),
            "SLURM_NNODES": str(len(nodes)),
            "SLURM_JOB_NODELIST": "node[1-2]",  # real ones have to be unfolded by scontrol
            "SLURM_GPUS_ON_NODE": str(gpus),
            "CUDA_VISIBLE_DEVICES": "",  # of the job's GPUs there are none
            "SLURM_CPUS_PER_TASK": "2",
        }

    def start(self, script: Path, *args: str, job: int, log: Path, **env: str) -> subprocess.Popen[bytes]:
        """One run of a job's batch script; its output is appended to `log`, as `--open-mode=append` has it."""
        own = {**self.env, "SLURM_JOB_ID": str(job), **env}
        with log.open("ab") as out:
            return subprocess.Popen(
                ["bash", str(script), *args], env=own, stdout=out, stderr=out, start_new_session=True
            )

    def requeued(self, job: int) -> bool:
        """Whether the job has asked to be put into the queue again, since this was last asked."""
        asked = self.folder / f"requeue-{job}"
        found = asked.exists()
        asked.unlink(missing_ok=True)
        return found

    def preempt(self, job: int, when: str) -> None:
        """Begins a job's grace time: its tasks get SIGTERM, its batch shell does not."""
        (self.folder / f"preempt-{job}").write_text(when)
        for task in (self.folder / f"tasks-{job}").read_text().split():
            os.kill(int(task), signal.SIGTERM)


def directives(script: Path) -> dict[str, str]:
    """The #SBATCH options of a batch script."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", script.read_text(), re.MULTILINE))


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Waits until something has happened; False when the time is over or the process has ended before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if happened():
            return True
        if process.poll() is not None:
            return happened()
        time.sleep(0.1)
    return False


def srun(args: list[str]) -> int:
    """One task a node; the greatest exit code."""
    cluster = json.loads(os.environ["FAKE_SLURM"])
    kill_on_bad_exit = "--kill-on-bad-exit=1" in args
    command = [word for word in args if word not in ("--kill-on-bad-exit=1", "--export=ALL")]
    assert not command[0].startswith("-"), f"an option of srun that the stand-in does not know: {command[0]}"
    assert os.environ.get("SRUN_CPUS_PER_TASK") == os.environ["SLURM_CPUS_PER_TASK"], "all ranks on one core"
    tasks: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for task in tasks:
            if task.poll() is None:
                task.send_signal(number)

    def force(number: int, frame: FrameType | None) -> None:
        print("srun: forcing job termination", file=sys.stderr, flush=True)
        forward(signal.SIGKILL, None)

    signal.signal(signal.SIGUSR1, forward)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, force)
    for index, node in enumerate(cluster["nodes"]):
        place = {"SLURM_NODEID": index, "SLURM_PROCID": index, "SLURM_LOCALID": 0, "SLURMD_NODENAME": node}
        own = {**os.environ, **{key: str(value) for key, value in place.items()}}
        enter = [cluster["enter"], node] if cluster["enter"] else []
        tasks.append(subprocess.Popen([*enter, *command], env=own, start_new_session=True))
    pids = " ".join(str(task.pid) for task in tasks)
    (Path(cluster["folder"]) / f"tasks-{os.environ['SLURM_JOB_ID']}").write_text(pids)
    deadline = None
    while any(task.poll() is None for task in tasks):
        failed = any(task.poll() not in (None, 0) for task in tasks)
        if failed and kill_on_bad_exit and deadline is None:
            print("srun: error: a task has failed, the others are terminated", file=sys.stderr, flush=True)
            deadline = time.monotonic() + KILL_WAIT
            forward(signal.SIGTERM, None)
        if deadline is not None and time.monotonic() > deadline:
            for task in tasks:
                os.killpg(task.pid, signal.SIGKILL)
        time.sleep(0.1)
    return max(abs(task.returncode) for task in tasks)


def scontrol(args: list[str]) -> int:
    cluster = json.loads(os.environ["FAKE_SLURM"])
    if args[:2] == ["show", "hostnames"]:
        assert args[2:] == [os.environ["SLURM_JOB_NODELIST"]]
        print("\n".join(cluster["nodes"]))
        return 0
    if args[:3] == ["show", "job", "-o"]:
        own = Path(cluster["folder"]) / f"preempt-{args[3]}"
        times = f"PreemptEligibleTime={START} PreemptTime={own.read_text() if own.exists() else None}"
        state = os.environ.get("FAKE_STATE", "RUNNING")
        print(f"JobId={args[3]} JobName=x JobState={state} Reason=None StartTime={START} EndTime=x {times} Account=x")
        return 0
    if args[0] == "requeue":
        if "FAKE_NO_REQUEUE" in os.environ:
            print("scontrol: error: Requested operation is presently disabled", file=sys.stderr)
            return 1
        (Path(cluster["folder"]) / f"requeue-{args[1]}").touch()
        return 0
    raise AssertionError(f"scontrol {args}: the stand-in does not know it")


if __name__ == "__main__":
    sys.exit({"srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:]))
