"""A whole training step: the engine against a loop in bare PyTorch with the same model and batches, side by side.

    python -m benchmarks.train_step [--threads N] [--rounds 5] [--steps 10]
    python -m benchmarks.train_step --device cuda [--model vit_large --frames 32 --size 224 --clips 16]

Two tasks, a classification and a localisation one, accumulated into one step, from synthetic batches that lie in
memory. The bare loop is what one would write for this alone: forward, loss, backward, clip_grad_norm_, fused AdamW on
the same parameter groups; at two ranks inside of DistributedDataParallel. The engine's step is train/main.py's own: it
compares the plan across ranks, counts, logs and writes TensorBoard. Each contestant lives in processes of its own, all
of them in turn take `--steps` steps a round, and medians count. At two ranks each has half of the threads.

Utilisation is what the model's operations (analytic, see models/flops.py) take of the device's own rate for a large
product in the same dtype. Peak memory is CUDA's, per rank.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch.nn.parallel import DistributedDataParallel

from data.batch import Batch, Example, collate
from data.mixture import StepPlan
from data.shards import ClassInfo
from models import CofinetuneModel
from models.flops import task_cost
from train.device_rate import product_rate
from train.engine import build_engine
from train.launch import Rank, init_distributed
from train.loop import train
from train.model import build_model, model_config
from train.optim import build_optimizer
from train.recipe import PROJECT, Recipe, parse_recipe
from train.run_log import RunLog
from train.tasks import Task

FRAMES, SIZE = 8, 112
OVERHEAD_GOAL = 0.05
RECIPE = """
name: train_step
out: {out}
steps: 1000000
workers: 0
precision: {precision}
model: {{name: {model}, num_frames: {frames}, image_size: {size}, drop_path_rate: 0.1}}
optim: {{lr: 1.0e-4, warmup_steps: 10, layer_decay: 0.75, clip_grad: 1.0}}
tasks:
  classes: {{kind: classification, shards: none, batch: {clips}, micro_batch: {micro}}}
  people: {{kind: localisation, shards: none, batch: {clips}, micro_batch: {micro}, loss_weight: 2.0}}
"""
CLASSES = {"classes": 400, "people": 80}
PEOPLE = 3  # boxes in a clip


@dataclass(frozen=True)
class Contestant:
    """`engine` is a DeepSpeed JSON's name, `plain`, or `bare` for the loop of this file."""

    name: str
    engine: str
    world: int


