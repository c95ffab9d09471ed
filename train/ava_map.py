"""Computes AVA's frame mAP from files in the official formats, as the official evaluator and its copies do."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from data.ava_files import BoxRows, Keyframe, read_annotations, read_detections, read_excluded, read_labelmap
from data.errors import UserError
from data.shards import ClassInfo
from train.ava_classes import DEFAULT_CUTOFFS, frequency_masks, group_masks, is_evaluated
from train.frame_map import DEFAULT_PROTOCOL, PROTOCOLS, FrameBoxes, FrameMap, Protocol, frame_map


@dataclass(frozen=True)
class Files:
    """What the files hold, in the terms of `frame_map`: boxes of the label map's classes, keyframes as numbers."""

    classes: list[ClassInfo]
    groundtruth: FrameBoxes
    detections: FrameBoxes
    named: np.ndarray
    excluded: np.ndarray
    remarks: list[str]
    """What of the rows does not count, and what looks wrong in them."""


def read_files(groundtruth: str, detections: str, labelmap: str, excluded: str | None = None) -> Files:
    """Reads the evaluator's inputs; rows of classes that the label map does not name are left out, as officially.

    Raises:
        UserError: a file that cannot be read or is malformed, with file and line.
    """
    classes = read_labelmap(labelmap)
    truth_rows, detected_rows = read_annotations(groundtruth), read_detections(detections)
    numbers: dict[Keyframe, int] = {}
    return Files(
        classes=classes,
        groundtruth=_boxes(truth_rows, classes, numbers),
        detections=_boxes(detected_rows, classes, numbers),
        remarks=[*_remarks(truth_rows, classes), *_remarks(detected_rows, classes)],
        named=_numbers(truth_rows.keyframes(), numbers),
        excluded=_numbers(read_excluded(excluded) if excluded else (), numbers),
    )


def _boxes(rows: BoxRows, classes: Sequence[ClassInfo], numbers: dict[Keyframe, int]) -> FrameBoxes:
    ids = np.array([c.id for c in classes])  # in ascending order
    index = np.minimum(np.searchsorted(ids, rows.action_ids), len(ids) - 1)
    keyframes, which = rows.keyframe_rows()
    frames = _numbers(keyframes, numbers)[which]
    boxes = FrameBoxes(frames, rows.boxes, index, rows.scores)
    known = ids[index] == rows.action_ids
    return boxes if known.all() else boxes.take(known)


def _remarks(rows: BoxRows, classes: Sequence[ClassInfo]) -> list[str]:
    x1, y1, x2, y2 = rows.boxes.T
    unknown = ~np.isin(rows.action_ids, [c.id for c in classes])
    checks = [
        ("are of classes that the label map does not name, and do not count", unknown),
        ("have no area (x1 < x2 and y1 < y2 is expected)", (x1 >= x2) | (y1 >= y2)),
        # Detectors' boxes run over the edge by a little; pixels by far.
        ("are far outside of the frame: boxes are fractions of it, from 0 to 1", (np.abs(rows.boxes) > 2).any(axis=1)),
    ]
    remarks = [f"{rows.path}: {bad.sum()} of {len(rows)} rows {what}" for what, bad in checks if bad.any()]
    return remarks if len(rows) else [f"{rows.path}: no boxes in it"]


def _numbers(keyframes: Iterable[Keyframe], numbers: dict[Keyframe, int]) -> np.ndarray:
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keyframes), dtype=np.int64)


def unique_names(classes: Sequence[ClassInfo]) -> list[str]:
    """The classes' names; where several share one, their ids are added."""
    count = Counter(c.name for c in classes)
    return [c.name if count[c.name] == 1 else f"{c.name} ({c.id})" for c in classes]


def number_or_null(value: float) -> float | None:
    """`value`, with None for NaN: JSON has no NaN."""
    return None if math.isnan(value) else value


def table(classes: Sequence[ClassInfo], result: FrameMap, parts: dict[str, np.ndarray]) -> str:
    """A line per class and per part (name -> mask of classes), then the mean; AP as a percentage."""
    names = unique_names(classes)
    width = max(map(len, [*names, *parts, "class"]))
    lines = [f"{'id':>4}  {'class':<{width}}  {'AP, %':>7}  {'boxes':>8}  {'detections':>10}"]
    for c, name, ap, boxes, found in zip(
        classes, names, result.per_class, result.instances, result.detections, strict=True
    ):
        lines.append(f"{c.id:>4}  {name:<{width}}  {_percent(ap):>7}  {boxes:>8}  {found:>10}")
    everything = {**parts, "mAP": np.ones(len(classes), dtype=bool)}
    for name, mask in everything.items():
        mean, boxes, found = result.mean_of(mask), result.instances[mask].sum(), result.detections[mask].sum()
        lines.append(f"{'':>4}  {name:<{width}}  {_percent(mean):>7}  {boxes:>8}  {found:>10}")
    return "\n".join(lines)


