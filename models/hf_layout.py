"""Hugging Face's ViViT and VideoMAE: their configurations and tensor names, and this project's for the same network.

Read from the source of `transformers` 4 and 5, whose files use one set of names and whose modules another.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from models.options import check_bool, check_choice, check_int, check_number
from models.vit import CHANNELS, MAX_DEPTH, MAX_SIZE, MAX_WIDTH, VideoViTConfig

ACT_LAYERS: Final = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
"""Hugging Face's names of activations -> timm's."""
FAMILIES: Final = {"vivit": "Hugging Face ViViT", "videomae": "Hugging Face VideoMAE"}
HEADS: Final = ("classifier.", "pooler.", "fc_norm.", "decoder.", "encoder_to_decoder.", "mask_token")
"""What the tensors of heads and decoders begin with."""

_SINGLE: Final = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_BLOCK: Final = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)\.(weight|bias)")
_IN_BLOCK: Final = {
    "layernorm_before": "norm1",
    "attention.attention.query": "attn.q",
    "attention.attention.key": "attn.k",
    "attention.attention.value": "attn.v",
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    # As the modules of transformers 5 have it; its files keep the names above.
    "attention.q_proj": "attn.q",
    "attention.k_proj": "attn.k",
    "attention.v_proj": "attn.v",
    "attention.o_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


@dataclass
class Translated:
    """Tensors under this project's names, and the names of those that have none."""

    state: dict[str, Tensor] = field(default_factory=dict)
    left_over: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    fc_norm: dict[str, Tensor] = field(default_factory=dict)


