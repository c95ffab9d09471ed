"""File names and annotation files of the Kinetics-, Moments- and Something-Something-like sets."""

import csv
import io
import json
from collections.abc import Sequence

import numpy as np

from shard_tools.toy.clips import Clip, make_rng
from shard_tools.toy.labels import MOMENTS, class_names

_NAMES = 1  # the random generator of a split's file names

_ID_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
SSV2_IDS = 220_847
"""The original's clips are numbered from 1 to this."""


def youtube_ids(rng: np.random.Generator, count: int) -> list[str]:
    """Ids of 11 letters, all different; one in eight begins with `-` or `_`, which breaks careless tools."""
    ids: dict[str, None] = {}
    while len(ids) < count:
        letters = [_ID_LETTERS[i] for i in rng.integers(len(_ID_LETTERS), size=11)]
        if rng.random() < 0.1:
            letters[0] = "-_"[rng.integers(2)]
        ids["".join(letters)] = None
    return list(ids)


def _split_word(dataset: str, split: str) -> str:
    """What the original calls the split."""
    words = {"kinetics": "validate", "moments": "validation", "ssv2": "validation", "ava": "val"}
    return words[dataset] if split == "val" else {"moments": "training"}.get(dataset, split)


def video_paths(clips: Sequence[Clip]) -> list[str]:
    """Where the clips of one split lie, relative to their dataset's folder."""
    dataset, split, seed = clips[0].dataset, clips[0].split, clips[0].seed
    word = _split_word(dataset, split)
    rng = make_rng(seed, dataset, split, _NAMES)
    if dataset == "kinetics":
        starts = rng.integers(0, 400, size=len(clips))
        names = zip(clips, youtube_ids(rng, len(clips)), starts, strict=True)
        return [f"videos/{word}/{c.class_name}/{name}_{start:06d}_{start + 3:06d}.mp4" for c, name, start in names]
    if dataset == "moments":
        seconds = rng.integers(1, 300, size=len(clips))
        names = zip(clips, youtube_ids(rng, len(clips)), seconds, strict=True)
        return [f"{word}/{c.class_name}/yt-{name}_{second}.mp4" for c, name, second in names]
    # One numbering for both splits, as the videos share a folder: odd numbers train, even ones validate.
    numbers = 2 * rng.permutation(SSV2_IDS // 2)[: len(clips)] + (1 if split == "train" else 2)
    return [f"videos/{number}.webm" for number in numbers]


def annotations(clips: Sequence[Clip], paths: Sequence[str]) -> dict[str, str]:
    """The annotation files of one split: path relative to the dataset's folder -> text."""
    return {"kinetics": _kinetics, "moments": _moments, "ssv2": _ssv2}[clips[0].dataset](clips, paths)


def _kinetics(clips: Sequence[Clip], paths: Sequence[str]) -> dict[str, str]:
    split = _split_word("kinetics", clips[0].split)
    rows: list[list[object]] = [["label", "youtube_id", "time_start", "time_end", "split"]]
    for clip, path in zip(clips, paths, strict=True):
        video, start, end = path.rpartition("/")[2].removesuffix(".mp4").rsplit("_", 2)
        rows.append([clip.class_name, video, int(start), int(end), split])
    return {f"annotations/{split}.csv": _csv(rows)}


def _moments(clips: Sequence[Clip], paths: Sequence[str]) -> dict[str, str]:
    rng = make_rng(clips[0].seed, "moments", clips[0].split, _NAMES, 1)
    # Votes for and against the label by those who looked at the clip.
    rows = [[path.partition("/")[2], int(rng.integers(3, 6)), int(rng.integers(0, 2))] for path in paths]
    categories = [[name, index] for index, name in enumerate(MOMENTS)]
    return {f"{_split_word('moments', clips[0].split)}Set.csv": _csv(rows), "moments_categories.txt": _csv(categories)}


def _ssv2(clips: Sequence[Clip], paths: Sequence[str]) -> dict[str, str]:
    items = []
    for clip, path in zip(clips, paths, strict=True):
        things = [str(thing) for thing in clip.things]
        label = clip.class_name
        for thing in things:
            label = label.replace("[something]", thing, 1)
        number = path.rpartition("/")[2].removesuffix(".webm")
        label = label[0].lower() + label[1:]
        items.append({"id": number, "label": label, "template": clip.class_name, "placeholders": things})
    labels = {name: str(index) for index, name in enumerate(class_names("ssv2"))}
    name = f"{_split_word('ssv2', clips[0].split)}.json"
    return {name: json.dumps(items, indent=0) + "\n", "labels.json": json.dumps(labels, indent=1) + "\n"}


def _csv(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
