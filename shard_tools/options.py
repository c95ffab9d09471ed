"""The options that every pack command has."""

import argparse
import os
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

from shard_tools.clip_command import B_FRAMES, VideoSettings
from shard_tools.packing import PackOptions

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
EPILOG = """\
writes:
  OUT/{dataset}-{split}-{index:06d}.tar    webdataset shards
  OUT/{dataset}-{split}.manifest.json      classes, counts, checksums, settings; written last
  OUT/{dataset}-{split}.index.npy          where each example lies
  OUT/{dataset}-{split}.failures.jsonl     what was lost: {"source", "reason", "detail", "examples"} a line
Stopped in any way, the same command goes on where it was; where all is packed it does nothing.
The same input gives the same bytes, whatever --workers and --part are.
exit: 0 packed, losses within --max-failures; 1 more lost than that; 2 bad arguments or annotations, or the storage of
the videos or of OUT fails; 130 interrupted
"""


def make_parser(
    description: str, dataset: str, short_side: int, samples_per_shard: int, can_copy: bool = True
) -> argparse.ArgumentParser:
    """A parser with the common options; the arguments are the defaults that differ between datasets. `can_copy`: whole
    videos are packed, so that their streams may be kept."""
    parser = argparse.ArgumentParser(
        description=description, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument_group("input and output").add_argument
    add("--videos", required=True, metavar="DIR", help="folder of the videos; its sub-folders are searched too")
    add("--out", required=True, metavar="SHARDS", type=Path, help="folder to write the shards to")
    add("--split", required=True, type=_name, help="name of the split, such as train; part of the shards' names")
    shown = "name of the dataset, for another one in these formats; part of the shards' names (default: %(default)s)"
    add("--dataset", type=_name, default=dataset, metavar="NAME", help=shown)
    add("--dry-run", action="store_true", help="print what would be packed and what is missing; write nothing")
    add = parser.add_argument_group("clips").add_argument
    shown = "pixels of the short side; 0 keeps the source's, and nothing is enlarged (default: %(default)s)"
    add("--short-side", type=_whole, default=short_side, metavar="PX", help=shown)
    add("--fps", type=_rate, metavar="F", help="frames per second, such as 30 or 30000/1001 (default: the source's)")
    add("--crf", type=_quality, default=23, help="x264's quality, 0 to 51, less is better (default: %(default)s)")
    shown = "x264's effort; slower ones cost much and gain little here (default: %(default)s)"
    add("--preset", choices=PRESETS, default="veryfast", metavar="NAME", help=shown)
    add("--gop", type=positive, default=30, metavar="N", help="frames between codec key frames (default: %(default)s)")
    shown = "fewer frames than this are a failure (default: %(default)s)"
    add("--min-frames", type=positive, default=8, metavar="N", help=shown)
    shown = "pictures of more pixels than this are a failure (default: %(default)s)"
    add("--max-pixels", type=_pixels, default=36_000_000, metavar="N", help=shown)
    shown = "do not decode each finished clip in full; a broken one then shows in training first"
    add("--no-verify", action="store_true", help=shown)
    if can_copy:
        shown = (
            "keep each video's own stream, whatever its codec, size and rate; of the other options here --min-frames"
            " and --max-pixels alone count then, copies are always decoded in full, and clips decode as slowly as the"
            " originals"
        )
        add("--copy", action="store_true", help=shown)
    add = parser.add_argument_group("work").add_argument
    cores = len(os.sched_getaffinity(0))  # those that the job may use, not all of the machine
    add("--workers", type=positive, default=cores, metavar="N", help="processes (default: one a core, %(default)s)")
    shown = (
        "do the I-th of N equal shares of the work, I from 0 to N-1; run all parts, at once or in turn, the last one"
        " finishes the set"
    )
    add("--part", type=_part, default=(0, 1), metavar="I/N", help=shown)
    shown = "samples of a shard, less what is lost (default: %(default)s)"
    add("--samples-per-shard", type=positive, default=samples_per_shard, metavar="N", help=shown)
    add("--seed", type=_whole, default=0, metavar="S", help="seed of the order of samples (default: %(default)s)")
    shown = "a video that takes longer than this many seconds is a failure (default: %(default)s)"
    add("--time-limit", type=positive, default=600, metavar="S", help=shown)
    shown = "share of clips (AVA: of keyframes) that may be lost, 0 to 1 (default: %(default)s)"
    add("--max-failures", type=_share, default=0.05, metavar="SHARE", help=shown)
    return parser


def pack_options(arguments: argparse.Namespace) -> PackOptions:
    """What the parsed common options say."""
    video = VideoSettings(
        short_side=arguments.short_side or None,
        fps=arguments.fps,
        crf=arguments.crf,
        preset=arguments.preset,
        gop=arguments.gop,
        min_frames=arguments.min_frames,
        max_pixels=arguments.max_pixels,
        copy=getattr(arguments, "copy", False),
        verify=not arguments.no_verify,
    )
    return PackOptions(
        video=video,
        samples_per_shard=arguments.samples_per_shard,
        seed=arguments.seed,
        workers=arguments.workers,
        part=arguments.part,
        time_limit=arguments.time_limit,
    )


def settings(options: PackOptions) -> dict[str, Any]:
    """The options that the bytes of the shards depend on, by name, as JSON values."""
    video = options.video
    return {
        "short_side": video.short_side or 0,
        "fps": str(video.fps) if video.fps else None,
        "crf": video.crf,
        "preset": video.preset,
        "gop": video.gop,
        "b_frames": B_FRAMES,
        "min_frames": video.min_frames,
        "max_pixels": video.max_pixels,
        "copy": video.copy,
        "verify": video.verify,
        "samples_per_shard": options.samples_per_shard,
        "seed": options.seed,
    }


def _whole(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is below 0")
    return number


def _quality(text: str) -> int:
    if not 0 <= int(text) <= 51:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to 51")
    return int(text)


def positive(text: str) -> int:
    """An option's whole number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is below 1")
    return number


def _pixels(text: str) -> int:
    number = positive(text)
    if number >= 2**31:  # FFmpeg takes no larger ones, and every clip would be lost
        raise argparse.ArgumentTypeError(f"{text!r} is above {2**31 - 1}")
    return number


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 0 to 1")
    return share


def _rate(text: str) -> Fraction:
    try:
        rate = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate such as 30, 29.97 or 30000/1001") from None
    if not 1 <= rate <= 240 or rate.denominator > 1001:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1 to 240, with a denominator up to 1001")
    return rate


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has more in it than letters, digits, _ and -")
    return text


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 0 to N-1")
    return int(match[1]), int(match[2])
