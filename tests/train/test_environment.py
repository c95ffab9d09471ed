"""What a run keeps of its code and machines."""

import subprocess

import torch

from train.environment import checkout, describe_environment, environment
from train.launch import Rank

ALONE = Rank(0, 1, torch.device("cpu"))


def git(folder, *arguments):
    name = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(["git", "-C", folder, *name, *arguments], check=True, capture_output=True, text=True).stdout


def test_a_checkout_is_told_with_its_changes(tmp_path):
    assert checkout(tmp_path) is None
    git(tmp_path, "init")
    assert checkout(tmp_path) is None, "no commit yet"
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    assert checkout(tmp_path) == {"commit": commit, "changed": []}
    (tmp_path / "file").write_text("b")
    (tmp_path / "untracked").write_text("c")
    assert checkout(tmp_path) == {"commit": commit, "changed": ["file"]}
    below = tmp_path / "installed"
    below.mkdir()
    assert checkout(below) is None, "the checkout of something else"


def test_secrets_of_the_environment_are_not_kept(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    found = environment(ALONE, 3)
    assert found["variables"]["NCCL_DEBUG"] == "WARN" and found["variables"]["SLURM_JOB_ID"] == "77"
    assert "hidden" not in str(found) and found["from_step"] == 3
    assert "1 x cpu on " in describe_environment(found)
