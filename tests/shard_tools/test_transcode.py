"""Transcoding: what every packed clip is like, whatever the source was."""

import os
import shutil
import subprocess
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from torchcodec.decoders import VideoDecoder

from shard_tools.clip_command import Job, Span, VideoSettings, clip_command, clip_size
from shard_tools.failures import Unpackable
from shard_tools.source_video import probe
from shard_tools.transcode import prove, transcode
from tests.shard_tools.raw import counter_source, ffmpeg, only_newer_ffmpeg, read_counter, video

SETTINGS = VideoSettings(
    short_side=96, fps=None, crf=18, preset="veryfast", gop=30, min_frames=8, max_pixels=36_000_000
)


@pytest.fixture(autouse=True, params=["the system's", "a newer"])
def ffmpeg_of_packing(request, monkeypatch, tmp_path_factory):
    """What FFmpeg makes clips: versions take the same command in different ways. Sources are made by the system's."""
    if request.param == "a newer":
        monkeypatch.setenv("PATH", f"{only_newer_ffmpeg(tmp_path_factory.mktemp('bin'))}:{os.environ['PATH']}")


def job(path, fps=None, span=None):
    source = probe(str(path), SETTINGS.max_pixels)
    return Job(str(path), source, fps or source.fps, span)


def made(path, **options):
    (result,) = transcode([job(path, **options)], SETTINGS)
    if isinstance(result, Unpackable):
        raise result
    return result


def picture(clip, frame=0):
    return VideoDecoder(clip.video)[frame].numpy()


def stream(clip, tmp_path, entries):
    path = tmp_path / "made.mp4"
    path.write_bytes(clip.video)
    command = ["ffprobe", "-v", "error", "-select_streams", "v", "-of", "csv=p=0", "-show_entries", entries, path]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("width", "height", "short_side", "size"),
    [
        (340, 256, 256, (352, 256)),
        (1280, 720, 256, (448, 256)),
        (270, 480, 256, (256, 456)),
        (128, 96, 256, (128, 96)),
        (200, 199, 256, (192, 200)),
        (768, 320, None, (768, 320)),
        (17, 3, 256, (32, 16)),
    ],
)
def test_sizes_fit_the_codec_and_are_never_enlarged(width, height, short_side, size):
    assert clip_size(width, height, short_side) == size


def test_a_packed_clip_is_cheap_to_decode_and_as_its_record_says(tmp_path):
    source = video(tmp_path / "x.mkv", "testsrc2=s=320x240:r=30", 2.2)
    clip = made(source)
    assert clip.record() == {"frames": 66, "fps": [30, 1], "width": 128, "height": 96, "keyframes": [0, 30, 60]}
    assert clip.key_frames == list(VideoDecoder(clip.video)._get_key_frame_indices())
    entries = "stream=codec_name,pix_fmt,color_range,color_space,color_primaries,color_transfer"
    shown = stream(clip, tmp_path, entries)
    assert shown == "h264,yuv420p,tv,bt709,bt709,bt709"
    assert clip.video.index(b"moov") < clip.video.index(b"mdat")


def test_sound_and_metadata_go(tmp_path):
    sound = ("-f", "lavfi", "-i", "sine=d=1", "-metadata", "title=secret", "-pix_fmt", "yuv420p")
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=128x96:r=15:d=1", *sound, tmp_path / "x.mp4")
    clip = made(tmp_path / "x.mp4")
    assert b"secret" not in clip.video and b"mp4a" not in clip.video


