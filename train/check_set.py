"""Looks at a shard set before a run: what is missing or cut short is told now and not hours later."""

import contextlib
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.load import BadSample, TaskData, load_record
from data.shards import ShardSet
from data.storage import is_remote, local_path

SHOWN = 3
LEFT_OUT = "--exclude-ids"
"""In the phrase of a manifest's counts for what was left out."""
LOOKED_AT = 32
"""Keyframes of a validation set that are asked for detected boxes."""
ROWS = 2**18
"""Rows of an index that are looked at together: an index of millions of rows is shared memory only as long as it is a
map."""


def check_set(where: str, shards: ShardSet, max_bad_share: float) -> str | None:
    """Compares tars and index with the manifest. Tars behind a URL are verified when they are fetched.

    Args:
        where: names the set in messages.
        max_bad_share: share of the examples that may lie in damaged tars, as in a recipe.

    Returns:
        a warning for damaged tars whose samples a run can replace; None where all is well.

    Raises:
        UserError: more damage than that, or an index of other tars.
    """
    _check_index(where, shards)
    infos = shards.manifest.shards
    wrong, lost = [], 0
    for number, shard in enumerate(infos):
        path = shards.shard_path(number)
        if is_remote(path):
            return None
        try:
            size = os.stat(local_path(path)).st_size
            if size == shard.bytes:
                continue
            wrong.append(f"{path} has {size} bytes and not {shard.bytes}")
        except OSError as error:
            wrong.append(f"{path}: {error.strerror}")
        lost += shard.examples
    if not wrong:
        return None
    told = f"{', '.join(wrong[:SHOWN])}{', ...' if len(wrong) > SHOWN else ''}"
    damage = f"{where}: {len(wrong)} of {len(infos)} tars of {shards.prefix} are missing or not what the manifest says"
    if lost > max_bad_share * len(shards):
        raise UserError(
            f"{damage}, more than max_bad_share={max_bad_share} allows: {told}; copy them again, or pack again"
        )
    return f"{damage}: {told}; up to {lost} of {len(shards)} examples cannot be read"


def check_boxes(where: str, data: TaskData) -> None:
    """Looks at some keyframes of a validation set for boxes to classify: a set that was packed without proposals would
    be evaluated in full, to an mAP of 0.

    Raises:
        UserError: none of them has a detected box, though some have ground truth.
    """
    if data.view.eval_boxes != "proposals":
        return
    # Behind a URL the records alone are read.
    data = dataclasses.replace(data, shards=data.shards.by_range())
    chosen = np.unique(np.linspace(0, len(data.shards) - 1, LOOKED_AT).astype(int))
    people = 0
    for example in chosen.tolist():
        with contextlib.suppress(BadSample):  # evaluation counts these
            keyframe = load_record(data, example)
            if len(keyframe.proposals):
                return
            people += len(keyframe.boxes)
    if people:
        raise UserError(
            f"{where}={data.shards.prefix}: none of {len(chosen)} keyframes that were looked at has detected boxes,"
            " which evaluation classifies: pack the set with --proposals FILE, or set"
            f" tasks.{data.name}.view.eval_boxes=groundtruth"
        )


def window_warning(where: str, data: TaskData) -> str | None:
    """A warning where clips around a keyframe are longer than what a localisation set was packed for."""
    packed = data.shards.manifest.settings.get("pack")
    window = packed.get("window") if isinstance(packed, dict) else None
    frames, stride = data.view.num_frames, data.view.stride
    if not isinstance(window, int) or frames * stride <= window:
        return None
    return (
        f"{where}={data.shards.prefix}: was packed for clips that span {window} frames (--window), these are {frames}"
        f" frames at stride {stride}: where a keyframe is near an end of its segment they repeat border frames"
        f" (padded_share). Pack the set anew with --window {frames * stride}"
    )


def leak_warning(where: str, evaluated: TaskData, trained: Sequence[TaskData]) -> str | None:
    """A warning where Kinetics is trained on with videos that AVA-Kinetics evaluates: the packer of the latter lists
    them beside its set, and that of Kinetics says in the manifest that it has left some out."""
    prefix = evaluated.shards.prefix
    if is_remote(prefix) or not (listed := Path(local_path(f"{prefix}.leaks.txt"))).is_file():
        return None
    count = len(listed.read_text(errors="replace").splitlines()) - 1  # a head line
    kinetics = [data for data in trained if data.shards.manifest.dataset.startswith("kinetics")]
    whole = [data for data in kinetics if LEFT_OUT not in str(data.shards.manifest.settings.get("dropped"))]
    if count < 1 or not whole:
        return None
    return (
        f"{where}={prefix}: {count} of its videos are training videos of Kinetics ({listed}), and"
        f" {whole[0].shards.prefix} was packed without leaving them out: its mAP will be too high. Pack that set anew"
        f" with --exclude-ids {listed}"
    )


def _check_index(where: str, shards: ShardSet) -> None:
    infos = shards.manifest.shards
    sizes = np.array([shard.bytes for shard in infos], dtype=np.uint64)
    outside = 0
    for start in range(0, len(shards.index), ROWS):
        index = shards.index[start : start + ROWS]
        fits = index["shard"] < len(infos)
        room = sizes[np.where(fits, index["shard"], 0)]
        for part in ("json", "video"):
            length = index[f"{part}_bytes"].astype(np.uint64)
            fits &= (length <= room) & (index[f"{part}_offset"] <= room - np.minimum(length, room))
        outside += int((~fits).sum())
    if outside:
        raise UserError(
            f"{where}: {shards.prefix}.index.npy is not of these tars: {outside} of {len(shards.index)} examples lie"
            " outside of them; copy it again, or pack again"
        )
