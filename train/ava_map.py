"""Computes AVA's frame mAP from files in the official formats, as the official evaluator and its copies do, and says
where it comes from: classes, groups of classes, kinds of error, and the difference to another run."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.errors import UserError
from train.ava_classes import DEFAULT_CUTOFFS, frequency_masks, group_masks
from train.ava_inputs import Files, notes, read_files, training_counts
from train.breakdown import (
    Breakdown,
    box_recall,
    class_recall,
    comparison_table,
    error_table,
    percent,
    summary,
    table,
    write_csv,
)
from train.compare import RESAMPLES, compare
from train.error_kinds import error_kinds
from train.frame_map import DEFAULT_PROTOCOL, PROTOCOLS, FrameBoxes, Matches, Protocol, match
from train.ties import have_ties, tie_range
from train.whole_files import whole_text


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        allow_abbrev=False,
        epilog="The rules, the protocols and the kinds of error: docs/ava_map.md. Exit status: 0, or 2 for bad"
        " arguments or files.",
    )
    add = parser.add_argument_group("files").add_argument
    add(
        "--groundtruth",
        required=True,
        metavar="CSV",
        help="rows of video_id,timestamp,x1,y1,x2,y2,action_id[,person_id]; video_id,timestamp for a keyframe without",
    )
    add("--detections", required=True, metavar="CSV", help="rows of video_id,timestamp,x1,y1,x2,y2,action_id,score")
    add("--labelmap", required=True, metavar="PBTXT", help="the classes that are averaged")
    add("--excluded", metavar="CSV", help="keyframes to leave out, rows of video_id,timestamp (default: none)")
    add = parser.add_argument_group("rules").add_argument
    add("--protocol", choices=PROTOCOLS, default=DEFAULT_PROTOCOL, help="whose rules (default: %(default)s)")
    add(
        "--max-per-image",
        type=int,
        metavar="N",
        help="rows of a keyframe that count, those of the highest scores; 0: all (default: 50 under the activitynet"
        " protocols, 0 under slowfast and mmaction2)",
    )
    add(
        "--unnamed-keyframes",
        choices=("ignore", "false-positives"),
        help="what detections are on keyframes that the ground truth does not name (default: left out under"
        " activitynet-2020, false positives under the others)",
    )
    add = parser.add_argument_group("breakdown").add_argument
    add(
        "--train-groundtruth",
        metavar="FILE",
        help="what the classes' frequency in training is counted in: the training set's ground truth (CSV), or the"
        " manifest of its shards (.manifest.json); rare and frequent classes are then averaged apart (default: none)",
    )
    add(
        "--cutoffs",
        type=int,
        nargs=2,
        default=DEFAULT_CUTOFFS,
        metavar=("LOW", "HIGH"),
        help="number of training boxes: tail classes have fewer than LOW, head classes more than HIGH"
        f" (default: {DEFAULT_CUTOFFS[0]} {DEFAULT_CUTOFFS[1]})",
    )
    add("--errors", action="store_true", help="sort the errors by kind, and say what mending each kind would bring")
    add(
        "--compare",
        metavar="CSV",
        help="detections of another run on the same ground truth: the difference of every class, with a bootstrap"
        " confidence interval over videos",
    )
    add(
        "--resamples",
        type=int,
        default=RESAMPLES,
        metavar="N",
        help="of the bootstrap (default: %(default)s)",
    )
    add(
        "--confidence",
        type=float,
        default=0.95,
        metavar="P",
        help="of the intervals, between 0 and 1 (default: %(default)s)",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap, 0 or more (default: %(default)s)")
    add(
        "--report",
        metavar="DIR",
        help="write report.json, classes.csv and pictures there, errors by kind among them (default: nothing)",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Reads, evaluates and prints: notes on stderr, tables and last the JSON line on stdout."""
    protocol = protocol_of(options)
    others = [options.compare] if options.compare else []
    files = read_files(options.groundtruth, options.detections, options.labelmap, options.excluded, others)
    training = training_counts(options.train_groundtruth, files.classes) if options.train_groundtruth else None
    for note in notes(files, options.protocol, protocol):
        print(f"note: {note}", file=sys.stderr)
    matches = _match(files, files.detections, protocol)
    ties = tie_range(matches) if have_ties(matches) else None
    if ties is not None and ties[1] - ties[0] > 1e-9:
        print(
            f"note: tied scores: other orders of equal scores give mAP from {100 * ties[0]:.4f} to"
            f" {100 * ties[1]:.4f} %; here the row that comes first in the file goes first",
            file=sys.stderr,
        )
    b = break_down(files, matches, protocol, training, options)
    print(table(b))
    print(
        f"\nboxes: {percent(b.person_recall)} % of the persons have a detection with IoU >= 0.5;"
        f" no scores on these boxes can give more than {percent(b.ceiling)} mAP"
    )
    if options.errors:
        assert b.errors is not None
        print(f"\n{error_table(b.errors)}")
    if b.comparison is not None:
        print(f"\n{comparison_table(b)}")
        print(
            f"*: the interval does not hold 0 ({len(b.comparison.draws)} resamples of {b.comparison.videos} videos); of"
            f" classes without any difference {1 - options.confidence:.0%} would be marked too"
        )
    result = {
        **summary(b),
        "ties": None if ties is None else {"low": ties[0], "high": ties[1]},
        "protocol": options.protocol,
        "max_per_image": protocol.max_per_image,
        "keyframes": len(np.unique(files.named)),
        "boxes": int(b.result.instances.sum()),
        "detections": int(b.result.detections.sum()),
    }
    if options.report:
        print(f"\nreport: {write_report(Path(options.report), b, result, options)}")
    print(json.dumps(result, allow_nan=False))


