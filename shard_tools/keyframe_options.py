"""What the pack commands of AVA and AVA-Kinetics have in common: their options, and the keyframes that these name."""

import argparse
import math

from data.ava_files import read_annotations, read_excluded, read_labelmap, read_proposals
from data.shards import ClassInfo
from shard_tools.keyframe_labels import KeyframeLabels, collect_keyframes
from shard_tools.options import positive


def add_options(parser: argparse.ArgumentParser, example: str) -> None:
    """Adds the options of annotations and segments; `example` is the name of an annotation file."""
    shown = f"{example}; in training (a --split that begins with train), keyframes without a box are left out"
    parser.add_argument("--annotations", required=True, metavar="CSV", help=shown)
    shown = "ava_action_list_v2.2.pbtxt or the like; its classes are the logits, other labels are dropped"
    parser.add_argument("--labelmap", required=True, metavar="PBTXT", help=shown)
    parser.add_argument("--excluded", metavar="CSV", help="keyframes to leave out: video_id,timestamp")
    shown = "person boxes with scores, SlowFast's CSV or mmaction2's pickle; all scores are kept, training chooses"
    parser.add_argument("--proposals", metavar="CSV|PKL", help=shown)
    shown = (
        "seconds of film before the first and after the last keyframe of a segment, or half of --window where that is"
        " more (default: %(default)s)"
    )
    parser.add_argument("--margin", type=seconds, default=1.5, metavar="S", help=shown)
    shown = (
        "span in frames of the clip that training takes around a keyframe, frames times stride; a codec key frame is"
        " put where it starts (default: %(default)s)"
    )
    parser.add_argument("--window", type=positive, default=64, metavar="FRAMES", help=shown)


def read_keyframes(
    arguments: argparse.Namespace,
) -> tuple[list[ClassInfo], dict[str, list[KeyframeLabels]], dict[str, int]]:
    """Classes, keyframes by video, and counts of what was dropped or mended. Raises UserError for a malformed file."""
    classes = read_labelmap(arguments.labelmap)
    videos, dropped = collect_keyframes(
        read_annotations(arguments.annotations),
        {c.id for c in classes},
        read_excluded(arguments.excluded) if arguments.excluded else set(),
        read_proposals(arguments.proposals) if arguments.proposals else None,
        keep_empty=not arguments.split.lower().startswith("train"),  # train_mini too
    )
    return classes, videos, dict(dropped)


def seconds(text: str) -> float:
    """An option's number of seconds, 0 or more."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, 0 or more")
    return number