def test_rotation_is_applied(tmp_path):
    # Red above, blue below; turned a quarter, red is at one side.
    halves = "color=red:s=128x48:r=15[a];color=blue:s=128x48:r=15[b];[a][b]vstack"
    upright = video(tmp_path / "a.mp4", halves, 0.6)
    ffmpeg("-i", upright, "-c", "copy", "-metadata:s:v:0", "rotate=90", tmp_path / "x.mp4")
    clip = made(tmp_path / "x.mp4")
    shown = picture(clip)
    assert (clip.width, clip.height) == (96, 128)
    left, right = shown[:, 64, 24], shown[:, 64, 72]
    red = left if left[0] > right[0] else right
    assert abs(int(left[0]) - int(right[0])) > 150 and red[0] > 200 and red[2] < 50
    decoded = VideoDecoder(str(tmp_path / "x.mp4"))[0].numpy()
    assert (decoded[0, 64, 24] > 128) == (left[0] > 128), "turned the same way as a player turns it"


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ("128x96", ("-pix_fmt", "yuv420p")),
        ("128x96", ("-pix_fmt", "yuvj420p", "-color_range", "pc")),
        ("128x96", ("-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params", "log-level=none")),
        (
            "1280x720",
            ("-vf", "scale=out_color_matrix=bt709", "-pix_fmt", "yuv420p", "-preset", "ultrafast"),
        ),
        ("128x96", ("-vf", "scale=out_color_matrix=bt709", "-pix_fmt", "yuv444p", "-colorspace", "bt709")),
        ("128x96", ("-c:v", "libx264rgb")),
        ("128x96", ("-vf", "scale=out_color_matrix=bt2020", "-pix_fmt", "yuv420p", "-colorspace", "bt2020nc")),
        ("128x96", ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj422p")),
    ],
)
def test_colours_stay_whatever_matrix_range_and_depth_the_source_has(tmp_path, size, options):
    colours = [(200, 40, 40), (40, 180, 60), (50, 70, 210), (128, 128, 128)]
    width, height = map(int, size.split("x"))
    bars = [
        f"color=0x{r:02x}{g:02x}{b:02x}:s={width // 4}x{height}:r=15,format=rgb24[c{i}]"
        for i, (r, g, b) in enumerate(colours)
    ]
    graph = ";".join(bars) + ";[c0][c1][c2][c3]hstack=4"
    shown = picture(made(video(tmp_path / "x.mp4", graph, 0.6, *options)))
    for i, colour in enumerate(colours):
        got = shown[:, shown.shape[1] // 2, int((i + 0.5) * shown.shape[2] / 4)]
        assert np.abs(got.astype(int) - colour).max() <= 6, (colour, got)


@pytest.mark.parametrize(
    ("transfer", "code", "low", "high"), [("smpte2084", 509, 140, 220), ("arib-std-b67", 460, 90, 140)]
)
def test_hdr_light_becomes_plain(tmp_path, transfer, code, low, high):
    # Grey of 100 nits is 509 of 1023 in PQ, which read as if it were plain would be 127; HLG is made to look alike in
    # its lower half, 460 being 115.
    grey = f"color=black:s=128x96:r=15,format=yuv420p10le,geq=lum={64 + code * 876 // 1023}:cb=512:cr=512"
    colours = f"log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc"
    options = ("-pix_fmt", "yuv420p10le", "-c:v", "libx265", "-x265-params", colours)
    source = video(tmp_path / "x.mp4", grey, 0.6, *options)
    clip = made(source)
    shown = picture(clip).mean(axis=(1, 2))
    assert np.ptp(shown) < 4 and low < shown.mean() < high
    assert stream(clip, tmp_path, "stream=pix_fmt,color_range,color_space,color_primaries,color_transfer") == (
        "yuv420p,tv,bt709,bt709,bt709"
    )


def test_interlaced_frames_are_joined_and_others_left_alone(tmp_path):
    # A bar that moves: the two fields of a frame are of different times and leave combs.
    bar = "color=black:s=128x96:r=50,drawbox=x=0:y=0:w=24:h=96:color=white:t=fill,scroll=h=0.06"
    moving = f"{bar},tinterlace=interleave_top"
    options = ("-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-q:v", "1", "-r", "25")
    source = video(tmp_path / "x.mpg", moving, 1.0, *options)
    frame = picture(made(source), 12).mean(axis=0)
    combs = np.abs(frame[1:-1] - (frame[:-2] + frame[2:]) / 2).max()
    raw = VideoDecoder(str(source))[12].numpy().mean(axis=0)
    assert np.abs(raw[1:-1] - (raw[:-2] + raw[2:]) / 2).max() > 150, "the source has combs"
    assert combs < 80


def test_the_stream_that_a_player_would_show_is_taken(tmp_path):
    cover = tmp_path / "cover.jpg"
    ffmpeg("-f", "lavfi", "-i", "testsrc2=s=64x64:d=1", "-frames:v", 1, cover)
    film = video(tmp_path / "film.mp4")
    both = ("-map", "0", "-map", "1", "-c", "copy")
    ffmpeg("-i", cover, "-i", film, *both, "-disposition:v:0", "attached_pic", tmp_path / "x.mkv")
    assert made(tmp_path / "x.mkv").frames == 15
    ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-i", cover, "-map", 0, "-map", 1, "-c:v", "copy", "-disposition:v:0",
           "attached_pic", tmp_path / "song.mp4")  # fmt: skip
    with pytest.raises(Unpackable, match=r"no video stream.*still picture"):
        made(tmp_path / "song.mp4")


