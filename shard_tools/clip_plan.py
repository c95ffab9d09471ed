"""Plans the packing of a classification set: annotated clips looked up among the videos."""

import argparse
import contextlib
from collections import Counter
from collections.abc import Sequence

from data.errors import UserError
from data.shards import ClassInfo
from shard_tools.annotations import SPLIT_WORDS, LabelledClip
from shard_tools.cli import require_videos
from shard_tools.failures import Failure, Unpackable
from shard_tools.items import CutClip, Item, Keys, Plan
from shard_tools.source_video import probe
from shard_tools.video_files import VideoFiles, fold


def classification_plan(
    arguments: argparse.Namespace,
    annotated: tuple[list[LabelledClip], list[ClassInfo], dict[str, int]],
    whole_videos: bool | None = False,
) -> Plan:
    """Looks up the annotated clips among the videos.

    Args:
        whole_videos: whether files that bear no time in their name are whole videos, which clips are cut out of. None:
            they are not, which some of them are looked at to make sure.

    Raises:
        UserError: the videos cannot be listed, or none of the clips is there.
    """
    clips, classes, dropped = annotated
    files, keys = VideoFiles(arguments.videos), Keys()
    items: list[Item] = []
    lost: list[Failure] = []
    seen: set[tuple[str, int | None, float]] = set()
    repeated = 0
    uncut: list[tuple[Item, float]] = []
    asked: Counter[int] = Counter()
    folders, nowhere = _class_folders(classes, arguments.split), frozenset[str]()
    for clip in clips:
        match = files.match(clip.stems, clip.folders, nowhere if clip.label is None else folders)
        if match is None and clip.uncut:
            # A name with the id and both times is one clip alone: of another edition, which called its class otherwise.
            match = files.match([stem for stem in clip.stems if stem != clip.uncut[0]], clip.folders)
        if match is None:
            other = files.match(clip.stems)
            lost.append(
                Failure(clip.listed, "missing", f"{other[1]} is in the folder of another class" if other else "")
            )
            asked.update(_ids(clip))
            continue
        stem, found = match
        name = None if clip.label is None else classes[clip.label].name
        fields = {"dataset": arguments.dataset, "label": clip.label, "class_name": name}
        bare = clip.uncut if clip.uncut and clip.uncut[0] == stem else None
        this = (found, clip.label, bare[1] if bare and whole_videos else 0.0)
        if this in seen:
            repeated += 1
            continue
        seen.add(this)
        asked.update(_ids(clip))
        place = (keys.make(clip.name), found, files.path(found))
        if bare and whole_videos:
            items.append(CutClip(*place, {**fields, "start": bare[1]}, *bare[1:]))
            continue
        items.append(Item(*place, fields))
        if bare:
            uncut.append((items[-1], bare[2] - bare[1]))
    require_videos(items, lost, files)
    if whole_videos is None:
        _check_no_whole_videos(uncut, arguments.max_pixels)
    if repeated:
        dropped = {**dropped, "rows that repeat a clip and its label": repeated}
    return Plan(arguments.dataset, arguments.split, "classification", classes, items, lost, dropped, asked=asked)


def _class_folders(classes: Sequence[ClassInfo], split: str) -> frozenset[str]:
    """Folders that say of which class the videos in them are. One named as a split says nothing: a class may be called
    `training`, as the folder is that holds all the others."""
    return frozenset(fold(c.name) for c in classes) - {fold(split)}.union(*SPLIT_WORDS)


def _ids(clip: LabelledClip) -> list[int]:
    return [] if clip.label is None else [clip.label]


def _check_no_whole_videos(uncut: Sequence[tuple[Item, float]], max_pixels: int) -> None:
    """Labels would go to whole videos in silence if these were taken for the clips cut out of them."""
    for item, seconds in uncut[:: max(len(uncut) // 5, 1)][:5]:
        with contextlib.suppress(Unpackable):
            length = probe(item.path, max_pixels).seconds or 0.0
            if length > seconds + 5:
                raise UserError(
                    f"{item.source} has {length:.0f} s, its clip {seconds:.0f} s: give --whole-videos to have clips"
                    " cut out of the videos whose names bear no time, or --no-whole-videos to pack all of each"
                )
