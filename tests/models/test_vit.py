"""The backbone: sizes, token order, initialisation, stochastic depth, cost, and its errors."""

import pytest
import timm
import torch
import torch.nn.functional as F

from models import VideoViTConfig, create_backbone
from models.positions import sincos_positions
from models.vit import TubeletProjection, drop_path
from tests.models.toy import randomise

SMALL = {"embed_dim": 16, "depth": 2, "num_heads": 2}


def small(**overrides):
    torch.manual_seed(0)
    options = {"num_frames": 4, "image_size": (16, 24), "tubelet_size": (2, 8, 8), **SMALL, **overrides}
    return create_backbone("vit_tiny", **options)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_small", "vit_base", "vit_large", "vit_huge"])
def test_named_sizes_have_timms_parameters(name):
    patch = 14 if name == "vit_huge" else 16
    with torch.device("meta"):
        ours = create_backbone(name, 32, 224, (2, patch, patch), class_token=True)
        timms = timm.create_model(f"{name}_patch{patch}_224", num_classes=0)
    shapes = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    expected = {key: tuple(value.shape) for key, value in timms.state_dict().items()}
    dim = ours.embed_dim
    expected["patch_embed.proj.weight"] = (dim, 3, 2, patch, patch)
    expected["pos_embed"] = (1, 1 + 16 * (224 // patch) ** 2, dim)
    assert shapes == expected
    for module, attribute in (("blocks.0.attn", "num_heads"), ("blocks.0.norm1", "eps"), ("norm", "eps")):
        assert getattr(ours.get_submodule(module), attribute) == getattr(timms.get_submodule(module), attribute)


def test_a_clip_of_the_card_makes_3136_tokens():
    with torch.device("meta"):
        backbone = create_backbone("vit_large", num_frames=32, image_size=224, tubelet_size=(2, 16, 16))
    assert backbone.grid == (16, 14, 14) and backbone.pos_embed.shape == (1, 3136, 1024)


@pytest.mark.parametrize("class_token", [False, True])
def test_tokens_out(class_token):
    backbone = small(class_token=class_token)
    tokens = backbone(torch.randn(3, 3, 4, 16, 24))
    assert backbone.grid == (2, 2, 3) and backbone.num_prefix_tokens == class_token
    assert tokens.shape == (3, 12 + class_token, 16)


def test_tubelet_projection_is_conv3d():
    projection = TubeletProjection(3, 8, kernel_size=(2, 4, 6), stride=(2, 4, 6)).double()
    clips = torch.randn(2, 3, 6, 8, 18, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    convolved = F.conv3d(clips, projection.weight, projection.bias, stride=projection.stride)
    torch.testing.assert_close(projection(clips), convolved.flatten(2).transpose(1, 2))


def test_each_token_sees_all_space_and_time():
    backbone = small(depth=1)
    clips = torch.randn(1, 3, 4, 16, 24, requires_grad=True)
    for token in (0, 11):
        (gradient,) = torch.autograd.grad(backbone(clips)[0, token].square().sum(), clips)
        assert (gradient != 0).all()


def test_initialisation():
    backbone = create_backbone("vit_small", 4, 32, depth=1, class_token=True)
    for name in ("pos_embed", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc2.weight"):
        tensor = backbone.get_parameter(name)
        assert tensor.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(tensor.mean().item()) < 1e-3
    kernel = backbone.patch_embed.proj.weight  # Glorot's bound for the matrix [384, 3 * 2 * 16 * 16]
    assert kernel.abs().max().item() == pytest.approx((6 / (384 + 1536)) ** 0.5, rel=0.01)
    biases = [param for name, param in backbone.named_parameters() if name.endswith("bias")]
    assert len(biases) == 8 and all((bias == 0).all() for bias in biases)
    assert 0 < backbone.get_parameter("cls_token").abs().max() < 1e-4


EVERYTHING = {"class_token": True, "init_values": 0.1}


@pytest.mark.parametrize("pos_embed", ["learned", "sincos"])
def test_a_backbone_built_on_the_meta_device_is_whole_after_reset_parameters(pos_embed):
    with torch.device("meta"):
        backbone = small(pos_embed=pos_embed, **EVERYTHING)
    backbone.to_empty(device="cpu")
    tensors = backbone.state_dict()
    for tensor in tensors.values():
        tensor.fill_(torch.nan)
    torch.manual_seed(0)
    backbone.reset_parameters()
    assert [name for name, tensor in tensors.items() if not tensor.isfinite().all()] == []
    usual = small(pos_embed=pos_embed, **EVERYTHING)
    torch.manual_seed(0)
    usual.reset_parameters()
    assert all(torch.equal(tensor, usual.state_dict()[name]) for name, tensor in tensors.items())


def test_fixed_positions_are_no_parameter():
    backbone = small(pos_embed="sincos", class_token=True)
    assert "pos_embed" not in dict(backbone.named_parameters()) and "pos_embed" in backbone.state_dict()
    assert (backbone.pos_embed[:, 0] == 0).all()
    torch.testing.assert_close(backbone.pos_embed[:, 1:], sincos_positions(12, 16))


@pytest.mark.parametrize("act_layer", ["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"])
def test_activations(act_layer):
    block = small(act_layer=act_layer).blocks[0]
    hidden = torch.linspace(-3, 3, 64).view(1, 1, 64)
    expected = {
        "gelu": F.gelu(hidden),
        "gelu_tanh": F.gelu(hidden, approximate="tanh"),
        "quick_gelu": hidden * torch.sigmoid(1.702 * hidden),
        "relu": hidden.relu(),
        "silu": F.silu(hidden),
    }
    torch.testing.assert_close(block.mlp.act(hidden), expected[act_layer])


def test_options_change_what_they_say():
    backbone = small(norm_eps=0.5, qkv_bias=False, init_values=0.25, final_norm=False)
    assert {module.eps for module in backbone.modules() if isinstance(module, torch.nn.LayerNorm)} == {0.5}
    assert backbone.blocks[0].attn.qkv.bias is None and not hasattr(backbone.norm, "weight")
    assert (backbone.blocks[1].ls2.gamma == 0.25).all()
    assert not any("ls1" in name for name in small().state_dict())


def test_stochastic_depth_grows_linearly_and_drops_whole_samples():
    backbone = small(depth=5, drop_path_rate=0.4)
    rates = [1 - keep.item() for keep in backbone.keep_rates("cpu")]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4], abs=1e-6)
    last, keep = backbone.blocks[-1], backbone.keep_rates("cpu")[-1]
    tokens = torch.randn(400, 12, 16)
    unchanged = (last(tokens, keep=keep) == tokens).flatten(1).all(dim=1)
    assert unchanged.float().mean().item() == pytest.approx(0.4**2, abs=0.08)  # both branches dropped
    ones = drop_path(torch.ones(4000, 2, 3), keep)
    assert ones.unique().tolist() == pytest.approx([0, 1 / 0.6]) and (ones == ones[:, :1, :1]).all()
    assert ones.mean().item() == pytest.approx(1, abs=0.06)
    clips = torch.randn(64, 3, 4, 16, 24)
    assert not torch.equal(backbone(clips), backbone(clips)), "stochastic depth does not reach the blocks"
    backbone.eval()
    assert backbone.keep_rates("cpu") == [None] * 5 and torch.equal(backbone(clips), backbone(clips))


def test_bfloat16_parameters_take_float_clips():
    backbone = small(class_token=True)
    randomise(backbone)
    clips = torch.randn(2, 3, 4, 16, 24)
    expected = backbone(clips)
    tokens = backbone.bfloat16()(clips)
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), expected, atol=0.15, rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 5}, "num_frames 5 .* nearest valid: 4 or 6"),
        ({"num_frames": 1}, "num_frames 1 .* nearest valid: 2$"),
        ({"num_frames": 2**40}, "num_frames must be a whole number from 1 to 8192"),
        ({"embed_dim": 2**40}, "embed_dim must be a whole number from 1 to 65536"),
        ({"image_size": 225}, "image_size 225 .* nearest valid: 224 or 232"),
        ({"image_size": (16, 25)}, "image_size 25 .* nearest valid: 24 or 32"),
        ({"embed_dim": 18, "num_heads": 4}, "embed_dim 18 .* num_heads 4; the nearest valid: 16 or 20"),
        ({"pos_embed": "learnt"}, "nearest valid one is 'learned'"),
        ({"act_layer": "gelu_new"}, "nearest valid one is 'gelu"),
        ({"norm_eps": -1e-6}, "norm_eps must lie in"),
        ({"init_values": "1"}, "init_values must be a number"),
        ({"final_norm": None}, "final_norm must be true or false"),
        ({"dept": 3}, "'dept' is unknown, the nearest valid one is 'depth'"),
        ({"attention": "sdp"}, "nearest valid one is 'sdpa'"),
        ({"depth": 0}, "depth must be a whole number from 1 to"),
        ({"depth": True}, "depth must be a whole number"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must lie in"),
        ({"drop_path_rate": float("nan")}, "drop_path_rate must be a number"),
        ({"grad_checkpointing": "selectve"}, "nearest valid one is 'selective'"),
        ({"grad_checkpointing": True}, "grad_checkpointing True is unknown, .*valid: full, none, selective"),
        ({"compile": 1}, "compile must be true or false"),
        ({"class_token": 1}, "class_token must be true or false"),
        ({"tubelet_size": (2, 8)}, "tubelet_size must be 3 whole numbers"),
        ({"tubelet_size": (2, 8, 0)}, "tubelet_size must be a whole number from 1"),
    ],
)
def test_wrong_options_name_the_nearest_valid(options, message):
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_unknown_name_names_the_nearest():
    with pytest.raises(ValueError, match="'vit_lrge' is unknown, the nearest valid one is 'vit_large'"):
        create_backbone("vit_lrge", 32, 224)


def test_clips_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\[B, 3, 4, 16, 24\], not \[1, 3, 4, 24, 16\]"):
        small()(torch.randn(1, 3, 4, 24, 16))


def test_config_is_checked_by_itself():
    assert VideoViTConfig(num_frames=8, image_size=64).grid == (4, 4, 4)
    with pytest.raises(ValueError, match="num_frames 7"):
        VideoViTConfig(num_frames=7, image_size=64)
