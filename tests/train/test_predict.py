"""Prediction: labels are drawn where the boxes are, and any video comes out playable."""

import csv
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny_shards import make_video
from tests.train.predicting import CPU, predict, probe, write_boxes
from tests.train.test_detector import Stub
from train import detector
from train.clip_scores import clips, load_head
from train.draw import COLORS
from train.video_files import DamagedVideo, VideoReader


@pytest.mark.parametrize(
    ("suffix", "options", "size"),
    [
        (".mp4", ["-vf", "scale=101:75,setsar=1", "-pix_fmt", "yuv444p"], (646, 480)),
        (".mp4", ["-vf", "transpose=1"], (480, 640)),
        (".webm", ["-c:v", "libvpx-vp9", "-deadline", "realtime"], (640, 480)),
        (".mkv", ["-vf", "setpts='if(lt(N,20),N,20+3*(N-20))/15/TB'", "-fps_mode", "vfr"], (640, 480)),
    ],
    ids=["odd size", "upright", "vp9", "varying rate"],
)
def test_any_video_comes_out_as_h264_of_its_own_length(model, tmp_path, suffix, options, size):
    video = make_video(tmp_path / f"in{suffix}", *options)
    seconds = VideoReader(video).seconds
    boxes = write_boxes(tmp_path / "boxes.csv", "in,0001,0.2,0.2,0.8,0.9,,0.9")
    predict(model, video, tmp_path / "new" / "out.mp4", "--boxes", boxes, "--still", tmp_path / "still.png")
    stream = probe(tmp_path / "new" / "out.mp4")["video"]
    assert (stream["codec_name"], stream["pix_fmt"]) == ("h264", "yuv420p")
    assert (stream["width"], stream["height"]) == size == Image.open(tmp_path / "still.png").size
    assert float(stream["duration"]) == pytest.approx(seconds, abs=0.1)
    assert Fraction(stream["r_frame_rate"]) == 15
    assert not list(tmp_path.glob("new/.*"))


def test_sound_is_kept(model, tmp_path):
    tone = ["-f", "lavfi", "-i", "sine=duration=3", "-map", "0:v", "-map", "1:a", "-c:a", "libmp3lame"]
    video = make_video(tmp_path / "loud.mp4", *tone)
    predict(model, video, tmp_path / "out.mp4", "--task", "clips")
    assert probe(tmp_path / "out.mp4")["audio"]["codec_name"] == "aac"


def test_labels_are_drawn_and_detections_written_at_seconds_of_the_movie(model, tmp_path, capsys):
    video = make_video(tmp_path / "movie.mp4")
    rows = ["movie,0900,0.1,0.1,0.4,0.9,,0.99", "movie,0901,0.1,0.1,0.4,0.9,,0.99", "movie,0901,0.6,0.1,0.9,0.9,,0.5"]
    boxes = write_boxes(tmp_path / "boxes.csv", *rows, "other,0901,0.6,0.1,0.9,0.9,,0.99", "movie,0990,0,0,1,1,,0.99")
    found = tmp_path / "found" / "scores.csv"
    predict(model, video, tmp_path / "out.mp4", "--boxes", boxes, "--detections", found, "--still", tmp_path / "s.png")
    lines = [line.split(",") for line in found.read_text().splitlines()]
    # Two boxes of score 0.8 or more, three classes each.
    assert [line[:2] + line[6:7] for line in lines] == [
        ["movie", second, action] for second in ("0900", "0901") for action in ("1", "3", "7")
    ]
    assert float(lines[1][7]) > 0.9 > float(lines[0][7])
    out = capsys.readouterr().out
    assert "begins at second 900; 2 are used, 1 lie outside" in out
    # Classes 3 and 7 reach 0.3, class 1 does not.
    assert "2 of 2 keyframes have persons: 2 with 4 labels of at least 0.3" in out
    still = np.asarray(Image.open(tmp_path / "s.png"), dtype=int)
    frame = next(VideoReader(video).steady())[1].permute(1, 2, 0).numpy()
    plain = np.asarray(Image.fromarray(frame).resize((640, 480)))
    changed = np.abs(still - plain).max(axis=2) > 100
    assert changed[:, 50:300].any() and not changed[:, 400:].any()


def test_a_classification_head_makes_a_caption(model, tmp_path, capsys):
    video = make_video(tmp_path / "v.mp4")
    for task, count in (("clips", 3), ("order", 1)):
        predict(model, video, tmp_path / "out.mp4", "--task", task, "--still", tmp_path / "still.png")
        assert f"{count} clips (task {task})" in capsys.readouterr().out
        with (tmp_path / "out_predictions.csv").open() as file:
            rows = list(csv.DictReader(file))
        scores = [[float(row[f"score{n}"]) for n in range(1, 6) if f"score{n}" in row] for row in rows]
        assert [row["key"] for row in rows] == (["0.500", "1.500", "2.500"] if task == "clips" else ["1.500"])
        assert all(row == sorted(row, reverse=True) and len(row) == (5 if task == "clips" else 3) for row in scores)
        head, video_of = load_head(str(model), task, None, CPU), VideoReader(video)
        expected = head(head.clip(video_of, float(rows[0]["key"]))).softmax(1).max().item()
        assert scores[0][0] == pytest.approx(expected, abs=1e-6)
    picture = np.asarray(Image.open(tmp_path / "still.png"))
    assert (picture[-1, :60] == 25).all()  # the caption's ground, lower left


