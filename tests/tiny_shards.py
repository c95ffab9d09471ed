"""Small real shard sets for tests: FFmpeg's test pictures in tars, with a manifest and an index."""

import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import webdataset

from data.shards import INDEX_DTYPE, ClassInfo, Kind, Manifest, ShardInfo, ShardSet

FPS = 15
RED = (220, 30, 30)


def render(source: str, frames: int = 38) -> bytes:
    """An H.264 file of `frames` frames of an FFmpeg video source, such as `testsrc2=size=128x96,hue=h=90`."""
    name, _, rest = source.partition("=")
    return _encode(("-f", "lavfi", "-i", f"{name}=rate={FPS}:{rest}"), frames)


def make_video(path: Path, *options: str, source: str = "testsrc2=size=128x96", frames: int = 45) -> Path:
    """An FFmpeg test picture, 15 frames per second unless the options say otherwise."""
    path.with_suffix(".raw.mp4").write_bytes(render(source, frames))
    command = ["ffmpeg", "-v", "error", "-y", "-i", str(path.with_suffix(".raw.mp4")), *options, str(path)]
    subprocess.run(command, check=True)
    return path


@lru_cache(maxsize=64)
def _encode(source: tuple[str, ...], frames: int) -> bytes:
    command = ["ffmpeg", "-v", "error", *source, "-frames:v", str(frames), "-c:v", "libx264", "-preset", "ultrafast"]
    command += ["-g", "30", "-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov", "-f", "mp4", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


def class_video(label: int, classes: int, frames: int = 38) -> bytes:
    """128x96 test pictures whose hue tells their class."""
    return render(f"testsrc2=size=128x96,hue=h={360 * label // classes}", frames)


def clock_video(frames: int = 38, size: tuple[int, int] = (128, 96)) -> bytes:
    """Plain pictures that grow brighter frame by frame: frame n has a luma of 16 + 5 n (see `read_clock`)."""
    return render(f"color=c=black:size={size[0]}x{size[1]},geq=lum=16+5*N:cb=128:cr=128", frames)


def read_clock(clip: np.ndarray) -> list[int]:
    """Frame numbers of a clip [3, T, H, W] of a `clock_video`; luma of 16 to 235 is 0 to 255 in RGB."""
    grey = clip.astype(np.float64).mean(axis=(0, 2, 3))
    return [round(float(value) * 219 / 255 / 5) for value in grey]


def box_video(
    boxes: list[list[float]], frames: int = 38, size: tuple[int, int] = (128, 96), color: tuple[int, ...] = RED
) -> bytes:
    """Grey pictures with filled boxes (x1 y1 x2 y2 in [0, 1]) in them."""
    width, height = size
    fill = "0x" + "".join(f"{value:02x}" for value in color)
    drawn = [
        f"drawbox=x={round(x1 * width)}:y={round(y1 * height)}:w={round((x2 - x1) * width)}"
        f":h={round((y2 - y1) * height)}:color={fill}:t=fill"
        for x1, y1, x2, y2 in boxes
    ]
    return render(",".join([f"color=c=gray:size={width}x{height}", "format=rgb24", *drawn]), frames)


def video_record(frames: int, size: tuple[int, int] = (128, 96)) -> dict[str, Any]:
    """The `video` field of a sample's JSON."""
    keyframes = list(range(0, frames, 30))
    return {"frames": frames, "fps": [FPS, 1], "width": size[0], "height": size[1], "keyframes": keyframes}


def make_classification_set(
    folder: Path, dataset: str, split: str, classes: int = 3, samples: int = 6, shards: int = 2, frames: int = 38
) -> ShardSet:
    """Samples `{dataset}_00000`... of class number % classes, told apart by hue."""
    entries = []
    for number in range(samples):
        label = number % classes
        key = f"{dataset}_{number:05d}"
        record: dict[str, Any] = {
            "key": key,
            "dataset": dataset,
            "source": f"{key}.mp4",
            "label": label,
            "class_name": f"class {label}",
            "video": video_record(frames),
        }
        entries.append((record, class_video(label, classes, frames)))
    names = [ClassInfo(number, f"class {number}") for number in range(classes)]
    return write_set(folder, dataset, split, "classification", names, entries, shards)


def make_localisation_set(
    folder: Path,
    dataset: str,
    split: str,
    class_ids: tuple[int, ...] = (1, 3, 7),
    samples: int = 4,
    keyframes: int = 2,
    shards: int = 2,
    frames: int = 38,
    proposals: bool = True,
) -> ShardSet:
    """Samples of `keyframes` keyframes, each with the sample's one red box (class: sample number, over the classes)
    and two proposals, or none: that box with score 0.95, and the whole frame with score 0.3."""
    entries = []
    for number in range(samples):
        # A multiple of 1/16 lies on the pixel grid of 128 x 96.
        left, top = (1 + number % 5) / 16, (2 + number % 3) / 16
        box = [left, top, left + 6 / 16, top + 10 / 16]
        key = f"{dataset}_{number:05d}"
        record: dict[str, Any] = {
            "key": key,
            "dataset": dataset,
            "source": f"{key}.mp4",
            "video_id": f"movie.{number}",
            "start": 900.0,
            "video": video_record(frames),
            "keyframes": [
                {
                    "timestamp": 902.0 + item,
                    "frame": min(8 + item * FPS, frames - 1),
                    "boxes": [box],
                    "labels": [[class_ids[number % len(class_ids)]]],
                    "person_ids": [number],
                    "proposals": [[*box, 0.95], [0.0, 0.0, 1.0, 1.0, 0.3]] if proposals else [],
                }
                for item in range(keyframes)
            ],
        }
        entries.append((record, box_video([box], frames)))
    names = [ClassInfo(number, f"action {number}") for number in class_ids]
    return write_set(folder, dataset, split, "localisation", names, entries, shards)


def write_set(
    folder: Path,
    dataset: str,
    split: str,
    kind: Kind,
    classes: list[ClassInfo],
    entries: Sequence[tuple[dict[str, Any] | bytes, bytes]],
    shards: int = 1,
) -> ShardSet:
    """Writes (record, video) pairs as a shard set and opens it.

    A record may be bytes, to stand for a damaged one; such a sample counts as one example and its key is its number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"{dataset}-{split}"
    infos, rows = [], []
    for shard, part in enumerate(np.array_split(np.arange(len(entries)), shards)):
        path = folder / f"{prefix}-{shard:06d}.tar"
        counts = {}
        with webdataset.TarWriter(str(path), mtime=0) as writer:
            for number in part:
                record, video = entries[number]
                key = record["key"] if isinstance(record, dict) else str(number)
                text = json.dumps(record).encode() if isinstance(record, dict) else record
                counts[key] = len(record["keyframes"]) if kind == "localisation" and isinstance(record, dict) else 1
                writer.write({"__key__": key, "json": text, "mp4": video})
        content = path.read_bytes()
        examples = _rows(shard, content, counts)
        rows += examples
        infos.append(ShardInfo(path.name, len(part), len(examples), len(content), sha256(content).hexdigest()))
    np.save(folder / f"{prefix}.index.npy", np.array(rows, dtype=INDEX_DTYPE))
    manifest = Manifest(dataset, split, kind, classes, infos)
    (folder / f"{prefix}.manifest.json").write_text(manifest.to_json())
    return ShardSet(folder / prefix)


def _rows(shard: int, content: bytes, counts: dict[str, int]) -> list[tuple[int, ...]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        members = {member.name: member for member in tar}
    rows: list[tuple[int, ...]] = []
    for key, count in counts.items():
        record, video = members[f"{key}.json"], members[f"{key}.mp4"]
        place = (shard, record.offset_data, record.size, video.offset_data, video.size)
        rows += [(*place, item) for item in range(count)]
    return rows
