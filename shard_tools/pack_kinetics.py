"""Packs Kinetics into shards."""

import argparse

from data.errors import UserError
from shard_tools.annotations import read_class_names, read_kinetics
from shard_tools.cli import main
from shard_tools.clip_plan import classification_plan
from shard_tools.items import Plan
from shard_tools.leaks import read_ids, without_ids
from shard_tools.options import make_parser


def options() -> argparse.ArgumentParser:
    parser = make_parser(
        "Packs Kinetics (any edition) into shards. Videos may lie in folders of classes or not, their names with or"
        "\nwithout the time of the clip ({id}_{start:06d}_{end:06d}.mp4 or {id}.mp4), with any extension.",
        dataset="kinetics",
        short_side=256,
        samples_per_shard=500,
    )
    parser.add_argument(
        "--annotations",
        required=True,
        metavar="CSV",
        help="header label,youtube_id,time_start,time_end,split; rows of another split than --split are left out, and"
        " where it is a name of your own, such as train_mini, all rows must be of one split",
    )
    parser.add_argument(
        "--classes",
        metavar="TXT",
        help="one class a line, in order of the logits (default: the sorted labels of CSV; the usual train and validate"
        " files both hold all classes; give the same TXT for all splits where yours do not)",
    )
    parser.add_argument(
        "--exclude-ids",
        metavar="FILE",
        help="videos to leave out, one id a line or as the first column of a CSV: for a training set, the validation"
        " CSV of AVA-Kinetics where that is evaluated",
    )
    parser.add_argument(
        "--whole-videos",
        action=argparse.BooleanOptionalAction,
        help="files named {id} are whole videos: cut clips out of them, time_start to time_end (default: they are"
        " clips, and it is an error if some that are looked at are much longer)",
    )
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    names = read_class_names(arguments.classes) if arguments.classes else None
    if arguments.copy and arguments.whole_videos:
        raise UserError("--copy keeps streams whole, --whole-videos cuts them: give one of the two")
    clips, classes, dropped = read_kinetics(arguments.annotations, arguments.split, names)
    if arguments.exclude_ids:
        clips, excluded = without_ids(clips, read_ids(arguments.exclude_ids))
        dropped = {**dropped, **excluded}
    return classification_plan(arguments, (clips, classes, dropped), arguments.whole_videos)


if __name__ == "__main__":
    main(options(), make_plan)
