"""Image ViTs as a start: a still video gives the image model's tokens, and what does not fit is refused."""

import os
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from models import create_backbone, init_from_image_vit, read_source
from models.inflate import read_image_vit
from tests.models.toy import randomise


def image_vit(size=48, **options):
    torch.manual_seed(1)
    defaults = {"class_token": False, "global_pool": "avg", "embed_dim": 48, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=5, **{**defaults, **options}).eval()
    randomise(model)
    return model


def video_vit(size=48, **options):
    torch.manual_seed(2)
    return create_backbone(
        "vit_tiny", **{"num_frames": 6, "image_size": size, "embed_dim": 48, "depth": 2, **options}
    ).eval()


def still_video(size=48):
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))
    return image, image.unsqueeze(2).expand(-1, -1, 6, -1, -1)


def image_tokens(model, image):
    with torch.no_grad():
        return model.fc_norm(model.forward_features(image))


@pytest.mark.parametrize("inflate", ["central_frame", "average"])
@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({"fc_norm": True}, {}),
        ({"fc_norm": False}, {}),
        ({"init_values": 0.1, "dynamic_img_size": True}, {"init_values": 1e-5}),
        ({"qkv_bias": False, "act_layer": "gelu_tanh"}, {"qkv_bias": False, "act_layer": "gelu_tanh"}),
    ],
)
def test_a_still_video_gives_the_images_tokens_at_every_time(inflate, frames, options, ours):
    source, backbone = image_vit(**options), video_vit(tubelet_size=(frames, 16, 16), **ours)
    report = init_from_image_vit(backbone, source.state_dict(), inflate=inflate)
    image, clip = still_video()
    expected = image_tokens(source, image)
    with torch.no_grad():
        tokens = backbone(clip).unflatten(1, (6 // frames, 9))
    for time in range(6 // frames):
        torch.testing.assert_close(tokens[:, time], expected, atol=1e-4, rtol=0)
    assert set(report.loaded) == {name for name, _ in backbone.named_parameters()}
    assert report.left_over == ("head.weight", "head.bias") and report.missing == () and report.interpolated == ()


def test_with_one_time_step_the_class_token_too_is_the_images():
    source = image_vit(class_token=True, global_pool="token")
    backbone = video_vit(num_frames=2, class_token=True)
    init_from_image_vit(backbone, source.state_dict())
    image, _ = still_video()
    with torch.no_grad():
        expected, tokens = source.forward_features(image), backbone(image.unsqueeze(2).expand(-1, -1, 2, -1, -1))
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=0)


def test_inflated_kernels():
    source = image_vit()
    kernel = source.patch_embed.proj.weight
    central, average = video_vit(), video_vit()
    init_from_image_vit(central, source.state_dict(), "central_frame")
    init_from_image_vit(average, source.state_dict(), "average")
    assert torch.equal(central.patch_embed.proj.weight[:, :, 1], kernel)
    assert (central.patch_embed.proj.weight[:, :, 0] == 0).all()
    torch.testing.assert_close(average.patch_embed.proj.weight, kernel[:, :, None].expand(-1, -1, 2, -1, -1) / 2)


def test_the_position_grid_is_interpolated_to_another_size():
    source, backbone = image_vit(size=48), video_vit(size=80)
    report = init_from_image_vit(backbone, source.state_dict())
    assert report.interpolated == ("pos_embed",) and "interpolated (pos_embed)" in str(report)
    expected = resample_abs_pos_embed(source.pos_embed, [5, 5], num_prefix_tokens=0)
    torch.testing.assert_close(backbone.pos_embed, expected.repeat(1, 3, 1))


def test_class_tokens():
    with_token = image_vit(class_token=True, global_pool="token").state_dict()
    backbone = video_vit(class_token=True)
    report = init_from_image_vit(backbone, with_token)
    assert report.missing == () and torch.equal(backbone.cls_token, with_token["cls_token"])
    assert torch.equal(backbone.pos_embed[:, 0], with_token["pos_embed"][:, 0])
    assert torch.equal(backbone.pos_embed[:, 1:10], with_token["pos_embed"][:, 1:])

    backbone = video_vit()
    report = init_from_image_vit(backbone, with_token)
    assert "cls_token" in report.left_over
    assert torch.equal(backbone.pos_embed[:, :9], with_token["pos_embed"][:, 1:])

    backbone = video_vit(class_token=True)
    before = backbone.cls_token.clone()
    with pytest.raises(ValueError, match=r"1 missing \(cls_token\)"):
        init_from_image_vit(backbone, image_vit().state_dict())
    report = init_from_image_vit(backbone, image_vit().state_dict(), allow_missing=["cls_token"])
    assert report.missing == ("cls_token",) and torch.equal(backbone.cls_token, before)
    assert (backbone.pos_embed[:, 0] == 0).all()


@pytest.mark.parametrize("wrap", ["safetensors", "plain", "model", "state_dict of DDP"])
def test_files(tmp_path, wrap):
    state = image_vit().state_dict()
    path = tmp_path / ("model.safetensors" if wrap == "safetensors" else "model.pth")
    if wrap == "safetensors":
        save_file(state, path)
    elif wrap == "plain":
        torch.save(state, path)
    elif wrap == "model":
        torch.save({"model": state, "epoch": 3}, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    backbone = video_vit()
    init_from_image_vit(backbone, path)
    assert torch.equal(backbone.blocks[1].mlp.fc2.weight, state["blocks.1.mlp.fc2.weight"])


def test_a_timm_name_loads_timms_pretrained_weights(monkeypatch):
    source, asked = image_vit(), []

    def create_model(*args, **options):
        asked.append((args, options))
        return source

    monkeypatch.setattr(timm, "create_model", create_model)
    init_from_image_vit(backbone := video_vit(), "vit_tiny_patch16_224.augreg_in21k")
    assert asked == [(("vit_tiny_patch16_224.augreg_in21k",), {"pretrained": True, "num_classes": 0})]
    assert torch.equal(backbone.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)


def test_a_name_tells_what_its_tensors_do_not(monkeypatch):
    source = image_vit(act_layer="gelu_tanh", num_heads=6)
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: source)
    with pytest.raises(ValueError, match=r"has num_heads=6, the backbone num_heads=3"):
        init_from_image_vit(video_vit(), "vit_tiny_patch16_224")
    with pytest.raises(ValueError, match=r"has act_layer=gelu_tanh, the backbone act_layer=gelu"):
        init_from_image_vit(video_vit(num_heads=6), "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["vit_relpos_base_patch16_224", "eva02_base_patch14_224"])
def test_names_of_other_networks_are_refused(name):
    with pytest.raises(ValueError, match="only VisionTransformer can be inflated"):
        read_image_vit(name, network_only=True)


def test_a_network_whose_tensors_alone_look_plain_is_refused():
    """Its norms follow attention and MLP, under the names and shapes of those that precede them."""
    with pytest.raises(ValueError, match="not those of a plain vision transformer: ResPostBlock"):
        read_image_vit("vit_base_patch16_rpn_224", network_only=True)


def test_a_folder_of_the_hub(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=5)
    timm.models.save_for_hf(source, tmp_path, safe_serialization=True)
    report = init_from_image_vit(create_backbone("vit_tiny", 2, 64), tmp_path)
    assert report.left_over == ("cls_token", "head.bias", "head.weight") and report.interpolated == ("pos_embed",)
    with pytest.raises(ValueError, match="has num_heads=3, the backbone num_heads=6"):
        init_from_image_vit(create_backbone("vit_tiny", 2, 64, num_heads=6), tmp_path)
    told = read_source(tmp_path)
    assert not told.video and report.normalisation == ([0.5] * 3, [0.5] * 3)
    assert told.options["act_layer"] == "gelu" and told.options["norm_eps"] == 1e-6


def test_averaged_weights_come_first(tmp_path):
    state, other = image_vit().state_dict(), image_vit().state_dict()
    other["norm.weight" if "norm.weight" in other else "fc_norm.weight"] = torch.full((48,), 7.0)
    torch.save({"state_dict": state, "state_dict_ema": other}, tmp_path / "model.pth")
    backbone = video_vit()
    init_from_image_vit(backbone, tmp_path / "model.pth")
    assert (backbone.norm.weight == 7).all()


class Evil:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.mkdir, (self.flag,)


def test_a_pickle_that_would_run_code_does_not(tmp_path):
    flag = str(tmp_path / "ran")
    torch.save({"pos_embed": Evil(flag)}, tmp_path / "evil.pth")
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Evil(flag), protocol=2))
    for name in ("evil.pth", "evil.bin"):
        with pytest.raises(ValueError, match=f"{name}: not a state dict that can be read"):
            init_from_image_vit(video_vit(), tmp_path / name)
    assert not os.path.exists(flag)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pth"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\xff" * 64])
