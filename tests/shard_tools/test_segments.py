"""Cutting movies: which keyframes go together, and that each second is the frame it should be."""

import os
import shutil
from fractions import Fraction

import numpy as np
import pytest
from torchcodec.decoders import VideoDecoder

from data.errors import UserError
from shard_tools import segments
from shard_tools.failures import Failure
from shard_tools.ffmpeg_check import takes_many
from shard_tools.keyframe_labels import KeyframeLabels
from shard_tools.segments import Cut, plan_clip_segments, plan_segments, segment_runs
from shard_tools.source_video import Source
from shard_tools.verify import verify
from shard_tools.video_files import VideoFiles
from tests.shard_tools.raw import counter_source, ffmpeg, only_newer_ffmpeg, read_counter, video

CUT = Cut(movie_start=900, margin=1.5, window=64)


def plan(tmp_path, stamps, cut=CUT):
    (tmp_path / "v.mp4").touch()
    videos = {"v": [KeyframeLabels(float(stamp)) for stamp in stamps]}
    segments, lost = plan_segments("ava", videos, VideoFiles(tmp_path), cut)
    return [[keyframe.timestamp for keyframe in segment.keyframes] for segment in segments], segments, lost


def test_up_to_eight_keyframes_whose_clips_touch_go_together(tmp_path):
    stamps, segments, lost = plan(tmp_path, [*range(902, 912), 914, 918, 921, 925])
    assert stamps == [[*range(902, 910)], [910, 911, 914], [918, 921], [925]]
    assert [segment.key for segment in segments] == ["v_0902", "v_0910", "v_0918", "v_0925"]
    assert not lost


@pytest.mark.parametrize(("fps", "around"), [(30, 45), (24, 36), (15, 32), (6, 32)])
def test_each_keyframe_finds_its_whole_clip_at_any_rate(tmp_path, fps, around):
    _, (segment,), _ = plan(tmp_path, [920, 921])
    source = Source(640, 480, Fraction(fps), 900.0, 0.1, "auto")
    span = segment.span(source, Fraction(fps))
    assert (around, span.frames) == (segment._frames(Fraction(fps))[0], 2 * around + fps + 1)
    assert span.start == 20 - Fraction(around, fps) and span.key_frames == (around - 32, around - 32 + fps)


def test_keyframes_before_the_file_and_missing_movies_are_lost_and_named(tmp_path):
    (tmp_path / "v.mp4").touch()
    videos = {"v": [KeyframeLabels(899.0), KeyframeLabels(900.0)], "../v": [KeyframeLabels(902.0)] * 3}
    segments, lost = plan_segments("ava", videos, VideoFiles(tmp_path), CUT)
    assert [segment.examples for segment in segments] == [1]
    assert lost == [
        Failure("v.mp4", "outside the file", "keyframe 899 s is before the file's beginning, 900 s"),
        Failure("../v", "missing", "no file of this name under the videos", 3),
    ]


def test_keys_of_hostile_and_close_keyframes_are_plain_and_differ(tmp_path):
    (tmp_path / "a.b c.mp4").touch()
    videos = {"a.b c": [KeyframeLabels(900.0), KeyframeLabels(910.001), KeyframeLabels(920.0)]}
    segments, _ = plan_segments("ava", videos, VideoFiles(tmp_path), Cut(900, 0.0005, 64))
    assert [segment.key for segment in segments] == ["a_b_c_0900", "a_b_c_0910", "a_b_c_0920"]


def frames_of_keyframes(world, name):
    """[(video id, timestamp, number that the packed keyframe shows)]."""
    shards = world.shards(name)
    shown = []
    for example in range(len(shards)):
        sample = shards.read_json(example)
        keyframe = sample["keyframes"][int(shards.index["item"][example])]
        decoder = VideoDecoder(shards.read_video(example))
        assert len(decoder) == sample["video"]["frames"]
        assert keyframe["timestamp"] - sample["start"] == pytest.approx(
            keyframe["frame"] * sample["video"]["fps"][1] / sample["video"]["fps"][0], abs=0.02
        )
        shown.append((sample["video_id"], keyframe["timestamp"], read_counter(decoder[keyframe["frame"]].numpy())))
    return shown


def test_time_counts_from_where_an_edit_list_begins(world):
    """Movies that were cut without encoding keep the film from the key frame before, which no player shows."""
    whole = video(
        world.folder / "whole.mp4", counter_source("25"), 20.0, "-g", "250", "-bf", "2", "-pix_fmt", "yuv420p"
    )
    ffmpeg("-ss", "3.2", "-i", whole, "-c", "copy", world.videos / "cut.mp4")
    rows = [f"cut,{t:04d},0.1,0.2,0.5,0.9,12,1" for t in (900, 901, 905, 914, 915)]
    assert world.ava(rows) == 0
    shown = frames_of_keyframes(world, "ava-train")
    assert sorted(shown) == [("cut", float(t), 80 + 25 * (t - 900)) for t in (900, 901, 905, 914, 915)]


