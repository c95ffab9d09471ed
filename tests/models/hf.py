"""Tiny random models of `transformers`, their tokens and files: what this project's loading is held against."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VivitConfig,
    VivitForVideoClassification,
    VivitModel,
)

from tests.models.toy import randomise

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50}
CLIPS = {"num_frames": 4, "image_size": [32, 48]}
DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 20,
}


def vivit(kind: type[PreTrainedModel] = VivitModel, **options: Any) -> Any:
    return _made(kind(VivitConfig(**{**SIZES, **CLIPS, "tubelet_size": [2, 16, 16], **options})))


def videomae(kind: type[PreTrainedModel] = VideoMAEModel, **options: Any) -> Any:
    return _made(kind(VideoMAEConfig(**{**SIZES, **CLIPS, **DECODER, **options})))


def _made(model: Any) -> Any:
    """In evaluation mode, no parameter at its initial value."""
    randomise(model, seed=1)
    return model.eval()


def clips_for(model: Any) -> Tensor:
    """float32 [2, 3, T, H, W], this project's layout."""
    config = model.config
    height, width = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size] * 2
    return torch.randn(2, 3, config.num_frames, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def tokens_of(model: Any, clips: Tensor) -> Tensor:
    """Last hidden state [B, tokens, D] of clips [B, 3, T, H, W]."""
    base = model.base_model
    tokens: Tensor = base(pixel_values=clips.transpose(1, 2)).last_hidden_state
    return tokens


def original_layout(model: Any, finetuned: bool) -> dict[str, Tensor]:
    """The state dict of a VideoMAE of `transformers` under the names of the original repository."""
    single = {"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}
    inner = {
        "layernorm_before": "norm1",
        "layernorm_after": "norm2",
        "attention.output.dense": "attn.proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    encoder: dict[str, Tensor] = {}
    state = model.base_model.state_dict()
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in single:
            encoder[f"{single[module]}.{kind}"] = tensor
        elif (rest := module.partition("encoder.layer.")[2]).partition(".")[2] in inner:
            index, _, part = rest.partition(".")
            encoder[f"blocks.{index}.{inner[part]}.{kind}"] = tensor
    for index in range(model.config.num_hidden_layers):
        ours, theirs = f"blocks.{index}.attn", f"encoder.layer.{index}.attention.attention"
        parts = [state[f"{theirs}.{part}.weight"] for part in ("query", "key", "value")]
        encoder[f"{ours}.qkv.weight"] = torch.cat(parts)
        if model.config.qv_bias:
            encoder[f"{ours}.q_bias"] = state[f"{theirs}.query.bias"]
            encoder[f"{ours}.v_bias"] = state[f"{theirs}.value.bias"]
    if finetuned:
        heads = {"head.weight": model.classifier.weight, "head.bias": model.classifier.bias}
        if model.fc_norm is not None:
            heads |= {"fc_norm.weight": model.fc_norm.weight, "fc_norm.bias": model.fc_norm.bias}
        return {**encoder, **{name: tensor.detach() for name, tensor in heads.items()}}
    decoder = {name: t for name, t in model.state_dict().items() if name.startswith(("decoder.", "encoder_to", "mask"))}
    return {**{f"encoder.{name}": tensor for name, tensor in encoder.items()}, **decoder}


CLASSES = {
    "vivit": (vivit, (VivitModel, VivitForVideoClassification)),
    "videomae": (videomae, (VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification)),
}


def save(model: Any, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder
