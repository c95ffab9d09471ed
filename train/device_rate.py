"""How fast a rank's device multiplies matrices, measured: what utilisation is a share of."""

import time
from collections.abc import Iterator

import torch

from train.launch import Rank

SIDES = (256, 512, 1024, 2048, 4096, 8192)
"""Of the square matrices. Larger ones come nearer to what a device can do; smaller ones stay in a CPU's caches."""
REPEATS = 5


def mean_rate(rank: Rank, precision: str) -> float | None:
    """The mean over ranks of `product_rate` in a recipe's precision; None where one rank has none. Called on every
    rank, and all measure at once: ranks that share a machine's cores take them from each other as in training."""
    rates = rank.gather(product_rate(rank.device, torch.bfloat16 if precision == "bf16" else torch.float32))
    known = [rate for rate in rates if rate is not None]
    return sum(known) / len(known) if len(known) == len(rates) else None


def product_rate(device: torch.device, dtype: torch.dtype, seconds: float | None = None) -> float | None:
    """Operations a second of a product of two square matrices of random numbers, the fastest of several sizes.

    That is what the device reaches in practice, which is below its data sheet. Global random numbers stay as they are.

    Args:
        dtype: that the run computes products in; float32 follows torch's setting of TF32.
        seconds: about the most that this may take. None: 0.1 on a CPU, 0.5 elsewhere, where it ends sooner.

    Returns:
        None where the device has no such products, or no room for them.
    """
    if seconds is None:
        seconds = 0.1 if device.type == "cpu" else 0.5
    best = 0.0
    try:
        next(_products(SIDES[0], device, dtype))  # makes the library ready, which takes long
        until = time.perf_counter() + seconds
        for side in SIDES:
            spent = float("inf")
            for one in _products(side, device, dtype):
                spent = min(spent, one)
                if time.perf_counter() > until:
                    break
            best = max(best, 2 * side**3 / spent)
            if time.perf_counter() + REPEATS * 8 * spent > until:  # as the next side, twice this one, would take
                break
    except RuntimeError:
        return None
    finally:
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return best


def _products(side: int, device: torch.device, dtype: torch.dtype) -> Iterator[float]:
    """Seconds of each of several products."""
    draw = torch.Generator(device).manual_seed(0)
    # Random: a GPU multiplies zeros faster than numbers.
    one, other = (torch.randn(side, side, dtype=dtype, device=device, generator=draw) for _ in range(2))
    for _ in range(REPEATS):
        _finish(device)
        begin = time.perf_counter()
        torch.mm(one, other)
        _finish(device)
        yield time.perf_counter() - begin


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
