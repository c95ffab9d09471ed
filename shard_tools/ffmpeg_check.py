"""Whether the FFmpeg that is installed makes the clips that the packers ask for: one small clip is made and looked at.

Versions differ in what they do with the same command, mostly without a word: FFmpeg 7 loses the rate behind a filter,
6.1 to 8 do not count damaged frames (they divide whole numbers), 9 converts colours once more than it is told. What is
known of these is dealt with in `clip_command` and `transcode`; here is found where a version does something else.
"""

import re
import shutil
import subprocess
import tempfile
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np

from data.errors import UserError
from shard_tools.clip_command import MAX_ERROR_RATE, Job, Span, VideoSettings, clip_command
from shard_tools.mp4_boxes import constant_rate, key_frames
from shard_tools.run_ffmpeg import Ran, damaged_share, run_into_memory
from shard_tools.source_video import Source

_WIDTH, _HEIGHT, _RATE, _FRAMES = 128, 48, Fraction(24000, 1001), 96
_BARS = 8  # that show a frame's number, in the right half; the left half is of one colour
_RGB = np.array([200, 60, 30])
_SPAN = Span(Fraction(1), 48, (4, 28))
_FPS = Fraction(24)
_SETTINGS = VideoSettings(
    short_side=None, fps=_FPS, crf=18, preset="veryfast", gop=30, min_frames=1, max_pixels=36_000_000
)
LAST_THAT_TAKES_MANY = 6
"""Major version of FFmpeg."""
_NEAR = 4
"""Steps of 8 bits that a colour may be off: x264 and rounding take 2 at most."""


def require_ffmpeg(copy: bool = False) -> str:
    """Version of the FFmpeg program.

    Args:
        copy: clips are not encoded: ffprobe is needed, which looks for the key frames of a copied stream.

    Raises:
        UserError: it is missing or has no x264, or ffprobe is missing where it is needed.
    """
    if not shutil.which("ffmpeg"):
        raise UserError("ffmpeg not found: install it (Debian/Ubuntu: apt-get install ffmpeg)")
    if copy and not shutil.which("ffprobe"):
        raise UserError("ffprobe not found, which --copy needs: install it (Debian/Ubuntu: apt-get install ffmpeg)")
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-h", "encoder=libx264"], capture_output=True, text=True, check=False
    )
    if "libx264" not in done.stdout:
        raise UserError("this ffmpeg has no H.264 encoder (libx264): install a full build of it")
    return _version(str(shutil.which("ffmpeg")))


def check_clips() -> None:
    """Raises UserError where clips that the installed FFmpeg makes are not what the packers ask for; says in what."""
    program = str(shutil.which("ffmpeg"))
    if fault := _look(program)[0]:
        raise UserError(
            f"clips that this ffmpeg ({_version(program)}) makes are wrong: {fault}. Install another version: 5.1, 7.0"
            " and 9.0 are known to be right"
        )


def takes_many() -> bool:
    """Whether one process may make many clips: not in FFmpeg 9.0, where one of three outputs of a file may wait for the
    others for ever (seen in one run of six), nor in 7 and 8, which schedule outputs in the same new way."""
    return may_take_many(_version(str(shutil.which("ffmpeg"))))


def may_take_many(version: str) -> bool:
    major = re.match(r"n?(\d+)\.", version)
    return major is not None and int(major[1]) <= LAST_THAT_TAKES_MANY


@cache
def _version(program: str) -> str:
    words = subprocess.run([program, "-version"], capture_output=True, text=True, check=False).stdout.split()
    return words[2] if len(words) > 2 else "unknown"


def counts_damage() -> bool:
    """Whether the installed FFmpeg fails where it could not decode more than a share of frames, as it is told to."""
    return _look(str(shutil.which("ffmpeg")))[1]


@cache
def _look(program: str) -> tuple[str, bool]:
    """Makes clips with the `program` on the path: what is wrong with them ("" for nothing), and `counts_damage`."""
    with tempfile.TemporaryDirectory(prefix="ffmpeg-check-") as folder:
        source = Path(folder, "source.mp4")
        pictures = ["-pix_fmt", "yuv420p", "-s", f"{_WIDTH}x{_HEIGHT}", "-r", str(_RATE)]
        codec = ["-c:v", "libx264", "-preset", "ultrafast", "-qp", "8", "-g", "1"]
        encode = ["-f", "rawvideo", *pictures, "-i", "pipe:0", *codec, "-f", "mp4", str(source)]
        done = _ffmpeg(encode, _pictures())
        if done.returncode or not source.exists():
            return f"it cannot encode ({_last_line(done.stderr)})", True
        clip = _make(source, _SPAN)
        if clip.status:
            return f"it cannot make one ({clip.message})", True
        content = source.read_bytes()
        third = len(content) // 3
        source.write_bytes(content[:third] + b"\xff" * third + content[2 * third :])
        damaged = _make(source, None)
        share = damaged_share(_make(source, None, "verbose").messages) if damaged.status <= 0 else 1.0
    missed = (share or 0) <= MAX_ERROR_RATE
    return _fault_of(clip.videos[0]) or ("damaged videos pass as whole ones" if missed else ""), damaged.status > 0


