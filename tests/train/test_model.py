"""The model of a recipe: what a checkpoint says of it, and what belongs to the machine that trains it."""

import pytest
import torch

from data.errors import UserError
from models import create_model, save_model
from tests.train.tiny_runs import tiny_recipe, tiny_tasks
from train.model import EXECUTION, build_model, model_config, read_model

LOCALISED = next(name for name, task in tiny_recipe("/tmp/none").tasks.items() if task.kind == "localisation")
CLASSIFIED = next(name for name, task in tiny_recipe("/tmp/none").tasks.items() if task.kind == "classification")


def build(*overrides):
    recipe = tiny_recipe("/tmp/none", *overrides)
    config = model_config(recipe, tiny_tasks(recipe))
    return build_model(recipe, config), config


def test_how_the_backbone_runs_is_not_written_into_its_configuration():
    model, config = build("model.attention=eager", "model.grad_checkpointing=selective")
    assert not set(EXECUTION) & config["backbone"].keys()
    assert model.backbone.config.attention == "eager" and model.backbone.grad_checkpointing == "selective"
    elsewhere = create_model({key: value for key, value in config.items() if key != "tasks"})
    assert elsewhere.backbone.config.attention == "auto"
    assert elsewhere.state_dict().keys() == model.state_dict().keys()


def test_a_checkpoint_runs_as_the_recipe_says_that_evaluates_it(tmp_path):
    model, config = build()
    save_model(tmp_path, model, {key: value for key, value in config.items() if key != "tasks"})
    recipe = tiny_recipe("/tmp/none", "model.attention=eager", "model.drop_path_rate=0.3")
    assert read_model(tmp_path, recipe)[0].backbone.config.attention == "eager"
    assert read_model(tmp_path)[0].backbone.config.attention == "auto"


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash_attn may run here")
def test_attention_that_cannot_run_here_is_told_before_training():
    with pytest.raises(UserError, match="model: attention 'flash_attn' cannot run: it needs a CUDA device"):
        build("model.attention=flash_attn")


def test_options_of_heads_reach_them():
    prefix = f"tasks.{LOCALISED}.head"
    options = ("temporal=roi", "pool=mean", "box_scale=1.2", "context_heads=2", "roi_size=5", "dropout=0.1")
    head = build(*(f"{prefix}.{option}" for option in options))[0].heads[LOCALISED]
    assert (head.temporal, head.pool, head.box_scale, head.roi_size) == ("roi", "mean", 1.2, 5)
    assert head.context.num_heads == 2 and head.dropout.p == 0.1


def test_an_option_of_the_other_kind_of_head_is_an_error():
    with pytest.raises(UserError, match=f"model: heads.{CLASSIFIED}: option 'roi_size' is unknown"):
        build(f"tasks.{CLASSIFIED}.head.roi_size=7")


def test_an_unknown_kind_of_checkpointing_names_the_nearest():
    with pytest.raises(UserError, match=r"'selectiv' is unknown, the nearest valid one is 'selective'"):
        build("model.grad_checkpointing=selectiv")
