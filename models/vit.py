"""The backbone: a video vision transformer with joint space-time attention over tubelets (ViViT's model 1).

Shapes: B clips of T frames of H x W pixels; a grid of t x h x w tubelets, in this order (the time index slowest), makes
N = t h w tokens of width D, behind P prefix tokens (the class token, if any). Parameters bear timm's names.
Source of the architecture: Arnab et al., "ViViT: A Video Vision Transformer", arXiv 2103.15691.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import LayerScale, Mlp, get_act_layer, trunc_normal_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.attention import ATTENTION_BACKENDS, Attention, AttentionFunction
from models.compilation import require_compiler
from models.load_report import LoadReport
from models.options import check_bool, check_choice, check_divisible, check_int, check_keys, check_number
from models.positions import sincos_positions
from models.recompute import CHECKPOINTING, recomputed

PRESETS: Final[dict[str, dict[str, int]]] = {
    "vit_tiny": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}
"""Sizes by name, as timm has them."""

CHANNELS: Final = 3
# Far above any real model: they keep a hostile configuration from allocating or looping without end.
MAX_SIZE, MAX_WIDTH, MAX_DEPTH, MAX_TOKENS = 8_192, 65_536, 256, 1 << 18

POS_EMBEDS: Final = ("learned", "sincos")
ACT_LAYERS: Final = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")
"""Activations of the MLP by timm's names; gelu_tanh is the approximation that JAX and ViViT mean by GELU."""


