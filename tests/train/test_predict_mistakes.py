"""Prediction from bad input: told in words before any work, and nothing is overwritten."""

import pytest

from data.errors import UserError
from tests.tiny_shards import make_video
from tests.train.predicting import predict, write_boxes
from train import detector


def test_boxes_of_which_none_is_used_are_told(model, tmp_path, capsys):
    video = make_video(tmp_path / "v.mp4")
    (tmp_path / "boxes.csv").write_text("v,1,10,20,100,90,,0.99\nv,2,0.1,0.1,0.5,0.5,,0.01\n")
    predict(model, video, tmp_path / "out.mp4", "--boxes", tmp_path / "boxes.csv")
    assert "no box is used" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "peple"], "the checkpoint has clips, order, people"),
        (["--threshold", "2"], "--threshold 2.0: expected a number from 0 to 1"),
        (["--video-start", "nan"], "--video-start nan: expected a number of seconds"),
        (["--video-start", "inf"], "--video-start inf: expected a number of seconds"),
        (["--every", "0"], "--every 0.0: expected more than 0"),
        (["--out", "out.gif"], "give a name that ends in .mp4, .mov, .mkv"),
        (["--still", "out.txt"], "give a name that ends in .png"),
        (["--detections", "."], "--detections .: is a folder"),
        (["--out", f"{__file__}/out.mp4"], "is not a folder that can be written to"),
        (["--video", "nowhere.mp4"], "there is no such file"),
        (["--checkpoint", "nowhere"], "no checkpoint at nowhere"),
        (["--boxes", "nowhere.csv"], "--boxes nowhere.csv: there is no such file"),
        (["--detector", "nowhere.pth"], "--detector nowhere.pth: there is no such file"),
        (["--boxes", __file__, "--detector", __file__], "--boxes and --detector: give one of them"),
        (
            ["--task", "clips", "--boxes", __file__, "--box-threshold", "0.5"],
            "--boxes, --box-threshold: a classification",
        ),
        (["--device", "abacus"], "--device abacus"),
        (["--device", "meta"], "--device meta: it computes nothing"),
    ],
)
def test_mistakes_are_told_in_words(model, tmp_path, options, message):
    video = make_video(tmp_path / "v.mp4", frames=5)
    with pytest.raises(UserError, match=message):
        predict(model, video, tmp_path / "out.mp4", *options)
    assert not (tmp_path / "out.mp4").exists()


def test_a_missing_ffmpeg_is_told_before_any_work(model, tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4", frames=5)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ffmpeg is not installed"):
        predict(tmp_path / "no model", video, tmp_path / "out.mp4")


def test_without_boxes_or_a_detector_the_message_says_what_to_give(model, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(detector, "_KNOWN", [(None, "http://127.0.0.1:1/weights.pth")])
    video = make_video(tmp_path / "v.mp4", frames=5)
    with pytest.raises(UserError, match="Give --boxes CSV"):
        predict(model, video, tmp_path / "out.mp4")


def test_a_video_is_never_overwritten_by_its_own_drawing(model, tmp_path):
    video = make_video(tmp_path / "v.mp4", frames=5)
    with pytest.raises(UserError, match="is the video itself"):
        predict(model, video, video, "--task", "clips")


def test_boxes_are_never_overwritten_by_the_scores(model, tmp_path):
    video = make_video(tmp_path / "v.mp4", frames=5)
    boxes = write_boxes(tmp_path / "out_detections.csv", "v,0000,0.1,0.1,0.5,0.9,,0.9")
    with pytest.raises(UserError, match="would be overwritten"):
        predict(model, video, tmp_path / "out.mp4", "--boxes", boxes)
    assert boxes.read_text().count("\n") == 1
