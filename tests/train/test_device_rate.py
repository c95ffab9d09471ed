"""The device's own rate: measured on any device, or left out, and never at the cost of a run."""

import pytest
import torch

from tests.dist import run_ranks
from train import device_rate
from train.device_rate import mean_rate, product_rate
from train.launch import Rank, init_distributed

CPU = torch.device("cpu")


def test_a_rate_is_what_products_take(monkeypatch):
    """A clock that stands still but for the products: each takes a second for every 10^9 operations."""
    now = 0.0
    multiply = torch.mm

    def slow(one, other):
        nonlocal now
        now += 2 * len(one) ** 3 / 1e9
        return multiply(one, other)

    monkeypatch.setattr(device_rate.time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch, "mm", slow)
    assert product_rate(CPU, torch.float32, seconds=5) == pytest.approx(1e9)
    # The first, and of each size as many as there is time for: 512 takes 0.27 s and 1024 2.15 s.
    assert now < 5


def test_measuring_leaves_random_numbers_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert (product_rate(CPU, torch.float32, seconds=0) or 0) > 1e6
    assert torch.equal(torch.get_rng_state(), before)


def test_a_device_without_such_products_has_no_rate():
    assert product_rate(CPU, torch.int8) is None
    assert product_rate(torch.device("cuda", 999), torch.float32) is None


def means(cases):
    """The mean of each case, a rate for each rank."""
    rank, given = init_distributed(), iter(cases)

    def rate(device, dtype, seconds=None):
        return next(given)[rank.index]

    device_rate.product_rate = rate
    return [mean_rate(rank, "bf16") for _ in cases]


def test_the_mean_is_over_ranks_and_none_where_one_has_none():
    assert mean_rate(Rank(0, 1, CPU), "fp32")
    assert run_ranks(means, 2, [(1e9, 3e9), (1e9, None), (None, None)]) == [[2e9, None, None]] * 2
