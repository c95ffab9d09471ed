"""Packs AVA-Kinetics into shards: the Kinetics clips of its annotation files, with boxes, labels and proposals."""

import argparse
import contextlib
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from data.errors import UserError
from shard_tools.accounts import count_keyframe_labels
from shard_tools.cli import main, require_videos
from shard_tools.failures import Unpackable
from shard_tools.items import Plan
from shard_tools.keyframe_options import add_options, read_keyframes
from shard_tools.leaks import leaking_clips
from shard_tools.options import make_parser
from shard_tools.part_store import atomic_file
from shard_tools.segments import Segment, plan_clip_segments
from shard_tools.source_video import probe
from shard_tools.video_files import VideoFiles

CLIP_SECONDS = 15.0
"""More than a Kinetics clip has, 10 s, and less than nearly every video that one was cut out of."""
LOOKED_AT, FEW = 20, 5
"""So many files are looked at, and fewer than these say nothing."""


def options() -> argparse.ArgumentParser:
    parser = make_parser(
        "Packs the Kinetics part of AVA-Kinetics into shards. Its annotations give seconds of the original video; the\n"
        "file name of a clip, {id}_{start:06d}_{end:06d}, says where it was cut out; {id} alone is the whole video.",
        dataset="ava_kinetics",
        short_side=0,
        samples_per_shard=500,
        can_copy=False,
    )
    add_options(parser, "kinetics_train_v1.0.csv or the like")
    parser.add_argument(
        "--kinetics-train",
        metavar="CSV",
        help="for a validation or test split: the Kinetics training CSV, to list its clips of videos that are evaluated"
        " here; they go to OUT/{dataset}-{split}.leaks.txt, for pack_kinetics.py --exclude-ids",
    )
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    classes, videos, dropped = read_keyframes(arguments)
    asked = count_keyframe_labels(videos)
    files = VideoFiles(arguments.videos)
    segments, lost = plan_clip_segments(arguments.dataset, videos, files, arguments.margin, arguments.window)
    require_videos(segments, lost, files)
    _check_no_bare_clips(segments, arguments.max_pixels)
    if arguments.kinetics_train:
        _report_leaks(arguments, videos)
    cut = {"margin": arguments.margin, "window": arguments.window}
    return Plan(arguments.dataset, arguments.split, "localisation", classes, list(segments), lost, dropped, cut, asked)


def _check_no_bare_clips(segments: Sequence[Segment], max_pixels: int) -> None:
    """Labels would go silently to the wrong second if a clip that is named after its video alone were taken for it."""
    last = {segment.path: segment for segment in segments if Path(segment.path).stem == segment.video_id}
    looked_at = []
    for segment in list(last.values())[:LOOKED_AT]:
        with contextlib.suppress(Unpackable):
            looked_at.append((segment, probe(segment.path, max_pixels).seconds or math.inf))
    beyond = [(segment, seconds) for segment, seconds in looked_at if segment.keyframes[-1].timestamp > seconds + 1]
    if beyond and len(looked_at) >= FEW and all(seconds <= CLIP_SECONDS for _, seconds in looked_at):
        segment, seconds = beyond[0]
        raise UserError(
            f"{segment.source} has {seconds:.0f} s and a keyframe at {segment.keyframes[-1].timestamp:.0f} s of the"
            " original video: it seems to be a clip, and as {id} alone is taken for the whole video; give clips names"
            " that say where they were cut out, {id}_{start:06d}_{end:06d}"
        )


def _report_leaks(arguments: argparse.Namespace, videos: Collection[str]) -> None:
    leaks = leaking_clips(videos, arguments.kinetics_train)
    ids = sorted({clip.uncut[0] for clip in leaks if clip.uncut})
    print(f"{arguments.kinetics_train}: {len(leaks)} clips are of {len(ids)} videos that are evaluated here", end="")
    if arguments.dry_run:
        print()
        return
    # Also where there is none, so that the command that follows is the same, and no older list stays.
    listed = arguments.out / f"{arguments.dataset}-{arguments.split}.leaks.txt"
    print(f"; pack_kinetics.py --exclude-ids {listed} leaves them out")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with atomic_file(listed) as file:
        file.write("".join(f"{video}\n" for video in ["youtube_id", *ids]).encode())


if __name__ == "__main__":
    main(options(), make_plan)
