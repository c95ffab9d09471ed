"""Checkpoints of others: the same tokens as the original's last hidden state, and a report of every tensor."""

import argparse
import os
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VivitForVideoClassification,
)

from models import backbone_from_checkpoint, create_backbone, init_from_checkpoint
from models.positions import resample_positions, sincos_positions
from tests.models.hf import CLASSES, clips_for, original_layout, save, tokens_of, videomae, vivit
from tests.models.pretrained import SQUARE, check_tokens


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": 32, "tubelet_size": [1, 8, 16], "num_attention_heads": 1, "num_hidden_layers": 1},
        {"hidden_size": 40, "num_attention_heads": 5, "intermediate_size": 77, "layer_norm_eps": 1e-3},
        {"tubelet_size": [4, 16, 8], "qkv_bias": False, "hidden_act": "gelu"},
        {"hidden_act": "gelu_new"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "relu"},
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "silu", "layer_norm_eps": 1e-12},
    ],
)
def test_vivit(tmp_path, options):
    model = vivit(**options)
    backbone = check_tokens(save(model, tmp_path), model)
    assert backbone.load_report.left_over == ("pooler.dense.bias", "pooler.dense.weight")
    assert backbone.load_report.missing == () and backbone.load_report.interpolated == ()


@pytest.mark.parametrize(
    "options",
    [
        {"use_mean_pooling": False},
        {"use_mean_pooling": True},
        {"image_size": 32, "patch_size": 8, "tubelet_size": 1, "num_attention_heads": 1, "use_mean_pooling": False},
        {"hidden_size": 42, "num_attention_heads": 7, "intermediate_size": 31, "layer_norm_eps": 1e-3},
        {"qkv_bias": False, "hidden_act": "gelu_fast", "num_hidden_layers": 1},
        {"qv_bias": False, "hidden_act": "relu", "tubelet_size": 4},
        {"patch_size": [16, 8]},
    ],
)
def test_videomae(tmp_path, options):
    model = videomae(**options)
    backbone = check_tokens(save(model, tmp_path), model)
    assert not backbone.config.class_token and "pos_embed" not in dict(backbone.named_parameters())
    assert backbone.load_report.left_over == () and "pos_embed" in backbone.load_report.loaded


@pytest.mark.parametrize(("family", "kind"), [(name, kind) for name, (_, kinds) in CLASSES.items() for kind in kinds])
@pytest.mark.parametrize("layout", ["safetensors", "shards", "bin", "bin shards", "names of modules"])
def test_every_class_and_file(tmp_path, family, kind, layout):
    model = CLASSES[family][0](kind)
    save(model, tmp_path, **({"max_shard_size": "20KB"} if "shards" in layout else {}))
    if layout == "names of modules":  # what transformers 5 has in memory and does not save
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    if layout.startswith("bin"):
        for path in tmp_path.glob("*.safetensors"):
            torch.save(load_file(path), tmp_path / f"{path.name.replace('model', 'pytorch_model', 1)[:-12]}.bin")
            path.unlink()
        for path in tmp_path.glob("*.index.json"):
            text = path.read_text().replace(".safetensors", ".bin").replace("model-", "pytorch_model-")
            (tmp_path / "pytorch_model.bin.index.json").write_text(text)
            path.unlink()
    backbone = check_tokens(tmp_path, model)
    (weights,) = [tmp_path / name for name in os.listdir(tmp_path) if name in WEIGHTS]
    check_tokens(weights, model)
    heads = {name.split(".")[0] for name in backbone.load_report.left_over}
    assert (
        heads
        == {
            "VivitModel": {"pooler"},
            "VivitForVideoClassification": {"classifier"},
            "VideoMAEModel": set(),
            "VideoMAEForPreTraining": {"decoder", "encoder_to_decoder", "mask_token"},
            "VideoMAEForVideoClassification": {"classifier", "fc_norm"},
        }[kind.__name__]
    )


WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

ARGS = argparse.Namespace(num_frames=4, input_size=32, device="cuda", lr=np.float64(1e-3))


