"""What a run was started with: code, versions, machines, command. One line of RUN/environment.jsonl for each start."""

import importlib.metadata
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from data.recipe_files import PROJECT
from train.launch import Rank

PACKAGES = ("torch", "torchvision", "torchcodec", "deepspeed", "timm", "numpy", "webdataset", "flash-attn")
VARIABLES = ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "TORCHELASTIC_RUN_ID")
"""Environment variables that are kept, beside all of NCCL's and gloo's. No others: they may hold passwords."""


def environment(rank: Rank, start: int) -> dict[str, Any]:
    """What step `start` on is trained with; called on every rank.

    `git` is None where the project is no checkout; `hosts` counts the devices of each machine's ranks.
    """
    device = torch.cuda.get_device_name(rank.device) if rank.device.type == "cuda" else "cpu"
    places = rank.gather((socket.gethostname(), device))
    hosts: dict[str, Counter[str]] = {}
    for host, name in places:
        hosts.setdefault(host, Counter())[name] += 1
    kept = {key: value for key, value in os.environ.items() if key in VARIABLES or key.startswith(("NCCL_", "GLOO_"))}
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "from_step": start,
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "git": checkout(PROJECT) if rank.first else None,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "cuda": torch.version.cuda if rank.device.type == "cuda" else None,
        "platform": platform.platform(),
        "ranks": rank.world,
        "hosts": {host: dict(names) for host, names in hosts.items()},
        "variables": dict(sorted(kept.items())),
    }


def write_environment(run: str | Path, found: dict[str, Any]) -> None:
    """Appends a line to RUN/environment.jsonl."""
    with (Path(run) / "environment.jsonl").open("a") as file:
        file.write(json.dumps(found) + "\n")


def describe_environment(found: dict[str, Any]) -> str:
    """The same on a line of the log."""
    git, packages = found["git"], found["packages"]
    code = "no checkout" if git is None else f"commit {git['commit'][:12]}"
    if git is not None and git["changed"]:
        code += f" with {len(git['changed'])} changed files"
    devices: Counter[str] = Counter()
    for names in found["hosts"].values():
        devices.update(names)
    ranks = ", ".join(f"{count} x {name}" for name, count in devices.items())
    versions = ", ".join(f"{name} {packages[name]}" for name in ("torch", "deepspeed") if name in packages)
    return f"{code}; python {found['python']}, {versions}; {ranks} on {', '.join(found['hosts'])}"


def checkout(folder: Path) -> dict[str, Any] | None:
    """Commit and changed files of the git checkout whose top is `folder`; None where there is none."""
    try:
        if Path(_git(folder, "rev-parse", "--show-toplevel").strip()).resolve() != folder.resolve():
            return None
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "diff", "--name-only", "HEAD").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
