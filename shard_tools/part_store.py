"""What a pack run leaves on disk while it goes: finished shards, each with a record beside it, then the whole set.

    SHARDS/.{dataset}-{split}.parts/plan.json      what is being packed: settings, a digest of the items
    SHARDS/.{dataset}-{split}.parts/000012.json    shard 12 is whole: its index rows, failures, bytes and sha256
    SHARDS/.{dataset}-{split}.parts/000012.spool   samples of run 12 of a movie, see `spool`

Every file appears under its name at once, whole. When all records are there, any process may merge them into the index,
the list of failures and, last, the manifest; then the folder of parts goes.
"""

import contextlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError
from data.shards import INDEX_DTYPE, Manifest, ShardInfo
from shard_tools.accounts import per_class
from shard_tools.failures import Failure
from shard_tools.items import Plan


@dataclass(frozen=True)
class ShardRecord:
    """A finished shard. `info` is None where every item of it failed: then there is no tar. `rows` are the index rows
    without the shard's number; `seconds` of video; `labels`
    counts class ids; `ffmpeg` is the version of the process that finished it."""

    info: ShardInfo | None
    rows: list[list[int]]
    failures: list[Failure]
    seconds: float
    labels: dict[int, int]
    ffmpeg: str = ""


class PartStore:
    """The files of one set under the folder `out`.

    Args:
        shards: number of shards of the plan.
        settings: what the result depends on besides the plan's items; JSON values.
    """

    def __init__(self, out: Path, plan: Plan, shards: int, settings: dict[str, Any]) -> None:
        self.out = out
        self.plan = plan
        self.shards = shards
        self.name = f"{plan.dataset}-{plan.split}"
        self.prefix = out / self.name
        self.parts = out / f".{self.name}.parts"
        self.ffmpeg = ""
        self.settings = {**settings, "items": len(plan.items), "digest": plan.digest()}

    def finished_set(self) -> Manifest | None:
        """The set's manifest where it is packed; what a merge that was killed has left behind goes. Raises UserError
        where that was done with other settings."""
        path = Path(f"{self.prefix}.manifest.json")
        if not path.exists():
            return None
        manifest = Manifest.from_json(path.read_bytes(), str(path))
        self._check_settings(manifest.settings.get("pack", {}), f"rm {self.prefix}-??????.tar {self.prefix}.*")
        shutil.rmtree(self.parts, ignore_errors=True)
        return manifest

    def begin(self, ffmpeg: str) -> None:
        """Makes the folder of parts, for a process with this version of FFmpeg. Raises UserError where it holds parts
        made with other settings."""
        self.parts.mkdir(parents=True, exist_ok=True)
        self.ffmpeg = ffmpeg
        path = self.parts / "plan.json"
        # Of two that start at the same moment one writes it; then both look at what it holds.
        with atomic_file(path, replace=False) as file:
            file.write(json.dumps(self.settings, indent=1).encode())
        remedy = f"rm -r {self.parts} {self.prefix}-??????.tar"
        try:
            before = _read_object(path)
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}): delete what is there, {remedy}, and run again") from None
        self._check_settings(before, remedy)

    def _check_settings(self, before: dict[str, Any], remedy: str) -> None:
        names = {
            "items": "the number of items",
            "verify": "--no-verify",
            "digest": "the annotations, or which videos were found",
        }
        # The digest differs whenever the number of items does: name what a user can see first.
        for name in [*(name for name in self.settings if name != "digest"), "digest"]:
            if before.get(name) != self.settings[name]:
                what = names.get(name, f"--{name.replace('_', '-')}")
                values = "" if name == "digest" else f" (was {before.get(name)}, is {self.settings[name]})"
                raise UserError(
                    f"{self.prefix}: packed before with other input: {what} changed{values}; give another --out, or"
                    f" delete what is there: {remedy}"
                )

    def tar_path(self, shard: int) -> Path:
        return Path(f"{self.prefix}-{shard:06d}.tar")

    def _record_path(self, shard: int) -> Path:
        return self.parts / f"{shard:06d}.json"

    def is_done(self, shard: int) -> bool:
        """Whether a shard's record is there, and its tar of the size that the record says."""
        try:
            info = self.read(shard).info
            return info is None or self.tar_path(shard).stat().st_size == info.bytes
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def read(self, shard: int) -> ShardRecord:
        raw = _read_object(self._record_path(shard))
        info = ShardInfo(**raw["info"]) if raw["info"] else None
        failures = [Failure(**failure) for failure in raw["failures"]]
        labels = {int(number): count for number, count in raw["labels"].items()}  # JSON has no numbers as keys
        return ShardRecord(info, raw["rows"], failures, raw["seconds"], labels, raw.get("ffmpeg", ""))

    def write(self, shard: int, record: ShardRecord) -> None:
        with atomic_file(self._record_path(shard)) as file:
            file.write(json.dumps(asdict(replace(record, ffmpeg=self.ffmpeg))).encode())

    def merge(self) -> Manifest | None:
        """Writes index, failures and manifest. None where there is not one sample, and then only the failures."""
        records = [self.read(shard) for shard in range(self.shards)]
        kept = [record for record in records if record.info]
        failures = [*self.plan.lost, *(failure for record in records for failure in record.failures)]
        lost: Counter[str] = Counter()
        for failure in failures:
            lost[failure.reason] += failure.examples
        with atomic_file(Path(f"{self.prefix}.failures.jsonl"), self.parts) as file:
            file.writelines(f"{json.dumps(failure.to_json())}\n".encode() for failure in failures)
        packed: Counter[int] = Counter()
        for record in records:
            packed.update(record.labels)
        if kept:
            rows = [(shard, *row) for shard, record in enumerate(kept) for row in record.rows]
            with atomic_file(Path(f"{self.prefix}.index.npy"), self.parts) as file:
                np.save(file, np.array(rows, dtype=INDEX_DTYPE), allow_pickle=False)
            manifest = Manifest(
                dataset=self.plan.dataset,
                split=self.plan.split,
                kind=self.plan.kind,
                classes=self.plan.classes,
                shards=[record.info for record in kept if record.info],
                failures=dict(sorted(lost.items())),
                settings={
                    "pack": self.settings,
                    "ffmpeg": ", ".join(sorted({record.ffmpeg for record in kept if record.ffmpeg})),
                    "dropped": self.plan.dropped,
                    "per_class": per_class(self.plan.classes, self.plan.asked, packed),
                    "hours": round(sum(record.seconds for record in kept) / 3600, 4),
                    "hours_lost": round(sum(failure.seconds for failure in failures) / 3600, 4),
                },
            )
            with atomic_file(Path(f"{self.prefix}.manifest.json"), self.parts) as file:
                file.write(manifest.to_json().encode())
        # Another process may be merging too: it writes the same, and may have removed the folder already.
        shutil.rmtree(self.parts, ignore_errors=True)
        return manifest if kept else None


@contextmanager
def atomic_file(path: Path, folder: Path | None = None, replace: bool = True) -> Iterator[BufferedRandom]:
    """A file to write that appears at `path` when the block ends, on the disk in full; after an error, nothing does.

    With `replace` false, a file that is there already stays as it is.

    The temporary file lies in `folder` (the same file system), or beside `path`.
    """
    temporary = (folder or path.parent) / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
            temporary.unlink()
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            shutil.copyfile(temporary, path)


def _read_object(path: Path) -> dict[str, Any]:
    raw = json.loads(path.read_bytes())
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: not an object")
    return raw
