"""The whole model: normalisation, one task at a time, precision, and configurations that are wrong."""

import copy

import pytest
import torch
import torch.nn.functional as F

from models import CofinetuneModel, create_model
from tests.models.toy import MEAN, STD, randomise, toy_clips, toy_config

BOXES = torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0]])
BOX_CLIP = torch.tensor([2, 0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = create_model(toy_config())
    randomise(model)
    return model


def test_logits_of_each_task(model):
    assert model("clips", toy_clips()).shape == (3, 5)
    assert model("persons", toy_clips(), BOXES, BOX_CLIP).shape == (2, 7)
    names = [name for name, _ in model.named_parameters()]
    assert all(name.startswith(("backbone.", "heads.clips.", "heads.persons.")) for name in names)
    assert model.state_dict().keys() == set(names)  # mean and std are configuration, not weights


def test_normalisation_of_uint8_and_float_clips(model):
    clips = toy_clips()
    expected = (clips.double() / 255 - torch.tensor(MEAN).view(3, 1, 1, 1)) / torch.tensor(STD).view(3, 1, 1, 1)
    torch.testing.assert_close(model.normalise(clips), expected.float(), atol=1e-6, rtol=1e-6)
    fractions = clips.float() / 255
    before = fractions.clone()
    assert torch.equal(model.normalise(fractions), model.normalise(clips))
    assert torch.equal(fractions, before)
    with pytest.raises(ValueError, match=r"uint8 or floating point, not torch\.int64"):
        model.normalise(clips.long())


def test_a_box_belongs_to_its_clip(model):
    logits = model("persons", toy_clips(), BOXES, BOX_CLIP)
    for k in range(2):
        alone = model("persons", toy_clips()[BOX_CLIP[k], None], BOXES[k, None], torch.tensor([0]))
        torch.testing.assert_close(logits[k, None], alone)


def test_one_task_leaves_the_other_heads_without_gradient(model):
    F.cross_entropy(model("clips", toy_clips()), torch.tensor([0, 1, 2])).backward()
    for name, param in model.named_parameters():
        if name.startswith("heads.persons"):
            assert param.grad is None
        else:
            assert param.grad is not None and param.grad.abs().sum() > 0, name


def test_a_batch_without_boxes_reaches_all_parameters_with_zeros(model):
    logits = model("persons", toy_clips(), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    F.binary_cross_entropy_with_logits(logits, torch.zeros(0, 7), reduction="sum").backward()
    for name, param in model.named_parameters():
        if name.startswith("heads.clips"):
            assert param.grad is None
        else:
            assert param.grad is not None and (param.grad == 0).all(), name


def test_bfloat16_parameters_and_autocast_give_float32_logits_near_those_of_float32(model):
    for task, args in (("clips", ()), ("persons", (BOXES, BOX_CLIP))):
        expected = model(task, toy_clips(), *args)
        with torch.autocast("cpu", torch.bfloat16):
            autocast = model(task, toy_clips(), *args)
        low = copy.deepcopy(model).bfloat16()(task, toy_clips(), *args)
        for logits in (autocast, low):
            assert logits.dtype == torch.float32
            torch.testing.assert_close(logits, expected, atol=0.1, rtol=0.1)
            assert not torch.equal(logits, expected)  # it did run in bfloat16
        assert model.double()(task, toy_clips(), *args).dtype == torch.float64
        model.float()


def test_a_toy_model_learns_both_tasks_at_once():
    # Class: which half of the view is bright. Box label: whether the box is bright. Chance is 0.5.
    torch.manual_seed(0)
    model = create_model(toy_config(embed_dim=32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    side = torch.arange(16) % 2
    clips = torch.randint(0, 100, (16, 3, 4, 16, 24), dtype=torch.uint8)
    for i in range(16):
        clips[i, ..., :12] += 100 * side[i].to(torch.uint8)
        clips[i, ..., 12:] += 100 * (1 - side[i]).to(torch.uint8)
    boxes = torch.tensor([[0.0, 0.2, 0.4, 0.8], [0.6, 0.2, 1.0, 0.8]]).repeat(16, 1)
    box_clip = torch.arange(16).repeat_interleave(2)
    bright = torch.stack((side, 1 - side), dim=1).flatten()
    for _ in range(60):
        optimizer.zero_grad()
        logits = model("persons", clips, boxes, box_clip)[:, 0]
        loss = F.cross_entropy(model("clips", clips), side)
        loss = loss + F.binary_cross_entropy_with_logits(logits, bright.float())
        loss.backward()
        optimizer.step()
    model.eval()
    assert (model("clips", clips).argmax(dim=1) == side).float().mean() > 0.9
    assert ((model("persons", clips, boxes, box_clip)[:, 0] > 0) == bright).float().mean() > 0.9


def changed(path, value):
    config = toy_config()
    *outer, last = path.split(".")
    inner = config
    for key in outer:
        inner = inner[key]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("backbon", {}, "model: option 'backbon' is unknown, the nearest valid one is 'backbone'"),
        ("mean", None, "model: 'mean' is missing"),
        ("mean", [0.5, 0.5], "mean must be 3 numbers"),
        ("std", [0.5, 0.5, 0.0], "std must lie in"),
        ("std", [0.5, 0.5, "1"], "std must be a number, not '1'"),
        ("heads", {}, "at least one task"),
        ("heads", [], "heads must be an object"),
        ("heads.clips", 5, r"heads\.clips must be an object"),
        ("heads.a b", {"kind": "classification", "num_classes": 2}, "'a b' cannot name a task"),
        ("heads.a/b", {"kind": "classification", "num_classes": 2}, "'a/b' cannot name a task"),
        ("heads.forward", {"kind": "classification", "num_classes": 2}, "'forward' cannot name a task"),
        ("heads.clips.kind", "classify", r"heads\.clips: kind 'classify' is unknown, .* 'classification'"),
        ("heads.clips.kind", None, r"heads\.clips: kind None is unknown"),
        ("heads.clips.num_clases", 3, r"heads\.clips: option 'num_clases' .* nearest valid one is 'num_classes'"),
        ("heads.clips.num_classes", None, r"heads\.clips: 'num_classes' is missing"),
        ("heads.clips.num_classes", 10**9, r"heads\.clips: num_classes must be a whole number from 1 to 1000000"),
        ("heads.clips.roi_size", 7, r"heads\.clips: option 'roi_size' is unknown"),
        ("heads.clips.pool", "class_token", 'needs "class_token": true in the backbone'),
        ("heads.persons.pool", ["max"], r"heads\.persons: pool \['max'\] is unknown"),
        ("backbone.name", None, "backbone: 'name' is missing"),
        ("backbone.name", "vit_gigantic", "backbone: backbone 'vit_gigantic' is unknown"),
        ("backbone.num_heads", 3, "backbone: embed_dim 16 .* nearest valid: 15 or 18"),
        ("backbone.depht", 3, "backbone: option 'depht' is unknown, the nearest valid one is 'depth'"),
        ("backbone.image_size", "16", "backbone: image_size must be 2 whole numbers"),
    ],
)
def test_wrong_configurations(path, value, message):
    with pytest.raises(ValueError, match=message):
        create_model(changed(path, value))


def test_configuration_is_not_changed():
    config = toy_config()
    create_model(config)
    assert config == toy_config()


def test_unknown_task_names_the_nearest(model):
    with pytest.raises(ValueError, match="task 'clip' is unknown, the nearest valid one is 'clips'"):
        model("clip", toy_clips())


def test_custom_heads_have_the_same_contract(model):
    class Tokens(torch.nn.Module):
        def forward(self, tokens, grid, boxes=None, box_clip=None):
            return tokens.unflatten(1, grid).mean(dim=(1, 2, 3))

    custom = CofinetuneModel(model.backbone, {"tokens": Tokens()}, MEAN, STD)
    assert custom("tokens", toy_clips()).shape == (3, 16)


def test_a_still_background_vanishes_without_its_mean_frame():
    """What is added to all frames alike changes nothing; what moves still counts."""
    model = create_model({**toy_config(), "subtract_mean_frame": 1.0})
    clip, still = torch.rand(2, 3, 4, 16, 24) / 2, torch.rand(2, 3, 1, 16, 24) / 2
    torch.testing.assert_close(model.normalise(clip + still), model.normalise(clip))
    assert not torch.allclose(model.normalise(clip.flip(2)), model.normalise(clip))
    half = create_model({**toy_config(), "subtract_mean_frame": 0.5})
    between = (model.normalise(clip) + create_model(toy_config()).normalise(clip)) / 2
    torch.testing.assert_close(half.normalise(clip), between)
    with pytest.raises(ValueError, match=r"subtract_mean_frame must lie in \[0.0, 1.0\], not 1.5"):
        create_model({**toy_config(), "subtract_mean_frame": 1.5})


@pytest.mark.parametrize("temporal", ["mean", "roi"])
def test_a_whole_model_built_on_the_meta_device_is_initialised_in_every_part(temporal):
    config = toy_config(class_token=True, init_values=0.1)
    config["heads"]["clips"] |= {"fc_norm": True, "dropout": 0.1}
    config["heads"]["persons"] |= {"context_heads": 2, "temporal": temporal}
    with torch.device("meta"):
        model = create_model(config)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)  # whatever nobody sets shows
    model.reset_parameters()
    built = create_model(config)
    theirs = {**dict(built.named_parameters()), **dict(built.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.isfinite().all(), name
        expected = theirs[name]
        if expected.std(correction=0) < 1e-5:  # biases, norms, layer scale, mean and std: not random
            torch.testing.assert_close(tensor, expected, atol=1e-4, rtol=0, msg=name)
        else:
            assert 0.5 < tensor.std() / expected.std() < 2, name


def test_a_head_that_cannot_be_initialised_is_named():
    backbone = create_model(toy_config()).backbone
    model = CofinetuneModel(backbone, {"own": torch.nn.Linear(16, 2), "odd": torch.nn.Bilinear(2, 2, 2)}, MEAN, STD)
    model.reset_parameters()
    model.heads["bare"] = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(ValueError, match=r"heads\.bare: ParameterList has no reset_parameters"):
        model.reset_parameters()
