"""The shard format: a manifest, an index of byte offsets and plain WebDataset tars, opened for reading.

A shard set is addressed by its prefix `FOLDER/{dataset}-{split}`:

    PREFIX-000000.tar ...    `{key}.mp4` and `{key}.json` per sample, a plain WebDataset tar
    PREFIX.manifest.json     dataset, split, classes, counts, and samples, bytes and sha256 of every shard
    PREFIX.index.npy         one row of INDEX_DTYPE per example, in shard order

An *example* is what a training step consumes: a sample of a classification set, or one keyframe of a sample of a
localisation set. Any sample is one contiguous read.
"""

import copy
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from tokenize import TokenError
from typing import Any, Literal

import numpy as np

from data.errors import UserError
from data.fetch import RemoteFile
from data.shard_cache import ShardCache
from data.storage import count, is_remote, local_path, read_head, read_range

FORMAT = "cofinetuning-shards"
VERSION = 1
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")
SHARD_NAME = re.compile(r"[\w+-][\w.+-]*\.tar")
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

TAR_PADDING = 2048
"""What lies between the record and the video of a sample: the padding of one, the header of the other."""
NPY_HEAD = 4096
"""Bytes that surely hold the header of an index."""

Kind = Literal["classification", "localisation"]

_MAKE_ANEW = "pack the dataset again"


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48


@dataclass(frozen=True)
class ClassInfo:
    """One class: `id` as the dataset numbers it (AVA's ids have gaps), and its name."""

    id: int
    name: str

    def __post_init__(self) -> None:
        if not _is_count(self.id) or not isinstance(self.name, str):
            raise TypeError(f"a class needs a whole number as id and a text as name, not {self.id!r} and {self.name!r}")