def test_damaged_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad{suffix}"):
        init_from_image_vit(video_vit(), path)


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"model": 3}, torch.zeros(3), {"state_dict": None}])
def test_files_of_something_else_are_named(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth"):
        init_from_image_vit(video_vit(), tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/file.pth", "no such file"),
        ("vit_tiny_patch61_224", "nearest timm model is 'vit_tiny_patch16_224'"),
        ({}, "no vision transformer with timm's names"),
    ],
)
def test_unknown_sources(source, message):
    with pytest.raises(ValueError, match=message):
        init_from_image_vit(video_vit(), source)


@pytest.mark.parametrize(
    ("image", "video", "message"),
    [
        ({"depth": 1}, {}, r"12 missing \(blocks\.1\.norm1\.weight"),
        ({"depth": 3}, {}, r"12 unexpected \(blocks\.2\.norm1\.weight"),
        ({"embed_dim": 96}, {}, r"of another shape \(pos_embed is \[1, 27, 96\] and should be \[1, 27, 48\]"),
        ({"patch_size": 8}, {}, r"patch_embed\.proj\.weight is \[48, 3, 2, 8, 8\]"),
        ({"init_values": 1e-5}, {}, r"4 unexpected \(blocks\.0\.ls1\.gamma"),
        ({}, {"init_values": 1e-5}, r"4 missing \(blocks\.0\.ls1\.gamma"),
        ({}, {"pos_embed": "sincos"}, "learned positions: pos_embed=sincos cannot keep them"),
        ({"qkv_bias": False}, {}, r"2 missing \(blocks\.0\.attn\.qkv\.bias"),
        ({"pre_norm": True}, {}, r"a norm before the blocks \(pre_norm, as in CLIP\): norm_pre\."),
        ({"reg_tokens": 4}, {}, r"register tokens \(reg_tokens\): reg_token"),
        ({"qk_norm": True}, {}, r"norms of queries and keys \(qk_norm\): blocks\."),
    ],
)
def test_another_architecture_is_refused_and_changes_nothing(image, video, message):
    backbone = video_vit(**video)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        init_from_image_vit(backbone, image_vit(**image).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())


def test_a_grid_that_is_not_square_is_refused():
    state = image_vit().state_dict()
    state["pos_embed"] = torch.zeros(1, 12, 48)
    with pytest.raises(ValueError, match=r"pos_embed \[1, 12, 48\] is not of a square grid"):
        init_from_image_vit(video_vit(), state)
