"""Makes the toy world: four small raw datasets of figures that act, in the originals' formats, quirks included."""

import argparse
import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import NoReturn

from data.errors import UserError
from shard_tools.toy.build import SIZES, build

DESCRIPTION = """\
Makes the toy world: four raw datasets, in the formats of Kinetics, Moments in Time, Something-Something v2 and AVA, of
drawn people who act: one renderer, four sets of labels. AVA's classes have a long tail. As real copies do, some videos
are missing or broken: OUT/planted.json lists them.
The same seed and size give the same files. A run that was cut off goes on where it was, a finished one is left be."""

EPILOG = """\
exit codes: 0 made or there already; 1 the disk or FFmpeg failed; 2 wrong arguments, FFmpeg is missing, or the folder
holds something else; 130 interrupted"""


def main() -> NoReturn:
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = _parser().parse_args()
    try:
        made = build(arguments.out, arguments.seed, SIZES[arguments.size], arguments.workers)
        print(_summary(arguments.out, made))
        sys.exit(0)
    except UserError as error:
        _exit(2, f"error: {error}")
    except OSError as error:
        _exit(1, f"error: {error}\nWith that mended, the same command goes on where it was.")
    except KeyboardInterrupt:
        _exit(130, "interrupted; the same command goes on where it was")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = "folder to make it in: OUT/kinetics, OUT/moments, OUT/ssv2, OUT/ava"
    parser.add_argument("--out", type=Path, required=True, metavar="RAW", help=shown)
    shown = "whole number, 0 or more, that everything is drawn from (default: %(default)s)"
    parser.add_argument("--seed", type=_seed, default=0, metavar="S", help=shown)
    small, full = (f"{sum(s.kinetics + s.moments + s.ssv2)} clips and {sum(s.movies)} movies" for s in SIZES.values())
    shown = f"small: {small}, under two minutes on two cores; full: {full} (default: %(default)s)"
    parser.add_argument("--size", choices=SIZES, default="small", help=shown)
    shown = "processes that render at the same time (default: number of CPU cores, %(default)s here)"
    parser.add_argument("--workers", type=_positive, default=len(os.sched_getaffinity(0)), metavar="N", help=shown)
    return parser


def _summary(raw: Path, made: bool) -> str:
    faults = Counter(fault["kind"] for fault in json.loads((raw / "planted.json").read_text()))
    planted = ", ".join(f"{count} {kind}" for kind, count in sorted(faults.items()))
    return f"{raw}: {'made' if made else 'there already'}; planted faults: {planted} (see planted.json)"


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 0 or more")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number, 1 or more")
    return int(text)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _exit(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
