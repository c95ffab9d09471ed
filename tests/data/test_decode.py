"""Decoding: the frames that were asked for, or one kind of error with a reason."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from data import decode as module
from data.crop import Crop, centre_square, whole_frame
from data.decode import DecodeError, cut_in_decoder, decode, decode_region, require_ffmpeg
from data.errors import UserError
from tests.tiny_shards import class_video, clock_video, read_clock, render


@pytest.mark.parametrize("indices", [[0], [37], [3, 5, 7, 9], [0, 0, 0, 2, 4], [28, 29, 30, 31], [36, 37, 37, 37]])
def test_frames_are_the_ones_asked_for(indices):
    clip = decode(clock_video(), np.array(indices), 38)
    assert clip.shape == (len(indices), 3, 96, 128) and clip.dtype == torch.uint8
    assert read_clock(clip.transpose(0, 1).numpy()) == indices


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda video: b"", "cannot be decoded"),
        (lambda video: b"no video at all" * 100, "Invalid data"),
        (lambda video: video[: len(video) // 2], "frames|cannot be decoded"),
        (lambda video: video[:900] + bytes(len(video) - 900), "frames|cannot be decoded"),
    ],
)
def test_damage_is_one_error_with_a_reason(damage, reason, capfd):
    with pytest.raises(DecodeError, match=reason) as caught:
        decode(damage(class_video(0, 3)), np.array([0, 37]), 38)
    assert "\n" not in str(caught.value) and ".cpp" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_any_damage_decodes_or_is_a_decode_error():
    video, rng = np.frombuffer(class_video(0, 3), np.uint8), np.random.default_rng(0)
    failed = 0
    for _ in range(60):
        broken = video.copy()
        places = rng.integers(len(broken) if rng.random() < 0.5 else 1200, size=rng.integers(1, 40))
        broken[places] = rng.integers(256, size=len(places))
        try:
            assert decode(broken.tobytes(), np.array([0, 20, 37]), 38).shape[0] == 3
        except DecodeError:
            failed += 1
    assert 0 < failed < 60


@pytest.mark.parametrize("frames", [37, 39])
def test_record_and_video_must_agree(frames):
    with pytest.raises(DecodeError, match=f"has 38 frames, its record says {frames}"):
        decode(class_video(0, 3), np.array([0]), frames)


def test_a_clip_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_CLIP_BYTES", 3 * 96 * 128 * 2)
    decode(class_video(0, 3), np.array([0, 5, 5, 5]), 38)
    with pytest.raises(DecodeError, match="3 frames of 128x96"):
        decode(class_video(0, 3), np.array([0, 5, 9]), 38)


def test_libraries_that_cannot_be_loaded_are_explained():
    """In a process of its own, which has not loaded them yet."""
    program = """
import torch
load = torch.ops.load_library
def load_without_ffmpeg(path):
    if "libtorchcodec_core" in str(path):
        raise OSError("libavutil.so.59: cannot open shared object file")
    return load(path)
torch.ops.load_library = load_without_ffmpeg
from data.decode import require_ffmpeg
from data.errors import UserError
try:
    require_ffmpeg()
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "install FFmpeg" in done.stdout, done.stdout + done.stderr


def test_missing_ffmpeg_is_explained(monkeypatch):
    require_ffmpeg()
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match="install FFmpeg"):
        require_ffmpeg()


CROPS = [(0, 0, 96, 128), (0, 0, 1, 1), (95, 127, 1, 1), (3, 5, 51, 77), (10, 16, 64, 64), (31, 0, 65, 101)]


@pytest.mark.parametrize("width", [128, 132, 130])
@pytest.mark.parametrize("where", CROPS)
def test_a_crop_in_the_decoder_has_the_pixels_of_one_after_it(monkeypatch, width, where):
    video, indices = render(f"testsrc2=size={width}x96"), np.array([0, 3, 17, 17, 29, 37])
    crop = Crop(96, width, *where)
    monkeypatch.setattr(module, "cut_in_decoder", lambda crop, frames: True)
    inside, chosen = decode_region(video, indices, 38, lambda height, width: crop, (96, width))
    assert chosen is crop and torch.equal(inside, crop.cut(decode(video, indices, 38)))
    # Nothing but the crop was kept.
    assert inside.untyped_storage().nbytes() == inside.numel()


def test_where_the_record_is_wrong_about_the_size_frames_are_decoded_whole(monkeypatch):
    video, indices = class_video(0, 3), np.array([0, 5])
    monkeypatch.setattr(module, "cut_in_decoder", lambda crop, frames: True)
    for said in ((64, 64), (960, 1280), (128, 96), None):
        region, crop = decode_region(video, indices, 38, centre_square, said)
        assert crop == centre_square(96, 128)
        assert torch.equal(region, crop.cut(decode(video, indices, 38)))
    with pytest.raises(DecodeError, match="has 38 frames, its record says 37"):
        decode_region(video, indices, 37, centre_square, (96, 128))
    with pytest.raises(DecodeError, match="Invalid data"):
        decode_region(b"no video" * 99, indices, 38, centre_square, (96, 128))


def test_the_decoder_cuts_where_that_is_faster():
    assert not cut_in_decoder(centre_square(256, 352), 32)
    assert cut_in_decoder(centre_square(256, 340), 32)
    assert not cut_in_decoder(whole_frame(256, 340), 32)
    assert cut_in_decoder(centre_square(720, 1280), 32)


def test_repeated_frames_lie_in_memory_as_all_others_do():
    clip = decode(class_video(0, 3), np.array([0, 0, 5]), 38)
    assert clip.permute(0, 2, 3, 1).is_contiguous()
