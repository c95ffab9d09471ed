"""Layers and weight decay of parameters, against timm's own grouping."""

import timm
from timm.models import VisionTransformer, group_parameters
from timm.optim import param_groups_weight_decay

from models import create_backbone, create_model, layer_index, no_weight_decay
from tests.models.toy import toy_config


def test_layers_are_timms():
    image_model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5)
    matcher = VisionTransformer.group_matcher(image_model)
    expected = group_parameters(image_model, matcher, reverse=True)
    ours = dict(create_backbone("vit_tiny", 2, 32, depth=3, class_token=True).named_parameters())
    assert ours.keys() <= expected.keys()
    assert {name: layer_index(name, depth=3) for name in expected} == expected


def test_layers_of_the_whole_model():
    model = create_model(toy_config(class_token=True))
    layers = {name: layer_index(name, depth=2) for name, _ in model.named_parameters()}
    assert layers["backbone.cls_token"] == layers["backbone.patch_embed.proj.weight"] == 0
    assert layers["backbone.blocks.0.norm1.weight"] == 1 and layers["backbone.norm.weight"] == 2
    assert layers["heads.persons.fc.bias"] == 3
    assert set(layers.values()) == {0, 1, 2, 3}


def test_weight_decay_is_timms():
    image_model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    undecayed, decayed = param_groups_weight_decay(
        image_model, weight_decay=0.1, no_weight_decay_list=VisionTransformer.no_weight_decay(image_model)
    )
    assert undecayed["weight_decay"] == 0 and decayed["weight_decay"] == 0.1
    expected = {id(param) for param in undecayed["params"]}
    for name, param in image_model.named_parameters():
        assert no_weight_decay(name, param) == (id(param) in expected), name
    for name, param in create_model(toy_config(class_token=True)).named_parameters():
        decays = name.endswith(("qkv.weight", "attn.proj.weight", "fc1.weight", "fc2.weight", "fc.weight"))
        assert no_weight_decay(name, param) != (decays or name == "backbone.patch_embed.proj.weight"), name