@pytest.mark.parametrize("wrapper", ["model", "module", None])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VideoMAEForPreTraining, {"use_mean_pooling": False}),
        (VideoMAEForVideoClassification, {}),
        (VideoMAEForVideoClassification, {"use_mean_pooling": False, "qv_bias": False}),
    ],
)
def test_original_videomae_files(tmp_path, wrapper, legacy, kind, options):
    model = videomae(kind, **SQUARE, **options)
    state = original_layout(model, finetuned=kind is VideoMAEForVideoClassification)
    content: dict[str, Any] = dict(state)
    if wrapper:
        content = {wrapper: state, "epoch": np.int64(800), "best": np.float32(0.5), "optimizer": {"state": {}}}
        content["args"] = ARGS
    path = tmp_path / "checkpoint-799.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    told = {} if wrapper else {"source_num_frames": 4, "source_image_size": 32}
    backbone = check_tokens(path, model, num_heads=3, **told)
    heads = ("head.", "fc_norm.", "decoder.", "encoder_to_decoder.", "mask_token")
    assert backbone.load_report.left_over == tuple(name for name in state if name.startswith(heads))
    assert backbone.load_report.notes == ()


def test_an_original_file_that_says_nothing_is_asked(tmp_path):
    path = tmp_path / "videomae.pth"
    torch.save({"model": original_layout(videomae(VideoMAEForPreTraining, **SQUARE), False)}, path)
    with pytest.raises(ValueError, match=r"how many heads a network of width 24 has: give num_heads"):
        backbone_from_checkpoint(path)
    backbone = backbone_from_checkpoint(path, num_heads=3)
    assert backbone.config.clip_size == (16, 224, 224)
    assert "16 frames of 224 are assumed" in str(backbone.load_report)


def test_learned_positions_and_layer_scale_of_an_original_file(tmp_path):
    state = original_layout(videomae(VideoMAEForPreTraining, use_mean_pooling=False, **SQUARE), False)
    state["encoder.pos_embed"] = torch.randn(1, 8, 24)
    state |= {f"encoder.blocks.{i}.gamma_{j}": torch.full((24,), 0.1 * i + j) for i in (0, 1) for j in (1, 2)}
    torch.save({"model": state, "args": ARGS}, tmp_path / "learned.pth")
    backbone = backbone_from_checkpoint(tmp_path / "learned.pth", num_heads=3)
    assert torch.equal(backbone.pos_embed, state["encoder.pos_embed"]) and backbone.pos_embed.requires_grad
    assert torch.equal(backbone.blocks[1].ls2.gamma, state["encoder.blocks.1.gamma_2"])
    with pytest.raises(ValueError, match=r"pos_embed is \[1, 8, 24\], and clips of 16 x 32 x 32 .* \[1, 32, 24\]"):
        backbone_from_checkpoint(tmp_path / "learned.pth", num_heads=3, source_num_frames=16)


@pytest.mark.parametrize("family", ["vivit", "videomae"])
def test_other_clips_interpolate(tmp_path, family):
    model = CLASSES[family][0]()
    save(model, tmp_path)
    backbone = backbone_from_checkpoint(tmp_path, num_frames=8, image_size=(48, 64))
    same = backbone_from_checkpoint(tmp_path)
    prefix = same.num_prefix_tokens
    assert backbone.grid == (4, 3, 4) and backbone.load_report.interpolated == ("pos_embed",)
    expected = resample_positions(same.pos_embed, (2, 2, 3), (4, 3, 4), prefix)
    torch.testing.assert_close(backbone.pos_embed, expected)
    for name, param in backbone.named_parameters():
        if name != "pos_embed":
            assert torch.equal(param, same.get_parameter(name)), name
    assert backbone(torch.randn(1, 3, 8, 48, 64)).shape == (1, 48 + prefix, 24)


def test_interpolated_sine_cosine_positions_are_those_of_the_trained_grid(tmp_path):
    """Of another width, a new table would tell every row but the first that it is somewhere else."""
    save(videomae(), tmp_path)
    backbone = backbone_from_checkpoint(tmp_path, image_size=(32, 96))
    own = create_backbone("vit_tiny", 4, (32, 96), embed_dim=24, pos_embed="sincos").pos_embed
    assert torch.equal(own, sincos_positions(24, 24)) and not torch.allclose(backbone.pos_embed, own, atol=0.1)
    middle = sincos_positions(12, 24)[0].view(2, 2, 3, 24)
    torch.testing.assert_close(backbone.pos_embed[0].view(2, 2, 6, 24).mean(2), middle.mean(2), atol=0.15, rtol=0)