def test_an_avi_from_a_pipe_has_no_number_of_frames(tmp_path):
    film = video(tmp_path / "film.mp4")
    ffmpeg("-i", film, "-c", "copy", "-f", "avi", "pipe:1", stdout=tmp_path / "x.avi")
    assert made(tmp_path / "x.avi").frames >= 14


def test_a_variable_rate_becomes_constant_and_keeps_its_time(tmp_path):
    # Of 50 frames at 25 a second, those of the middle second lose three in five.
    dropped = counter_source("25") + ",select='lt(n,15)+gt(n,35)+eq(mod(n,5),0)'"
    source = video(tmp_path / "x.mp4", dropped, 2.0, "-fps_mode", "vfr", "-pix_fmt", "yuv420p")
    clip = made(source)
    frames = VideoDecoder(clip.video)
    assert clip.fps == 25 and len(frames) == clip.frames >= 49
    shown = [read_counter(frames[n].numpy()) for n in range(49)]
    assert all(0 <= n - was <= 4 for n, was in enumerate(shown)) and shown[40] == 40


def test_the_rate_can_be_set(tmp_path):
    clip = made(video(tmp_path / "x.mp4", counter_source("30"), 2.0), fps=Fraction(10))
    assert clip.frames == 20 and clip.fps == 10
    assert [read_counter(picture(clip, n)) for n in (1, 5, 19)] == [3, 15, 57]


def test_a_span_shows_at_each_frame_what_the_film_shows_at_that_second(tmp_path):
    source = video(tmp_path / "x.mp4", counter_source("25"), 8.0, "-g", "60", "-pix_fmt", "yuv420p")
    clip = made(source, span=Span(Fraction(3), 50, (7, 33)))
    assert clip.frames == 50 and clip.key_frames == [0, 7, 33]
    assert [read_counter(picture(clip, n)) for n in (0, 7, 33, 49)] == [75, 82, 108, 124]


@pytest.mark.parametrize("span", [None, Span(Fraction(0), 10), Span(Fraction(3), 10)])
def test_the_rate_is_said_again_behind_the_filter_that_loses_it(tmp_path, span):
    """FFmpeg 7 takes 25 frames a second for the rate behind setpts; neither of those that make clips here does."""
    command = clip_command([job(video(tmp_path / "x.mp4"), span=span)], SETTINGS, ["out.mp4"])
    filters = command[command.index("-vf") + 1].split(",")
    last = max(place for place, name in enumerate(filters) if name.startswith("setpts="))
    assert filters[last + 1] == "fps=15"


def test_a_span_far_into_an_avi_shows_the_nearest_frames(tmp_path):
    """Its unit of time is a whole frame: what is sought must be one too, or all times would be off by a part of one."""
    source = video(tmp_path / "x.avi", counter_source("30000/1001"), 20.0, "-g", "90", "-pix_fmt", "yuv420p")
    clip = made(source, fps=Fraction(30), span=Span(Fraction(16), 50))
    shown = [read_counter(picture(clip, n)) for n in range(50)]
    assert shown == [round((16 + Fraction(n, 30)) * Fraction(30000, 1001)) for n in range(50)]


def test_a_span_beyond_the_end_is_no_clip(tmp_path):
    (result,) = transcode([job(video(tmp_path / "x.mp4"), span=Span(Fraction(30), 20))], SETTINGS)
    assert isinstance(result, Unpackable) and result.detail == "no frame could be decoded"


