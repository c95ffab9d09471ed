"""The shard format: a manifest, an index of byte offsets and plain WebDataset tars, opened for reading.

A shard set is addressed by its prefix `FOLDER/{dataset}-{split}`:

    PREFIX-000000.tar ...    `{key}.mp4` and `{key}.json` per sample, a plain WebDataset tar
    PREFIX.manifest.json     dataset, split, classes, counts, and samples, bytes and sha256 of every shard
    PREFIX.index.npy         one row of INDEX_DTYPE per example, in shard order

An *example* is what a training step consumes: a sample of a classification set, or one keyframe of a sample of a
localisation set. Any sample is one contiguous read.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.errors import UserError
from data.storage import open_local, read_range

FORMAT = "cofinetuning-shards"
VERSION = 1
KEY_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
INDEX_DTYPE = np.dtype(
    [
        ("shard", "<u4"),
        ("json_offset", "<u8"),
        ("json_bytes", "<u4"),
        ("video_offset", "<u8"),
        ("video_bytes", "<u4"),
        ("item", "<u4"),
    ]
)
"""Row of an example: shard number, where its JSON and video lie in the tar (bytes), and the keyframe's place in the
sample's list (0 for classification)."""

Kind = Literal["classification", "localisation"]


@dataclass(frozen=True)
class ClassInfo:
    """One class: `id` as the dataset numbers it (AVA's ids have gaps), and its name."""

    id: int
    name: str


@dataclass(frozen=True)
class ShardInfo:
    """One tar: its file name (no folder), counts, size in bytes and hex sha256."""

    name: str
    samples: int
    examples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) and 0 <= n < 2**48 for n in (self.samples, self.examples, self.bytes)):
            raise TypeError(f"samples, examples and bytes of {self.name!r} must be whole numbers, 0 or more")


@dataclass(frozen=True)
class Manifest:
    """What a shard set holds. `classes[i]` is the class of logit i; `failures` counts dropped inputs by reason."""

    dataset: str
    split: str
    kind: Kind
    classes: list[ClassInfo]
    shards: list[ShardInfo]
    failures: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    def to_json(self) -> str:
        counts = {"samples": self.samples, "examples": self.examples}
        return json.dumps({"format": FORMAT, "version": VERSION, **counts, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Manifest":
        """Parses a manifest; `where` names it in errors. Raises UserError for anything that is not one."""
        try:
            raw = json.loads(text)
            if raw["format"] != FORMAT or raw["version"] != VERSION:
                raise UserError(
                    f"{where}: is {raw['format']!r} version {raw['version']}, this program reads {FORMAT!r} version"
                    f" {VERSION}; pack the dataset again"
                )
            if raw["kind"] not in ("classification", "localisation"):
                raise UserError(f"{where}: unknown kind {raw['kind']!r}")
            shards = [ShardInfo(**shard) for shard in raw["shards"]]
            for shard in shards:
                if Path(shard.name).name != shard.name:
                    raise UserError(f"{where}: shard name {shard.name!r} is not a plain file name")
            return cls(
                dataset=raw["dataset"],
                split=raw["split"],
                kind=raw["kind"],
                classes=[ClassInfo(**c) for c in raw["classes"]],
                shards=shards,
                failures=raw["failures"],
                settings=raw["settings"],
            )
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where}: not a shard manifest ({type(error).__name__}: {error})") from error


class ShardSet:
    """A shard set opened for reading. Cheap to open, pickle and share: the index is memory-mapped.

    Args:
        prefix: `FOLDER/{dataset}-{split}`, a local path or a URL that fsspec opens.

    Raises:
        UserError: no such set there, a manifest or index that does not fit.
    """

    def __init__(self, prefix: str | os.PathLike[str]) -> None:
        self.prefix = os.fspath(prefix)
        self.folder = self.prefix.rpartition("/")[0] or "."
        where = f"{self.prefix}.manifest.json"
        try:
            text = read_range(where)
        except FileNotFoundError:
            raise UserError(f"no shards at {self.prefix} (there is no {where})") from None
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        self.manifest = Manifest.from_json(text, where)

    @cached_property
    def index(self) -> np.ndarray:
        """INDEX_DTYPE [examples], memory-mapped."""
        where = f"{self.prefix}.index.npy"
        try:
            index = np.load(open_local(where), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{where} cannot be read ({error}): pack the dataset again") from error
        if index.dtype != INDEX_DTYPE or index.shape != (self.manifest.examples,):
            raise UserError(
                f"{where}: {index.shape} rows of {index.dtype}, the manifest says {self.manifest.examples} examples;"
                " pack the dataset again"
            )
        return index

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would be a copy in every loader worker.
        return {name: value for name, value in self.__dict__.items() if name != "index"}

    def __len__(self) -> int:
        """Number of examples."""
        return self.manifest.examples

    @property
    def shard_examples(self) -> np.ndarray:
        """int64 [shards]: number of examples of each shard."""
        return np.array([shard.examples for shard in self.manifest.shards], dtype=np.int64)

    @cached_property
    def dense(self) -> Mapping[int, int]:
        """Official class id -> logit index."""
        return {c.id: i for i, c in enumerate(self.manifest.classes)}

    def shard_path(self, shard: int) -> str:
        return f"{self.folder}/{self.manifest.shards[shard].name}"

    def read_json(self, example: int) -> dict[str, Any]:
        """The sample JSON of an example. Raises OSError or ValueError when it cannot be read."""
        row = self.index[example]
        raw = read_range(self.shard_path(int(row["shard"])), int(row["json_offset"]), int(row["json_bytes"]))
        sample = json.loads(raw)
        if not isinstance(sample, dict):
            raise ValueError("sample JSON is not an object")
        return sample

    def read_video(self, example: int) -> bytes:
        """The encoded video of an example. Raises OSError or ValueError when it cannot be read whole."""
        row = self.index[example]
        return read_range(self.shard_path(int(row["shard"])), int(row["video_offset"]), int(row["video_bytes"]))
