"""Saving and loading: whole files, the same logits, other clips, and hostile or damaged files."""

import copy
import json
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import models.weights as weights
from models import backbone_from_checkpoint, create_model, load_model, save_model
from models.positions import resample_positions
from tests.models.toy import randomise, toy_clips, toy_config

BOXES, BOX_CLIP = torch.tensor([[0.1, 0.2, 0.6, 0.9]]), torch.tensor([1])
EXTRA = {"tasks": {"clips": {"classes": [{"id": 0, "name": "schwimmen – 游泳"}], "view": {"stride": 2}}}}


def make_model(seed=0, **overrides):
    torch.manual_seed(seed)
    model = create_model(toy_config(**overrides))
    randomise(model, seed)
    return model.eval()


@pytest.fixture
def saved(tmp_path):
    model = make_model()
    save_model(tmp_path / "run" / "weights", model, toy_config(), EXTRA)
    return tmp_path / "run" / "weights", model


def test_the_loaded_model_gives_the_same_logits(saved):
    folder, model = saved
    loaded, config = load_model(folder)
    assert config == {**toy_config(), **EXTRA}
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(loaded.eval()("clips", toy_clips()), model("clips", toy_clips()))
    for task, args in (("clips", ()), ("persons", (BOXES, BOX_CLIP))):
        assert torch.equal(loaded(task, toy_clips(), *args), model(task, toy_clips(), *args))
    assert all(param.requires_grad and param.device.type == "cpu" for param in loaded.parameters())


def test_what_was_loaded_can_be_saved_again(saved, tmp_path):
    folder, _ = saved
    loaded, config = load_model(folder)
    save_model(tmp_path / "copy", loaded, config)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_plain_libraries_read_the_files(saved):
    folder, model = saved
    state = load_file(folder / "model.safetensors")
    assert state.keys() == model.state_dict().keys()
    text = (folder / "config.json").read_text(encoding="utf-8")
    assert {**toy_config(), **EXTRA}.items() <= json.loads(text).items()


def test_a_loaded_model_does_not_depend_on_the_file(saved):
    folder, model = saved
    loaded, _ = load_model(folder)
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(b"\xff" * 4096)
        file.truncate(4096)
    assert torch.equal(loaded.eval()("clips", toy_clips()), model("clips", toy_clips()))


def test_bfloat16_weights_load_as_float32(saved, tmp_path):
    _, model = saved
    low = copy.deepcopy(model).bfloat16()
    save_model(tmp_path / "low", low, toy_config())
    loaded, _ = load_model(tmp_path / "low")
    for (name, param), stored in zip(loaded.named_parameters(), low.parameters(), strict=True):
        assert param.dtype == torch.float32 and torch.equal(param, stored.float()), name
    assert torch.equal(loaded.mean, model.mean)


def test_a_failed_write_leaves_the_old_files_whole(saved, monkeypatch):
    folder, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match="plain JSON"):
        save_model(folder, make_model(seed=1), toy_config(), {"tasks": {1, 2}})
    with pytest.raises(ValueError, match="plain JSON"):
        save_model(folder, make_model(seed=1), toy_config(), {"share": float("nan")})

    def full_disk(state, path, metadata):
        path.write_bytes(b"half a f")
        raise OSError("No space left on device")

    monkeypatch.setattr(weights, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_model(folder, make_model(seed=1), toy_config())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_reader_of_the_old_file_is_not_disturbed(saved):
    folder, _ = saved
    before = (folder / "model.safetensors").read_bytes()
    with (folder / "model.safetensors").open("rb") as reader:
        save_model(folder, make_model(seed=1), toy_config())
        assert reader.read() == before
    assert (folder / "model.safetensors").read_bytes() != before


def test_a_config_of_another_model_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"not the one of its config: 12 missing \(backbone\.blocks\.2\.norm1\.weight"):
        save_model(tmp_path / "out", make_model(), toy_config(depth=3))
    with pytest.raises(ValueError, match=r"\['heads'\] are keys of the model's own"):
        save_model(tmp_path / "out", make_model(), toy_config(), {"heads": {}})
    assert not (tmp_path / "out").exists()


