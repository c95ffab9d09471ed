"""Videos are written whole or not at all, in their colours, and with the sound in step with the pictures."""

import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import UserError
from tests.tiny_shards import make_video
from train.video_files import Sound, VideoReader
from train.video_writer import VideoWriter

FLASH = "color=c=black:size=64x64:rate=20:duration=3,geq=lum='if(between(T,1.999,2.099),235,16)':cb=128:cr=128"
BEEP = "aevalsrc='if(between(t,2,2.1),sin(6283*t),0)':s=16000:d=3"


def flash_and_beep(path: Path) -> tuple[float, float]:
    """When the picture turns bright and when the sound begins, seconds of the file's own clock."""
    from torchcodec.decoders import AudioDecoder, VideoDecoder

    frames = VideoDecoder(str(path), seek_mode="exact")
    bright = next(frame for frame in (frames.get_frame_at(n) for n in range(len(frames))) if frame.data.max() > 200)
    samples = AudioDecoder(str(path)).get_all_samples()
    loud = int(torch.argmax((samples.data.abs().amax(dim=0) > 0.2).int()))
    return bright.pts_seconds, samples.pts_seconds + loud / samples.sample_rate


@pytest.mark.parametrize(
    ("name", "before", "options"),
    [
        ("plain.mp4", [], ["-c:a", "aac"]),
        ("both_late.mkv", ["-itsoffset", "0.3"], ["-c:a", "pcm_s16le", "-copyts"]),
        ("cut_out.mkv", ["-itsoffset", "30"], ["-c:a", "libmp3lame", "-copyts"]),
        ("web.webm", [], ["-c:v", "libvpx", "-deadline", "realtime", "-c:a", "libopus"]),
        ("stream.ts", [], ["-c:a", "aac"]),
    ],
)
def test_sound_and_pictures_stay_in_step(tmp_path, name, before, options):
    video = tmp_path / name
    made = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", FLASH, "-f", "lavfi", "-i", BEEP]
    subprocess.run([*made, "-c:v", "libx264", "-c:a", "pcm_s16le", tmp_path / "made.mkv"], check=True)
    command = ["ffmpeg", "-v", "error", *before, "-i", tmp_path / "made.mkv", "-c:v", "copy", *options, video]
    subprocess.run(command, check=True)
    reader = VideoReader(video)
    with VideoWriter(tmp_path / "out.mp4", 64, 64, reader.rate, reader.sound) as writer:
        for _, frame in reader.steady():
            writer.write(Image.fromarray(frame.permute(1, 2, 0).numpy()))
    flash, beep = flash_and_beep(tmp_path / "out.mp4")
    assert flash == pytest.approx(2.0, abs=0.06) and beep == pytest.approx(flash, abs=0.04)


def test_sound_that_begins_before_the_pictures_is_kept(tmp_path):
    plain, late = make_video(tmp_path / "plain.mp4", "-vf", FLASH.partition(",")[2]), tmp_path / "late.mp4"
    inputs = ["-itsoffset", "0.8", "-i", plain, "-f", "lavfi", "-i", BEEP]
    subprocess.run(["ffmpeg", "-v", "error", *map(str, inputs), "-c:v", "copy", late], check=True)
    reader = VideoReader(late)
    with VideoWriter(tmp_path / "out.mp4", 128, 96, reader.rate, reader.sound) as writer:
        for _, frame in reader.steady():
            writer.write(Image.fromarray(frame.permute(1, 2, 0).numpy()))
    flash, beep = flash_and_beep(tmp_path / "out.mp4")
    assert flash == pytest.approx(2.8, abs=0.07) and beep == pytest.approx(2.0, abs=0.04)


@pytest.mark.parametrize("height", [96, 720])
def test_colours_come_out_as_they_went_in(tmp_path, height):
    colour = (200, 30, 40)
    with VideoWriter(tmp_path / "v.mp4", 1280, height, Fraction(15), None) as writer:
        for _ in range(3):
            writer.write(Image.new("RGB", (1280, height), colour))
    reader = VideoReader(tmp_path / "v.mp4")
    assert reader.decoder.metadata.color_space == "bt709", "not tagged: players guess by the size"
    found = next(reader.steady())[1].float().mean(dim=(1, 2))
    assert found.tolist() == pytest.approx(colour, abs=3)


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), VideoWriter(out / "x.mp4", 64, 64, Fraction(15), None) as writer:
        writer.write(Image.new("RGB", (64, 64)))
        raise KeyboardInterrupt
    assert list(out.iterdir()) == []


def test_what_ffmpeg_says_is_told(tmp_path):
    no_sound = tmp_path / "no_sound.mp4"
    no_sound.write_bytes(b"none")
    with (
        pytest.raises(UserError, match="Invalid data"),
        VideoWriter(tmp_path / "x.mp4", 64, 64, Fraction(15), Sound(no_sound, 0, 0.0)) as writer,
    ):
        for _ in range(200):
            writer.write(Image.fromarray(np.zeros((64, 64, 3), np.uint8)))