@pytest.mark.parametrize(("fps", "newer"), [(None, False), ("10", False), (None, True)])
def test_the_packed_keyframe_is_the_movie_at_that_second(world, monkeypatch, fps, newer):
    rates = {"film": 24000 / 1001, "cine": 24, "pal": 25, "ntsc": 30000 / 1001, "pc": 30, "stream": 25, "vfr": 25}
    # AVI's unit of time is a whole frame; a keyframe between two frames of the source needs a finer one.
    rates |= {"old": 24000 / 1001, "tape": 30000 / 1001}
    video(world.videos / "old.avi", counter_source("24000/1001"), 20.0, "-g", "90", "-pix_fmt", "yuv420p")
    video(world.videos / "tape.avi", counter_source("30000/1001"), 20.0, "-g", "90", "-pix_fmt", "yuv420p")
    # Of some seconds three frames in five are missing, of one all but the first.
    gaps = ",select='lt(mod(n,100),30)+gt(mod(n,100),60)+eq(mod(n,5),0)-between(n,126,149)'"
    video(world.videos / "vfr.mp4", counter_source("25") + gaps, 20.0, "-fps_mode", "vfr", "-pix_fmt", "yuv420p")
    video(world.videos / "cine.mkv", counter_source("24"), 20.0, "-g", "250", "-pix_fmt", "yuv420p")
    video(world.videos / "pc.webm", counter_source("30"), 20.0, "-c:v", "libvpx", "-deadline", "realtime")
    video(world.videos / "film.mp4", counter_source("24000/1001"), 20.0, "-g", "90", "-pix_fmt", "yuv420p")
    pal = video(world.videos / "pal.mkv", counter_source("25"), 20.0, "-g", "250", "-pix_fmt", "yuv420p")
    video(world.videos / "ntsc.mp4", counter_source("30000/1001"), 20.0, "-bf", "3", "-pix_fmt", "yuv420p")
    ffmpeg("-i", pal, "-c", "copy", world.videos / "stream.ts")
    rows = [f"{v},{t:04d},0.1,0.2,0.5,0.9,12,1" for v in rates for t in [*range(900, 911), 915, 916, 919]]
    if newer:
        monkeypatch.setenv("PATH", f"{only_newer_ffmpeg(world.folder)}:{os.environ['PATH']}")
    assert world.ava(rows, *(("--fps", fps) if fps else ())) == 0
    shown = frames_of_keyframes(world, "ava-train")
    assert len(shown) == len(rows)
    for name, second, number in shown:
        assert abs(number - (second - 900) * rates[name]) <= (0.5 if rates[name] % 1 else 0), (name, second)


def test_a_movie_is_read_in_runs_and_each_segment_is_as_if_cut_alone(world, monkeypatch):
    for name, rate in (("film", "24000/1001"), ("pal", "25")):
        video(world.videos / f"{name}.mp4", counter_source(rate), 20.0, "-g", "90", "-pix_fmt", "yuv420p")
    rows = [f"{v},{t:04d},0.1,0.2,0.5,0.9,12,1" for v in ("film", "pal") for t in range(901, 919)]
    calls = world.folder / "calls"
    program = world.folder / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$*" >> {calls}\nexec {shutil.which("ffmpeg")} "$@"\n')
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
        assert world.ava(rows, "--samples-per-shard", 2) == 0
        reads = 1 if takes_many() else 3
    assert calls.read_text().count(f"-i file:{world.videos}") == 2 * reads, "each movie once, for its three segments"
    together = world.contents()
    shutil.rmtree(world.out)
    monkeypatch.setattr(segments, "SEGMENTS_PER_RUN", 1)
    for part in ("1/2", "0/2"):
        assert world.ava(rows, "--samples-per-shard", 2, "--part", part) == 0
    assert world.contents() == together
    assert len(world.shards("ava-train").manifest.shards) == 3


