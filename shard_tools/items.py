"""What is to be packed: one item per sample, planned before any work is done."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any

from data.shards import ClassInfo, Kind
from shard_tools.clip_command import Span
from shard_tools.failures import Failure, Unpackable
from shard_tools.source_video import Source
from shard_tools.transcode import Clip

MAX_KEY = 90  # a tar header of the USTAR format holds names of 100 bytes


@dataclass(frozen=True, slots=True)
class Item:
    """A sample to make: a whole video, or a part of one (`CutClip`, `segments.Segment`).

    Attributes:
        key: unique in the set, matches `data.shards.KEY_PATTERN`.
        source: the video, relative to the folder of videos.
        path: where it is.
        fields: the sample's JSON but for key, source and video.
    """

    key: str
    source: str
    path: str
    fields: dict[str, Any]

    @property
    def examples(self) -> int:
        """How many examples it gives if nothing is lost."""
        return 1

    @property
    def is_part(self) -> bool:
        """Whether it is a part of its video."""
        return type(self) is not Item

    def identity(self) -> list[Any]:
        """All that its sample depends on, apart from settings; the folder of videos may move."""
        return [self.key, self.source, self.fields]

    def rate(self, source: Source) -> Fraction:
        """Frame rate to encode at, where the user names none."""
        return source.fps

    def span(self, source: Source, fps: Fraction) -> Span | None:
        """The part of the video to encode; None for all of it. Raises Unpackable where the video has no such part."""
        return None

    def finish(self, source: Source, clip: Clip) -> tuple[dict[str, Any], int, list[Failure]]:
        """The sample's JSON, its number of examples, and the examples lost. Raises Unpackable where all are."""
        return {**self.fields, "key": self.key, "source": self.source, "video": clip.record()}, 1, []


@dataclass(frozen=True, slots=True)
class CutClip(Item):
    """A clip to cut out of a longer video, from second `start` of the file to second `end`."""

    start: float
    end: float

    def identity(self) -> list[Any]:
        return [*Item.identity(self), self.start, self.end]

    def span(self, source: Source, fps: Fraction) -> Span:
        if source.seconds is not None and self.start >= source.seconds:
            detail = f"the file has {source.seconds:.1f} s, the clip begins at {self.start:g} s"
            raise Unpackable("outside the file", detail)
        return Span(Fraction(f"{self.start:.6f}"), self._frames(fps))

    def finish(self, source: Source, clip: Clip) -> tuple[dict[str, Any], int, list[Failure]]:
        wanted, end = self._frames(clip.fps), self.end
        if source.seconds is not None:
            # Annotated ends often lie behind that of the video; what its header promises has to be there.
            end = min(end, source.seconds - source.slack)
        if clip.frames < min(wanted, round((end - self.start) * clip.fps)):
            raise Unpackable("truncated", f"frame {clip.frames} of {wanted} is beyond the last frame of the video")
        return Item.finish(self, source, clip)

    def _frames(self, fps: Fraction) -> int:
        return max(round((Fraction(f"{self.end:.6f}") - Fraction(f"{self.start:.6f}")) * fps), 1)


@dataclass(frozen=True)
class Plan:
    """A set to pack.

    Attributes:
        lost: what is known to be lost before any work, such as missing videos.
        dropped: counts of what was left out on purpose or mended, by a phrase that says what.
        settings: everything else that the result depends on.
        asked: how often the annotations name each class id, lost ones included.
        runs: how many items, in turn, are parts of one video that are cut out of it in one go, the sum being all of
            them. Empty: each item is made alone.
    """

    dataset: str
    split: str
    kind: Kind
    classes: list[ClassInfo]
    items: list[Item]
    lost: list[Failure] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    asked: Counter[int] = field(default_factory=Counter)
    runs: list[int] = field(default_factory=list)

    def item_runs(self) -> list[list[Item]]:
        return [self.items[first:end] for first, end in pairwise([0, *accumulate(self.runs)])]

    def digest(self) -> str:
        """Hex sha256 of all that the shards depend on, apart from the settings."""
        content = sha256(json.dumps([[c.id, c.name] for c in self.classes]).encode())
        for item in self.items:
            content.update(json.dumps(item.identity(), sort_keys=True).encode())
        for failure in self.lost:
            content.update(json.dumps(failure.to_json(), sort_keys=True).encode())
        return content.hexdigest()

    @property
    def unit(self) -> str:
        return "clips" if self.kind == "classification" else "keyframes"

    @property
    def examples(self) -> int:
        """How many examples the annotations ask for."""
        return sum(item.examples for item in self.items) + sum(failure.examples for failure in self.lost)


class Keys:
    """Makes keys of webdataset samples from names of any kind, each key once."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def make(self, name: str) -> str:
        """`name` with everything but letters, digits, `_` and `-` replaced, and a number appended where it is taken."""
        base = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:MAX_KEY] or "_"
        key, count = base, 1
        while key in self._used:
            count += 1
            key = f"{base[: MAX_KEY - 8]}-{count}"
        self._used.add(key)
        return key