def contestants(device: str) -> list[Contestant]:
    one = [Contestant("bare PyTorch loop", "bare", 1), Contestant("plain engine", "plain", 1)]
    one += [Contestant(f"DeepSpeed, {name}", name, 1) for name in ("zero1", "zero2")]
    if device == "cuda":
        return [*one, Contestant("DeepSpeed, zero3", "zero3", 1)]
    return [*one, Contestant("bare loop, DDP", "bare", 2), Contestant("DeepSpeed, zero2", "zero2", 2)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--model", default="vit_small", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument(
        "--frames", type=int, default=FRAMES, metavar="N", help="frames of a clip (default: %(default)s)"
    )
    parser.add_argument("--size", type=int, default=SIZE, metavar="PX", help="side of a clip (default: %(default)s)")
    parser.add_argument(
        "--clips", type=int, default=8, metavar="N", help="of each task in a step (default: %(default)s)"
    )
    parser.add_argument(
        "--micro", type=int, default=4, metavar="N", help="clips of a micro-batch (default: %(default)s)"
    )
    shown = "fp32 or bf16 (default: fp32; on a GPU bf16)"
    parser.add_argument("--precision", choices=("fp32", "bf16"), help=shown)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="CPU (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="of a round (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or ("bf16" if arguments.device == "cuda" else "fp32")
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    shape = f"{arguments.frames}x{arguments.size}x{arguments.size}"
    print(f"{arguments.device}, {arguments.model}, {shape}, {arguments.precision}, torch {torch.__version__}")
    print(f"two tasks of {arguments.clips} clips a step, micro-batches of {arguments.micro}")
    with tempfile.TemporaryDirectory(prefix="train-step-") as folder:
        groups = [Group(each, arguments, folder) for each in contestants(arguments.device)]
        seconds: dict[str, list[float]] = {group.key: [] for group in groups}
        for number in range(arguments.rounds + 1):
            for group in groups:
                spent = group.ask(arguments.steps) / arguments.steps
                if number:  # the first warms up
                    seconds[group.key].append(spent)
        report(groups, {key: statistics.median(times) for key, times in seconds.items()}, arguments)
        for group in groups:
            group.end()
    return 0


def report(groups: list["Group"], seconds: dict[str, float], arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    dtype = torch.bfloat16 if arguments.precision == "bf16" else torch.float32
    rate = product_rate(torch.device(arguments.device), dtype, seconds=5)
    assert rate is not None
    flops = groups[0].ask("flops")
    memory = f"{'peak GB':>9}" if arguments.device == "cuda" else ""
    print(f"\n{'':<28}{'ranks':>6}{'s/step':>9}{'clips/s':>9}{'over bare':>11}{'of products':>13}{memory}")
    for group in groups:
        spent, world = seconds[group.key], group.contestant.world
        over = spent / seconds[next(g.key for g in groups if g.contestant.world == world)] - 1
        peak = f"{group.ask('peak') / 1e9:>9.2f}" if memory else ""
        print(
            f"{group.contestant.name:<28}{world:>6}{spent:>9.3f}{2 * arguments.clips / spent:>9.1f}{over:>+11.1%}"
            f"{flops / spent / rate:>13.0%}{peak}"
        )
    worst = max(seconds[group.key] for group in groups if group.contestant.world == 1) / seconds[groups[0].key] - 1
    print(
        f"\nmatrix products alone: {rate / 1e12:.3g} TFLOP/s; goal: the engines at one rank at most {OVERHEAD_GOAL:.0%}"
    )
    print(f"over the bare loop: {'reached' if worst <= OVERHEAD_GOAL else 'not reached'}, the slowest is {worst:+.1%}")


class Group:
    """The processes of one contestant, told what to do by way of pipes."""

    def __init__(self, contestant: Contestant, arguments: argparse.Namespace, folder: str) -> None:
        self.contestant, self.key = contestant, f"{contestant.name}, {contestant.world}"
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        meeting = f"file://{folder}/{contestant.engine}-{contestant.world}"
        out = f"{folder}/run-{contestant.engine}-{contestant.world}"
        for index in range(contestant.world):
            mine, its = context.Pipe()
            process = context.Process(target=work, args=(contestant, index, meeting, out, arguments, its), daemon=True)
            process.start()
            its.close()  # so that the end of the process is the end of the pipe
            self.pipes.append(mine)
            self.processes.append(process)

    def ask(self, what: int | str) -> float:
        """The first rank's answer, once all have answered."""
        try:
            for pipe in self.pipes:
                pipe.send(what)
            answers = [float(pipe.recv()) for pipe in self.pipes]
        except (EOFError, ConnectionError):
            sys.exit(f"error: {self.key}: a process has ended, see above")
        return answers[0]

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send("end")
        for process in self.processes:
            process.join(20)
            process.kill()


def work(
    contestant: Contestant, index: int, meeting: str, out: str, arguments: argparse.Namespace, pipe: Connection
) -> None:
    """One rank of a contestant."""
    threads = max(arguments.threads // contestant.world, 1)
    os.environ |= {"RANK": str(index), "WORLD_SIZE": str(contestant.world), "OMP_NUM_THREADS": str(threads)}
    os.environ |= {"LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": str(contestant.world)}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    backend = "nccl" if arguments.device == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=meeting, rank=index, world_size=contestant.world)
    rank = init_distributed()
    values = {key: getattr(arguments, key) for key in ("model", "frames", "size", "clips", "micro", "precision")}
    recipe = parse_recipe(RECIPE.format(out=out, **values), "benchmark", [])
    classes = {name: [ClassInfo(number, str(number)) for number in range(count)] for name, count in CLASSES.items()}
    tasks = [Task(name, task, classes[name], None, None) for name, task in recipe.tasks.items()]
    torch.manual_seed(0)
    model = build_model(recipe, model_config(recipe, tasks))
    flops = sum(task.batch * task_cost(model, name, PEOPLE).training_flops for name, task in recipe.tasks.items())
    plan = StepPlan(recipe, rank.world)
    take = bare_loop if contestant.engine == "bare" else engine_loop
    steps = take(recipe, tasks, model, plan, made_up_batches(recipe, plan, rank), rank, contestant.engine)
    next(steps)
    while (what := _told(pipe)) != "end":
        if what == "flops":
            pipe.send(flops)
        elif what == "peak":
            pipe.send(torch.cuda.max_memory_allocated())
        else:
            begin = time.perf_counter()
            steps.send(what)
            if rank.device.type == "cuda":
                torch.cuda.synchronize()
            pipe.send(time.perf_counter() - begin)


def _told(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except EOFError:  # the script has ended with an error of its own
        return "end"


def made_up_batches(recipe: Recipe, plan: StepPlan, rank: Rank) -> Iterator[Batch]:
    """The micro-batches of this rank, step after step: the same few in turn, which cost nothing to load."""
    draw = torch.Generator().manual_seed(rank.index)
    names = list(recipe.tasks)
    made: dict[tuple[int, int], Batch] = {}
    for addresses in plan.batches(0, rank.index):
        key = (addresses[0][0], len(addresses))
        if key not in made:
            made[key] = collate([_example(recipe, names[task], draw) for task, _ in addresses])
        yield made[key]


def _example(recipe: Recipe, name: str, draw: torch.Generator) -> Example:
    frames, size = recipe.model.num_frames, recipe.model.image_size
    clip = torch.randint(0, 256, (3, frames, size, size), dtype=torch.uint8, generator=draw)
    if recipe.tasks[name].kind == "classification":
        return Example(name, name, 0, clip, torch.randint(0, CLASSES[name], (), generator=draw))
    corners = torch.rand(PEOPLE, 2, generator=draw) / 2
    labels = (torch.rand(PEOPLE, CLASSES[name], generator=draw) < 0.05).float()
    return Example(name, name, 0, clip, labels, torch.cat([corners, corners + 0.4], dim=1))


Steps = Generator[None, int, None]
"""Takes as many steps as it is sent."""


def engine_loop(
    recipe: Recipe,
    tasks: list[Task],
    model: CofinetuneModel,
    plan: StepPlan,
    batches: Iterator[Batch],
    rank: Rank,
    name: str,
) -> Steps:
    """train/main.py's own: loop, engine, log and TensorBoard."""
    optimizer = build_optimizer(model, len(model.backbone.blocks), recipe.optim)
    ds = None if name == "plain" else str(PROJECT / "ds_configs" / f"{name}.json")
    engine = build_engine(model, optimizer, recipe, rank, ds)
    done = 0
    log = RunLog(recipe.out, rank, recipe.steps, recipe.log_every, done)
    while True:
        count = yield
        part = dataclasses.replace(recipe, steps=done + count)
        with contextlib.redirect_stdout(None):
            done = train(part, tasks, engine, plan, batches, rank, log, done, lambda done, last: None)


def bare_loop(
    recipe: Recipe,
    tasks: list[Task],
    model: CofinetuneModel,
    plan: StepPlan,
    batches: Iterator[Batch],
    rank: Rank,
    name: str,
) -> Steps:
    """What one would write for these two tasks alone."""
    optimizer = build_optimizer(model, len(model.backbone.blocks), recipe.optim)
    model.to(rank.device).train()
    run: Any = model
    if rank.world > 1:
        # A head is in some of the forward passes only.
        run = DistributedDataParallel(model, find_unused_parameters=True)
    by_name, step = {task.name: task for task in tasks}, 0
    count = yield
    while True:
        for _ in range(count):
            part = [next(batches) for _ in plan.micro_steps(step, rank.index)]
            sizes = {task.name: sum(len(batch.labels) for batch in part if batch.task == task.name) for task in tasks}
            for number, batch in enumerate(part, 1):
                batch = batch.to(rank.device)
                wait = run.no_sync() if rank.world > 1 and number < len(part) else contextlib.nullcontext()
                with wait:
                    with torch.autocast(rank.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                        logits = run(batch.task, batch.clips, batch.boxes, batch.box_clip)
                    task = by_name[batch.task]
                    # DistributedDataParallel averages over ranks, and all ranks have as many clips and boxes.
                    (task.loss(logits, batch) / sizes[task.name] * task.recipe.loss_weight).backward()
            rate = recipe.optim.lr * min((step + 1) / recipe.optim.warmup_steps, 1)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["layer_scale"]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optim.clip_grad)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
        count = yield


if __name__ == "__main__":
    sys.exit(main())
