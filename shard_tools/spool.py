"""Finished samples, and where those cut out of long movies wait for their shards.

A movie is read in runs of successive segments, while a shard holds segments of many movies. So the samples of a run
wait in one file of the folder of parts, `SHARDS/.{dataset}-{split}.parts/000012.spool`: a line of JSON that says what
they are, then their videos one after the other. Like every file it appears whole or not at all.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shard_tools.failures import Failure
from shard_tools.part_store import atomic_file


@dataclass(frozen=True)
class Packed:
    """A finished sample."""

    key: str
    json: bytes
    video: bytes
    examples: int
    seconds: float
    failures: list[Failure]
    labels: Counter[int]


class Spool:
    """The samples of runs, by number of the run and place in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, run: int) -> Path:
        return self._folder / f"{run:06d}.spool"

    def is_done(self, run: int) -> bool:
        try:
            with open(self._path(run), "rb") as file:
                sizes = [entry.get("bytes", 0) for entry in json.loads(file.readline())]
                return file.tell() + sum(sizes) == file.seek(0, 2)
        except (OSError, ValueError, AttributeError, TypeError):
            return False

    def write(self, run: int, results: Sequence[Packed | Failure]) -> None:
        with atomic_file(self._path(run)) as file:
            file.write(json.dumps([_entry(result) for result in results]).encode() + b"\n")
            file.writelines(result.video for result in results if isinstance(result, Packed))

    def read(self, run: int, place: int) -> Packed | Failure:
        """Raises FileNotFoundError where the run is not done, or its set is finished."""
        with open(self._path(run), "rb") as file:
            entries = json.loads(file.readline())
            entry = entries[place]
            if "reason" in entry:
                return Failure(**entry)
            file.seek(sum(other.get("bytes", 0) for other in entries[:place]), 1)
            video = file.read(entry.pop("bytes"))
        failures = [Failure(**failure) for failure in entry.pop("failures")]
        labels = Counter({int(number): count for number, count in entry.pop("labels").items()})
        return Packed(video=video, failures=failures, labels=labels, json=entry.pop("json").encode(), **entry)


def _entry(result: Packed | Failure) -> dict[str, Any]:
    if isinstance(result, Failure):
        return result.to_json()
    rest = {name: value for name, value in vars(result).items() if name not in ("video", "json", "failures")}
    failures = [asdict(failure) for failure in result.failures]
    return {**rest, "bytes": len(result.video), "json": result.json.decode(), "failures": failures}
