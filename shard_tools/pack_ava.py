"""Packs AVA into shards: segments of movies around their keyframes, with boxes, labels and proposals."""

import argparse

from data.errors import UserError
from shard_tools.accounts import count_keyframe_labels
from shard_tools.cli import main, require_videos
from shard_tools.failures import Unpackable
from shard_tools.items import Plan
from shard_tools.keyframe_options import add_options, read_keyframes, seconds
from shard_tools.options import make_parser
from shard_tools.segments import Cut, Segment, plan_segments, segment_runs
from shard_tools.source_video import probe
from shard_tools.video_files import VideoFiles

MOVIE_START = 900.0  # where the usual 15 minute cuts of the films begin


def options() -> argparse.ArgumentParser:
    parser = make_parser(
        "Packs AVA into shards. A sample is a segment of a movie with up to eight consecutive keyframes, at a whole\n"
        "number of frames per second (that of the movie, rounded), so that each second begins with a frame.",
        dataset="ava",
        short_side=0,
        samples_per_shard=100,
        can_copy=False,
    )
    add_options(parser, "ava_train_v2.2.csv or the like")
    shown = f"second of the film at which each file begins, 0 for whole films (default: {MOVIE_START:g})"
    parser.add_argument("--movie-start", type=seconds, metavar="S", help=shown)
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    classes, videos, dropped = read_keyframes(arguments)
    asked = count_keyframe_labels(videos)
    files = VideoFiles(arguments.videos)
    start = MOVIE_START if arguments.movie_start is None else arguments.movie_start
    where = Cut(start, arguments.margin, arguments.window)
    segments, lost = plan_segments(arguments.dataset, videos, files, where)
    require_videos(segments, lost, files)
    if arguments.movie_start is None:
        _check_no_whole_film(segments, arguments.max_pixels)
    cut = {"movie_start": start, "margin": arguments.margin, "window": arguments.window}
    runs = segment_runs(segments)
    return Plan(
        arguments.dataset, arguments.split, "localisation", classes, list(segments), lost, dropped, cut, asked, runs
    )


def _check_no_whole_film(segments: list[Segment], max_pixels: int) -> None:
    """Labels would go silently to the wrong second if a whole film were taken for a cut copy of it."""
    last = {segment.path: segment for segment in segments}
    for segment in list(last.values())[:3]:
        try:
            length = probe(segment.path, max_pixels).seconds or 0
        except Unpackable:
            continue
        end = segment.keyframes[-1].timestamp
        if length > end - MOVIE_START + 600:
            raise UserError(
                f"{segment.source} has {length:.0f} s, but taken to begin at second {MOVIE_START:g} its last keyframe"
                f" is at {end - MOVIE_START:.0f} s: give --movie-start 0 for whole films, or --movie-start"
                f" {MOVIE_START:g} where that is right"
            )


if __name__ == "__main__":
    main(options(), make_plan)