def edit_weights(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: [s.pop(k) for k in list(s) if "blocks.0" in k],
            r"12 missing \(backbone\.blocks\.0\..* and 8 more\)",
        ),
        (lambda s: s.update(head=torch.zeros(1)), r"1 unexpected \(head\)"),
        (
            lambda s: s.update({"heads.clips.fc.bias": torch.zeros(6)}),
            r"1 of another shape \(heads\.clips\.fc\.bias is \[6\] and should be \[5\]\)",
        ),
        (
            lambda s: s.update({"heads.clips.fc.bias": torch.zeros(5, dtype=torch.int64)}),
            r"heads\.clips\.fc\.bias holds I64",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_summed_up(saved, change, message):
    folder, _ = saved
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*" + message):
        load_model(folder)


@pytest.mark.parametrize("size", [0, 7, 100, 5000])
def test_cut_weights_are_named(saved, size):
    folder, _ = saved
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    for load in (load_model, backbone_from_checkpoint):
        with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
            load(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors: not a safetensors file"):
        load_model(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not JSON"),
        ('{"model_type": "vivit"}', "a whole model is read from a run or a checkpoint of this project"),
        ('{"layers": 3}', "readable are a folder with config.json and model.safetensors"),
        ('{"format": "cofinetuning-model"}', "version None"),
        ('{"format": "cofinetuning-model", "version": 2}', "is of version 2"),
        ('{"format": "cofinetuning-model", "version": 1}', "'backbone' is missing"),
        ("9" * 5000, "not JSON"),
        ("\udcff", "not JSON"),
        (" " * (17 << 20), "more than"),
    ],
)
def test_config_files_of_something_else_are_named(saved, text, message):
    folder, _ = saved
    (folder / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=r"config\.json: ") as error:
        load_model(folder)
    assert message in str(error.value)


def paths_of(value, path=()):
    yield path
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from paths_of(value[key], (*path, key))


HOSTILE = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 100_000)
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(-1, 10_000), max_size=4)
    | st.dictionaries(st.text(max_size=4), st.integers(0, 9), max_size=2)
)


@settings(deadline=None, max_examples=250)
@given(path=st.sampled_from(list(paths_of(toy_config()))), value=HOSTILE, replace=st.booleans())
def test_a_hostile_config_is_a_value_error_that_names_the_file(tmp_path_factory, path, value, replace):
    folder = tmp_path_factory.getbasetemp() / "hostile"
    if not folder.exists():
        save_model(folder, make_model(), toy_config())
    document: Any = {"format": "cofinetuning-model", "version": 1, **toy_config()}
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    if not path:
        document = value
    elif replace or isinstance(inner, list):
        inner[path[-1]] = value
    else:
        inner[str(value)] = inner.pop(path[-1])
    (folder / "config.json").write_text(json.dumps(document), encoding="utf-8")
    try:
        load_model(folder)
    except ValueError as error:
        assert str(error).startswith(str(folder))


def test_a_config_of_a_giant_takes_no_memory(saved):
    folder, _ = saved
    document = json.loads((folder / "config.json").read_text())
    document["backbone"].update(depth=100, embed_dim=65536, num_heads=1, mlp_ratio=64, num_frames=8192)
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="of another shape"):
        load_model(folder)


@pytest.mark.parametrize("where", ["folder", "file"])
def test_the_backbone_alone(saved, where):
    folder, model = saved
    backbone = backbone_from_checkpoint(folder if where == "folder" else folder / "model.safetensors").eval()
    clips = model.normalise(toy_clips())
    assert torch.equal(backbone(clips), model.backbone(clips))


@pytest.mark.parametrize("class_token", [False, True])
def test_the_backbone_for_other_clips(tmp_path, class_token):
    model = make_model(class_token=class_token)
    save_model(tmp_path, model, toy_config(class_token=class_token))
    backbone = backbone_from_checkpoint(str(tmp_path), num_frames=8, image_size=[32, 24], drop_path_rate=0.1)
    assert backbone.grid == (4, 4, 3) and backbone.config.drop_path_rate == 0.1
    expected = resample_positions(model.backbone.pos_embed, (2, 2, 3), (4, 4, 3), int(class_token))
    assert torch.equal(backbone.pos_embed, expected)
    for name, param in backbone.named_parameters():
        if name != "pos_embed":
            assert torch.equal(param, model.backbone.get_parameter(name)), name
    assert backbone(torch.randn(1, 3, 8, 32, 24)).shape == (1, 48 + class_token, 16)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"depth": 3}, r"12 missing \(blocks\.2"),
        ({"depth": 1}, r"12 unexpected \(blocks\.1"),
        ({"embed_dim": 32}, "ask for another network.*of another shape"),
        (
            {"tubelet_size": (1, 8, 8)},
            r"patch_embed\.proj\.weight is \[16, 3, 2, 8, 8\] and should be \[16, 3, 1, 8, 8\]",
        ),
        ({"class_token": True}, r"1 missing \(cls_token\)"),
        ({"num_frame": 8}, "nearest valid one is 'num_frames'"),
        ({"num_frames": 5}, "nearest valid: 4 or 6"),
    ],
)
def test_overrides_that_ask_for_another_network(saved, overrides, message):
    with pytest.raises(ValueError, match=message):
        backbone_from_checkpoint(saved[0], **overrides)


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "model.txt").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "folder",
        tmp_path / "model.txt",
        tmp_path / "nowhere",
        os.fspath(tmp_path / "no" / "model.safetensors"),
    ):
        with pytest.raises(ValueError, match=r"readable are a folder with config\.json and model\.safetensors"):
            backbone_from_checkpoint(path)
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model\.pth: not a state dict that can be read"):
        backbone_from_checkpoint(tmp_path / "model.pth")
