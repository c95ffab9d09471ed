"""Packs Moments in Time into shards."""

import argparse

from shard_tools.annotations import read_moments
from shard_tools.cli import main
from shard_tools.clip_plan import classification_plan
from shard_tools.items import Plan
from shard_tools.options import make_parser


def options() -> argparse.ArgumentParser:
    parser = make_parser(
        "Packs Moments in Time (v1 or v2) into shards.", dataset="moments", short_side=256, samples_per_shard=1000
    )
    parser.add_argument(
        "--annotations", required=True, metavar="CSV", help="trainingSet.csv or validationSet.csv: label/file.mp4 first"
    )
    parser.add_argument(
        "--categories", required=True, metavar="TXT", help="moments_categories.txt: name,index a line, or names alone"
    )
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    return classification_plan(arguments, read_moments(arguments.annotations, arguments.categories))


if __name__ == "__main__":
    main(options(), make_plan)
