"""Packs AVA into shards: segments of movies around their keyframes, with boxes, labels and proposals."""

import argparse
import math

from data.ava_files import read_annotations, read_excluded, read_labelmap, read_proposals
from data.errors import UserError
from shard_tools.annotations import SPLIT_WORDS
from shard_tools.cli import main, require_videos
from shard_tools.failures import Unpackable
from shard_tools.items import Plan
from shard_tools.keyframe_labels import collect_keyframes
from shard_tools.options import make_parser, positive
from shard_tools.segments import Cut, Segment, plan_segments
from shard_tools.source_video import probe
from shard_tools.video_files import VideoFiles

MOVIE_START = 900.0  # where the usual 15 minute cuts of the films begin


def options() -> argparse.ArgumentParser:
    parser = make_parser(
        "Packs AVA into shards. A sample is a segment of a movie with up to eight consecutive keyframes, at a whole\n"
        "number of frames per second (that of the movie, rounded), so that each second begins with a frame.",
        short_side=0,
        samples_per_shard=100,
    )
    shown = "ava_train_v2.2.csv or the like; in training, keyframes without a box are left out"
    parser.add_argument("--annotations", required=True, metavar="CSV", help=shown)
    shown = "ava_action_list_v2.2.pbtxt or the like; its classes are the logits, other labels are dropped"
    parser.add_argument("--labelmap", required=True, metavar="PBTXT", help=shown)
    parser.add_argument("--excluded", metavar="CSV", help="keyframes to leave out: video_id,timestamp")
    shown = "person boxes with scores, SlowFast's CSV or mmaction2's pickle; all scores are kept, training chooses"
    parser.add_argument("--proposals", metavar="CSV|PKL", help=shown)
    shown = f"second of the film at which each file begins, 0 for whole films (default: {MOVIE_START:g})"
    parser.add_argument("--movie-start", type=_seconds, metavar="S", help=shown)
    shown = "seconds of film before the first and after the last keyframe of a segment (default: %(default)s)"
    parser.add_argument("--margin", type=_seconds, default=1.5, metavar="S", help=shown)
    shown = (
        "span in frames of the clip that training takes around a keyframe, frames times stride; a codec key frame is"
        " put where it starts (default: %(default)s)"
    )
    parser.add_argument("--window", type=positive, default=64, metavar="FRAMES", help=shown)
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    classes = read_labelmap(arguments.labelmap)
    videos, dropped = collect_keyframes(
        read_annotations(arguments.annotations),
        {c.id for c in classes},
        read_excluded(arguments.excluded) if arguments.excluded else set(),
        read_proposals(arguments.proposals) if arguments.proposals else None,
        keep_empty=arguments.split.lower() not in SPLIT_WORDS[0],
    )
    files = VideoFiles(arguments.videos)
    start = MOVIE_START if arguments.movie_start is None else arguments.movie_start
    segments, lost = plan_segments(videos, files, Cut(start, arguments.margin, arguments.window))
    require_videos(segments, lost, files)
    if arguments.movie_start is None:
        _check_no_whole_film(segments, arguments.max_pixels)
    cut = {"movie_start": start, "margin": arguments.margin, "window": arguments.window}
    return Plan("ava", arguments.split, "localisation", classes, list(segments), lost, dict(dropped), cut)


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


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return seconds


if __name__ == "__main__":
    main(options(), make_plan)
