"""Leaving frames out of a file: the frames that stay are the same, and files that are not suited are told."""

import functools
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchcodec.decoders import VideoDecoder

from data.decode import decode
from data.thin_video import thin

FRAMES = 70
PACKED = ("-bf", "1", "-b_strategy", "0", "-b-pyramid", "none", "-g", "30", "-sc_threshold", "0")
SUITED = {
    "as packed": PACKED,
    "no b-frames": ("-bf", "0", "-g", "12"),
    "b-frames that others depend on": ("-bf", "4", "-b_strategy", "0", "-b-pyramid", "strict", "-g", "25"),
    "one key frame": (
        "-g",
        "250",
    ),
    "slices": (*PACKED, "-x264-params", "slices=4"),
    "fields": (*PACKED, "-flags", "+ilme+ildct", "-x264-params", "tff=1"),
    "arithmetic coding, weights, references": ("-preset", "slow", "-g", "40"),
    "intra only": ("-g", "1"),
}
UNSUITED = {
    "fragmented": (*PACKED, "-movflags", "+frag_keyframe+empty_moov"),
    "another codec": ("-c:v", "mpeg4"),
    "open groups": ("-bf", "3", "-x264-params", "open-gop=1:keyint=20"),
    "another container": (*PACKED, "-f", "matroska"),
    "MPEG stream": (*PACKED, "-f", "mpegts"),
}


@functools.cache
def video(options: tuple[str, ...], frames: int = FRAMES) -> bytes:
    """A moving test pattern whose frames all differ."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video"
        source = f"testsrc2=size=96x64:rate=30,noise=alls=12:allf=t,trim=end_frame={frames}"
        command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p", "-c:v", "libx264"]
        container = [] if "-f" in options else ["-f", "mp4"]
        subprocess.run([*command, "-threads", "1", *options, *container, path], check=True, stdin=subprocess.DEVNULL)
        return path.read_bytes()


def frames_of(file: bytes, indices: np.ndarray) -> torch.Tensor:
    return VideoDecoder(file, seek_mode="exact", num_ffmpeg_threads=1).get_frames_at(indices.tolist()).data


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(sorted(SUITED)), st.sets(st.integers(0, FRAMES - 1), min_size=1, max_size=FRAMES))
@example("as packed", set(range(0, 64, 2)))
@example("as packed", set(range(1, 64, 2)))
@example("arithmetic coding, weights, references", {0, 41})
def test_frames_that_stay_are_the_same(kind, chosen):
    file, indices = video(SUITED[kind]), np.array(sorted(chosen))
    thinned = thin(file, indices, FRAMES)
    assert thinned is not None
    less, places = thinned
    assert torch.equal(frames_of(less, places), frames_of(file, indices))


def test_half_of_a_packed_clip_is_left_out():
    indices = np.arange(30, 62, 2)
    thinned = thin(video(SUITED["as packed"]), indices, FRAMES)
    assert thinned is not None
    less, places = thinned
    kept = len(VideoDecoder(less, seek_mode="exact"))
    # The last frame before a key frame has none after it to lean on, so that it cannot be one of those left out.
    assert places[0] == 0 and len(indices) <= kept <= len(indices) + 1


@pytest.mark.parametrize("kind", sorted(UNSUITED))
def test_other_files_are_decoded_as_they_are(kind):
    file, indices = video(UNSUITED[kind]), np.arange(4, 40, 3)
    assert thin(file, indices, FRAMES) is None
    assert torch.equal(decode(file, indices, FRAMES), frames_of(file, indices))


def test_an_edit_list_that_leaves_frames_out_is_not_overlooked(tmp_path):
    path, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    path.write_bytes(video(SUITED["as packed"]))
    # Copied from the middle of a group on: its first frames are there, and an edit list hides them.
    subprocess.run(["ffmpeg", "-v", "error", "-ss", "0.4", "-i", path, "-c", "copy", cut], check=True)
    shown = len(VideoDecoder(cut, seek_mode="exact"))
    indices = np.arange(0, shown, 2)
    assert torch.equal(decode(cut.read_bytes(), indices, shown), frames_of(cut.read_bytes(), indices))


def test_an_edit_list_that_begins_elsewhere_is_not_overlooked():
    file = bytearray(video(SUITED["as packed"]))
    start = file.index(b"elst") + 4 + 12  # after version, count and duration
    assert thin(bytes(file), np.array([0, 2]), FRAMES) is not None
    file[start : start + 4] = (int.from_bytes(file[start : start + 4]) + 1024).to_bytes(4)
    assert thin(bytes(file), np.array([0, 2]), FRAMES) is None


def test_another_number_of_frames_is_left_to_the_decoder():
    assert thin(video(SUITED["as packed"]), np.array([3]), FRAMES + 1) is None


def with_table(file: bytes, kind: bytes, *numbers: int) -> bytes:
    """A video of one stream, whose tables come last, with another table of a kind: its numbers after the version."""
    start = file.index(kind) - 4
    end = start + int.from_bytes(file[start : start + 4])
    content = b"".join(number.to_bytes(4) for number in (0, *numbers))
    changed = bytearray(file[:start] + (8 + len(content)).to_bytes(4) + kind + content + file[end:])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = file.index(parent) - 4
        size = int.from_bytes(file[at : at + 4]) + len(changed) - len(file)
        changed[at : at + 4] = size.to_bytes(4)
    return bytes(changed)


def test_frames_that_share_their_bytes_are_not_multiplied():
    """A small file can say of any number of frames that each is all of it."""
    # Without the edit list, which bounds the length.
    file, frames = video(SUITED["intra only"]).replace(b"edts", b"free"), 700
    sizes = file.index(b"stsz") + 16
    first = int.from_bytes(file[sizes : sizes + 4])
    start = file.index(b"mdat") + 4
    file = with_table(file, b"stts", 1, frames, 512)
    file = with_table(file, b"stsc", 1, 1, 1, 1)
    file = with_table(file, b"stco", frames, *[start] * frames)
    file = with_table(file, b"stsz", 0, frames, *[first] * frames)
    assert thin(file, np.arange(frames), frames) is None
    clip = decode(file, np.arange(0, frames, 20), frames)
    assert torch.equal(clip, clip[:1].expand_as(clip))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_tables_give_a_file_or_none(data):
    file = bytearray(video(SUITED["as packed"]))
    header = file.index(b"moov") - 4
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(header, len(file) - 1) | st.integers(0, len(file) - 1))
        file[start] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del file[data.draw(st.integers(0, len(file))) :]
    thinned = thin(bytes(file), np.arange(0, 60, 2), FRAMES)
    assert thinned is None or len(thinned[1]) == 30
