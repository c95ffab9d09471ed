"""Self-attention over all tokens, and the backends that compute its core.

A backend maps queries, keys and values, each [B, N, H, d] (B clips, N tokens, H heads of width d), to the attended
values [B, N, H, d]: softmax(q k^T / sqrt(d)) v per head. Tokens come before heads because that is how one projection
lays them out in memory: a backend gets views and nothing is copied. There may be fewer queries than keys.
"""

import importlib
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, activate_flash_attention_impl, sdpa_kernel

from models.options import check_choice

logger = logging.getLogger(__name__)

AttentionFunction = Callable[[Tensor, Tensor, Tensor], Tensor]

ATTENTION_BACKENDS: Final = ("auto", "eager", "flash_attn", "sdpa")
"""auto: the fastest that runs everywhere, which is sdpa."""
HALF: Final = (torch.float16, torch.bfloat16)
HOPPER: Final = (9, 0)
FA2_MAX_HEAD_DIM: Final = 256
FA4_HEAD_DIMS: Final = (64, 96, 128)
FA4_CAPABILITIES: Final = (9, 10)
KERNELS: Final = {
    SDPBackend.CUDNN_ATTENTION: "cuDNN",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "memory-efficient",
    SDPBackend.MATH: "math",
}
"""PyTorch's fused kernels. One that cannot take a dtype or a head width is passed over for the next in order."""


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's fused attention, with the kernel that suits the device. [B, N, H, d] each -> [B, N, H, d]."""
    if query.is_cuda:
        with sdpa_kernel(_kernel_order(query.device), set_priority=True):
            return _sdpa(query, key, value)
    return _sdpa(query, key, value)


def eager_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The formula written out, the reference for all others: holds [B, H, N, N]. [B, N, H, d] each -> [B, N, H, d]."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2)


