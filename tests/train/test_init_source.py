"""A recipe's model: what the recipe leaves open comes from the source of its weights, what contradicts it is told."""

import shutil

import pytest
import torch
from transformers import VideoMAEForVideoClassification, VivitForVideoClassification, VivitImageProcessor

from data.errors import UserError
from models import backbone_from_checkpoint, load_model
from tests.models.hf import clips_for, save, tokens_of, videomae, vivit
from tests.train.tiny_runs import build, tiny_recipe, tiny_tasks
from train.checkpoint import Checkpoints
from train.launch import Rank
from train.model import build_model, describe_init, fetches_weights, model_config

ALONE = Rank(0, 1, torch.device("cpu"))
CLIPS = ("model.num_frames=4", "model.image_size=32")
SIZES = ("model.embed_dim=24", "model.depth=2", "model.num_heads=3")


def made(recipe):
    config = model_config(recipe, tiny_tasks(recipe))
    return build_model(recipe, config), config


def test_what_is_fetched_from_a_hub(tmp_path):
    (tmp_path / "weights.pth").touch()
    sources = {None: False, str(tmp_path): False, str(tmp_path / "weights.pth"): False, "vit_tiny_patch16_224": True}
    for source, fetched in sources.items():
        overrides = [] if source is None else [f"model.init.source={source}"]
        assert fetches_weights(tiny_recipe(tmp_path / "run", *overrides)) == fetched


@pytest.mark.parametrize("family", ["vivit", "videomae"])
def test_what_a_recipe_leaves_open_is_as_the_source_has_it(tmp_path, family):
    source = {
        "vivit": lambda: vivit(VivitForVideoClassification, image_size=32, qkv_bias=False),
        "videomae": lambda: videomae(VideoMAEForVideoClassification, image_size=32, layer_norm_eps=1e-4),
    }[family]()
    save(source, tmp_path / "hf")
    (tmp_path / "hf" / "preprocessor_config.json").write_text('{"image_mean": [0.4, 0.5, 0.6], "image_std": [1, 1, 1]}')
    recipe = tiny_recipe(tmp_path / "run", f"model.init.source={tmp_path / 'hf'}", *CLIPS, *SIZES)
    model, config = made(recipe)
    clips = clips_for(source)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone.eval()(clips), tokens_of(source, clips), atol=1e-4, rtol=0)
    expected = {"vivit": {"act_layer": "gelu_tanh", "qkv_bias": False, "class_token": True}}
    expected["videomae"] = {"pos_embed": "sincos", "norm_eps": 1e-4, "final_norm": False}
    assert expected[family].items() <= config["backbone"].items()
    told = describe_init(recipe, model) or ""
    assert "tensors loaded" in told and "classifier" in told
    assert "trained with model.mean=[0.4, 0.5, 0.6] model.std=[1.0, 1.0, 1.0]; the recipe has [0.5, 0.5, 0.5]" in told


def test_the_default_processor_of_vivit_is_not_taken_at_its_word(tmp_path):
    """It normalises to [-1, 1] twice; its weights were trained on clips of [-1, 1], as the recipe's default gives."""
    save(vivit(image_size=32), tmp_path / "hf")
    VivitImageProcessor().save_pretrained(tmp_path / "hf")
    recipe = tiny_recipe(tmp_path / "run", f"model.init.source={tmp_path / 'hf'}", *CLIPS, *SIZES)
    model, _ = made(recipe)
    assert model.backbone.load_report is not None
    assert model.backbone.load_report.normalisation == ([0.5] * 3, [0.5] * 3)
    assert "note" not in (describe_init(recipe, model) or "")


def test_a_recipe_of_another_network_is_told_which_keys_to_set(tmp_path):
    save(vivit(image_size=32, hidden_size=192, num_hidden_layers=12, intermediate_size=20), tmp_path)
    with pytest.raises(
        UserError, match=r"the recipe has .*: set model\.name=vit_tiny model\.tubelet_size=\[2,16,16\]$"
    ):
        made(tiny_recipe("run", f"model.init.source={tmp_path}", *CLIPS, "model.tubelet_size=[2,8,8]"))
    save(vivit(image_size=32), tmp_path)
    with pytest.raises(
        UserError, match=r"set model.embed_dim=24 model.depth=2 model.num_heads=3 model.act_layer=gelu_tanh"
    ):
        made(tiny_recipe("run", f"model.init.source={tmp_path}", *CLIPS, "model.act_layer=gelu"))
    recipe = tiny_recipe("run", f"model.init.source={tmp_path}", *CLIPS, *SIZES, "model.class_token=false")
    with pytest.raises(UserError, match=r"model\.init\.source=.*1 unexpected \(cls_token\)"):
        made(recipe)
    recipe.model.init.allow_unexpected = ["cls_token"]
    assert made(recipe)[0].backbone.num_prefix_tokens == 0


@pytest.mark.parametrize("name", ["nowhere/at/all", "no_such_model", "nothing.pth"])
def test_a_source_that_is_not_there(name):
    with pytest.raises(UserError, match=rf"model\.init\.source={name}: "):
        made(tiny_recipe("run", f"model.init.source={name}"))


def test_a_run_goes_on_without_the_source_that_it_began_from(tmp_path):
    save(vivit(image_size=32), tmp_path / "hf")
    recipe = tiny_recipe(tmp_path / "run", f"model.init.source={tmp_path / 'hf'}", *CLIPS, *SIZES)
    engine, config, tasks = build(recipe, ALONE, None)
    folder = Checkpoints(recipe.out, 1).save(1, engine, recipe, config, ALONE)
    shutil.rmtree(tmp_path / "hf")
    again = model_config(recipe, tasks, resumed=folder)
    assert again == config
    build_model(recipe, again, init=False)
    assert load_model(folder)[1]["backbone"]["act_layer"] == "gelu_tanh"
    other = backbone_from_checkpoint(recipe.out)  # a run is a source, too
    assert torch.equal(other.blocks[0].attn.qkv.weight, engine.module.backbone.blocks[0].attn.qkv.weight)
