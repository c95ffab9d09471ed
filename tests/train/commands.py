"""Training as a user starts it, on a small world: under deepspeed, torchrun and python."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.dist import free_port
from tests.tiny_shards import make_classification_set, make_localisation_set
from train.recipe import PROJECT

BIN = Path(sys.executable).parent
MAIN = str(PROJECT / "train" / "main.py")
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


def make_world(folder: Path) -> Path:
    """Shards, and `recipe.yaml`, which trains on them; returns the folder."""
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