@dataclass(frozen=True)
class ShardInfo:
    """One tar: its file name (no folder), counts, size in bytes and hex sha256."""

    name: str
    samples: int
    examples: int
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        if not all(_is_count(n) for n in (self.samples, self.examples, self.bytes)):
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

    @cached_property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def examples(self) -> int:
        return sum(shard.examples for shard in self.shards)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what decides which clips a position of the order is: the contents of the tars, in order."""
        parts = [[shard.samples, shard.examples, shard.bytes, shard.sha256] for shard in self.shards]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

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
                    f" {VERSION}; {_MAKE_ANEW}"
                )
            if raw["kind"] not in ("classification", "localisation"):
                raise UserError(f"{where}: unknown kind {raw['kind']!r}")
            for key in ("dataset", "split"):
                if not isinstance(raw[key], str):
                    raise UserError(f"{where}: {key} must be a text, not {raw[key]!r}; {_MAKE_ANEW}")
            failures = raw["failures"]
            if not isinstance(failures, dict) or not all(_is_count(lost) for lost in failures.values()):
                raise UserError(f"{where}: failures must be an object of counts, not {failures!r}; {_MAKE_ANEW}")
            if not isinstance(raw["settings"], dict):
                raise UserError(f"{where}: settings must be an object, not {raw['settings']!r}; {_MAKE_ANEW}")
            classes = [ClassInfo(**c) for c in raw["classes"]]
            if len({c.id for c in classes}) < len(classes):
                raise UserError(f"{where}: two classes have one id; {_MAKE_ANEW}")
            shards = [ShardInfo(**shard) for shard in raw["shards"]]
            for shard in shards:
                if not SHARD_NAME.fullmatch(shard.name):
                    raise UserError(f"{where}: shard name {shard.name!r} is not a plain file name")
                if not SHA256_PATTERN.fullmatch(shard.sha256):
                    raise UserError(f"{where}: sha256 {shard.sha256!r} of {shard.name} is not 64 hex digits")
            return cls(
                dataset=raw["dataset"],
                split=raw["split"],
                kind=raw["kind"],
                classes=classes,
                shards=shards,
                failures=failures,
                settings=raw["settings"],
            )
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{where}: not a shard manifest ({type(error).__name__}: {error}); {_MAKE_ANEW}") from error


class ShardSet:
    """A shard set opened for reading. Cheap to open, pickle and share: the index is memory-mapped.

    Local shards are read in place. Remote ones are fetched whole into a cache on this machine, when they are first
    read or ahead of it (`prefetch`); or, with `by_range`, sample by sample and never kept.

    Args:
        prefix: `FOLDER/{dataset}-{split}`, a local path or a URL that fsspec opens.
        cache: where remote files are kept; None: the default one.

    Raises:
        UserError: no such set there, a manifest or index that does not fit, a server or cache that cannot be used.
    """

    def __init__(self, prefix: str | os.PathLike[str], cache: ShardCache | None = None) -> None:
        self.prefix = os.fspath(prefix)
        self.folder = self.prefix.rpartition("/")[0] or "."
        self.cache = (cache or ShardCache()) if is_remote(self.prefix) else None
        self.whole_shards = True
        self._alone: tuple[int, int, bytes] | None = None
        where = f"{self.prefix}.manifest.json"
        try:
            text = read_range(where)
        except FileNotFoundError:
            raise UserError(f"no shards at {self.prefix} (there is no {where})") from None
        except OSError as error:
            raise UserError(f"{where} cannot be read: {error}") from error
        self.manifest = Manifest.from_json(text, where)
        self._manifest_sha256 = hashlib.sha256(text).hexdigest()

    def by_range(self) -> "ShardSet":
        """The same set for sparse use, a few samples of each shard: a remote sample is read on its own, as often as it
        is asked for, unless its shard is in the cache. There is no checksum of a part of a shard."""
        other = copy.copy(self)
        other.whole_shards = False
        return other

    @cached_property
    def index(self) -> np.ndarray:
        """INDEX_DTYPE [examples], memory-mapped."""
        where = f"{self.prefix}.index.npy"
        try:
            if self.cache is None:
                index = np.lib.format.open_memmap(local_path(where), mode="r")
            else:
                with self.cache.opened(self._index_file(where)) as descriptor:
                    # By its descriptor: by its name it could be evicted just now.
                    index = np.lib.format.open_memmap(f"/proc/self/fd/{descriptor}", mode="r")
        # The last two: numpy reads a header as a Python expression.
        except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{where} cannot be read ({error}): pack the dataset again") from error
        if index.dtype != INDEX_DTYPE or index.shape != (self.manifest.examples,):
            raise UserError(
                f"{where}: {index.shape} rows of {index.dtype}, the manifest says {self.manifest.examples} examples;"
                " pack the dataset again"
            )
        return index

    def _index_file(self, where: str) -> RemoteFile:
        """The remote index. Its header says how long it is; the manifest that it belongs to, which content it has."""
        head = io.BytesIO(read_head(where, NPY_HEAD))
        version = np.lib.format.read_magic(head)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(head)
        size = head.tell() + math.prod(shape) * dtype.itemsize
        key = hashlib.sha256(f"{where} {self._manifest_sha256}".encode()).hexdigest()
        return RemoteFile(where, size, key, None)

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

    def shard_file(self, shard: int) -> RemoteFile:
        """A shard as the cache knows it."""
        info = self.manifest.shards[shard]
        return RemoteFile(self.shard_path(shard), info.bytes, info.sha256, info.sha256)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetches shards into the cache in the background, in the order given (see ShardCache.prefetch). Does nothing
        for a local set, nor for one that is read by range."""
        if self.cache is not None and self.whole_shards:
            self.cache.prefetch([self.shard_file(shard) for shard in shards], self.prefix)

    def read_json(self, example: int) -> dict[str, Any]:
        """The sample JSON of an example. Raises OSError or ValueError when it cannot be read."""
        sample = json.loads(self._read(self.index[example], "json"))
        if not isinstance(sample, dict):
            raise ValueError("sample JSON is not an object")
        return sample

    def read_video(self, example: int) -> bytes:
        """The encoded video of an example. Raises OSError or ValueError when it cannot be read whole."""
        return self._read(self.index[example], "video")

    def _read(self, row: np.void, member: Literal["json", "video"]) -> bytes:
        shard, offset, size = int(row["shard"]), int(row[f"{member}_offset"]), int(row[f"{member}_bytes"])
        if shard >= len(self.manifest.shards):
            raise ValueError(f"the index names shard {shard} of {len(self.manifest.shards)}")
        if offset + size > self.manifest.shards[shard].bytes:
            raise OSError(f"the index points out of shard {shard}")
        if self.cache is None:
            content = read_range(self.shard_path(shard), offset, size)
            count(read_bytes=size)
            return content
        file = self.shard_file(shard)
        if self.whole_shards:
            return self.cache.read(file, offset, size)
        kept = self.cache.read_if_there(file, offset, size)
        return kept if kept is not None else self._read_alone(row, offset, size)

    def _read_alone(self, row: np.void, offset: int, size: int) -> bytes:
        """A part of a sample from the server. All of the sample comes at once, since the rest is asked for next."""
        shard, start = int(row["shard"]), int(row["json_offset"])
        length = int(row["video_offset"]) + int(row["video_bytes"]) - start
        if not 0 < length <= int(row["json_bytes"]) + int(row["video_bytes"]) + TAR_PADDING:
            start, length = offset, size  # not packed side by side
        if self._alone is None or self._alone[:2] != (shard, start):
            self._alone = (shard, start, read_range(self.shard_path(shard), start, length))
            count(misses=1)
        else:
            count(hits=1)
        count(read_bytes=size)
        return self._alone[2][offset - start : offset - start + size]