def _percent(value: float) -> str:
    return "-" if math.isnan(value) else f"{100 * value:.2f}"


def notes(files: Files, name: str, protocol: Protocol) -> list[str]:
    """What a user should know before comparing the figure with others."""
    result = list(files.remarks)
    elsewhere = ~np.isin(files.detections.frames, files.named)
    if protocol.only_named_keyframes and elsewhere.any():
        result.append(
            f"{elsewhere.sum()} of {len(elsewhere)} detections are on keyframes that the ground truth does not name,"
            f" and do not count under {name}"
        )
    if not protocol.drops_excluded and len(files.excluded):
        touched = len(np.intersect1d(files.excluded, files.named))
        result.append(
            f"{name} takes no exclusion list: it scores the keyframes that the ground truth names, {touched} of which"
            f" are on the list of {len(files.excluded)}"
        )
    if not is_evaluated(files.classes).all():
        result.append(
            "the label map has all 80 classes of AVA; published figures average 60 (the label map"
            " ava_action_list_v2.2_for_activitynet_2019.pbtxt)"
        )
    return result


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--groundtruth",
        required=True,
        metavar="CSV",
        help="rows of video_id,timestamp,x1,y1,x2,y2,action_id[,person_id]; video_id,timestamp for a keyframe without",
    )
    parser.add_argument(
        "--detections", required=True, metavar="CSV", help="rows of video_id,timestamp,x1,y1,x2,y2,action_id,score"
    )
    parser.add_argument("--labelmap", required=True, metavar="PBTXT", help="the classes that are averaged")
    parser.add_argument(
        "--excluded", metavar="CSV", help="keyframes to leave out, rows of video_id,timestamp (default: none)"
    )
    parser.add_argument(
        "--max-per-image",
        type=int,
        metavar="N",
        help="rows of a keyframe that count, those of the highest scores; 0: all (default: 50 under the activitynet"
        " protocols, 0 under slowfast and mmaction2)",
    )
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, default=DEFAULT_PROTOCOL, help="whose rules (default: %(default)s)"
    )
    parser.add_argument(
        "--train-groundtruth",
        metavar="CSV",
        help="ground truth of the training set, to average rare and frequent classes apart (default: none)",
    )
    parser.add_argument(
        "--cutoffs",
        type=int,
        nargs=2,
        default=DEFAULT_CUTOFFS,
        metavar=("LOW", "HIGH"),
        help="number of training boxes: tail classes have fewer than LOW, head classes more than HIGH"
        f" (default: {DEFAULT_CUTOFFS[0]} {DEFAULT_CUTOFFS[1]})",
    )
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    """Reads, evaluates and prints: notes on stderr, the table and last the JSON line on stdout."""
    protocol = PROTOCOLS[options.protocol]
    if options.max_per_image is not None:
        if options.max_per_image < 0:
            raise UserError(f"--max-per-image {options.max_per_image}: expected 0 (all) or more")
        protocol = replace(protocol, max_per_image=options.max_per_image)
    if not 0 <= options.cutoffs[0] <= options.cutoffs[1]:
        raise UserError(f"--cutoffs {options.cutoffs[0]} {options.cutoffs[1]}: expected LOW, then HIGH, 0 or more")
    files = read_files(options.groundtruth, options.detections, options.labelmap, options.excluded)
    parts = group_masks(files.classes)
    if options.train_groundtruth:
        training = _boxes(read_annotations(options.train_groundtruth), files.classes, {})
        counts = np.bincount(training.classes, minlength=len(files.classes))
        parts |= frequency_masks(counts, options.cutoffs)
    for note in notes(files, options.protocol, protocol):
        print(f"note: {note}", file=sys.stderr)
    result = frame_map(
        files.groundtruth,
        files.detections,
        len(files.classes),
        protocol,
        named=files.named,
        excluded=files.excluded,
    )
    print(table(files.classes, result, parts))
    per_class = zip(unique_names(files.classes), map(number_or_null, result.per_class.tolist()), strict=True)
    summary = {
        "mAP": number_or_null(result.mean),
        "per_class": dict(per_class),
        "parts": {name: number_or_null(result.mean_of(mask)) for name, mask in parts.items()},
        "protocol": options.protocol,
        "max_per_image": protocol.max_per_image,
        "keyframes": len(np.unique(files.named)),
        "boxes": int(result.instances.sum()),
        "detections": int(result.detections.sum()),
    }
    print(json.dumps(summary, allow_nan=False))


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
