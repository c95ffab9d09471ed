"""Measures what decoding a training clip costs, from the videos as they came and from the shards made of them."""

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from data.decode import decode
from data.shards import ShardSet
from shard_tools.failures import Unpackable
from shard_tools.items import Item
from shard_tools.source_video import probe
from shard_tools.workers import Lost, run_ordered

FRAMES, STRIDE = 32, 2
_CLIPS, _REPEATS, _LIMIT_S = 8, 3, 20.0


@dataclass(frozen=True)
class _Pick:
    item: Item
    video: bytes
    frames: int
    fps: float


def decode_cost(shards: ShardSet, items: Sequence[Item]) -> tuple[float, float, int] | None:
    """Decodes FRAMES frames at STRIDE of a few random samples and of the same seconds of their sources, each opened
    anew, as a loader does.

    Returns:
        milliseconds a clip before and after, medians, and how many clips were measured; None where none could be.
    """
    rng = np.random.default_rng(0)
    chosen = {}
    for example in rng.choice(len(shards), min(_CLIPS, len(shards)), replace=False).tolist():
        sample = shards.read_json(example)
        chosen[sample["key"]] = (example, sample["video"])
    picks = []
    for item in items:
        if item.key in chosen:
            example, video = chosen[item.key]
            rate = video["fps"][0] / video["fps"][1]
            picks.append(_Pick(item, shards.read_video(example), video["frames"], rate))
    # In a worker with a time limit: a video may be one that a decoder hangs on.
    with closing(run_ordered(_measure, picks, 1, _LIMIT_S)) as answers:
        times = [answer for answer in answers if answer is not None and not isinstance(answer, Lost)]
    if not times:
        return None
    before, after = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return before, after, len(times)


def _measure(picks: Sequence[_Pick]) -> list[tuple[float, float] | None]:
    return [_times(pick) for pick in picks]


def _times(pick: _Pick) -> tuple[float, float] | None:
    from torchcodec.decoders import VideoDecoder

    try:
        source = probe(pick.item.path, 2**40)
        span = pick.item.span(source, source.fps)
    except Unpackable:
        return None
    length = min((FRAMES - 1) * STRIDE + 1, pick.frames)
    indices = (pick.frames - length) // 2 + np.arange(0, length, STRIDE)
    begin = float(span.start if span else 0) + indices[0] / pick.fps
    spent: list[tuple[float, float]] = []
    for _ in range(_REPEATS):
        started = time.perf_counter()
        original = VideoDecoder(pick.item.path, seek_mode="exact", num_ffmpeg_threads=1)
        first = round(begin * (original.metadata.average_fps or 1.0))
        original.get_frames_at(np.clip(first + indices - indices[0], 0, len(original) - 1).tolist())
        middle = time.perf_counter()
        decode(pick.video, indices, pick.frames)
        spent.append((middle - started, time.perf_counter() - middle))
    return min(before for before, _ in spent), min(after for _, after in spent)
