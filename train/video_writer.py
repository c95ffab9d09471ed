"""Writes a video frame by frame, with the sound of the one that it was made from."""

import shutil
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path
from types import TracebackType

from PIL import Image

from data.errors import UserError
from train.video_files import Sound

CONTAINERS = (".mp4", ".mov", ".mkv")
"""Endings of the names of files that VideoWriter can write."""

# Untagged, large pictures are taken for BT.709 and small ones for BT.601. Without the last two flags greys turn pink.
_TO_YUV = "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_inp+full_chroma_int,format=yuv420p"
_COLOUR_TAGS = ["-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"]


def require_encoder() -> None:
    """Raises UserError where the ffmpeg program, which VideoWriter runs, is missing."""
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg is not installed (Debian, Ubuntu: apt-get install ffmpeg)")


class VideoWriter:
    """Encodes images to H.264 as they come; the file takes its place when all of it is written.

    Args:
        path: ends in one of CONTAINERS.
        width, height: even.
        rate: frames per second.
        sound: what is put under the pictures; None for silence.

    Raises:
        UserError: no ffmpeg, or what ffmpeg says when it fails.
    """

    def __init__(self, path: Path, width: int, height: int, rate: Fraction, sound: Sound | None) -> None:
        self.path, self.partial = path, path.with_name(f".{path.stem}.partial{path.suffix}")
        command = ["ffmpeg", "-v", "error", "-nostdin", "-y"]
        command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(rate), "-i", "pipe:0"]
        if sound is not None:
            # FFmpeg would move a file's beginning, by its own reading of it, to 0: its clock is left as it is, and
            # moved by as much as the pictures' is. A playlist in a video's clothes must not make it open addresses.
            command += ["-copyts", "-itsoffset", f"{-sound.origin:.6f}", "-protocol_whitelist", "file"]
            command += ["-i", f"file:{sound.path.resolve()}", "-map", "0:v:0", "-map", f"1:{sound.stream}"]
            command += ["-c:a", "aac", "-b:a", "192k"]
        command += ["-vf", _TO_YUV, "-c:v", "libx264", "-preset", "veryfast", "-crf", "20", *_COLOUR_TAGS]
        command += ["-movflags", "+faststart", f"file:{self.partial.resolve()}"]
        require_encoder()
        self._messages = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the encoder
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=self._messages)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error}") from error

    def write(self, image: Image.Image) -> None:
        """Adds an RGB image of the size given."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(image.tobytes())
        except BrokenPipeError:
            raise UserError(f"{self.path} cannot be written: {self._told()}") from None

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            kind = kind or BrokenPipeError
        failed = self._process.wait() != 0
        told = self._told() if failed else ""
        self._messages.close()
        if kind is None and not failed:
            self.partial.replace(self.path)
            return
        self.partial.unlink(missing_ok=True)
        if error is None:
            raise UserError(f"{self.path} cannot be written: {told}")

    def _told(self) -> str:
        self._process.wait()
        self._messages.seek(0)
        return " ".join(self._messages.read().decode(errors="replace").split())[-300:] or "ffmpeg failed"
