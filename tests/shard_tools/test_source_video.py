"""Looking at source videos: containers, sizes, rates, and what is no video."""

from fractions import Fraction

import pytest

from shard_tools.failures import Unpackable
from shard_tools.source_video import probe, snap_rate
from tests.shard_tools.raw import ffmpeg, video

PIXELS = 10**6


@pytest.mark.parametrize(
    ("rate", "snapped"),
    [
        (29.97002997, Fraction(30000, 1001)),
        (30.0, 30),
        (29.98, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (25.01, 25),
        (14.985, Fraction(15000, 1001)),
        (21.3, Fraction(213, 10)),
        (120, 60),
        (239.76, Fraction(60000, 1001)),
        (100, 50),
        (1000, Fraction(125, 4)),
    ],
)
def test_rates_snap_to_standard_ones_and_stay_at_60_or_less(rate, snapped):
    assert snap_rate(rate) == snapped


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts", ".flv", ".mpg"])
def test_usual_containers_are_known(tmp_path, suffix):
    options = ("-pix_fmt", "yuv420p", "-r", "25", *(("-c:v", "libvpx") if suffix == ".webm" else ()))
    source = probe(str(video(tmp_path / f"x{suffix}", "testsrc2=s=128x96:r=25", 0.5, *options)), PIXELS)
    assert (source.width, source.height, source.fps) == (128, 96, 25)


def test_pixels_that_are_not_square_count_as_shown(tmp_path):
    path = video(tmp_path / "x.mp4", "testsrc2=s=180x120:r=15,setsar=8/9", 0.5)
    source = probe(str(path), PIXELS)
    assert (source.width, source.height) == (160, 120)


def test_a_rotated_video_counts_as_shown(tmp_path):
    upright = video(tmp_path / "a.mp4", "testsrc2=s=180x120:r=15,setsar=8/9", 0.5)
    ffmpeg("-i", upright, "-c", "copy", "-metadata:s:v:0", "rotate=90", tmp_path / "x.mp4")
    source = probe(str(tmp_path / "x.mp4"), PIXELS)
    assert source.height == pytest.approx(180) and source.width == pytest.approx(120 * 9 / 8, abs=1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"<html>Not found</html>", "unreadable"),
        (b"#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n", "unreadable"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "unreadable"),
        (b"\x00\x00\x00\x18ftypisom" + b"\x00" * 500, "unreadable"),
        (b"\x1aE\xdf\xa3" + bytes(range(256)), "unreadable"),
        (b"\x00\x00\x00\x01\x67" + bytes(range(256)), "unreadable"),
    ],
)
def test_what_is_no_video_is_refused_with_a_reason(tmp_path, content, reason):
    path = tmp_path / "x.mp4"
    path.write_bytes(content)
    with pytest.raises(Unpackable) as caught:
        probe(str(path), PIXELS)
    assert caught.value.reason == reason
    assert str(tmp_path) not in caught.value.detail and "0x" not in caught.value.detail


def test_sound_alone_is_no_video(tmp_path):
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", tmp_path / "x.mp4")
    with pytest.raises(Unpackable, match="no video stream"):
        probe(str(tmp_path / "x.mp4"), PIXELS)


def test_missing_and_too_large_files_are_refused(tmp_path):
    with pytest.raises(Unpackable, match="missing"):
        probe(str(tmp_path / "none.mp4"), PIXELS)
    with pytest.raises(Unpackable, match="128x96 is more than 100 pixels"):
        probe(str(video(tmp_path / "x.mp4")), 100)


@pytest.mark.parametrize("sound", [False, True])
def test_a_length_of_the_file_alone_counts_exactly_where_there_is_no_sound(tmp_path, sound):
    film = video(tmp_path / "film.webm", "testsrc2=s=128x96:r=25", 2.0, "-c:v", "libvpx", "-deadline", "realtime")
    if sound:
        tone = ("-f", "lavfi", "-i", "sine=d=2", "-c:v", "copy", "-c:a", "libvorbis")
        ffmpeg("-i", film, *tone, tmp_path / "x.webm")
        film = tmp_path / "x.webm"
    assert (probe(str(film), PIXELS).slack > 1) == sound