def test_sound_that_cannot_be_decoded_costs_the_sound_alone(model, tmp_path, capsys):
    tone = ["-f", "lavfi", "-i", "sine=duration=3", "-map", "0:v", "-map", "1:a", "-c:a", "pcm_s16le"]
    loud = make_video(tmp_path / "loud.mov", *tone)
    loud.write_bytes(loud.read_bytes().replace(b"sowt", b"zzzz"))
    predict(model, loud, tmp_path / "out.mp4", "--task", "clips")
    assert list(probe(tmp_path / "out.mp4")) == ["video"]
    assert "its sound cannot be decoded, and is left out" in capsys.readouterr().err


def test_a_video_with_a_damaged_end_is_drawn_as_far_as_it_goes(model, tmp_path, capsys):
    good = make_video(tmp_path / "good.avi", "-c:v", "mpeg4", frames=120).read_bytes()
    bad = tmp_path / "bad.avi"
    whole = len(good) * 2 // 3
    bad.write_bytes(good[:whole] + b"\xff" * (len(good) - whole - 600) + good[-600:])
    reader = VideoReader(bad)
    drawn = [time for time, _ in reader.steady()]
    assert reader.damage is not None and 0 < len(drawn) < 120
    predict(model, bad, tmp_path / "out.mp4", "--task", "clips")
    captured = capsys.readouterr()
    assert "the video ends with the last good one" in captured.err and "clips are left out" in captured.err
    with pytest.raises(DamagedVideo):
        list(clips(load_head(str(model), "clips", None, CPU), reader, [7.9], "clips"))


def test_keyframes_closer_than_every_are_thinned(model, tmp_path, capsys):
    video = make_video(tmp_path / "v.mp4")
    rows = [f"v,{frame / 15:.6f},0.1,0.1,0.5,0.9,,0.9" for frame in range(45)]
    predict(model, video, tmp_path / "out.mp4", "--boxes", write_boxes(tmp_path / "b.csv", *rows), "--every", "0.5")
    assert "45 keyframes of v lie in the video, which begins at second 0; 6 are used" in capsys.readouterr().out


def test_persons_are_detected_once_a_second_and_followed(model, tmp_path, monkeypatch, capsys):
    """Two detections of the same box: the video has it all the time, and it does not blink."""
    torch.save(Stub(91).state_dict(), tmp_path / "stub.pth")
    monkeypatch.setattr(detector, "_KNOWN", [(lambda num_classes, **_: Stub(num_classes), "")])
    video = make_video(tmp_path / "v.mp4", "-vf", "scale=64:48", frames=30)
    predict(model, video, tmp_path / "out.mp4", "--detector", tmp_path / "stub.pth", "--threshold", "1")
    assert "2 of 2 keyframes have persons: 2 with 0 labels" in capsys.readouterr().out
    rows = [row.split(",") for row in (tmp_path / "out_detections.csv").read_text().splitlines()]
    assert {tuple(row[:6]) for row in rows} == {
        ("v", time, "0.250000", "0.250000", "0.500000", "1.000000") for time in ("0.500000", "1.500000")
    }
    for _, frame in VideoReader(tmp_path / "out.mp4").steady():
        # Orange on the left side of the box, x1 = 160.
        assert frame[:, 240, 160].float().sub(torch.tensor(COLORS[0])).abs().max() < 60


def hurt_video(path: Path, first: int, last: int) -> Path:
    """Six seconds of 64x48 with a keyframe a second; packets `first` to `last` are lost."""
    video = make_video(path, "-vf", "scale=64:48", "-g", "15", "-bf", "0", frames=90)
    command = ["ffprobe", "-v", "error", "-show_entries", "packet=pos,size", "-of", "csv=p=0", video]
    packets = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    content = bytearray(video.read_bytes())
    for size, place in (map(int, packet.split(",")[:2]) for packet in packets[first:last]):
        content[place : place + size] = b"\xff" * size
    video.write_bytes(content)
    return video


def test_damage_costs_the_persons_of_its_own_moments_alone(model, tmp_path, monkeypatch, capsys):
    torch.save(Stub(91).state_dict(), tmp_path / "stub.pth")
    monkeypatch.setattr(detector, "_KNOWN", [(lambda num_classes, **_: Stub(num_classes), "")])
    hurt = hurt_video(tmp_path / "v.mp4", 30, 60)  # the third and the fourth second
    options = ("--detector", tmp_path / "stub.pth")
    predict(model, hurt, tmp_path / "out.mp4", *options)
    captured = capsys.readouterr()
    assert "4 of 6 keyframes have persons" in captured.out
    assert captured.err.count("note: persons are not looked for at 2 of 6 moments: ") == 1
    assert captured.err.count("damaged near second") == 1
    with pytest.raises(DamagedVideo, match=r"damaged near second 3\.00"):
        predict(model, hurt, tmp_path / "out.mp4", *options, "--every", "6")