def read_config(document: Mapping[str, Any]) -> tuple[VideoViTConfig, list[str]]:
    """The network that a config.json of model_type vivit or videomae describes, and what is to be said of it.

    Keys that are not there have the defaults of `VivitConfig` and `VideoMAEConfig`.

    Raises:
        ValueError: names the key and value that this project has no counterpart for.
    """
    vivit = document.get("model_type") == "vivit"

    def get(key: str, default: Any) -> Any:
        return document.get(key, default)

    channels = get("num_channels", CHANNELS)
    if channels != CHANNELS:
        raise ValueError(f"num_channels={channels}: only clips of {CHANNELS} channels are supported")
    act = get("hidden_act", "gelu_fast" if vivit else "gelu")
    if not isinstance(act, str) or act not in ACT_LAYERS:
        raise ValueError(f"hidden_act={act!r} is not supported; supported are {', '.join(ACT_LAYERS)}")
    dim = check_int("hidden_size", get("hidden_size", 768), 1, MAX_WIDTH)
    heads = check_int("num_attention_heads", get("num_attention_heads", 12), 1, MAX_WIDTH)
    if dim % heads or get("head_dim", dim // heads) != dim // heads:
        raise ValueError(f"hidden_size={dim} is not num_attention_heads={heads} times the width of a head")
    patch = _sizes("patch_size", get("patch_size", 16), 2)
    if vivit:
        tubelet = _sizes("tubelet_size", get("tubelet_size", [2, 16, 16]), 3)
    else:
        tubelet = (check_int("tubelet_size", get("tubelet_size", 2), 1, MAX_SIZE), *patch)
    bias = get("qkv_bias", True) if vivit else get("qv_bias", get("qkv_bias", True))
    asked = (
        check_int("num_frames", get("num_frames", 32 if vivit else 16), 1, MAX_SIZE),
        *_sizes("image_size", get("image_size", 224), 2),
    )
    used = tuple(size // step * step for size, step in zip(asked, tubelet, strict=True))
    notes = []
    if used != asked:
        notes.append(
            f"of clips of {' x '.join(map(str, asked))} the original looks at {' x '.join(map(str, used))}, which "
            "its tubelets fill: give clips of that size"
        )
    if get("hidden_dropout_prob", 0) or get("attention_probs_dropout_prob", 0):
        notes.append("its dropout inside of blocks is not carried over")
    return VideoViTConfig(
        num_frames=used[0],
        image_size=(used[1], used[2]) if used[1] != used[2] else used[1],
        tubelet_size=(tubelet[0], tubelet[1], tubelet[2]),
        embed_dim=dim,
        depth=check_int("num_hidden_layers", get("num_hidden_layers", 12), 1, MAX_DEPTH),
        num_heads=heads,
        mlp_ratio=mlp_ratio(check_int("intermediate_size", get("intermediate_size", 3072), 1, 64 * dim), dim),
        class_token=vivit,
        pos_embed="learned" if vivit else "sincos",
        act_layer=ACT_LAYERS[act],
        norm_eps=check_number("layer_norm_eps", get("layer_norm_eps", 1e-6 if vivit else 1e-12), 0.0, 1.0),
        qkv_bias=check_bool("qkv_bias", bias),
        final_norm=vivit or not check_bool("use_mean_pooling", get("use_mean_pooling", True)),
    ), notes


def write_config(config: VideoViTConfig, model_type: str) -> dict[str, Any]:
    """The inverse of `read_config`, for a network that `model_type` can express."""
    _, height, width = config.clip_size
    tubelet = config.tubelet_size
    document: dict[str, Any] = {
        "model_type": model_type,
        "num_channels": CHANNELS,
        "num_frames": config.num_frames,
        "image_size": height if height == width else [height, width],
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": {"gelu_tanh": "gelu_pytorch_tanh"}.get(config.act_layer, config.act_layer),
        "layer_norm_eps": config.norm_eps,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "torch_dtype": "float32",
    }
    if model_type == "vivit":
        return {**document, "tubelet_size": list(tubelet), "qkv_bias": config.qkv_bias}
    # Both names: transformers 4 calls it qkv_bias, transformers 5 qv_bias.
    bias = {"qkv_bias": config.qkv_bias, "qv_bias": config.qkv_bias}
    patch = {"patch_size": tubelet[1] if tubelet[1] == tubelet[2] else list(tubelet[1:])}
    return {**document, "tubelet_size": tubelet[0], **patch, **bias, "use_mean_pooling": not config.final_norm}


def mlp_ratio(mlp_dim: int, dim: int) -> float:
    """The ratio r with int(dim * r) == mlp_dim."""
    ratio = mlp_dim / dim
    return ratio if int(dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def from_hf(tensors: Mapping[str, Tensor], model_type: str) -> Translated:
    """Tensors of a ViViT or VideoMAE in this project's names; queries, keys and values become one matrix.

    Raises:
        ValueError: a block that has only some of queries, keys and values.
    """
    check_choice("model_type", model_type, FAMILIES)
    prefix = f"{model_type}."
    found = Translated()
    for name, tensor in tensors.items():
        bare = name.removeprefix(prefix)
        ours = _ours(bare)
        if ours is not None:
            found.state[ours] = tensor
        elif bare.startswith(HEADS):
            found.left_over.append(name)
            if bare.startswith("fc_norm."):
                found.fc_norm[bare.removeprefix("fc_norm.")] = tensor
        else:
            found.unknown.append(name)
    _join_qkv(found.state)
    return found


def to_hf(state: Mapping[str, Tensor], model_type: str) -> dict[str, Tensor]:
    """The inverse of `from_hf`, under the names that files of transformers 4 and 5 have.

    The key bias, which VideoMAE has no place for, is left out there: softmax does not see it.
    """
    names = {ours: theirs for theirs, ours in _SINGLE.items()}
    inner = {ours: theirs for theirs, ours in reversed(_IN_BLOCK.items())}
    out = {}
    for name, tensor in _split_qkv(state).items():
        if not name.startswith("blocks."):
            if name == "pos_embed" and model_type == "videomae":  # computed there, not stored
                continue
            out[f"{model_type}.{names[name]}"] = tensor
            continue
        _, index, rest = name.split(".", 2)
        module, _, kind = rest.rpartition(".")
        theirs = f"{inner[module]}.{kind}"
        if model_type == "videomae" and kind == "bias" and module in ("attn.q", "attn.k", "attn.v"):
            if module == "attn.k":
                continue
            theirs = f"attention.attention.{module[-1]}_bias"
        out[f"{model_type}.encoder.layer.{index}.{theirs}"] = tensor
    return out


def _ours(name: str) -> str | None:
    if name in _SINGLE:
        return _SINGLE[name]
    name = re.sub(r"\.q_bias$", ".query.bias", re.sub(r"\.v_bias$", ".value.bias", name))
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _IN_BLOCK:
        return None
    return f"blocks.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"


def _join_qkv(state: dict[str, Tensor]) -> None:
    """attn.q, attn.k and attn.v of every block -> attn.qkv, in place; a key bias that is not there is zero."""
    blocks = dict.fromkeys(name.partition(".attn.")[0] for name in state if re.search(r"\.attn\.[qkv]\.", name))
    for block in blocks:
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{block}.attn.{part}.{kind}", None) for part in "qkv"]
            query, key, value = parts
            if kind == "bias" and key is None and query is not None:
                key = torch.zeros_like(query)
            if query is None and key is None and value is None:
                continue
            if query is None or key is None or value is None:
                raise ValueError(f"{block} of its attention lacks a {kind} of queries, keys or values")
            state[f"{block}.attn.qkv.{kind}"] = torch.cat((query, key, value))


def _split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in state.items():
        block, middle, kind = name.partition(".attn.qkv.")
        if not middle:
            out[name] = tensor
            continue
        for part, piece in zip("qkv", tensor.chunk(3), strict=True):
            out[f"{block}.attn.{part}.{kind}"] = piece
    return out


def _sizes(what: str, value: object, length: int) -> tuple[int, ...]:
    """`length` whole numbers; one number stands for equal ones."""
    sizes = [value] * length if isinstance(value, int) else value
    if not isinstance(sizes, list | tuple) or len(sizes) != length:
        raise ValueError(f"{what} must be {length} whole numbers, not {value!r}")
    return tuple(check_int(what, size, 1, MAX_SIZE) for size in sizes)
