"""Kills a training run with SIGKILL again and again: its final weights must be those of a run that is left alone.

python -m tests.train.kills --kills 20 --ranks 2
"""

import argparse
import itertools
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from tests.dist import free_port
from tests.tiny_shards import make_classification_set, make_localisation_set
from train.recipe import PROJECT

RECIPE = """
name: killed
out: {folder}/run
steps: {steps}
workers: {workers}
log_every: 1
save_every: 2
window: 2
model: {{name: vit_tiny, embed_dim: 64, depth: 2, num_heads: 2, num_frames: 4, image_size: 32, drop_path_rate: 0.2}}
tasks:
  kinetics: {{kind: classification, shards: {folder}/kinetics-train, batch: 4, head: {{dropout: 0.2}}}}
  ava: {{kind: localisation, shards: {folder}/ava-train, batch: 4, micro_batch: 2}}
"""
PATIENCE = 300.0
"""Seconds that a run may take to reach the next moment, or to end when one of its ranks is dead."""
MOMENTS = ("saving", "any", "one rank")


class Run:
    """A training process, or launcher of several, that goes on where `out` has been left."""

    def __init__(self, folder: Path, ranks: int, out: Path) -> None:
        self.out = out
        main, outer = str(PROJECT / "train" / "main.py"), ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMP_NUM_THREADS")
        command = [sys.executable, main]
        if ranks > 1:
            launcher = ["--nnodes=1", f"--nproc-per-node={ranks}", f"--master-port={free_port()}", main]
            command = [sys.executable, "-m", "torch.distributed.run", *launcher, "--ds", "ds_configs/zero2.json"]
        self.log = (folder / "output.txt").open("a+")
        self.begin = self.log.seek(0, os.SEEK_END)
        self.process = psutil.Popen(
            [*command, "--recipe", str(folder / "recipe.yaml"), "--resume", f"out={out}"],
            env={key: value for key, value in os.environ.items() if key not in outer},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def output(self) -> str:
        """What this process has said."""
        return Path(self.log.name).read_text()[self.begin :]

    def wait_until(self, what: str, reached: Callable[[], bool]) -> None:
        """Raises AssertionError where the process ends, or PATIENCE does, before `reached()`."""
        until = time.monotonic() + PATIENCE
        while not reached():
            assert self.process.poll() is None, f"ended before {what}:\n{self.output()}"
            assert time.monotonic() < until, f"{what} has not come:\n{self.output()}"
            time.sleep(0.0005)

    def ranks(self) -> list[psutil.Process]:
        """The processes that train."""
        inside = [child for child in self.process.children(recursive=True) if "RANK" in _environment(child)]
        return [child for child in inside if child.parent() == self.process] or [self.process]

    def kill(self, one: psutil.Process | None = None) -> None:
        """SIGKILL to all at once, or to `one`, after which the others must end by themselves."""
        every = [self.process, *self.process.children(recursive=True)]
        for process in [one] if one is not None else every:
            process.kill()
        _, alive = psutil.wait_procs(every, PATIENCE)
        assert not alive, f"{len(alive)} processes go on without the one that was killed:\n{self.output()}"
        assert self.process.poll() != 0


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:  # it has just ended
        return {}


def _half_written(out: Path) -> list[str]:
    return [path.name for path in (out / "checkpoints").glob("step-*.partial")]


def finish(folder: Path, ranks: int, out: Path) -> dict[str, torch.Tensor]:
    """Trains to the end and gives the final weights."""
    run = Run(folder, ranks, out)
    assert run.process.wait(10 * PATIENCE) == 0, run.output()
    newest = (out / "checkpoints" / "latest").read_text().strip()
    return load_file(out / "checkpoints" / newest / "model.safetensors")


def kill_once(folder: Path, ranks: int, out: Path, moment: str, draw: random.Random) -> str:
    """Starts the run, kills it at `moment`, and says what that left."""
    run = Run(folder, ranks, out)
    left = _half_written(out)
    run.wait_until("its first step", lambda: "\nstep " in run.output())
    if moment == "saving":
        run.wait_until("a save", lambda: bool(set(_half_written(out)) - set(left)))
    else:
        time.sleep(draw.uniform(0, 0.5))
    assert run.process.poll() is None, f"too short a run:\n{run.output()}"
    run.kill(draw.choice(run.ranks()) if moment == "one rank" else None)
    half = ", ".join(_half_written(out))
    return f"{moment}: killed after {run.output().count(chr(10) + 'step ')} steps" + (f", left {half}" if half else "")


def trial(folder: Path, ranks: int, kills: int, seed: int, workers: int = 0) -> list[str]:
    """A run that is left alone, and one that is killed `kills` times; what each kill left.

    Raises:
        AssertionError: the final weights differ in a bit, or a run did not go on.
    """
    make_classification_set(folder, "kinetics", "train")
    make_localisation_set(folder, "ava", "train")
    (folder / "recipe.yaml").write_text(
        RECIPE.format(folder=folder, steps=20 + (30 if ranks == 1 else 15) * kills, workers=workers)
    )
    alone, draw, told = finish(folder, ranks, folder / "alone"), random.Random(seed), []
    for number, moment in zip(range(kills), itertools.cycle(MOMENTS[: 2 if ranks == 1 else 3])):
        told.append(f"kill {number + 1}: {kill_once(folder, ranks, folder / 'killed', moment, draw)}")
        print(told[-1], flush=True)
    killed = finish(folder, ranks, folder / "killed")
    assert alone.keys() == killed.keys()
    assert all(torch.equal(alone[name], killed[name]) for name in alone), f"other weights after {told}"
    return told


def main() -> None:
    p = argparse.ArgumentParser(prog="python -m tests.train.kills", description=__doc__)
    p.add_argument("--kills", type=int, default=20, help="how often the run is killed (default: %(default)s)")
    p.add_argument("--ranks", type=int, default=2, help="processes; with 1, plain PyTorch (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    p.add_argument("--workers", type=int, default=1, help="loader processes of a rank (default: %(default)s)")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = trial(Path(folder), args.ranks, args.kills, args.seed, args.workers)
    half = sum("left" in line for line in told)
    print(f"{len(told)} kills, {half} of them in the middle of a save: the final weights are bitwise the same")


if __name__ == "__main__":
    main()
