"""Videos are read by time: upright, in their shape and colours, at a steady pace, past what is damaged."""

import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import UserError
from tests.tiny_shards import make_video
from train import frame_rate
from train.video_files import DamagedVideo, VideoReader


def test_a_varying_rate_is_made_steady_without_changing_the_pace(tmp_path):
    slower = ["-vf", "setpts='if(lt(N,20),N,20+3*(N-20))/15/TB'", "-fps_mode", "vfr"]
    reader = VideoReader(make_video(tmp_path / "v.mp4", *slower))
    steady = list(reader.steady())
    assert np.allclose([time for time, _ in steady], np.arange(len(steady)) / 15)
    assert reader.seconds == pytest.approx((20 + 3 * 25) / 15, abs=0.2) and len(steady) == round(reader.seconds * 15)
    for (_, shown), expected in zip(steady, reader.frames_at(np.arange(len(steady)) / 15), strict=True):
        assert torch.equal(shown, expected)


def test_rotation_is_applied(tmp_path):
    upright = make_video(tmp_path / "upright.mp4")
    content = bytearray(upright.read_bytes())
    # The matrix of the track header, which tells a player to turn the picture.
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 96 << 16, 0, 1 << 30)
    turned = tmp_path / "turned.mp4"
    turned.write_bytes(content)
    reader = VideoReader(turned)
    assert (reader.width, reader.height) == (96, 128)
    first, original = next(reader.steady())[1], next(VideoReader(upright).steady())[1]
    assert torch.equal(first, original.rot90(-1, dims=(1, 2)))  # clockwise


def test_time_counts_from_the_beginning_of_the_file_also_where_sound_comes_first(tmp_path):
    """As FFmpeg and players count it, and so the packing of keyframes."""
    plain = make_video(tmp_path / "plain.mp4")
    late, cut = tmp_path / "late.mp4", tmp_path / "cut.mp4"
    sound = ["-f", "lavfi", "-t", "4", "-i", "sine"]
    for path, inputs in (
        (late, ["-itsoffset", "0.8", "-i", plain, *sound]),
        (cut, ["-itsoffset", "30", "-i", plain]),
    ):
        subprocess.run(["ffmpeg", "-v", "error", *map(str, inputs), "-c:v", "copy", "-copyts", path], check=True)
    assert VideoReader(late).seconds == pytest.approx(VideoReader(plain).seconds + 0.8, abs=0.05)
    assert VideoReader(cut).seconds == pytest.approx(VideoReader(plain).seconds, abs=0.05)
    first, second, later = VideoReader(plain).frames_at(np.array([0.0, 1.0, 1.8]))
    for got, expected in zip(
        VideoReader(late).frames_at(np.array([0.0, 1.8, 2.6])), (first, second, later), strict=True
    ):
        assert torch.equal(got, expected)
    for got, expected in zip(
        VideoReader(cut).frames_at(np.array([0.0, 1.0, 1.8])), (first, second, later), strict=True
    ):
        assert torch.equal(got, expected)
    steady = list(VideoReader(late).steady())
    assert torch.equal(steady[0][1], first) and torch.equal(steady[27][1], second)  # 27 / 15 = 1.8 s


@pytest.mark.parametrize(("height", "matrix"), [(96, "bt601"), (720, "bt709")])
def test_colours_without_a_tag_are_read_as_players_and_packing_do(tmp_path, height, matrix):
    colour = (200, 30, 40)
    converted = f"format=rgb24,scale=out_color_matrix={matrix},format=yuv420p"
    source = f"color=c=0x{bytes(colour).hex()}:size=1280x{height}:rate=15,{converted}"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-frames:v", "3", "-pix_fmt", "yuv420p"]
    subprocess.run([*command, "-qp", "1", tmp_path / "v.mp4"], check=True)
    reader = VideoReader(tmp_path / "v.mp4")
    assert reader.decoder.metadata.color_space is None, "tagged: the test says nothing"
    for frame in (next(reader.frames_at(np.array([0.1]))), next(reader.steady())[1]):
        assert frame.dtype == torch.uint8
        assert frame.float().mean(dim=(1, 2)).tolist() == pytest.approx(colour, abs=3)


