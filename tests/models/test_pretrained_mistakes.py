"""Checkpoints of others that do not fit, are damaged or hostile: an error names what, and nothing of theirs is run."""

import argparse
import json
import os
import pickle
import shutil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    VideoMAEForPreTraining,
)

from models import backbone_from_checkpoint
from tests.models.hf import CLASSES, original_layout, save, videomae, vivit
from tests.models.pretrained import SQUARE, edited


def test_a_mismatch_is_an_error_unless_allowed_by_name(tmp_path):
    model = vivit()
    save(model, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["layernorm.weight"], state["encoder.layer.1.output.dense.bias"]
    state["encoder.layer.0.lora.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"2 missing \(.*norm\.weight.*1 unexpected \(encoder\.layer\.0\.lora"):
        backbone_from_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=r"1 missing \(blocks\.1\.mlp\.fc2\.bias\)$"):
        backbone_from_checkpoint(tmp_path, allow_missing=["norm"], allow_unexpected=["*.lora.*"])
    backbone = backbone_from_checkpoint(
        tmp_path, allow_missing=["norm", "blocks.1.mlp.fc2.bias"], allow_unexpected=["*.lora.*"]
    )
    report = backbone.load_report
    assert set(report.missing) == {"norm.weight", "blocks.1.mlp.fc2.bias"}
    assert "encoder.layer.0.lora.weight" in report.left_over and "2 missing" in str(report)
    assert (backbone.norm.weight == 1).all() and (backbone.blocks[1].mlp.fc2.bias == 0).all()
    with pytest.raises(ValueError, match="allow_missing must be a list of names"):
        backbone_from_checkpoint(tmp_path, allow_missing="norm")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_channels": 1}, "num_channels=1: only clips of 3 channels"),
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' is not supported; supported are gelu, "),
        ({"hidden_act": ["gelu"]}, "hidden_act=.* is not supported"),
        ({"hidden_size": "24"}, "hidden_size must be a whole number"),
        ({"hidden_size": 2**40}, "hidden_size must be a whole number"),
        ({"num_attention_heads": 5}, "hidden_size=24 is not num_attention_heads=5 times"),
        ({"head_dim": 16}, "times the width of a head"),
        ({"tubelet_size": [2, 16]}, "tubelet_size must be 3 whole numbers"),
        ({"num_frames": 1}, "num_frames must be a whole number from 1"),
        ({"layer_norm_eps": None}, "layer_norm_eps must be a number"),
        ({"qkv_bias": "yes"}, "qkv_bias must be true or false"),
        ({"qkv_bias": False}, r"2 unexpected \(blocks\.0\.attn\.qkv\.bias"),
        ({"num_hidden_layers": 3}, r"12 missing \(blocks\.2\."),
        ({"intermediate_size": 51}, r"blocks\.0\.mlp\.fc1\.weight is \[50, 24\] and should be \[51, 24\]"),
        ({"image_size": 64}, r"pos_embed is \[1, 13, 24\], and clips of 4 x 64 x 64"),
        ({"model_type": "timesformer"}, "model_type is 'timesformer'; readable are"),
        ({"model_type": "videomae"}, "tubelet_size must be a whole number"),
        ({"model_type": ["vivit"]}, r"model_type is \['vivit'\]"),
        (
            {"architecture": "vit_base_patch16_224", "model_type": None},
            "an image model of timm: use init_from_image_vit",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_named(tmp_path, changes, message):
    save(vivit(), tmp_path)
    edited(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{message}"):
        backbone_from_checkpoint(tmp_path)


HOSTILE: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(0, 9_000),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-1, 9_000), max_size=3),
    st.just({}),
)


@settings(deadline=None, max_examples=120)
@given(family=st.sampled_from(["vivit", "videomae"]), data=st.data())
def test_a_hostile_configuration_is_a_value_error(tmp_path_factory, family, data):
    folder = tmp_path_factory.getbasetemp() / family
    if not folder.exists():
        save(CLASSES[family][0](), folder)
        shutil.copy(folder / "config.json", folder / "whole.json")
    document = json.loads((folder / "whole.json").read_text())
    for key in data.draw(st.lists(st.sampled_from(sorted(document)), min_size=1, max_size=2)):
        document[key] = data.draw(HOSTILE)
    (folder / "config.json").write_text(json.dumps(document))
    try:
        backbone_from_checkpoint(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder))


def test_a_configuration_of_a_giant_takes_no_memory(tmp_path):
    save(videomae(), tmp_path)
    edited(tmp_path, num_frames=8192, image_size=8192)
    with pytest.raises(ValueError, match="the number of tubelets of a clip must be a whole number from 1 to"):
        backbone_from_checkpoint(tmp_path)
    edited(
        tmp_path, num_frames=4, image_size=[32, 48], hidden_size=65535, intermediate_size=65536, num_hidden_layers=256
    )
    with pytest.raises(ValueError, match="does not fit the backbone"):
        backbone_from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_heads": 4}, "has num_heads=3, the backbone num_heads=4"),
        ({"act_layer": "relu"}, "has act_layer=gelu_tanh, the backbone act_layer=relu"),
        ({"norm_eps": 1e-5}, "norm_eps"),
        ({"pos_embed": "sincos"}, "learned positions: pos_embed=sincos cannot keep them"),
        ({"depth": 3}, r"ask for another network.*12 missing"),
        ({"final_norm": False}, r"2 unexpected \(norm\.bias, norm\.weight\)"),
        ({"dept": 3}, "nearest valid one is 'depth'"),
        ({"source_num_frames": 4}, "says which clips it was trained on"),
    ],
)
def test_overrides_that_ask_for_another_network(tmp_path, overrides, message):
    save(vivit(), tmp_path)
    with pytest.raises(ValueError, match=message):
        backbone_from_checkpoint(tmp_path, **overrides)


