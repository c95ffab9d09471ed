"""Packs Something-Something v2 into shards."""

import argparse

from shard_tools.annotations import read_ssv2
from shard_tools.cli import main
from shard_tools.clip_plan import classification_plan
from shard_tools.items import Plan
from shard_tools.options import make_parser


def options() -> argparse.ArgumentParser:
    parser = make_parser(
        "Packs Something-Something v2 into shards.", dataset="ssv2", short_side=256, samples_per_shard=1000
    )
    parser.add_argument(
        "--annotations", required=True, metavar="JSON", help="train, validation or test JSON: a list of id and template"
    )
    parser.add_argument("--labels", required=True, metavar="JSON", help="labels JSON: template to index")
    return parser


def make_plan(arguments: argparse.Namespace) -> Plan:
    return classification_plan(arguments, read_ssv2(arguments.annotations, arguments.labels))


if __name__ == "__main__":
    main(options(), make_plan)