def test_a_file_whose_frames_cannot_be_found_by_time_is_read_from_a_copy(tmp_path):
    """The decoder's seeks end seconds late in MPEG transport streams."""
    stream = make_video(tmp_path / "v.ts", "-g", "50", frames=300)
    subprocess.run(["ffmpeg", "-v", "error", "-i", stream, "-c", "copy", tmp_path / "v.mp4"], check=True)
    reader, plain = VideoReader(stream), VideoReader(tmp_path / "v.mp4")
    times = np.array([0.0, 1.0, 3.1, 7.5])
    for got, expected in zip(reader.frames_at(times), plain.frames_at(times), strict=True):
        assert torch.equal(got, expected)
    assert reader.path == stream and reader.rate == 15 and reader.seconds == pytest.approx(plain.seconds, abs=0.1)
    copy = Path(reader._remuxed.name)
    assert copy.exists()
    del reader
    assert not copy.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"v\.mp4 is empty"),
        (b"not a video", "cannot be decoded: Could not open input file: v.mp4"),
        (None, "there is no such file"),
    ],
)
def test_no_video_is_an_error(tmp_path, content, message):
    if content is not None:
        (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(UserError, match=message):
        VideoReader(tmp_path / "v.mp4")
    with pytest.raises(UserError, match="is a folder"):
        VideoReader(tmp_path)


def test_sound_alone_and_its_cover_are_no_video(tmp_path):
    sound, cover, both = tmp_path / "a.m4a", tmp_path / "c.png", tmp_path / "b.m4a"
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i"]
    subprocess.run([*command, "sine=duration=1", sound], check=True)
    subprocess.run([*command, "testsrc2", "-frames:v", "1", cover], check=True)
    joined = ["-i", cover, "-map", "0", "-map", "1", "-c", "copy", "-disposition:v", "attached_pic", both]
    subprocess.run(["ffmpeg", "-v", "error", "-i", sound, *joined], check=True)
    with pytest.raises(UserError, match=r"a\.m4a cannot be decoded: no video in it"):
        VideoReader(sound)
    with pytest.raises(UserError, match=r"a picture \(png\) and no video"):
        VideoReader(both)


def test_pixels_that_are_not_square_are_shown_as_they_are_meant(tmp_path):
    """As packing does: a DVD's 720x576 is 1024 wide."""
    wide = VideoReader(make_video(tmp_path / "wide.mp4", "-vf", "setsar=64/45"))
    assert (wide.width, wide.height) == (182, 96)
    assert next(wide.steady())[1].shape == next(wide.frames_at(np.array([0.5]))).shape == (3, 96, 182)
    turned = tmp_path / "turned.mp4"
    content = bytearray((tmp_path / "wide.mp4").read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 96 << 16, 0, 1 << 30)
    turned.write_bytes(content)
    upright = VideoReader(turned)
    assert (upright.width, upright.height) == (68, 128)
    broken = VideoReader(make_video(tmp_path / "broken.mp4", "-vf", "setsar=100/1"))
    assert (broken.width, broken.height) == (128, 96)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_avi_files_with_packets_that_hold_no_frame_are_whole(tmp_path, codec):
    """Times count frames there, and with B-frames the first ones show nothing: 44 or 43 pictures for 45 numbers."""
    video = make_video(tmp_path / "v.avi", "-c:v", codec, "-bf", "2", "-preset", "medium")
    reader = VideoReader(video)
    assert reader.rate == 15 and reader.seconds == pytest.approx(3.0)
    assert len(list(reader.steady())) == 45 and reader.damage is None
    assert len(list(reader.frames_at(np.array([2.9, 2.99, 3.0])))) == 3, "the last frame stands for those behind it"


def test_a_damaged_part_is_bridged(tmp_path):
    video = make_video(tmp_path / "v.mp4", "-g", "15", "-bf", "0", frames=90)
    content = bytearray(video.read_bytes())
    whole = list(VideoReader(video).steady())
    # The third of the six seconds is lost.
    packets = subprocess.run(
        ["ffprobe", "-v", "error", "-show_entries", "packet=pos,size", "-of", "csv=p=0", video],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    for size, place in (map(int, packet.split(",")[:2]) for packet in packets[30:45]):
        content[place : place + size] = b"\xff" * size
    video.write_bytes(content)
    reader = VideoReader(video)
    hurt = list(reader.steady())
    assert [time for time, _ in hurt] == [time for time, _ in whole]
    assert all(torch.equal(hurt[n][1], whole[n][1]) for n in (0, 29, 75, 89)), "before and well behind the damage"
    assert torch.equal(hurt[40][1], whole[29][1]), "the last good frame stands for those that are lost"
    assert reader.damage is not None and "of 90 frames cannot be decoded (frame 31:" in reader.damage
    # A clip may do with a frame just before one that is lost, but not with one from long before.
    (stand_in,) = reader.frames_at(np.array([31 / 15]))
    assert torch.equal(stand_in, whole[29][1])
    with pytest.raises(DamagedVideo, match=r"damaged near second 2\.6"):
        list(reader.frames_at(np.array([39 / 15])))


def test_sound_that_cannot_be_decoded_is_told_from_none(tmp_path):
    tone = ["-f", "lavfi", "-i", "sine=duration=3", "-map", "0:v", "-map", "1:a", "-c:a", "pcm_s16le"]
    loud = make_video(tmp_path / "loud.mov", *tone)
    assert VideoReader(loud).sound is not None
    strange = tmp_path / "strange.mov"
    strange.write_bytes(loud.read_bytes().replace(b"sowt", b"zzzz"))
    for path, has_sound in ((strange, True), (make_video(tmp_path / "silent.mp4"), False)):
        reader = VideoReader(path)
        assert reader.sound is None and reader.has_sound is has_sound


def test_the_rate_of_a_video(tmp_path):
    assert VideoReader(make_video(tmp_path / "a.mp4", "-r", "30000/1001")).rate == Fraction(30000, 1001)
    assert VideoReader(make_video(tmp_path / "b.webm", "-c:v", "libvpx-vp9", "-r", "12")).rate == 12


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])  # times of the second are whole milliseconds
@pytest.mark.parametrize("first", [2.0, 0.001])
def test_the_rate_of_a_video_is_not_that_of_an_odd_first_frame(tmp_path, suffix, first):
    times = f"setpts='if(eq(N,0),0,{first}+(N-1)*1001/30000)/TB'"
    options = ["-vf", f"settb=1/90000,{times}", "-fps_mode", "passthrough", "-enc_time_base", "1:90000"]
    reader = VideoReader(make_video(tmp_path / f"v{suffix}", *options))
    shown = reader.decoder.get_frame_at(1).pts_seconds - reader.decoder.get_frame_at(0).pts_seconds
    assert shown == pytest.approx(first, abs=1e-3), "the file is not what it should be"
    assert float(reader.rate) == pytest.approx(30, abs=0.05)
    assert len(list(reader.steady())) == pytest.approx(first * 30 + 44, abs=2), (
        "of the last frame's length files say little"
    )


def test_a_constant_rate_is_told_without_a_look_at_the_other_frames(tmp_path, monkeypatch):
    video = make_video(tmp_path / "v.mp4")
    monkeypatch.setattr(frame_rate, "_fast_rate", None)
    assert VideoReader(video).rate == 15