@lru_cache
def attention_function(backend: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> AttentionFunction:
    """The function behind a backend's name. Logs once for each set of arguments which kernel runs.

    Args:
        backend: one of ATTENTION_BACKENDS.
        device: of queries, keys and values.
        dtype: theirs; under autocast, autocast's.
        head_dim: d.

    Raises:
        ValueError: unknown backend, or one that cannot run; says why and what to do.
    """
    check_choice("attention", backend, ATTENTION_BACKENDS)
    if backend == "flash_attn":
        function, kernel = _flash_attention(device, dtype, head_dim)
    elif backend == "eager":
        function, kernel = eager_attention, "matrix products and a softmax"
    else:
        function, kernel = scaled_dot_product_attention, f"PyTorch's {_sdpa_kernel(device, dtype, head_dim)} kernel"
    logger.info("attention: %s, %s (%s, %s, heads of %d)", backend, kernel, device.type, dtype, head_dim)
    return function


class Attention(nn.Module):
    """Multi-head self-attention with timm's parameter names and layout (`qkv`, `proj`).

    Args:
        dim: width D of a token.
        num_heads: number of heads H; divides `dim`.
        backend: a name of ATTENTION_BACKENDS.
        qkv_bias: whether queries, keys and values have a bias.

    Raises:
        ValueError: unknown backend.
    """

    def __init__(self, dim: int, num_heads: int, backend: str = "auto", qkv_bias: bool = True) -> None:
        super().__init__()
        check_choice("attention", backend, ATTENTION_BACKENDS)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.backend = backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def function(self, tokens: Tensor) -> AttentionFunction:
        """The backend's function for `tokens`, as they are or as autocast makes them. Raises ValueError."""
        device = tokens.device
        autocast = device.type != "meta" and torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else tokens.dtype
        return attention_function(self.backend, device, dtype, self.head_dim)

    def forward(self, tokens: Tensor, function: AttentionFunction | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]. `function` is what `self.function` gave, where the caller has asked before: a
        compiled graph cannot look for packages."""
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).unbind(dim=2)
        attended = (function or self.function(tokens))(query, key, value)
        projected: Tensor = self.proj(attended.flatten(2))
        return projected

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, backend={self.backend}"


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2)


def _kernel_order(device: torch.device) -> list[SDPBackend]:
    """cuDNN's kernel first where it is the fastest: on Hopper and later."""
    order = list(KERNELS)
    if torch.cuda.get_device_capability(device) < HOPPER:
        order.remove(SDPBackend.CUDNN_ATTENTION)
    return order


def _sdpa_kernel(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Name of the kernel that PyTorch chooses for such tensors."""
    if device.type == "meta":
        return "meta"
    probe = torch.empty(1, 1, 16, head_dim, device=device, dtype=dtype)
    if device.type != "cuda":
        return KERNELS[SDPBackend(torch._fused_sdp_choice(probe, probe, probe))]
    with sdpa_kernel(_kernel_order(device), set_priority=True):
        return KERNELS[SDPBackend(torch._fused_sdp_choice(probe, probe, probe))]


def _flash_attention(device: torch.device, dtype: torch.dtype, head_dim: int) -> tuple[AttentionFunction, str]:
    """FlashAttention-4 where it is installed and made for the card, else FlashAttention-2, and its name."""
    if device.type != "cuda":
        why = "no CUDA device is there" if not torch.cuda.is_available() else f"the tensors are on {device}"
        raise _cannot_run(f"it needs a CUDA device, and {why}")
    if dtype not in HALF:
        raise _cannot_run(f"it takes float16 and bfloat16, not {dtype}: train with precision=bf16")
    reasons = []
    for version in (_flash_attention_4, _flash_attention_2):
        try:
            return version(device, head_dim)
        except ValueError as error:
            reasons.append(str(error))
    raise _cannot_run("; ".join(reasons))


def _flash_attention_4(device: torch.device, head_dim: int) -> tuple[AttentionFunction, str]:
    _import("flash_attn.cute.interface", "FlashAttention-4")
    major, minor = torch.cuda.get_device_capability(device)
    if major not in FA4_CAPABILITIES:
        raise ValueError(f"FlashAttention-4 needs compute capability 9 or 10, the card has {major}.{minor}")
    if head_dim not in FA4_HEAD_DIMS:
        raise ValueError(f"FlashAttention-4 takes heads of {', '.join(map(str, FA4_HEAD_DIMS))}, not {head_dim}")
    try:
        # Puts it behind PyTorch's own flash operator, which compilation and checkpointing know.
        activate_flash_attention_impl("FA4")
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"FlashAttention-4 cannot be used: {error}") from error

    def flash_attention_4(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return _sdpa(query, key, value)

    return flash_attention_4, "FlashAttention-4"


def _flash_attention_2(device: torch.device, head_dim: int) -> tuple[AttentionFunction, str]:
    package = _import("flash_attn", "FlashAttention-2")
    if not hasattr(package, "flash_attn_func"):
        raise ValueError("FlashAttention-2 is not installed, only another part of the package flash_attn")
    if head_dim > FA2_MAX_HEAD_DIM or head_dim % 8:
        raise ValueError(f"FlashAttention-2 takes heads of a multiple of 8 up to {FA2_MAX_HEAD_DIM}, not {head_dim}")
    function: AttentionFunction = package.flash_attn_func
    return function, f"FlashAttention-2 ({getattr(package, '__version__', 'unknown version')})"


def _import(module: str, what: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            raise ValueError(f"{what} is not installed (requirements-gpu.txt says how)") from error
        raise ValueError(f"{what} is installed but lacks {error.name}") from error
    except (ImportError, OSError, RuntimeError) as error:  # built for another PyTorch or another CUDA
        raise ValueError(f"{what} is installed but cannot be loaded: {error}") from error


def _cannot_run(why: str) -> ValueError:
    return ValueError(f"attention 'flash_attn' cannot run: {why}; or choose attention 'auto'")