@dataclass(frozen=True)
class VideoViTConfig:
    """Everything that defines a VideoViT.

    Attributes:
        num_frames: T, a multiple of tubelet_size[0].
        image_size: H = W, or (H, W); multiples of tubelet_size[1] and tubelet_size[2].
        tubelet_size: frames, rows and columns of one tubelet.
        embed_dim: D, a multiple of num_heads.
        depth: number of blocks.
        num_heads: attention heads of a block.
        mlp_ratio: width of a block's MLP over D.
        drop_path_rate: stochastic depth of the last block, in [0, 1); grows linearly from 0 at the first.
        class_token: whether a learned class token precedes the tubelets.
        pos_embed: "learned", or "sincos": VideoMAE's fixed sine-cosine table (`positions.sincos_positions`), kept as a
            buffer; a class token has the position zero then.
        act_layer: activation of the MLP, a name of ACT_LAYERS.
        norm_eps: epsilon of every LayerNorm, in [0, 1]; timm's default is a tenth of PyTorch's.
        qkv_bias: whether queries, keys and values have a bias. VideoMAE gives one to queries and values alone: that is
            a key bias of zero here, for softmax does not see what is added to all keys.
        init_values: first value of the layer scale (timm's ls1 and ls2) of every block; None: no layer scale.
        final_norm: whether a LayerNorm follows the last block. Finetuned VideoMAE has none: it normalises the mean.
        attention: a name of attention.ATTENTION_BACKENDS.
        grad_checkpointing: what a block keeps for the backward pass, a name of recompute.CHECKPOINTING.
        compile: each block runs as a graph that torch.compile makes at its first use; needs a C++ compiler.

    Raises:
        ValueError: a value out of range, or sizes that do not divide; names the nearest valid.
    """

    num_frames: int
    image_size: int | tuple[int, int]
    tubelet_size: tuple[int, int, int] = (2, 16, 16)
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    drop_path_rate: float = 0.0
    class_token: bool = False
    pos_embed: str = "learned"
    act_layer: str = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    init_values: float | None = None
    final_norm: bool = True
    attention: str = "auto"
    grad_checkpointing: str = "none"
    compile: bool = False

    def __post_init__(self) -> None:
        check_int("num_frames", self.num_frames, 1, MAX_SIZE)
        for size in _tuple_of("image_size", self.image_size, 2):
            check_int("image_size", size, 1, MAX_SIZE)
        for size in _tuple_of("tubelet_size", self.tubelet_size, 3):
            check_int("tubelet_size", size, 1, MAX_SIZE)
        axes = ("num_frames", "image_size", "image_size")
        for axis, size, tubelet in zip(axes, self.clip_size, self.tubelet_size, strict=True):
            check_divisible(axis, size, f"the tubelet's (tubelet_size {self.tubelet_size})", tubelet)
        check_int("the number of tubelets of a clip", math.prod(self.grid), 1, MAX_TOKENS)
        check_int("embed_dim", self.embed_dim, 1, MAX_WIDTH)
        check_int("depth", self.depth, 1, MAX_DEPTH)
        check_int("num_heads", self.num_heads, 1, MAX_WIDTH)
        check_divisible("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        check_number("mlp_ratio", self.mlp_ratio, 1 / self.embed_dim, 64.0)
        check_number("drop_path_rate", self.drop_path_rate, 0.0, 0.99)
        for flag in ("class_token", "qkv_bias", "final_norm", "compile"):
            check_bool(flag, getattr(self, flag))
        check_choice("pos_embed", self.pos_embed, POS_EMBEDS)
        check_choice("act_layer", self.act_layer, ACT_LAYERS)
        check_number("norm_eps", self.norm_eps, 0.0, 1.0)
        if self.init_values is not None:
            check_number("init_values", self.init_values, 0.0, 1e3)
        check_choice("grad_checkpointing", self.grad_checkpointing, CHECKPOINTING)
        check_choice("attention", self.attention, ATTENTION_BACKENDS)

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """(T, H, W)."""
        height, width = _tuple_of("image_size", self.image_size, 2)
        return self.num_frames, height, width

    @property
    def grid(self) -> tuple[int, int, int]:
        """(t, h, w)."""
        time, height, width = (size // step for size, step in zip(self.clip_size, self.tubelet_size, strict=True))
        return time, height, width

    @property
    def mlp_dim(self) -> int:
        return int(self.embed_dim * self.mlp_ratio)


class TubeletProjection(nn.Conv3d):
    """A 3-D convolution whose stride is its kernel, as one matrix product: [B, 3, T, H, W] -> [B, N, D].

    The parameters are Conv3d's, so checkpoints fit; the speed does not hang on which 3-D convolution kernels a device
    has for a dtype.
    """

    def forward(self, input: Tensor) -> Tensor:
        p, q, r = self.kernel_size
        clips = input.to(self.weight.dtype)
        patches = rearrange(clips, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=p, q=q, r=r)
        return F.linear(patches, self.weight.flatten(1), self.bias)


class TubeletEmbed(nn.Module):
    """[B, 3, T, H, W] -> [B, N, D]: one token per tubelet."""

    def __init__(self, dim: int, tubelet_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = TubeletProjection(CHANNELS, dim, kernel_size=tubelet_size, stride=tubelet_size)

    def forward(self, clips: Tensor) -> Tensor:
        tokens: Tensor = self.proj(clips)
        return tokens


class LeanMlp(Mlp):
    """timm's Mlp, which keeps the input of its activation for the backward pass and not its output as well."""

    def forward(self, tokens: Tensor, lean: bool = True) -> Tensor:
        """[B, N, D] -> [B, N, D]. `lean`: see `recomputed`."""
        with recomputed(self.act, self.fc1(tokens), lean) as hidden:
            out: Tensor = self.fc2(hidden)
        return out


def drop_path(branch: Tensor, keep: Tensor | None) -> Tensor:
    """Stochastic depth (Huang et al., arXiv 1603.09382): leaves out whole examples of a branch, and scales up others,
    so that the mean stays.

    Args:
        branch: [B, N, D].
        keep: float32 [], the probability in (0, 1] that an example is kept; None: all are. A tensor, as torch.compile
            takes a number for a constant: it would make another graph of every block, of which it keeps eight and runs
            all others as they are.
    """
    if keep is None:
        return branch
    kept = torch.rand(len(branch), 1, 1, device=branch.device) < keep
    return branch * (kept / keep).to(branch.dtype)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input."""

    def __init__(self, config: VideoViTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1 = nn.LayerNorm(dim, config.norm_eps)
        self.attn = Attention(dim, config.num_heads, config.attention, config.qkv_bias)
        self.ls1 = _layer_scale(config)
        self.norm2 = nn.LayerNorm(dim, config.norm_eps)
        self.mlp = LeanMlp(dim, config.mlp_dim, act_layer=get_act_layer(config.act_layer))
        self.ls2 = _layer_scale(config)

    def forward(
        self,
        tokens: Tensor,
        attend: AttentionFunction | None = None,
        checkpointing: str = "none",
        keep: Tensor | None = None,
    ) -> Tensor:
        """[B, N, D] -> [B, N, D].

        Args:
            tokens: [B, N, D].
            attend: as in Attention.forward.
            checkpointing: of recompute.CHECKPOINTING; "full" where the caller checkpoints the block as a whole.
            keep: as in `drop_path`.
        """
        with recomputed(self.norm1, tokens, checkpointing != "full") as normed:
            attended = self.attn(normed, attend)
        tokens = tokens + drop_path(self.ls1(attended), keep)
        if checkpointing == "selective":
            # It draws no random numbers: stochastic depth comes after.
            moved = checkpoint(self._mlp, tokens, False, use_reentrant=False, preserve_rng_state=False)
        else:
            moved = self._mlp(tokens, checkpointing == "none")
        return tokens + drop_path(self.ls2(moved), keep)

    def _mlp(self, tokens: Tensor, lean: bool) -> Tensor:
        with recomputed(self.norm2, tokens, lean) as normed:
            out: Tensor = self.mlp(normed, lean)
        return out


class VideoViT(nn.Module):
    """Clips to tokens.

    Attributes:
        config: what it was built from.
        embed_dim: D.
        head_dim: width of an attention head.
        grid: (t, h, w).
        num_prefix_tokens: P, 0 or 1.
        grad_checkpointing: as in VideoViTConfig; may be switched at any time.
        load_report: what became of a checkpoint's tensors, where the weights come from one.
    """

    pos_embed: Tensor
    load_report: LoadReport | None = None

    def __init__(self, config: VideoViTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_dim = config.embed_dim
        self.head_dim = config.embed_dim // config.num_heads
        self.grid = config.grid
        self.num_prefix_tokens = int(config.class_token)
        self.grad_checkpointing = config.grad_checkpointing
        time, height, width = config.grid
        self.patch_embed = TubeletEmbed(config.embed_dim, config.tubelet_size)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.embed_dim)) if config.class_token else None
        positions = torch.empty(1, self.num_prefix_tokens + time * height * width, config.embed_dim)
        if config.pos_embed == "learned":
            self.pos_embed = nn.Parameter(positions)
        else:
            self.register_buffer("pos_embed", positions)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.embed_dim, config.norm_eps) if config.final_norm else nn.Identity()
        self.reset_parameters()
        if config.compile:
            require_compiler()
            for block in self.blocks:
                block.compile()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """timm's initialisation of a ViT; the tubelet kernel is drawn as the matrix that it acts as.

        Sets every parameter and buffer, so a backbone built on the meta device is whole after
        `to_empty(device=...).reset_parameters()`.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | LayerScale):
                module.reset_parameters()
        kernel = self.patch_embed.proj
        nn.init.xavier_uniform_(kernel.weight.flatten(1))
        if kernel.bias is not None:
            nn.init.zeros_(kernel.bias)
        if self.config.pos_embed == "learned":
            trunc_normal_(self.pos_embed, std=0.02)
        else:
            prefix = self.num_prefix_tokens
            nn.init.zeros_(self.pos_embed[:, :prefix])
            tubelets = self.pos_embed[:, prefix:]
            tubelets.copy_(sincos_positions(tubelets.shape[1], self.embed_dim, self.pos_embed.device))
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=1e-6)

    def forward(self, clips: Tensor) -> Tensor:
        """Tokens of clips.

        Args:
            clips: floating point [B, 3, T, H, W], normalised. Any floating dtype: it is cast to the parameters'.

        Returns:
            [B, P + N, D] after the final norm: the class token first, then tubelets with time slowest, columns fastest.

        Raises:
            ValueError: clips of another shape than the configuration's.
        """
        if clips.shape[1:] != (CHANNELS, *self.config.clip_size):
            expected = ", ".join(map(str, (CHANNELS, *self.config.clip_size)))
            raise ValueError(f"the backbone takes clips of [B, {expected}], not {list(clips.shape)}")
        tokens = self.patch_embed(clips)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        tokens = tokens + self.pos_embed
        attend = self.attention_for(tokens)
        mode = self.grad_checkpointing if torch.is_grad_enabled() else "none"
        for block, keep in zip(self.blocks, self.keep_rates(tokens.device), strict=True):
            if mode == "full":
                tokens = checkpoint(block, tokens, attend, mode, keep, use_reentrant=False)
            else:
                tokens = block(tokens, attend, mode, keep)
        normed: Tensor = self.norm(tokens)
        return normed

    def keep_rates(self, device: torch.device | str) -> Sequence[Tensor | None]:
        """Of each block the probability that a branch of it is kept, as `drop_path` takes it: None in evaluation."""
        depth, rate = self.config.depth, self.config.drop_path_rate
        if not self.training or rate == 0:
            return [None] * depth
        return torch.linspace(1, 1 - rate, depth, device=device).unbind()

    def attention_for(self, tokens: Tensor) -> AttentionFunction:
        """What computes attention of `tokens`, as they are or as autocast makes them. Raises ValueError where it cannot
        run on their device or with their dtype."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        return first.attn.function(tokens)


def check_execution(attention: str, grad_checkpointing: str, compile: bool) -> None:
    """Raises ValueError for ways to run a backbone that there are not, or not on this machine: attributes of
    VideoViTConfig."""
    VideoViTConfig(2, 16, attention=attention, grad_checkpointing=grad_checkpointing, compile=compile)
    if compile:
        require_compiler()


def create_backbone(
    name: str,
    num_frames: int,
    image_size: int | tuple[int, int],
    tubelet_size: tuple[int, int, int] = (2, 16, 16),
    **overrides: Any,
) -> VideoViT:
    """A randomly initialised video ViT: float [B, 3, T, H, W] -> [B, tokens, D].

    Args:
        name: vit_tiny, vit_small, vit_base, vit_large or vit_huge, with timm's widths, depths and heads.
        num_frames: frames T of a clip.
        image_size: height and width of a view in pixels, one number if they are equal.
        tubelet_size: frames, rows and columns of one tubelet.
        overrides: any other attribute of VideoViTConfig.

    Raises:
        ValueError: unknown name or override, a value out of range, sizes that do not divide; names the nearest valid.
    """
    check_choice("backbone", name, PRESETS)
    options: dict[str, Any] = {"num_frames": num_frames, "image_size": image_size, "tubelet_size": tubelet_size}
    check_keys("backbone", overrides, [field.name for field in fields(VideoViTConfig) if field.name not in options])
    for key, value in options.items():
        if isinstance(value, list):  # JSON and YAML know no tuples
            options[key] = tuple(value)
    return VideoViT(VideoViTConfig(**options, **{**PRESETS[name], **overrides}))


def _layer_scale(config: VideoViTConfig) -> nn.Module:
    return nn.Identity() if config.init_values is None else LayerScale(config.embed_dim, config.init_values)


def _tuple_of(what: str, value: object, length: int) -> tuple[int, ...]:
    """`value` as a tuple of `length` entries; one number stands for two equal ones."""
    if isinstance(value, int) and length == 2:
        return (value, value)
    if not isinstance(value, tuple) or len(value) != length:
        raise ValueError(f"{what} must be {length} whole numbers, not {value!r}")
    return value
