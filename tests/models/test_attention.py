"""All attention backends against the formula, forward and backward."""

import importlib.util
import logging
import sys
import types

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from models.attention import ATTENTION_BACKENDS, Attention, attention_function, eager_attention

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 2e-2}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run(backend, dtype, tokens, head_dim, device=CPU):
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, tokens, 3, 2, head_dim)  # query, key and value as one projection lays them out
    packed = torch.randn(shape, dtype=torch.float64, generator=generator).to(device, dtype).requires_grad_()
    out = backend(*packed.unbind(dim=2))
    weights = torch.randn(out.shape, dtype=torch.float64, generator=generator).to(device, dtype)
    (gradient,) = torch.autograd.grad((out * weights).sum(), packed)
    return out, gradient


def assert_agrees(function, tokens, head_dim, dtype, device=CPU):
    """With the reference in at least float32, on the same device."""
    exact = torch.promote_types(dtype, torch.float32)
    expected = run(eager_attention, exact, tokens, head_dim, device)
    for got, want in zip(run(function, dtype, tokens, head_dim, device), expected, strict=True):
        assert got.shape == want.shape and got.dtype == dtype
        torch.testing.assert_close(got.to(exact), want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80])
@pytest.mark.parametrize("tokens", [1, 17, 65])
@pytest.mark.parametrize("name", ["auto", "sdpa", "eager"])
def test_backends_agree_with_the_reference(name, tokens, head_dim, dtype):
    assert_agrees(attention_function(name, CPU, dtype, head_dim), tokens, head_dim, dtype)


@pytest.mark.parametrize("head_dim", [64, 80])
def test_the_cpu_runs_its_flash_kernel(head_dim):
    """Which agrees with the reference over more than one of its blocks, too."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # nothing else may run
        assert_agrees(attention_function("sdpa", CPU, torch.float32, head_dim), 1031, head_dim, torch.float32)


@needs_cuda
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("tokens", [17, 1031])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_cuda_kernels_agree_with_the_reference(dtype, tokens, head_dim):
    device = torch.device("cuda", 0)
    assert_agrees(attention_function("sdpa", device, dtype, head_dim), tokens, head_dim, dtype, device)


@needs_cuda
@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed")
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("tokens", [17, 1031])
def test_flash_attn_agrees_with_the_reference(tokens, head_dim):
    device = torch.device("cuda", 0)
    function = attention_function("flash_attn", device, torch.bfloat16, head_dim)
    assert_agrees(function, tokens, head_dim, torch.bfloat16, device)


def test_what_runs_is_logged_once(caplog):
    attention_function.cache_clear()
    attention = Attention(128, 2)
    with caplog.at_level(logging.INFO, "models"):
        for _ in range(2):
            attention(torch.randn(1, 5, 128))
    assert caplog.messages == ["attention: auto, PyTorch's flash kernel (cpu, torch.float32, heads of 64)"]
    with caplog.at_level(logging.INFO, "models"), torch.autocast("cpu", torch.bfloat16):
        attention(torch.randn(1, 5, 128))
    assert "torch.bfloat16" in caplog.messages[-1]


def test_flash_attn_on_a_cpu_says_why_it_cannot_run():
    with pytest.raises(ValueError, match=r"'flash_attn' cannot run: it needs a CUDA device, .*choose attention 'auto'"):
        Attention(128, 2, backend="flash_attn")(torch.randn(1, 5, 128))


CUDA = torch.device("cuda", 0)


@pytest.fixture
def h100(monkeypatch):
    """A card that is asked for nothing but what it can do."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    for module in ("flash_attn", "flash_attn.cute", "flash_attn.cute.interface"):
        monkeypatch.setitem(sys.modules, module, None)  # imports as if not installed
    attention_function.cache_clear()
    yield monkeypatch
    attention_function.cache_clear()


def test_flash_attn_says_what_is_not_installed_and_which_dtype_is_wrong(h100):
    with pytest.raises(ValueError, match=r"takes float16 and bfloat16, not torch\.float32"):
        attention_function("flash_attn", CUDA, torch.float32, 64)
    with pytest.raises(ValueError, match=r"FlashAttention-4 is not installed .*; FlashAttention-2 is not installed"):
        attention_function("flash_attn", CUDA, torch.bfloat16, 64)


def test_flash_attn_takes_version_2_where_version_4_does_not_fit(h100):
    package = types.ModuleType("flash_attn")
    h100.setattr(package, "flash_attn_func", eager_attention, raising=False)
    h100.setitem(sys.modules, "flash_attn", package)
    h100.setitem(sys.modules, "flash_attn.cute.interface", types.ModuleType("interface"))
    assert attention_function("flash_attn", CUDA, torch.bfloat16, 80) is eager_attention
    with pytest.raises(ValueError, match=r"-4 takes heads of 64, 96, 128, not 20; .*-2 takes heads of a multiple of 8"):
        attention_function("flash_attn", CUDA, torch.bfloat16, 20)
    h100.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert attention_function("flash_attn", CUDA, torch.bfloat16, 64) is eager_attention
    h100.delattr(package, "flash_attn_func")
    attention_function.cache_clear()
    with pytest.raises(ValueError, match=r"needs compute capability 9 or 10, the card has 8\.0; .*not installed, only"):
        attention_function("flash_attn", CUDA, torch.bfloat16, 64)


def test_there_may_be_fewer_queries_than_keys():
    query, key, value = torch.randn(2, 3, 2, 8), torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 8)
    sdpa = attention_function("sdpa", CPU, torch.float32, 8)
    torch.testing.assert_close(sdpa(query, key, value), eager_attention(query, key, value))


def test_reference_is_the_formula():
    query, key, value = torch.randn(3, 1, 5, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = eager_attention(query, key, value)
    for i in range(5):
        scores = torch.stack([query[0, i, 0] @ key[0, j, 0] / 2 for j in range(5)])  # sqrt(4) = 2
        weights = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(out[0, i, 0], sum(weights[j] * value[0, j, 0] for j in range(5)))


def test_unknown_backend_names_the_nearest():
    assert sorted(ATTENTION_BACKENDS) == list(ATTENTION_BACKENDS)
    with pytest.raises(ValueError, match=r"'eger'.*nearest valid one is 'eager'"):
        Attention(16, 2, backend="eger")
