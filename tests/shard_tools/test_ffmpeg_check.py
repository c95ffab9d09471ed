"""The look at FFmpeg before packing: one that makes other clips than it is asked for is refused with what is wrong."""

import shutil
import sys

import pytest

from data.errors import UserError
from shard_tools.ffmpeg_check import counts_damage, require_ffmpeg, takes_many
from shard_tools.run_ffmpeg import decode_errors
from tests.shard_tools.raw import PICTURES, only_newer_ffmpeg, video

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
    assert require_ffmpeg()[0].isdigit() or require_ffmpeg()
    assert counts_damage()
    monkeypatch.setenv("PATH", str(only_newer_ffmpeg(tmp_path)))
    assert require_ffmpeg() and counts_damage() and not takes_many()


def test_damage_is_counted_where_ffmpeg_does_not(tmp_path, monkeypatch):
    """As in FFmpeg 7, which divides whole numbers: its own limit is never reached."""
    newer = str(only_newer_ffmpeg(tmp_path))
    monkeypatch.setenv("PATH", newer)
    folder = tmp_path / "wrong"
    folder.mkdir()
    install(folder, monkeypatch, DROP.format("-max_error_rate"))
    assert require_ffmpeg() and not counts_damage()


def test_repeated_messages_count():
    told = ["[h264 @ 0x1] Invalid NAL unit size", "[dec:h264 @ 0x2] Error submitting packet to decoder: Invalid data"]
    again = "    Last message repeated 3 times"
    assert decode_errors([*told, again, told[0], again]) == 4


def test_a_missing_ffmpeg_is_said(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"ffmpeg not found: install it \(Debian/Ubuntu: apt-get install ffmpeg\)"):
        require_ffmpeg()
