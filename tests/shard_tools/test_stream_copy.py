"""Copying streams: not one picture changes, and the record says when each frame is shown."""

import hashlib
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from torchcodec.decoders import VideoDecoder

from data.errors import UserError
from shard_tools.failures import Unpackable
from shard_tools.ffmpeg_check import require_ffmpeg
from shard_tools.stream_copy import copy_stream
from shard_tools.verify import verify
from tests.shard_tools.raw import PICTURES, counter_source, ffmpeg, read_counter, video
from tests.shard_tools.test_transcode import SETTINGS, job


def stream_hash(path):
    """Of the encoded pictures alone, in the form that MP4 holds them in."""
    command = ["ffmpeg", "-v", "error", "-i", path, "-map", "0:v:0", "-c", "copy", "-f", "framehash", "-"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [line.rsplit(",", 1)[1] for line in lines if not line.startswith("#")]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", ("-c:v", "libx264", "-bf", "3", "-g", "12", "-x264-params", "open-gop=1")),
        ("hevc.mp4", ("-c:v", "libx265", "-x265-params", "log-level=none")),
        ("vp9.webm", ("-c:v", "libvpx-vp9", "-deadline", "realtime")),
        ("mjpeg.mov", ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p")),
    ],
)
def test_the_stream_is_untouched_and_described(tmp_path, name, options):
    source = tmp_path / name
    pictures, sound = ("-f", "lavfi", "-i", f"{PICTURES}:d=2"), ("-f", "lavfi", "-i", "sine=d=2")
    ffmpeg(*pictures, *sound, "-pix_fmt", "yuv420p", *options, source)
    clip = copy_stream(job(source), SETTINGS)
    assert not isinstance(clip, Unpackable), clip
    (tmp_path / "made.mp4").write_bytes(clip.video)
    assert stream_hash(tmp_path / "made.mp4") == stream_hash(source)
    assert (clip.frames, clip.fps, clip.width, clip.height, clip.times) == (30, Fraction(15), 128, 96, None)
    assert clip.record()["copied"] is True
    decoder = VideoDecoder(clip.video)
    assert clip.key_frames == list(decoder._get_key_frame_indices())
    assert np.array_equal(decoder[17].numpy(), VideoDecoder(str(source))[17].numpy())
    streams = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "stream=codec_type", "-of", "csv=p=0", tmp_path / "made.mp4"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert streams.stdout.split() == ["video"]
    again = copy_stream(job(source), SETTINGS)
    assert not isinstance(again, Unpackable)
    assert hashlib.sha256(again.video).digest() == hashlib.sha256(clip.video).digest()


def test_a_varying_rate_is_kept_and_its_times_are_told(tmp_path):
    slower = ("-vf", "setpts='if(lt(N,20),N,20+3*(N-20))/15/TB'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p")
    source = video(tmp_path / "v.mp4", counter_source("15"), 2.0, *slower)
    clip = copy_stream(job(source), SETTINGS)
    assert not isinstance(clip, Unpackable)
    expected = [(n if n < 20 else 20 + 3 * (n - 20)) / 15 for n in range(clip.frames)]
    assert clip.times == pytest.approx(expected, abs=1e-3)
    decoder = VideoDecoder(clip.video)
    assert [read_counter(decoder[n].numpy()) for n in range(clip.frames)] == list(range(clip.frames))


def test_what_mp4_cannot_hold_or_is_damaged_is_a_failure(tmp_path):
    wmv = video(tmp_path / "x.wmv", PICTURES, 1.0)
    failure = copy_stream(job(wmv), SETTINGS)
    assert isinstance(failure, Unpackable) and failure.reason == "not copyable"
    whole = video(tmp_path / "x.mkv", PICTURES, 4.0, "-g", "15")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    failure = copy_stream(job(whole), SETTINGS)
    assert isinstance(failure, Unpackable) and failure.reason == "truncated"


def test_copied_sets_hold_with_frames_and_times(world):
    video(world.videos / "a_000000_000002.mp4", PICTURES, 2.0)
    slower = ("-vf", "setpts='if(lt(N,20),N,20+3*(N-20))/15/TB'", "-fps_mode", "vfr", "-pix_fmt", "yuv420p")
    video(world.videos / "b_000000_000005.mkv", PICTURES, 2.0, *slower)
    assert world.kinetics(["x,a,0,2,train", "y,b,0,5,train"], "--copy") == 0
    assert verify(world.out, decode=True, workers=1) == 0
    shards = world.shards("kinetics-train")
    records = {shards.read_json(n)["source"]: shards.read_json(n)["video"] for n in range(2)}
    assert "times" not in records["a_000000_000002.mp4"]
    assert len(records["b_000000_000005.mkv"]["times"]) == records["b_000000_000005.mkv"]["frames"]


def test_a_missing_ffprobe_is_said_before_any_work(world, monkeypatch):
    video(world.videos / "a_000000_000002.mp4", PICTURES, 2.0)
    alone = world.folder / "bin"
    alone.mkdir()
    (alone / "ffmpeg").symlink_to(str(shutil.which("ffmpeg")))
    monkeypatch.setenv("PATH", str(alone))
    assert require_ffmpeg(), "encoding does without"
    with pytest.raises(UserError, match=r"ffprobe not found, which --copy needs: install it \(Debian/Ubuntu: apt-get"):
        world.kinetics(["x,a,0,2,train"], "--copy")
    assert not world.out.exists()


def test_too_few_frames_and_too_many_pixels_are_failures_of_copies_too(world):
    video(world.videos / "a_000000_000002.mp4", PICTURES, 2.0)
    video(world.videos / "b_000000_000001.mp4", PICTURES, 1.0)
    video(world.videos / "c_000000_000002.mp4", "testsrc2=s=256x192:r=15", 2.0)
    rows = ["x,a,0,2,train", "x,b,0,1,train", "x,c,0,2,train"]
    assert world.kinetics(rows, "--copy", "--min-frames", 20, "--max-pixels", 20_000, "--max-failures", 0.7) == 0
    expected = {"b_000000_000001.mp4": "too short", "c_000000_000002.mp4": "too large"}
    assert world.failures("kinetics-train") == expected
