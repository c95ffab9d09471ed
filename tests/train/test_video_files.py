"""Videos are read by time, upright and at a steady pace, and written whole or not at all."""

import struct
import subprocess
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import UserError
from tests.tiny_shards import make_video
from train.video_files import VideoReader, VideoWriter


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


def test_a_file_whose_frames_cannot_be_found_by_time_is_an_error(tmp_path):
    # The decoder's seeks end seconds late in MPEG transport streams.
    with pytest.raises(UserError, match=r"the frame for second 0\.0,.*ffmpeg -i"):
        VideoReader(make_video(tmp_path / "v.ts", "-g", "50", frames=300))


@pytest.mark.parametrize("content", [b"", b"not a video"])
def test_no_video_is_an_error(tmp_path, content):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(UserError, match="cannot be decoded"):
        VideoReader(tmp_path / "v.mp4")


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    sound = make_video(tmp_path / "v.mp4", frames=5)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), VideoWriter(out / "x.mp4", 64, 64, Fraction(15), sound) as writer:
        writer.write(Image.new("RGB", (64, 64)))
        raise KeyboardInterrupt
    assert list(out.iterdir()) == []


def test_what_ffmpeg_says_is_told(tmp_path):
    sound = tmp_path / "no_sound.mp4"
    sound.write_bytes(b"none")
    with (
        pytest.raises(UserError, match="Invalid data"),
        VideoWriter(tmp_path / "x.mp4", 64, 64, Fraction(15), sound) as writer,
    ):
        for _ in range(200):
            writer.write(Image.new("RGB", (64, 64)))


def test_the_rate_of_a_video(tmp_path):
    assert VideoReader(make_video(tmp_path / "a.mp4", "-r", "30000/1001")).rate == Fraction(30000, 1001)
    assert VideoReader(make_video(tmp_path / "b.webm", "-c:v", "libvpx-vp9", "-r", "12")).rate == 12