def test_an_index_names_files_of_its_own_folder(tmp_path):
    save(vivit(), tmp_path, max_shard_size="20KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "embeddings.cls_token"
    for bad in ("../model-00001-of-00005.safetensors", "/etc/passwd", "config.json", 3):
        path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], name: bad}}))
        with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json: .*(same folder|must name a file)"):
            backbone_from_checkpoint(tmp_path)
    path.write_text(json.dumps({**index, "weight_map": {**index["weight_map"], "lost": index["weight_map"][name]}}))
    with pytest.raises(ValueError, match="1 tensors are in none of its files, lost for one"):
        backbone_from_checkpoint(tmp_path)
    path.write_text(json.dumps(index))
    (tmp_path / index["weight_map"][name]).unlink()
    with pytest.raises(ValueError, match=rf"{index['weight_map'][name]}: no such file"):
        backbone_from_checkpoint(tmp_path)


class Evil:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


@pytest.mark.parametrize("place", ["args", "model", "beside", "bare pickle"])
def test_a_hostile_pickle_runs_nothing(tmp_path, place):
    flag = str(tmp_path / "ran")
    state = original_layout(videomae(VideoMAEForPreTraining, **SQUARE), False)
    content = {"model": state, "args": argparse.Namespace(num_frames=4, input_size=32)}
    path = tmp_path / "evil.pth"
    if place == "bare pickle":
        path.write_bytes(pickle.dumps(Evil(flag), protocol=2))
    else:
        {"args": vars(content["args"]), "model": state, "beside": content}[place]["x"] = Evil(flag)
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"evil\.pth: not a state dict that can be read: .*nothing in it was run"):
        backbone_from_checkpoint(path, num_heads=3)
    assert not os.path.exists(flag)


def test_a_tensor_that_is_larger_than_its_file_takes_no_memory(tmp_path):
    state = original_layout(videomae(VideoMAEForPreTraining, **SQUARE), False)
    state["encoder.blocks.0.attn.q_bias"] = torch.zeros(1).expand(2**45)
    torch.save({"model": state}, tmp_path / "bomb.pth")
    with pytest.raises(ValueError, match="q_bias is no dense tensor whose numbers are all in the file"):
        backbone_from_checkpoint(tmp_path / "bomb.pth", num_heads=3)
