"""Prediction: the model sees what evaluation would see, boxes find their frames, and any video comes out playable."""

import csv
import json
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.crop import whole_frame
from data.dataset import EvalDataset, TaskData
from data.decode import decode
from data.errors import UserError
from data.sampling import around_keyframe, dense
from models import create_model, save_model
from tests.tiny_shards import make_classification_set, make_video, render
from tests.train.test_detector import Stub
from train import detector
from train.clip_scores import clips, grid, load_head
from train.draw import COLORS
from train.person_boxes import read_box_file
from train.predict import run
from train.predict_options import parser
from train.video_files import DamagedVideo, VideoReader

VIEW = {"num_frames": 4, "stride": 3, "image_size": 32}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A randomly initialised model with a head of each kind; the localisation head is sure of class 3."""
    folder = tmp_path_factory.mktemp("model")
    config = {
        "backbone": {
            "name": "vit_tiny",
            "embed_dim": 32,
            "depth": 1,
            "num_heads": 2,
            "num_frames": 4,
            "image_size": 32,
        },
        "heads": {
            "clips": {"kind": "classification", "num_classes": 6},
            "order": {"kind": "classification", "num_classes": 3},
            "people": {"kind": "localisation", "num_classes": 3},
        },
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    net = create_model(config)
    with torch.no_grad():
        net.get_parameter("heads.people.fc.bias").copy_(torch.tensor([-4.0, 4.0, 0.0]))
    classes = {
        "clips": [{"id": i, "name": f"class {i}"} for i in range(6)],
        "order": [{"id": i, "name": f"order {i}"} for i in range(3)],
        "people": [{"id": i, "name": f"action {i}"} for i in (1, 3, 7)],
    }
    views = {"clips": VIEW, "order": VIEW | {"sampling": "segments"}, "people": VIEW}
    tasks = {task: {"classes": classes[task], "view": views[task]} for task in classes}
    save_model(folder, net, config, {"tasks": tasks})
    return folder


def probe(path: Path) -> dict:
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    streams = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    return {stream["codec_type"]: stream for stream in streams}


def predict(model: Path, video: Path, out: Path, *options: str | Path) -> None:
    arguments = ["--checkpoint", model, "--video", video, "--out", out, "--device", "cpu", *options]
    run(parser().parse_args(list(map(str, arguments))))


def write_boxes(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows))
    return path


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


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["v,0002,0.1,0.1,0.5,0.9,,0.9", "v,0002,0.2,0.1,0.5,0.9,,0.7"], [1]),
        (["v,0002,0.1,0.1,0.5,0.9,12,0.9", "v,0002,0.1,0.1,0.5,0.9,14,0.9"], [1]),
        (["v,0002,0.1,0.1,0.5,0.9,12,0", "v,0002,0.1,0.1,0.5,0.9,14,0", "v,0002,0.3,0.1,0.5,0.9,14,1"], [2]),
        (["v,1.5,0.1,0.1,0.5,0.9,12", "v,2.5,-0.1,0.1,0.5,1.2,12", "v,2.75,0.5,0.1,0.5,0.9,12"], [1, 1, 0]),
    ],
    ids=["SlowFast", "SlowFast with labels", "AVA", "AVA-Kinetics"],
)
def test_box_files_of_the_field(tmp_path, rows, expected):
    file = read_box_file(str(write_boxes(tmp_path / "b.csv", *rows)), Path("v.mp4"), 10.0, None, 0.8)
    assert [len(boxes) for boxes in file.boxes] == expected
    assert all((boxes >= 0).all() and (boxes <= 1).all() for boxes in file.boxes)


def test_the_beginning_of_the_movie_is_told_or_guessed(tmp_path):
    box = "0.1,0.1,0.5,0.9,,0.9"
    path = str(write_boxes(tmp_path / "b.csv", f"v,0902,{box}", f"v,0903,{box}", f"v,1700,{box}"))
    file = read_box_file(path, Path("v.mp4"), 10.0, None, 0.8)
    assert (file.start, file.times.tolist(), file.outside) == (900.0, [2.0, 3.0], 1)
    assert read_box_file(path, Path("v.mp4"), 5000.0, None, 0.8).times.tolist() == [902.0, 903.0, 1700.0]
    assert read_box_file(path, Path("v.mp4"), 10.0, 1695.0, 0.8).times.tolist() == [5.0]
    with pytest.raises(UserError, match="say with --video-start"):
        read_box_file(path, Path("v.mp4"), 10.0, 0.0, 0.8)


def test_a_file_of_several_videos_must_name_this_one(tmp_path):
    box = "0001,0.1,0.1,0.5,0.9,,0.9"
    path = str(write_boxes(tmp_path / "b.csv", f"one,{box}", f"two,{box}"))
    assert read_box_file(path, Path("two.mp4"), 10.0, None, 0.8).video_id == "two"
    with pytest.raises(UserError, match="has no boxes of a video 'three'; it has one, two"):
        read_box_file(path, Path("three.mp4"), 10.0, None, 0.8)


def test_a_file_without_boxes_is_told(tmp_path):
    excluded = tmp_path / "excluded.csv"
    excluded.write_text("v,0902\nother,0903\n")
    with pytest.raises(UserError, match=r"excluded\.csv: has no boxes"):
        read_box_file(str(excluded), Path("v.mp4"), 10.0, None, 0.8)


def test_keyframes_closer_than_every_are_thinned(model, tmp_path, capsys):
    video = make_video(tmp_path / "v.mp4")
    rows = [f"v,{frame / 15:.6f},0.1,0.1,0.5,0.9,,0.9" for frame in range(45)]
    predict(model, video, tmp_path / "out.mp4", "--boxes", write_boxes(tmp_path / "b.csv", *rows), "--every", "0.5")
    assert "45 keyframes of v lie in the video, which begins at second 0; 6 are used" in capsys.readouterr().out


def test_boxes_of_which_none_is_used_are_told(model, tmp_path, capsys):
    video = make_video(tmp_path / "v.mp4")
    (tmp_path / "boxes.csv").write_text("v,1,10,20,100,90,,0.99\nv,2,0.1,0.1,0.5,0.5,,0.01\n")
    predict(model, video, tmp_path / "out.mp4", "--boxes", tmp_path / "boxes.csv")
    assert "no box is used" in capsys.readouterr().err


def test_the_grid_of_moments():
    assert grid(3.0, 1.0).tolist() == [0.5, 1.5, 2.5]
    assert grid(0.4, 1.0).tolist() == [0.2]
    assert grid(10.0, 10.0).tolist() == [5.0]


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
