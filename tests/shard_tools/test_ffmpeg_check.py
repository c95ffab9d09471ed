"""The look at FFmpeg before packing: one that makes other clips than it is asked for is refused with what is wrong."""

import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from data.errors import UserError
from shard_tools.clip_command import Job, Span, VideoSettings
from shard_tools.failures import Unpackable
from shard_tools.ffmpeg_check import check_clips, counts_damage, may_take_many, require_ffmpeg
from shard_tools.run_ffmpeg import damaged_share
from shard_tools.source_video import probe
from shard_tools.transcode import transcode
from tests.shard_tools.raw import PICTURES, only_newer_ffmpeg, video

SETTINGS = VideoSettings(None, None, crf=23, preset="veryfast", gop=30, min_frames=8, max_pixels=36_000_000)
# An FFmpeg that does something else than it is told, as versions of it do.
WRONG = """#!{python}
import os, sys
words = sys.argv[1:]
{change}
os.execv({ffmpeg!r}, [{ffmpeg!r}, *words])
"""
DROP = "while {0!r} in words: at = words.index({0!r}); del words[at : at + 2]"
REPLACE = "words = [word.replace({0!r}, {1!r}) for word in words]"


def install(folder, monkeypatch, change):
    program = folder / "ffmpeg"
    program.write_text(WRONG.format(python=sys.executable, ffmpeg=shutil.which("ffmpeg"), change=change))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (DROP.format("-force_key_frames"), r"key frames are at \[0, 30\], not at \[0, 4, 28\]"),
        (REPLACE.format("fps=24", "fps=25"), "the rate that was asked for"),
        (REPLACE.format("setsar=1", "setsar=1,reverse"), "not those of the seconds"),
        (REPLACE.format("colormatrix=bt601:bt709", "null"), "its colours are not the source's"),
        (REPLACE.format("libx264", "nothing"), "no H.264 encoder"),
        (DROP.format("-max_error_rate") + "; words += ['-v', 'quiet']", "damaged videos pass as whole ones"),
    ],
)
def test_wrong_clips_are_told_before_any_work(world, monkeypatch, change, told):
    video(world.videos / "a_000000_000001.mp4", PICTURES, 1.0)
    install(world.folder, monkeypatch, change)
    with pytest.raises(UserError, match=told):
        world.kinetics(["x,a,0,1,train"])
    assert not world.out.exists()


def test_versions_that_make_the_same_clips_are_taken(tmp_path, monkeypatch):
    for program in (str(shutil.which("ffmpeg")), only_newer_ffmpeg(tmp_path) / "ffmpeg"):
        monkeypatch.setenv("PATH", str(Path(program).parent))
        told = subprocess.run([program, "-version"], check=True, capture_output=True, text=True).stdout
        assert told.startswith(f"ffmpeg version {require_ffmpeg()} ")
        check_clips()


@pytest.mark.parametrize(
    ("version", "many"),
    [("4.4.2-0ubuntu0.22.04.1", True), ("n6.1", True), ("6.1.1", True), ("n7.1-3-gabc", False), ("9.0.2", False)]
    + [("10.0", False), ("N-47683-g0e8eb07980", False), ("git-2026-01-01", False), ("unknown", False)],
)
def test_outputs_that_may_wait_for_each_other_have_processes_of_their_own(version, many):
    assert may_take_many(version) == many


def damaged(path: Path, *packets: int) -> Path:
    """20 seconds at 25 frames a second with two key frames, in which some packets cannot be read."""
    source = video(path, "testsrc2=s=128x96:r=25", 20.0, "-g", "250", "-bf", "0", "-pix_fmt", "yuv420p")
    command = ["ffprobe", "-v", "error", "-show_entries", "packet=pos,size", "-of", "csv=p=0", source]
    rows = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    content = bytearray(source.read_bytes())
    for number in packets:
        size, place = map(int, rows[number].split(",")[:2])
        content[place : place + size] = b"\xff" * size
    source.write_bytes(content)
    return source


def test_damage_is_counted_where_ffmpeg_does_not(tmp_path, monkeypatch):
    """As in FFmpeg 6.1 to 8, which divide whole numbers: their own limit is never reached."""
    paths = os.environ["PATH"]
    (tmp_path / "wrong").mkdir()
    monkeypatch.setenv("PATH", str(only_newer_ffmpeg(tmp_path)))
    install(tmp_path / "wrong", monkeypatch, DROP.format("-max_error_rate"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'wrong'}:{paths}")
    check_clips()
    assert not counts_damage()
    # Two of the 325 frames that are decoded on the way to the span's end are few, four are too many.
    for packets, reason in (((210, 215), ""), ((50, 210, 215, 260), "decode error")):
        source = probe(str(damaged(tmp_path / "x.mp4", *packets)), SETTINGS.max_pixels)
        job = Job(str(tmp_path / "x.mp4"), source, source.fps, Span(Fraction(9), 100))
        (made,) = transcode([job], SETTINGS)
        assert (made.reason if isinstance(made, Unpackable) else "") == reason


def test_the_share_of_damage_is_what_ffmpeg_says():
    told = "  Input stream #0:0 (video): 50 packets read (45842 bytes); 49 frames decoded; 1 decode errors; "
    assert damaged_share(["[h264 @ 0x2] Invalid NAL unit size", told]) == 0.02
    assert damaged_share(["[h264 @ 0x2] Invalid NAL unit size"]) is None


def test_a_missing_ffmpeg_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"ffmpeg not found: install it \(Debian/Ubuntu: apt-get install ffmpeg\)"):
        require_ffmpeg()