def test_jobs_together_give_the_same_bytes_as_alone(tmp_path):
    good = video(tmp_path / "a.mp4")
    other = video(tmp_path / "b.mp4", "testsrc2=s=96x128:r=25", 0.8)
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(good.read_bytes()[:-4000])
    alone = [transcode([job(path)], SETTINGS)[0] for path in (good, other)]
    together = transcode([job(good), job(other)], SETTINGS)
    assert [c.video for c in together] == [c.video for c in alone]
    faststart = tmp_path / "cut.mp4"
    ffmpeg("-i", good, "-c", "copy", "-movflags", "+faststart", tmp_path / "whole.mp4")
    faststart.write_bytes((tmp_path / "whole.mp4").read_bytes()[:-8000])
    mixed = transcode([job(good), job(faststart), job(other)], SETTINGS)
    assert [mixed[0].video, mixed[2].video] == [c.video for c in alone]
    assert isinstance(mixed[1], Unpackable)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_a_source_that_is_cut_short_is_a_failure_that_says_where(tmp_path, suffix):
    options = ("-g", "10", "-movflags", "+faststart", "-pix_fmt", "yuv420p")
    whole = video(tmp_path / f"whole{suffix}", "testsrc2=s=128x96:r=25", 4.0, *options)
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(Unpackable) as caught:
        made(cut)
    assert caught.value.reason in ("truncated", "decode error")
    words = caught.value.detail.split()
    assert words[:4] == ["decode", "error", "at", "frame"] and 20 < int(words[4]) < 90 and words[6].rstrip(":") == "100"


def test_damage_in_the_middle_is_a_failure(tmp_path):
    content = bytearray(video(tmp_path / "x.mp4", "testsrc2=s=320x240:r=25", 2.0).read_bytes())
    middle = content.index(b"mdat") + len(content) // 2
    content[middle : middle + 3000] = b"\xff" * 3000
    (tmp_path / "x.mp4").write_bytes(content)
    with pytest.raises(Unpackable, match=r"decode error at frame [0-9]+ of 50"):
        made(tmp_path / "x.mp4")


def test_too_few_frames_are_a_failure(tmp_path):
    with pytest.raises(Unpackable, match=r"too short.*6 frames, at least 8"):
        made(video(tmp_path / "x.mp4", "testsrc2=s=128x96:r=15", 0.4))


def test_proof_fails_for_a_clip_that_is_cut_or_of_another_rate(tmp_path):
    clip = made(video(tmp_path / "x.mp4"))
    with pytest.raises(ValueError, match="rate is not 25"):
        prove(clip.video, Fraction(25))
    with pytest.raises(ValueError, match=r"."):
        prove(clip.video[: len(clip.video) * 2 // 3], clip.fps)


def test_without_verification_the_record_is_the_same(tmp_path):
    source = video(tmp_path / "x.mkv", "testsrc2=s=320x240:r=30", 2.2)
    (trusted,) = transcode([job(source)], replace(SETTINGS, verify=False))
    assert trusted == made(source)
    assert prove(trusted.video, Fraction(30), every_frame=False) == trusted
    with pytest.raises(ValueError, match="the frame rate is not 25"):
        prove(trusted.video, Fraction(25), every_frame=False)


def test_a_setpriv_that_does_not_know_the_option_is_not_used(tmp_path, monkeypatch):
    # As that of util-linux 2.32, which RHEL 8 has.
    old = tmp_path / "bin" / "setpriv"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho \"setpriv: unrecognized option '$1'\" >&2\nexit 1\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    assert made(video(tmp_path / "x.mp4")).frames == 15


@pytest.mark.skipif(not shutil.which("setpriv"), reason="util-linux is not installed")
def test_a_setpriv_that_knows_the_option_is_used(tmp_path):
    command = clip_command([job(video(tmp_path / "x.mp4"))], SETTINGS, ["out.mp4"])
    assert command[:5] == [shutil.which("setpriv"), "--pdeathsig", "KILL", "--", "ffmpeg"]