def test_runs_end_with_the_movie_at_their_length_and_at_a_gap(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.mp4").touch()
    stamps = {"a": [*range(902, 990)], "b": [902, 910, 1000, 1004]}
    videos = {name: [KeyframeLabels(float(stamp)) for stamp in found] for name, found in stamps.items()}
    made, _ = plan_segments("ava", videos, VideoFiles(tmp_path), CUT)
    assert segment_runs(made) == [8, 3, 2, 2]


def test_whole_films_begin_at_second_0_and_keyframes_beyond_the_end_are_lost(world):
    video(world.videos / "film.mp4", counter_source("25"), 20.0, "-pix_fmt", "yuv420p")
    rows = [f"film,{t:04d},0.1,0.2,0.5,0.9,12,1" for t in (5, 6, 18, 20, 40)]
    assert world.ava(rows, "--movie-start", 0) == 1
    assert sorted(frames_of_keyframes(world, "ava-train")) == [
        ("film", 5.0, 125),
        ("film", 6.0, 150),
        ("film", 18.0, 450),
    ]
    assert world.failures("ava-train") == {"film.mp4": "outside the file"}
    assert world.shards("ava-train").manifest.failures == {"outside the file": 2}


def test_codec_key_frames_are_where_the_clips_start(world):
    video(world.videos / "pal.mp4", counter_source("25"), 20.0, "-g", "90", "-pix_fmt", "yuv420p")
    rows = [f"pal,{t:04d},0.1,0.2,0.5,0.9,12,1" for t in range(904, 909)]
    world.ava(rows, "--window", 32)
    sample = world.shards("ava-train").read_json(0)
    frames = [keyframe["frame"] for keyframe in sample["keyframes"]]
    assert frames == [38 + 25 * n for n in range(5)]
    assert {frame - 16 for frame in frames} <= set(sample["video"]["keyframes"])
    assert sample["video"]["frames"] == frames[-1] + 39 and sample["start"] == 904 - 38 / 25


def test_a_whole_film_taken_for_a_cut_is_refused(world):
    video(world.videos / "film.mp4", "color=s=32x32:r=1", 1000.0, "-pix_fmt", "yuv420p")
    rows = ["film,0905,0.1,0.2,0.5,0.9,12,1"]
    with pytest.raises(Exception, match="give --movie-start 0 for whole films"):
        world.ava(rows)
    np.testing.assert_equal(world.ava(rows, "--movie-start", 900, "--min-frames", 1), 0)


def test_ava_kinetics_keyframes_are_found_in_the_clip_that_holds_most_around_them(world):
    for name, rate in (("-a_b_000010_000020", "25"), ("-a_b_000017_000027", "25"), ("whole", "30")):
        video(world.videos / "some class" / f"{name}.mp4", counter_source(rate), 10.0, "-pix_fmt", "yuv420p")
    rows = [f"-a_b,{t},0.1,0.2,0.5,0.9,12" for t in ("12.000000", "18.5", "18.500000", "19.500000")]
    rows += [
        "-a_b,26.5,0.1,0.2,0.5,0.9,17",
        "whole,4.033333,0.1,0.2,0.5,0.9,12",
        "-a_b,14.000000",
        "whole,90",
        "gone,7",
    ]
    assert world.ava_kinetics(rows, "--max-failures", 0.3, split="val") == 0
    shown = {(name, second): number for name, second, number in frames_of_keyframes(world, "ava_kinetics-val")}
    # 18.5 lies 1.5 s into both clips; the first of the two counts, once.
    assert shown == {
        ("-a_b", 12.0): 50,
        ("-a_b", 14.0): 100,
        ("-a_b", 18.5): 212,
        ("-a_b", 19.5): 62,
        ("-a_b", 26.5): 237,
        ("whole", 4.033333): 121,
    }
    assert world.failures("ava_kinetics-val") == {"gone": "missing", "some class/whole.mp4": "outside the file"}
    assert world.shards("ava_kinetics-val").manifest.examples == len(shown)


def test_clips_that_are_named_as_whole_videos_are_refused(world):
    rows = []
    for name in "abcde":
        video(world.videos / f"{name}.mp4", "color=s=32x32:r=10", 10.0, "-pix_fmt", "yuv420p")
        rows.append(f"{name},{'17' if name == 'c' else '5'},0.1,0.2,0.5,0.9,12")
    with pytest.raises(UserError, match=r"c\.mp4 has 10 s and a keyframe at 17 s .*: it seems to be a clip"):
        world.ava_kinetics(rows, split="val")
    assert world.ava_kinetics(rows[:1] + rows[3:], split="val") == 0


def test_times_outside_of_all_files_are_told_as_that(world):
    video(world.videos / "v.mp4", counter_source("25"), 6.0, "-pix_fmt", "yuv420p")
    with pytest.raises(UserError, match=r"videos are there, .* v\.mp4: outside the file, keyframe 2 s .*--movie-start"):
        world.ava(["v,0002,0.1,0.2,0.5,0.9,12,1"])
    video(world.videos / "w_000100_000110.mp4", counter_source("25"), 6.0, "-pix_fmt", "yuv420p")
    with pytest.raises(UserError, match=r"w_000100_000110\.mp4: outside the file, keyframe 17 s"):
        world.ava_kinetics(["w,17,0.1,0.2,0.5,0.9,12"])


def test_a_keyframe_between_the_clips_is_lost_and_named(tmp_path):
    (tmp_path / "x_000010_000020.mp4").touch()
    segments, lost = plan_clip_segments("ava_kinetics", {"x": [KeyframeLabels(25.0)]}, VideoFiles(tmp_path), 1.5, 64)
    assert not segments
    detail = "keyframe 25 s is in none of this video's clips"
    assert lost == [Failure("x_000010_000020.mp4", "outside the file", detail)]


@pytest.mark.parametrize("packer", ["ava", "ava_kinetics"])
def test_a_set_under_a_name_of_its_own_is_of_that_name_throughout(world, packer):
    video(world.videos / "v.mp4", counter_source("25"), 6.0, "-pix_fmt", "yuv420p")
    whole = ("--movie-start", 0) if packer == "ava" else ()
    rows = ["v,0002,0.1,0.2,0.5,0.9,12,1", "v,0003,0.1,0.2,0.5,0.9,12,1"]
    assert getattr(world, packer)(rows, "--dataset", "street", *whole) == 0
    assert world.shards("street-train").read_json(0)["dataset"] == "street"
    assert verify(world.out, decode=True, workers=1) == 0
