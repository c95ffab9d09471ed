"""Checks a shard set against its manifest, byte by byte and sample by sample."""

import hashlib
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from data.sample_json import SampleError, class_label, frame_count, frame_size, read_keyframe, sample_key
from data.shards import Manifest, ShardSet
from shard_tools.stream_copy import describe
from shard_tools.transcode import prove


@dataclass(frozen=True)
class ShardTask:
    """A shard to check: its place in the set, its rows of the index, and whether to decode its videos."""

    shards: ShardSet
    number: int
    rows: np.ndarray
    decode: bool


@dataclass(frozen=True)
class ShardReport:
    """What a shard holds, and what is wrong with it, one line each."""

    keys: list[str]
    faults: list[str]


def check_shards(tasks: Sequence[ShardTask]) -> list[ShardReport]:
    return [check_shard(task) for task in tasks]


def check_shard(task: ShardTask) -> ShardReport:
    """Checks one tar: size, checksum, members, every sample, the index rows, and on request every frame."""
    info = task.shards.manifest.shards[task.number]
    path = Path(task.shards.shard_path(task.number))
    faults: list[str] = []
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        return ShardReport([], [f"{info.name}: {error.strerror}"])
    if size != info.bytes:
        faults.append(f"{info.name}: has {size} bytes, the manifest says {info.bytes}")
    if digest != info.sha256:
        faults.append(f"{info.name}: its sha256 is not that of the manifest: the file was changed or damaged")
    keys: list[str] = []
    rows: list[tuple[int, ...]] = []
    try:
        for key, text, video, place in _samples(path):
            keys.append(key)
            found, examples = _check_sample(task, key, text, video)
            faults += [f"{info.name}: sample {key}: {fault}" for fault in found]
            rows += [(task.number, *place, item) for item in range(examples)]
    # The last two: tarfile meets numbers that are none, and headers that each announce another one.
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        faults.append(f"{info.name}: cannot be read on after {len(keys)} samples: {error}")
    if len(keys) != info.samples:
        faults.append(f"{info.name}: has {len(keys)} samples, the manifest says {info.samples}")
    if len(rows) != info.examples:
        faults.append(f"{info.name}: has {len(rows)} examples, the manifest says {info.examples}")
    if not np.array_equal(task.rows, np.array(rows, dtype=task.rows.dtype)):
        faults.append(f"{info.name}: the index does not point at its samples")
    return ShardReport(keys, faults)


def _samples(path: Path) -> Iterator[tuple[str, bytes, bytes, tuple[int, int, int, int]]]:
    """Yields (key, JSON, video, their offsets and sizes). Raises SampleError where the tar holds anything else."""
    whole = path.stat().st_size
    with tarfile.open(path, mode="r:") as tar:
        pair: list[tarfile.TarInfo] = []
        for member in tar:
            # A sparse one is a plain file to tarfile, which would write out its holes, of any size.
            if not member.isreg() or member.issparse():
                raise SampleError(f"member {member.name!r} is no plain file")
            if member.size > whole:
                raise SampleError(f"member {member.name!r} claims {member.size} bytes, the shard has {whole}")
            pair.append(member)
            if len(pair) < 2:
                continue
            text, video = pair
            key = text.name.removesuffix(".json")
            if [text.name, video.name] != [f"{key}.json", f"{key}.mp4"]:
                raise SampleError(f"members {text.name!r}, {video.name!r} are not the .json and .mp4 of one sample")
            place = (text.offset_data, text.size, video.offset_data, video.size)
            yield key, _content(tar, text), _content(tar, video), place
            pair = []
    if pair:
        raise SampleError(f"member {pair[0].name!r} has no partner")


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise SampleError(f"member {member.name!r} is cut short")
    return content


