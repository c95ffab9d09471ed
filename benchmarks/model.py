"""The backbone against `transformers`' models, forward and backward, side by side in one run.

    python benchmarks/model.py [--batch 4] [--threads N] [--rounds 3] [--dtype fp32|bf16] [--compile] [--no-profile]
    python benchmarks/model.py --device cuda [--batch 8]

CPU: ViT-B on 16 frames of 224x224 against VideoMAEModel and VivitModel with PyTorch's fused attention: the same shapes,
dtype, activation and tokens, random weights. Each contestant lives in a process of its own; rounds alternate between
them, and medians count. Peak memory is the process's highest resident set during a step less what it was before the
model was built: weights, gradients and activations; freed memory goes back to the system at once, for all of them. A
profile says where the time goes.

GPU: ViT-L on 32 frames of 224x224 under bf16 autocast, with each attention backend, compiled and not, and each kind of
checkpointing, beside the card's own rate for a large bf16 product.
"""

import argparse
import ctypes
import gc
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FRAMES, SIZE = 16, 224
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
SPEED_GOAL, MEMORY_GOAL, SELECTIVE_GOAL = 1.15, 0.8, 0.5
PEERS = {"videomae": "VideoMAEModel", "vivit": "VivitModel"}
OURS: dict[str, dict[str, Any]] = {
    "videomae": {"pos_embed": "sincos", "norm_eps": 1e-12},
    "vivit": {"class_token": True, "act_layer": "gelu_tanh", "norm_eps": 1e-6},
}
"""What makes the backbone the peer's architecture."""
GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution"),
    "attention": ("scaled_dot_product", "flash_attention", "softmax"),
    "norms": ("layer_norm",),
    "activation": ("gelu", "tanh", "sigmoid", "pow"),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, metavar="N", help="clips of a step (default: 4; on a GPU 8)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="timed steps each (default: %(default)s)")
    parser.add_argument("--depth", type=int, metavar="N", help="blocks, fewer for a quick look (default: the model's)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="on the CPU (default: %(default)s)")
    parser.add_argument("--peers", nargs="+", choices=sorted(PEERS), default=sorted(PEERS), help="(default: both)")
    parser.add_argument("--compile", action="store_true", help="also the backbone with compiled blocks, on the CPU")
    parser.add_argument("--no-profile", action="store_true", help="leave the profile out")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        return on_gpu(arguments.batch or 8, arguments.depth, arguments.rounds)
    arguments.batch = arguments.batch or 4
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, {arguments.dtype}")
    print(f"ViT-B, {arguments.batch} clips of {FRAMES} x {SIZE} x {SIZE}, forward and backward")
    for peer in arguments.peers:
        compare(peer, arguments)
    return 0


def compare(peer: str, arguments: argparse.Namespace) -> None:
    """Prints a table of `peer` and the backbone as the peer's architecture, and a profile of both."""
    kinds: dict[str, dict[str, Any] | None] = {f"transformers {PEERS[peer]}": None}
    for checkpointing in ("none", "selective", "full"):
        kinds[f"ours, checkpointing {checkpointing}"] = {"grad_checkpointing": checkpointing}
    if arguments.compile:
        kinds["ours, compiled"] = {"compile": True}
    workers = {name: Worker(peer, options, arguments) for name, options in kinds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for name in [*workers] * (arguments.rounds + 1):
        seconds[name].append(workers[name].ask("step"))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first round warms up
    peaks = {name: worker.ask("peak") for name, worker in workers.items()}
    flops = {name: worker.ask("flops") * arguments.batch for name, worker in workers.items()}
    first, plain, selective = list(workers)[:3]
    print(f"\n{'':<34}{'s/step':>8}{'GFLOP/s':>9}{'speed':>7}{'peak GB':>9}{'memory':>8}")
    for name in workers:
        rate = flops[plain] / medians[name] / 1e9  # of the same network, whoever runs it
        ratios = f"{medians[first] / medians[name]:>7.2f}{peaks[name] / 1e9:>9.2f}{peaks[name] / peaks[first]:>8.2f}"
        print(f"{name:<34}{medians[name]:>8.2f}{rate:>9.0f}{ratios}")
    print(f"weights and gradients, a part of every peak: {workers[plain].ask('floor') / 1e9:.2f} GB")
    print(
        f"goals: speed {medians[first] / medians[plain]:.2f} (at least {SPEED_GOAL}), "
        f"memory {peaks[plain] / peaks[first]:.2f} (at most {MEMORY_GOAL}), "
        f"selective {peaks[selective] / peaks[first]:.2f} (at most {SELECTIVE_GOAL})"
    )
    if not arguments.no_profile:
        shares = {name: workers[name].ask("profile") for name in (first, plain)}
        print(f"\n{'share of a step':<34}" + "".join(f"{name.split(',')[0]:>30}" for name in shares))
        for group in (*GROUPS, "copies, sums, the rest"):
            print(f"{group:<34}" + "".join(f"{share[group]:>30.1%}" for share in shares.values()))
    for worker in workers.values():
        worker.close()


class Worker:
    """A contestant in its own process, which does nothing until it is asked."""

    def __init__(self, peer: str, options: dict[str, Any] | None, arguments: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, peer, options, arguments), daemon=True)
        self.process.start()

    def ask(self, what: str) -> Any:
        self.pipe.send(what)
        return self.pipe.recv()

    def close(self) -> None:
        self.pipe.send("end")
        self.process.join()


def serve(pipe: Connection, peer: str, options: dict[str, Any] | None, arguments: argparse.Namespace) -> None:
    """Answers what its parent asks: seconds of a step, bytes of peak memory, FLOPs of a clip, a profile."""
    import torch

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    depth, dtype = arguments.depth or 12, {"fp32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]

    def build(blocks: int) -> Any:
        return make_peer(peer, blocks) if options is None else make_ours(peer, blocks, options)

    def clips_of(batch: int) -> torch.Tensor:
        clips = torch.randn(batch, 3, FRAMES, SIZE, SIZE, dtype=dtype)
        return clips if options is not None else clips.transpose(1, 2).contiguous()  # each in its own layout

    def run(model: Any, clips: torch.Tensor) -> None:
        out = model(clips)
        tokens = getattr(out, "last_hidden_state", out)
        tokens.float().square().mean().backward()
        model.zero_grad(set_to_none=True)

    # What is freed goes back to the system. By default glibc keeps it in a heap, whose holes would be counted too: they
    # grow with what was freed, not with what is needed.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    # The pages of the libraries and what they set up once are nobody's: one block and one clip bring them in.
    run(build(1).to(dtype).train(), clips_of(1))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free already would hide what the model takes
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    model, clips = build(depth).to(dtype).train(), clips_of(arguments.batch)

    def step() -> None:
        run(model, clips)

    while (what := pipe.recv()) != "end":
        if what == "step":
            begin = time.perf_counter()
            step()
            pipe.send(time.perf_counter() - begin)
        elif what == "peak":
            pipe.send(memory("VmHWM") - before)
        elif what == "floor":
            pipe.send(2 * sum(param.numel() * param.element_size() for param in model.parameters()))
        elif what == "flops":
            from models import backbone_cost

            with torch.device("meta"):
                pipe.send(backbone_cost(make_ours(peer, depth, {})).training_flops)
        elif what == "profile":
            pipe.send(profile(step))


def make_ours(peer: str, depth: int, options: dict[str, Any]) -> Any:
    from models import create_backbone

    return create_backbone("vit_base", FRAMES, SIZE, depth=depth, **OURS[peer], **options)


def make_peer(peer: str, depth: int) -> Any:
    import transformers

    transformers.logging.set_verbosity_error()
    options: dict[str, Any] = {"num_frames": FRAMES, "num_hidden_layers": depth, "attn_implementation": "sdpa"}
    if peer == "videomae":
        return transformers.VideoMAEModel(transformers.VideoMAEConfig(use_mean_pooling=False, **options))
    return transformers.VivitModel(transformers.VivitConfig(**options), add_pooling_layer=False)


def memory(key: str) -> int:
    """Bytes of this process: VmRSS, what is resident now; VmHWM, the most that ever was."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(key)


def profile(step: Callable[[], None]) -> dict[str, float]:
    """Group of operations -> its share of a step's time."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiler:
        step()
    spent = dict.fromkeys((*GROUPS, "copies, sums, the rest"), 0.0)
    for event in profiler.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("mkldnn_")
        found = [group for group, names in GROUPS.items() if any(matches(name, part) for part in names)]
        spent[found[0] if found else "copies, sums, the rest"] += event.self_cpu_time_total
    return {group: share / sum(spent.values()) for group, share in spent.items()}


def matches(operation: str, part: str) -> bool:
    return operation == part if part.endswith("mm") else part in operation


def on_gpu(batch: int, depth: int | None, rounds: int) -> int:
    """Prints a table of ViT-L over all that can be chosen."""
    import torch

    if not torch.cuda.is_available():
        sys.exit("error: --device cuda: PyTorch finds no CUDA device")
    torch.set_float32_matmul_precision("high")
    peak = matmul_rate()
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    print(f"a bf16 product of two 8192 x 8192 matrices: {peak / 1e12:.0f} TFLOP/s")
    print(f"ViT-L, {batch} clips of 32 x 224 x 224, bf16 autocast, stochastic depth 0.2, forward and backward\n")
    print(f"{'attention':<12}{'compiled':<10}{'checkpointing':<15}{'clips/s':>9}{'TFLOP/s':>9}{'of peak':>9}{'GB':>7}")
    for attention in ("sdpa", "flash_attn", "eager"):
        for compiled in (False, True):
            for checkpointing in ("none", "selective", "full"):
                row = f"{attention:<12}{'yes' if compiled else 'no':<10}{checkpointing:<15}"
                options = {"attention": attention, "compile": compiled, "grad_checkpointing": checkpointing}
                try:
                    clips, flops, gigabytes = gpu_step(batch, depth, rounds, options)
                    print(f"{row}{clips:>9.2f}{flops / 1e12:>9.0f}{flops / peak:>9.1%}{gigabytes:>7.1f}", flush=True)
                except (ValueError, torch.cuda.OutOfMemoryError) as error:
                    print(f"{row}  {str(error).splitlines()[0]}", flush=True)
    return 0


def gpu_step(batch: int, depth: int | None, rounds: int, options: dict[str, Any]) -> tuple[float, float, float]:
    """Clips per second, the model's own operations per second, and the peak of allocated memory in GB."""
    import torch

    from models import backbone_cost, create_backbone

    gc.collect()
    torch.compiler.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        size: dict[str, Any] = {} if depth is None else {"depth": depth}
        backbone = create_backbone("vit_large", 32, SIZE, drop_path_rate=0.2, **size, **options).train()
        clips = torch.randn(batch, 3, 32, SIZE, SIZE)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            tokens = backbone(clips)
        tokens.float().square().mean().backward()
        backbone.zero_grad(set_to_none=True)

    seconds = timed(step, rounds)
    rate = batch / seconds
    return rate, rate * backbone_cost(backbone).training_flops, torch.cuda.max_memory_allocated() / 1e9


def matmul_rate(size: int = 8192) -> float:
    """Operations per second of a product of two bf16 matrices."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / timed(lambda: a @ b, 50)


def timed(function: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call on the GPU, after three that warm up."""
    import torch

    times = []
    for index in range(rounds + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        if index >= 3:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