def _fault_of(clip: bytes) -> str:
    if constant_rate(clip) != _FPS:
        return f"frames do not come at the rate that was asked for ({_FPS})"
    expected = [0, *_SPAN.key_frames]
    if (keys := key_frames(clip, _SPAN.frames)) != expected:
        return f"key frames are at {keys}, not at {expected}"
    decoded = _ffmpeg(["-f", "mp4", "-i", "pipe:0", "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"], clip).stdout
    if len(decoded) != _SPAN.frames * _WIDTH * _HEIGHT * 3 // 2:
        return f"not all of its {_SPAN.frames} frames are there"
    frames = np.frombuffer(decoded, np.uint8).reshape(_SPAN.frames, -1).astype(int)
    luma = frames[:, : _WIDTH * _HEIGHT].reshape(-1, _HEIGHT, _WIDTH)
    chroma = frames[:, _WIDTH * _HEIGHT :].reshape(-1, 2, _HEIGHT // 2, _WIDTH // 2)
    centres = _WIDTH // 2 + (np.arange(_BARS) * 2 + 1) * _WIDTH // (4 * _BARS)
    shown = (luma[:, _HEIGHT // 2, centres] > 128) @ (1 << np.arange(_BARS))
    wanted = [round((_SPAN.start + Fraction(n) / _FPS) * _RATE) for n in range(_SPAN.frames)]
    if shown.tolist() != wanted:
        return "its frames are not those of the seconds that were asked for"
    colour = np.array([luma[0, _HEIGHT // 2, _WIDTH // 4], *chroma[0, :, _HEIGHT // 4, _WIDTH // 8]])
    if np.abs(colour - _yuv(_RGB, 0.2126, 0.0722)).max() > _NEAR:
        return "its colours are not the source's"
    return ""


def _make(source: Path, span: Span | None, level: str = "error") -> Ran:
    what = Source(_WIDTH, _HEIGHT, _RATE, float(_FRAMES / _RATE), 0.1, "bt601")
    job = Job(str(source), what, _FPS, span, preroll=0.5)
    return run_into_memory(lambda outputs: clip_command([job], _SETTINGS, outputs, level), 1)


def _pictures() -> bytes:
    """The source's frames, YUV 4:2:0 by BT.601: a colour in the left half, each frame's number in bars in the right."""
    y, u, v = np.rint(_yuv(_RGB, 0.299, 0.114)).astype(np.uint8)
    frames = []
    for number in range(_FRAMES):
        luma = np.full((_HEIGHT, _WIDTH), y, np.uint8)
        bits = np.where(number >> np.arange(_BARS) & 1, 235, 16).astype(np.uint8)
        luma[:, _WIDTH // 2 :] = np.repeat(bits, _WIDTH // (2 * _BARS))
        chroma = np.full((2, _HEIGHT // 2, _WIDTH // 2), 128, np.uint8)
        chroma[:, :, : _WIDTH // 4] = np.array([u, v])[:, None, None]
        frames.append(luma.tobytes() + chroma.tobytes())
    return b"".join(frames)


def _yuv(rgb: np.ndarray, red: float, blue: float) -> np.ndarray:
    """Y, Cb and Cr in the range of television, by a matrix's weights of red and blue (ITU-R BT.601 and BT.709)."""
    r, g, b = rgb / 255
    y = red * r + (1 - red - blue) * g + blue * b
    return np.array([16 + 219 * y, 128 + 112 * (b - y) / (1 - blue), 128 + 112 * (r - y) / (1 - red)])


def _ffmpeg(arguments: list[str], data: bytes) -> "subprocess.CompletedProcess[bytes]":
    command = ["ffmpeg", "-hide_banner", "-v", "error", "-nostats", "-y", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=False)


def _last_line(messages: bytes) -> str:
    return (messages.decode(errors="replace").strip().splitlines() or ["without a word"])[-1]
