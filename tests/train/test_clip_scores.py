"""Clips of a video for prediction: the model sees what evaluation would see."""

import json

import numpy as np
import pytest
import torch

from data.crop import whole_frame
from data.dataset import EvalDataset, TaskData
from data.decode import decode
from data.errors import UserError
from data.sampling import around_keyframe, dense
from tests.tiny_shards import make_classification_set, make_video, render
from tests.train.predicting import CPU, VIEW
from train.clip_scores import grid, load_head
from train.video_files import VideoReader


def test_a_clip_is_the_one_that_evaluation_would_cut(model, tmp_path):
    shards = make_classification_set(tmp_path, "k", "val")
    head = load_head(str(model), "order", None, CPU)
    data = TaskData("order", head.kind, shards, head.view)
    for example in (0, 1):
        (tmp_path / "clip.mp4").write_bytes(shards.read_video(example))
        assert torch.equal(head.clip(VideoReader(tmp_path / "clip.mp4"), 0.0), EvalDataset(data)[example].clip)


def test_a_dense_clip_of_the_middle_is_the_one_that_evaluation_would_cut(model, tmp_path):
    head = load_head(str(model), "clips", None, CPU)
    # Longer than a clip by an even and by an odd number of frames, and shorter than a clip.
    for frames in (38, 41, 7, 3):
        (tmp_path / "v.mp4").write_bytes(render("testsrc2=size=96x96", frames))
        video = VideoReader(tmp_path / "v.mp4")
        indices = dense(frames, num_frames=4, stride=3)
        expected = whole_frame(96, 96).apply(decode((tmp_path / "v.mp4").read_bytes(), indices, frames), 32)
        assert torch.equal(head.clip(video, video.seconds / 2), expected)


def test_a_classified_clip_stays_inside_of_the_video(model, tmp_path):
    """Training never shows a border frame several times where the video is long enough."""
    (tmp_path / "v.mp4").write_bytes(render("testsrc2=size=96x96", 40))
    head, video = load_head(str(model), "clips", None, CPU), VideoReader(tmp_path / "v.mp4")
    content = (tmp_path / "v.mp4").read_bytes()
    for time, first in ((0.0, 0), (video.seconds, 30)):
        expected = whole_frame(96, 96).apply(decode(content, first + 3 * np.arange(4), 40), 32)
        assert torch.equal(head.clip(video, time), expected)


def test_a_clip_takes_the_frames_nearest_in_time_as_packing_does(model, tmp_path):
    # AVA's usual case: a film at 24000/1001, packed at 24. At second 2, frame 48 is 2 ms late and frame 47 40 ms early.
    video = make_video(tmp_path / "film.mp4", "-r", "24000/1001", "-qp", "0", frames=60)
    head = load_head(str(model), "people", 24, CPU)
    reader = VideoReader(video)
    expected = whole_frame(reader.height, reader.width).apply(
        decode(video.read_bytes(), np.array([42, 45, 48, 51]), reader.count), 32
    )
    assert torch.equal(head.clip(reader, 2.0), expected)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # 20 frames at 15 fps, then slower: packing lays a grid of 15 fps over it, whatever the average.
        (["-vf", "setpts='if(lt(N,20),N,20+3*(N-20))/15/TB'", "-fps_mode", "vfr"], [9, 12, 15, 18]),
        # Packing takes every second frame of 120 a second.
        (["-vf", "setpts=N/120/TB", "-r", "120"], [108, 114, 120, 126]),
    ],
    ids=["varying rate", "120 fps"],
)
def test_a_clip_has_the_pace_that_packing_would_give_the_video(model, tmp_path, options, expected):
    video = make_video(tmp_path / "v.mp4", *options, "-qp", "0", frames=150)
    reader, head = VideoReader(video), load_head(str(model), "people", None, CPU)
    pixels = decode(video.read_bytes(), np.array(expected), reader.count)
    clip = whole_frame(reader.height, reader.width).apply(pixels, 32)
    assert torch.equal(head.clip(reader, 1.0), clip)


@pytest.mark.parametrize("keyframe", [0, 7, 16, 37])
def test_a_keyframes_clip_has_the_very_frames_of_evaluation(model, tmp_path, keyframe):
    content = render("testsrc2=size=128x96", 38)
    (tmp_path / "v.mp4").write_bytes(content)
    indices = around_keyframe(38, keyframe, num_frames=4, stride=3)
    expected = whole_frame(96, 128).apply(decode(content, indices, 38), 32)
    head = load_head(str(model), "people", None, CPU)
    assert torch.equal(head.clip(VideoReader(tmp_path / "v.mp4"), keyframe / 15), expected)


def test_clips_span_the_same_time_whatever_the_frame_rate(model, tmp_path):
    # Every second frame dropped: at 7.5 fps the clip of stride 3 at 15 fps has each of its frames, or the one before.
    fast = make_video(tmp_path / "fast.mp4", frames=46)
    slow = make_video(tmp_path / "slow.mp4", "-vf", "select='not(mod(n,2))'", "-r", "7.5", "-qp", "0", frames=46)
    head = load_head(str(model), "people", 15, CPU)
    (a, b) = (head.clip(VideoReader(path), 1.6).float() for path in (fast, slow))
    moved = head.clip(VideoReader(fast), 2.0).float()
    assert (a - b).abs().mean() < 0.5 * (a - moved).abs().mean()
    # Without a rate, the slow video's own one makes its clip span twice the time.
    own = load_head(str(model), "people", None, CPU)
    assert not torch.equal(own.clip(VideoReader(slow), 1.6).float(), b)


def test_the_grid_of_moments():
    assert grid(3.0, 1.0).tolist() == [0.5, 1.5, 2.5]
    assert grid(0.4, 1.0).tolist() == [0.2]
    assert grid(10.0, 10.0).tolist() == [5.0]


def test_views_of_checkpoints_are_checked(tmp_path, model):
    config = json.loads((model / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    for broken in ({}, {"classes": config["tasks"]["clips"]["classes"], "view": {**VIEW, "stride": 0}}):
        config["tasks"]["clips"] = broken
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="does not say how clips is used"):
            load_head(str(tmp_path), "clips", None, CPU)
    whole = json.loads((model / "config.json").read_text())["tasks"]["clips"]
    for broken, told in (
        ({**whole, "classes": whole["classes"][:-1]}, "5 classes of clips, and its model has 6"),
        ({**whole, "view": {**whole["view"], "num_frames": 2}}, "2 frames of clips, and its model has 4"),
        ({**whole, "view": {**whole["view"], "image_size": 64}}, "64 pixels a side of clips, and its model has 32"),
    ):
        config["tasks"]["clips"] = broken
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=told):
            load_head(str(tmp_path), "clips", None, CPU)