def protocol_of(options: argparse.Namespace) -> Protocol:
    """The protocol with what the options change of it. Raises UserError for options that are out of range."""
    if not 0 <= options.cutoffs[0] <= options.cutoffs[1]:
        raise UserError(f"--cutoffs {options.cutoffs[0]} {options.cutoffs[1]}: expected LOW, then HIGH, 0 or more")
    for name, good, expected in (
        ("max_per_image", options.max_per_image is None or options.max_per_image >= 0, "0 (all) or more"),
        ("resamples", options.resamples >= 1, "1 or more"),
        ("confidence", 0 < options.confidence < 1, "a number between 0 and 1"),
        ("seed", options.seed >= 0, "0 or more"),
    ):
        if not good:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: expected {expected}")
    protocol = PROTOCOLS[options.protocol]
    if options.max_per_image is not None:
        protocol = replace(protocol, max_per_image=options.max_per_image)
    if options.unnamed_keyframes is not None:
        protocol = replace(protocol, only_named_keyframes=options.unnamed_keyframes == "ignore")
    return protocol


def _match(files: Files, detections: FrameBoxes, protocol: Protocol) -> Matches:
    return match(
        files.groundtruth,
        detections,
        len(files.classes),
        protocol,
        named=files.named,
        excluded=files.excluded,
    )


def break_down(
    files: Files, matches: Matches, protocol: Protocol, training: np.ndarray | None, options: argparse.Namespace
) -> Breakdown:
    """All figures that the options ask for."""
    parts = group_masks(files.classes)
    if training is not None:
        parts |= frequency_masks(training, options.cutoffs)
    named, people = files.named, files.people
    if protocol.drops_excluded:
        named = np.setdiff1d(named, files.excluded)
        people = people.take(~np.isin(people.frames, files.excluded))
    boxes = files.detections.distinct()
    persons = box_recall(people, boxes)
    comparison = None
    if options.compare:
        other = _match(files, files.others[0], protocol)
        settings = {"resamples": options.resamples, "confidence": options.confidence, "seed": options.seed}
        comparison = compare(matches, other, files.videos, named, **settings)
    covered = box_recall(matches.groundtruth, boxes)
    return Breakdown(
        classes=files.classes,
        result=matches.frame_map(),
        parts=parts,
        recall=class_recall(matches.groundtruth, covered, len(files.classes)),
        person_recall=float(persons.mean()) if len(persons) else float("nan"),
        training=training,
        errors=error_kinds(matches, people) if options.errors or options.report else None,
        comparison=comparison,
    )


def write_report(folder: Path, b: Breakdown, result: dict, options: argparse.Namespace) -> str:
    """Writes report.json, classes.csv and pictures; what was written. Raises UserError where that cannot be done."""
    from train.report_pictures import draw_report  # takes a second to import

    try:
        with whole_text(folder / "report.json") as file:
            file.write(json.dumps({**result, "cutoffs": list(options.cutoffs)}, indent=1, allow_nan=False) + "\n")
        write_csv(folder / "classes.csv", b)
        names = run_names(options.detections, options.compare) if options.compare else ("", "")
        drawn = draw_report(folder, b, options.cutoffs, *names)
    except OSError as error:
        raise UserError(f"--report {folder} cannot be written: {error.strerror}") from error
    return ", ".join(str(folder / name) for name in ("report.json", "classes.csv", *drawn))


def run_names(this: str, other: str) -> tuple[str, str]:
    """What tells two paths apart: their parts without those at the beginning and the end that they share."""
    a, b = Path(this).absolute().parts, Path(other).absolute().parts
    if a == b:
        return this, other
    start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    end = next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), 0)
    return "/".join(a[start : len(a) - end]) or this, "/".join(b[start : len(b) - end]) or other


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for bad arguments or files."""
    try:
        run(parse_arguments(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
