"""Counts per class: how often the annotations name it, how often it was packed, and what a user should know of that."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.shards import ClassInfo, Manifest
from shard_tools.keyframe_labels import KeyframeLabels

SHOWN = 5


def count_labels(sample: Mapping[str, Any]) -> Counter[int]:
    """How often a sample's JSON names each class id: its label, or the labels of all its boxes."""
    if "keyframes" in sample:
        return Counter(label for keyframe in sample["keyframes"] for labels in keyframe["labels"] for label in labels)
    return Counter() if sample.get("label") is None else Counter([sample["label"]])


def count_keyframe_labels(videos: Mapping[str, Iterable[KeyframeLabels]]) -> Counter[int]:
    """How often annotations name each action id."""
    return Counter(
        label
        for keyframes in videos.values()
        for keyframe in keyframes
        for labels in keyframe.labels
        for label in labels
    )


def per_class(classes: Sequence[ClassInfo], asked: Mapping[int, int], packed: Mapping[int, int]) -> list[list[int]]:
    """[annotated, packed] for each class in turn, as a manifest keeps it in its settings."""
    return [[asked.get(c.id, 0), packed.get(c.id, 0)] for c in classes]


def class_lines(manifest: Manifest) -> list[str]:
    """Lines for the summary: classes left empty, and those that lost the largest share of their examples."""
    counts = manifest.settings.get("per_class", [])
    rows = [(c.name, asked, packed) for c, (asked, packed) in zip(manifest.classes, counts, strict=False)]
    lines = []
    for reason, names in (
        ("of which nothing is left", [name for name, asked, packed in rows if asked and not packed]),
        ("without an annotation", [name for name, asked, _ in rows if not asked]),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"{len(names)} of {len(rows)} classes {reason}: {', '.join(names[:SHOWN])}{more}")
    lost = sorted((packed / asked, name, asked, packed) for name, asked, packed in rows if packed < asked and packed)
    if lost:
        worst = ", ".join(f"{name} ({asked - packed} of {asked})" for _, name, asked, packed in lost[:SHOWN])
        lines.append(f"classes that lost most: {worst}")
    return lines
