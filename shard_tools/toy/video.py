"""Encodes rendered frames with FFmpeg as the originals are encoded, the same bytes for the same frames."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.errors import UserError
from shard_tools.toy.staging import FPS

CODECS = {
    ".mp4": ("libx264", ["-preset", "veryfast", "-crf", "21", "-f", "mp4"]),
    ".webm": ("libvpx-vp9", ["-deadline", "realtime", "-cpu-used", "8", "-crf", "28", "-b:v", "0", "-f", "webm"]),
}
AUDIO_RATE = 16000


@dataclass(frozen=True)
class Video:
    """A video to write.

    Attributes:
        frames: RGB images of one even size.
        part: the file to write to; whoever asked renames it when it is done.
        suffix: ".mp4" (H.264) or ".webm" (VP9).
        audio: whether it has a sound track (AAC).
        index_first: whether an mp4's index stands before the data.
    """

    frames: Iterable[Image.Image]
    part: Path
    suffix: str
    audio: bool = False
    index_first: bool = False


def require_ffmpeg() -> None:
    """Raises UserError where the program or one of its encoders is missing."""
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg not found: install it (Debian/Ubuntu: apt-get install ffmpeg)")
    listed = subprocess.run(["ffmpeg", "-v", "error", "-encoders"], capture_output=True, text=True, check=False).stdout
    for encoder in (*(name for name, _ in CODECS.values()), "aac"):
        if f" {encoder} " not in listed:
            raise UserError(f"this ffmpeg has no encoder {encoder}: install a full build of it")


def encode(videos: Sequence[Video], work: Path) -> None:
    """Writes all videos with one process, as starting one costs more than a short clip; `work` takes the raw frames.

    Raises:
        UserError: FFmpeg failed; says why.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        inputs: list[str] = []
        outputs: list[str] = []
        for number, video in enumerate(videos):
            raw = Path(folder, str(number))
            width, height, frames = _write_frames(video.frames, raw)
            first = inputs.count("-i")
            inputs += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS)]
            inputs += ["-i", f"file:{raw}"]
            outputs += ["-map", f"{first}:v", "-threads", "1", "-pix_fmt", "yuv420p"]
            outputs += ["-fflags", "+bitexact", "-flags:v", "+bitexact"]
            if video.audio:
                sound = f"sine=frequency={196 + 7 * (frames % 40)}:sample_rate={AUDIO_RATE}:duration={frames / FPS}"
                inputs += ["-f", "lavfi", "-i", sound]
                outputs += ["-map", f"{first + 1}:a", "-c:a", "aac", "-b:a", "32k", "-flags:a", "+bitexact"]
            if video.index_first:
                outputs += ["-movflags", "+faststart"]
            codec, options = CODECS[video.suffix]
            outputs += ["-c:v", codec, *options, f"file:{video.part}"]
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y", "-filter_threads", "1", *inputs, *outputs]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise UserError(f"ffmpeg could not write {videos[0].part} and its neighbours: {last[0]}")


def _write_frames(frames: Iterable[Image.Image], raw: Path) -> tuple[int, int, int]:
    """Writes RGB bytes; returns width, height and the number of frames."""
    size, count = (0, 0), 0
    with raw.open("wb") as file:
        for image in frames:
            file.write(image.tobytes())
            size, count = image.size, count + 1
    return *size, count
