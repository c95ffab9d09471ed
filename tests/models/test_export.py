"""Export to Hugging Face: what `transformers` loads gives this project's logits, from this project's frames."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForVideoClassification,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
    VivitForVideoClassification,
    VivitImageProcessor,
    VivitVideoProcessor,
)

from models import create_model, save_model
from models.export import export_task, main, obstacles
from tests.models.toy import randomise, toy_clips, toy_config

VIVIT = {"class_token": True}
VIDEOMAE = {"pos_embed": "sincos", "final_norm": False}
HEADS = {VivitForVideoClassification: {"pool": "class_token"}, VideoMAEForVideoClassification: {"fc_norm": True}}
NAMES = ["fall", "sit – 坐", "run", "walk", "wave"]
EXTRA = {"tasks": {"clips": {"classes": [{"id": i + 1, "name": name} for i, name in enumerate(NAMES)], "view": {}}}}


def made(kind, **options):
    config = toy_config(**options)
    config["heads"]["clips"] |= HEADS.get(kind, {})
    torch.manual_seed(0)
    model = create_model(config)
    randomise(model)
    return model.eval(), config


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (VivitForVideoClassification, VIVIT),
        (VivitForVideoClassification, {**VIVIT, "act_layer": "gelu_tanh", "qkv_bias": False, "norm_eps": 1e-4}),
        (VivitForVideoClassification, {**VIVIT, "pos_embed": "sincos", "init_values": 0.3, "act_layer": "quick_gelu"}),
        (VivitForVideoClassification, {**VIVIT, "image_size": 16, "tubelet_size": [4, 8, 4], "mlp_ratio": 2.3}),
        (VideoMAEForVideoClassification, VIDEOMAE),
        (VideoMAEForVideoClassification, {**VIDEOMAE, "qkv_bias": False, "act_layer": "relu", "norm_eps": 1e-4}),
        (VideoMAEForVideoClassification, {**VIDEOMAE, "image_size": 24, "init_values": 0.3, "act_layer": "silu"}),
    ],
)
def test_transformers_gives_the_same_logits(tmp_path, kind, options):
    model, config = made(kind, **options)
    assert export_task(model, {**config, **EXTRA}, "clips", tmp_path) == kind.__name__
    theirs, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    _, height, width = model.backbone.config.clip_size
    clips = model.normalise(toy_clips()[:, :, :, :1, :1].expand(-1, -1, -1, height, width) // 2)
    clips = clips + torch.randn(clips.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.heads["clips"](model.backbone(clips), model.backbone.grid)
        logits = theirs.eval()(pixel_values=clips.transpose(1, 2)).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert AutoConfig.from_pretrained(tmp_path).id2label == dict(enumerate(NAMES))
    assert isinstance(AutoModelForVideoClassification.from_pretrained(tmp_path), kind)


@pytest.mark.parametrize(
    ("kind", "processors", "options"),
    [
        (VivitForVideoClassification, (VivitImageProcessor, VivitVideoProcessor), VIVIT),
        (VideoMAEForVideoClassification, (VideoMAEImageProcessor, VideoMAEVideoProcessor), VIDEOMAE),
    ],
)
def test_transformers_normalises_frames_the_same_way(tmp_path, kind, processors, options):
    model, config = made(kind, image_size=16, **options)
    export_task(model, config, "clips", tmp_path)
    clip = toy_clips(batch=1)[:, :, :, :, 4:20]
    expected = model.normalise(clip).transpose(1, 2)
    frames = clip[0].permute(1, 2, 3, 0).numpy()
    for processor in processors:
        ready = processor.from_pretrained(tmp_path)
        values = ready(list(np.ascontiguousarray(frames)), return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(values.float(), expected, atol=1e-5, rtol=0)


POOLED = "the head's pool=mean"
NOT_VIDEOMAE = {"final_norm=true", "the head's fc_norm=false", "pos_embed=learned"}


@pytest.mark.parametrize(
    ("kind", "options", "vivit", "videomae"),
    [
        (None, {}, {"class_token=false", POOLED}, NOT_VIDEOMAE),
        (
            VivitForVideoClassification,
            VIVIT,
            set(),
            {*NOT_VIDEOMAE, "class_token=true", "the head's pool=class_token"},
        ),
        (
            VideoMAEForVideoClassification,
            VIDEOMAE,
            {"class_token=false", POOLED, "final_norm=false", "the head's fc_norm=true"},
            set(),
        ),
    ],
)
def test_what_prevents_an_export_is_named(tmp_path, kind, options, vivit, videomae):
    model, config = made(kind, **options)
    assert {family: set(reasons) for family, reasons in obstacles(model, "clips").items()} == {
        "vivit": vivit,
        "videomae": videomae,
    }
    with pytest.raises(ValueError, match="it localises"):
        export_task(model, config, "persons", tmp_path / "out")
    if vivit and videomae:
        with pytest.raises(ValueError, match=r"clips: .*VivitFor.*class_token=false.*VideoMAEFor.*final_norm"):
            export_task(model, config, "clips", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mean_frame_and_interpolated_positions_prevent_it():
    model, _ = made(VideoMAEForVideoClassification, **VIDEOMAE)
    model.backbone.pos_embed += 0.01
    model.subtract_mean_frame = 1.0
    assert obstacles(model, "clips")["videomae"] == [
        "subtract_mean_frame=1",
        "sine-cosine positions that were interpolated from another grid",
    ]


def test_the_command(tmp_path, capsys):
    model, config = made(VivitForVideoClassification, **VIVIT)
    run = tmp_path / "run"
    save_model(run / "checkpoints" / "step-000002", model, config, EXTRA)
    (run / "checkpoints" / "latest").write_text("step-000002\n")
    command = [sys.executable, "-m", "models.export", run, "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{os.path.join('out', 'clips')}: VivitForVideoClassification\n"
    assert "not exported: task persons:" in done.stderr and "it localises" in done.stderr
    folder = tmp_path / "out" / "clips"
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert json.loads((folder / "config.json").read_text())["num_frames"] == 4

    def status(*args):
        with pytest.raises(SystemExit) as left:
            main([*map(str, args), "--out", str(tmp_path / "again")])
        return left.value.code, capsys.readouterr().err

    assert status(run, "--task", "persons")[0] == 1
    assert status(run, "--task", "clip") == (2, "error: --task clip: the checkpoint has clips, persons\n")
    code, told = status(tmp_path / "nowhere")
    assert code == 2 and told.startswith(f"error: {tmp_path / 'nowhere'}: not a checkpoint")
    assert not (tmp_path / "again").exists()