def test_fixed_positions_may_learn(tmp_path):
    model = videomae()
    save(model, tmp_path)
    backbone = check_tokens(tmp_path, model, pos_embed="learned")
    assert isinstance(backbone.pos_embed, torch.nn.Parameter)


def test_the_norm_behind_the_mean_can_become_the_final_norm(tmp_path):
    model = videomae(VideoMAEForVideoClassification)
    save(model, tmp_path)
    plain, normed = (backbone_from_checkpoint(tmp_path, final_norm=flag).eval() for flag in (False, True))
    clips = clips_for(model)
    expected = torch.nn.functional.layer_norm(
        plain(clips), (24,), model.fc_norm.weight, model.fc_norm.bias, eps=normed.config.norm_eps
    )
    torch.testing.assert_close(normed(clips), expected)
    assert "fc_norm" in str(normed.load_report)


def test_clips_that_tubelets_do_not_fill(tmp_path):
    model = vivit(num_frames=5, image_size=[35, 48])
    save(model, tmp_path)
    backbone = backbone_from_checkpoint(tmp_path).eval()
    clips = clips_for(model)
    tokens = backbone(clips[:, :, :4, :32])
    torch.testing.assert_close(tokens, tokens_of(model, clips), atol=1e-4, rtol=0)
    assert "looks at 4 x 32 x 48" in str(backbone.load_report)


def test_a_class_token_comes_and_goes_by_name(tmp_path):
    save(vivit(), tmp_path)
    with pytest.raises(ValueError, match=r"1 unexpected \(cls_token\)"):
        backbone_from_checkpoint(tmp_path, class_token=False)
    without = backbone_from_checkpoint(tmp_path, class_token=False, allow_unexpected=["cls_token"])
    assert torch.equal(without.pos_embed, backbone_from_checkpoint(tmp_path).pos_embed[:, 1:])
    save(videomae(), tmp_path / "other")
    with_token = backbone_from_checkpoint(tmp_path / "other", class_token=True, allow_missing=["cls_token"])
    assert (with_token.pos_embed[:, 0] == 0).all() and with_token.cls_token.abs().max() > 0


def test_a_file_of_another_name_is_described_by_the_configuration_beside_it(tmp_path):
    model = vivit()
    save(model, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "best.safetensors")
    check_tokens(tmp_path / "best.safetensors", model)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"best\.safetensors: no video transformer, and no config\.json beside it"):
        backbone_from_checkpoint(tmp_path / "best.safetensors")


def test_half_precision_files_load_as_float32(tmp_path):
    model = videomae().bfloat16()
    save(model, tmp_path)
    backbone = backbone_from_checkpoint(tmp_path)
    assert {tensor.dtype for tensor in backbone.state_dict().values()} == {torch.float32}
    kernel = model.embeddings.patch_embeddings.projection.weight
    assert torch.equal(backbone.patch_embed.proj.weight, kernel.float())


def test_init_of_a_backbone_that_is_there(tmp_path):
    model = videomae(VideoMAEForVideoClassification)
    save(model, tmp_path)
    options = {"embed_dim": 24, "depth": 2, "num_heads": 3, "mlp_ratio": 50 / 24, "norm_eps": 1e-12}
    backbone = create_backbone("vit_tiny", 8, 32, pos_embed="sincos", **options)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    report = init_from_checkpoint(backbone, tmp_path)
    assert report == backbone.load_report and report.interpolated == ("pos_embed",)
    assert torch.equal(backbone.blocks[0].norm1.weight, model.videomae.encoder.layer[0].layernorm_before.weight)
    other = create_backbone("vit_tiny", 8, 32, pos_embed="sincos", **{**options, "depth": 3})
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"12 missing \(blocks\.2"):
        init_from_checkpoint(other, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_kinds_are_what_they_seem():
    """The comparison can fail: another model's tokens differ."""
    first, second = vivit(VivitForVideoClassification), vivit(VivitForVideoClassification, hidden_act="gelu")
    clips = clips_for(first)
    assert (tokens_of(first, clips) - tokens_of(second, clips)).abs().max() > 1e-4
    assert isinstance(videomae().base_model, VideoMAEModel)