def _check_sample(task: ShardTask, key: str, text: bytes, video: bytes) -> tuple[list[str], int]:
    """Faults of a sample, and its number of examples."""
    manifest = task.shards.manifest
    faults: list[str] = []
    examples = 1
    try:
        sample = json.loads(text)
        if not isinstance(sample, dict):
            raise SampleError("its JSON is not an object")
        if sample_key(sample) != key:
            raise SampleError(f"its JSON is that of {sample['key']}")
        if sample.get("dataset") != manifest.dataset or not isinstance(sample.get("source"), str):
            faults.append(f"dataset or source is not that of {manifest.dataset}")
        record = _video_record(sample)
        if manifest.kind == "classification":
            label = class_label(sample, len(manifest.classes))
            if sample.get("class_name") != (None if label < 0 else manifest.classes[label].name):
                faults.append(f"label {label} is not class {sample.get('class_name')!r}")
        else:
            examples = len(sample["keyframes"]) if isinstance(sample.get("keyframes"), list) else 1
            for item in range(examples):
                try:
                    read_keyframe(sample, item, task.shards.dense)
                except SampleError as error:
                    faults.append(str(error))
        if task.decode:
            faults += _check_video(video, record)
    except (ValueError, TypeError) as error:
        faults.append(str(error))
    except RecursionError:
        faults.append("its JSON is nested too deeply")
    return faults, examples


def _video_record(sample: dict[str, Any]) -> dict[str, Any]:
    frames = frame_count(sample)
    record: dict[str, Any] = sample["video"]
    fps, keys = record.get("fps"), record.get("keyframes")
    rate = isinstance(fps, list) and [type(n) for n in fps] == [int, int] and 1 <= min(fps) <= max(fps) < 2**31
    if frame_size(sample) is None or not rate:
        raise SampleError("bad video.width, video.height or video.fps")
    if not isinstance(keys, list) or not all(isinstance(n, int) and 0 <= n < frames for n in keys) or 0 not in keys:
        raise SampleError("bad video.keyframes")
    times = record.get("times")
    good = isinstance(times, list) and len(times) == frames and all(type(time) in (int, float) for time in times)
    if times is not None and not (good and times == sorted(times)):
        raise SampleError("bad video.times")
    return record


def _check_video(video: bytes, record: dict[str, Any]) -> list[str]:
    fps = Fraction(*record["fps"])
    # Clips that were copied keep the rate that they have, however they keep it.
    decoded = (describe(video) if record.get("copied") else prove(video, fps)).record()
    return [
        f"its video has {name} {decoded.get(name)}, the JSON says {record.get(name)}"
        for name in ("frames", "width", "height", "keyframes", "times")
        if decoded.get(name) != record.get(name)
    ]


def check_set(shards: ShardSet) -> list[str]:
    """Faults of the files beside the tars: the list of failures, leftovers, tars that the manifest does not name."""
    manifest = shards.manifest
    folder, name = Path(shards.folder), Path(shards.prefix).name
    faults = [
        f"{path.name}: left over from packing; run the pack command again, or delete it"
        for path in sorted([*folder.glob(f".{name}.parts"), *folder.glob(f".{name}[-.]*.tmp")])
    ]
    named = {shard.name for shard in manifest.shards}
    for path in sorted(folder.glob(f"{name}-*.tar")):
        if re.fullmatch(rf"{re.escape(name)}-\d{{6}}\.tar", path.name) and path.name not in named:
            faults.append(f"{path.name}: is not in the manifest")
    return faults + _check_failures(Path(f"{shards.prefix}.failures.jsonl"), manifest)


def _check_failures(path: Path, manifest: Manifest) -> list[str]:
    lost: Counter[str] = Counter()
    try:
        for line in path.read_text().splitlines():
            failure = json.loads(line)
            lost[failure["reason"]] += failure.get("examples", 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{path.name}: cannot be read ({type(error).__name__}: {error})"]
    if +lost != Counter(manifest.failures):
        return [f"{path.name}: counts {dict(lost)}, the manifest says {manifest.failures}"]
    return []


def repeated(keys: Sequence[str]) -> list[str]:
    """Keys that occur more than once."""
    return sorted(key for key, count in Counter(keys).items() if count > 1)
