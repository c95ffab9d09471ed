"""The engine that packs a plan: items to shards, shards to a set; parallel, resumable, the same bytes every time.

Items are shared out among shards before any work, so each shard depends on its own items and the settings alone. Jobs
on several machines (`part`) take shards in turn, and whichever finds all of them done writes the manifest.
"""

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from io import BufferedRandom

import numpy as np

from data.shards import ShardInfo
from shard_tools.accounts import count_labels
from shard_tools.clip_command import Job, VideoSettings
from shard_tools.failures import Failure, Unpackable
from shard_tools.items import Item
from shard_tools.part_store import PartStore, ShardRecord, atomic_file
from shard_tools.source_video import Source, probe
from shard_tools.spool import Packed, Spool
from shard_tools.storage import require_storage
from shard_tools.stream_copy import copy_stream
from shard_tools.transcode import Clip, transcode
from shard_tools.workers import Lost, run_ordered

Progress = Callable[[int, int, int], None]
BATCH = 4  # items that share one FFmpeg process


@dataclass(frozen=True)
class PackOptions:
    """How to pack, as far as the result does not depend on it (`workers`, `part`, `time_limit`), and what it does
    depend on (`video`, `samples_per_shard`, `seed`). `part` is (i, n): the shards s with s % n == i."""

    video: VideoSettings
    samples_per_shard: int
    seed: int
    workers: int
    part: tuple[int, int]
    time_limit: float


def share_out(items: Sequence[Item], samples_per_shard: int, seed: int) -> list[list[Item]]:
    """The items of each shard, in an order that depends on the seed and their keys alone. Shards differ by one item in
    size at most."""
    if not items:
        return []
    ordered = sorted(items, key=lambda item: hashlib.sha256(f"{seed}/{item.key}".encode()).digest())
    count = -(-len(ordered) // samples_per_shard)
    return [[ordered[n] for n in numbers] for numbers in np.array_split(np.arange(len(ordered)), count)]


def pack(
    store: PartStore,
    shards: Sequence[Sequence[Item]],
    options: PackOptions,
    progress: Progress = lambda done, lost, size: None,
) -> int:
    """Packs what of this part is not done yet: shards, or runs of a plan that has them, and then, where all runs are
    done, every shard.

    Args:
        progress: called with how many items are done, how many examples are lost, and how many bytes of video are
            packed since the last call.

    Returns:
        number of shards or runs that other parts have still to pack.

    Raises:
        FileNotFoundError: another process has finished the set meanwhile, and has removed the folder of parts.
        StopRunError: the storage of the videos fails.
    """
    if store.plan.runs:
        return _pack_runs(store, shards, options, progress)
    mine = range(options.part[0], len(shards), options.part[1])
    todo = [shard for shard in mine if not store.is_done(shard)]
    progress(sum(len(shards[shard]) for shard in mine) - sum(len(shards[shard]) for shard in todo), 0, 0)
    items = [item for shard in todo for item in shards[shard]]
    batches = [min(BATCH, len(items) - first) for first in range(0, len(items), BATCH)]
    work = partial(pack_items, options.video)
    # Closed at once when anything goes wrong, so that no worker outlives the run.
    with closing(run_ordered(work, items, options.workers, options.time_limit, batches)) as answers:
        for shard in todo:
            results = map(partial(_settle, options.time_limit), shards[shard], answers)
            store.write(shard, _write_shard(store, shard, _counted(results, progress)))
    return sum(not store.is_done(shard) for shard in range(len(shards)))


def _pack_runs(store: PartStore, shards: Sequence[Sequence[Item]], options: PackOptions, progress: Progress) -> int:
    runs, spool = store.plan.item_runs(), Spool(store.parts)
    mine = range(options.part[0], len(runs), options.part[1])
    todo = [run for run in mine if not spool.is_done(run)]
    progress(sum(len(runs[run]) for run in mine) - sum(len(runs[run]) for run in todo), 0, 0)
    items = [item for run in todo for item in runs[run]]
    work, batches = partial(pack_run, options.video), [len(runs[run]) for run in todo]
    with closing(run_ordered(work, items, options.workers, options.time_limit, batches)) as answers:
        for run in todo:
            results = map(partial(_settle, options.time_limit), runs[run], answers)
            spool.write(run, list(_counted(results, progress)))
    left = sum(not spool.is_done(run) for run in range(len(runs)))
    if left:
        return left
    places = {item.key: (run, place) for run, group in enumerate(runs) for place, item in enumerate(group)}
    for shard, members in enumerate(shards):
        if not store.is_done(shard):
            waiting = (spool.read(*places[item.key]) for item in members)
            store.write(shard, _write_shard(store, shard, waiting))
    return 0


def _counted(results: Iterable[Packed | Failure], progress: Progress) -> Iterator[Packed | Failure]:
    for result in results:
        if isinstance(result, Failure):
            progress(1, result.examples, 0)
        else:
            progress(1, sum(failure.examples for failure in result.failures), len(result.video))
        yield result


def pack_run(settings: VideoSettings, items: Sequence[Item]) -> list[Packed | Failure]:
    """As `pack_items`, for successive parts of one video, which is read once for all of them where the version of
    FFmpeg allows it (`ffmpeg_check.takes_many`)."""
    return pack_items(settings, items, read_once=True)


def pack_items(settings: VideoSettings, items: Sequence[Item], read_once: bool = False) -> list[Packed | Failure]:
    """Makes the samples of some items; what happens to one does not touch the others.

    Raises:
        StopRunError: one cannot be made because the storage of the videos fails.
    """
    results: dict[int, Packed | Failure] = {}
    jobs: dict[int, Job] = {}
    for number, item in enumerate(items):
        try:
            source = probe(item.path, settings.max_pixels)
            fps = settings.fps or item.rate(source)
            jobs[number] = Job(item.path, source, fps, item.span(source, fps))
        except Unpackable as error:
            results[number] = _failure(item, error)
    todo = list(jobs.values())
    if read_once and len(todo) > 1:
        todo = [replace(job, shared_seek=todo[0].seek) for job in todo]
    clips = [copy_stream(job, settings) for job in todo] if settings.copy else transcode(todo, settings)
    for (number, job), clip in zip(jobs.items(), clips, strict=True):
        results[number] = _sample(items[number], job.source, clip)
    return [results[number] for number in range(len(items))]


def _sample(item: Item, source: Source, clip: Clip | Unpackable) -> Packed | Failure:
    try:
        if isinstance(clip, Unpackable):
            raise clip
        sample, examples, failures = item.finish(source, clip)
    except Unpackable as error:
        return _failure(item, error, source)
    text = json.dumps(sample, sort_keys=True).encode()
    return Packed(item.key, text, clip.video, examples, float(clip.frames / clip.fps), failures, count_labels(sample))


def _failure(item: Item, error: Unpackable, source: Source | None = None) -> Failure:
    # Whatever the reason reads like: FFmpeg has but words for a file that it cannot open, and its errors look alike.
    require_storage(item.path, item.source)
    # Of a part of a movie the length is not told: it would be that of the movie.
    seconds = source.seconds if source and source.seconds and not item.is_part else 0.0
    return Failure(item.source, error.reason, error.detail, item.examples, round(seconds, 3))


def _settle(time_limit: float, item: Item, answer: Packed | Failure | Lost) -> Packed | Failure:
    if not isinstance(answer, Lost):
        return answer
    if answer.timeout:
        return _failure(item, Unpackable("timeout", f"took more than {time_limit:g} s"))
    return _failure(item, Unpackable("crashed", answer.error or "the process that decoded it died"))


class _NothingLeftError(Exception):
    """Every item of a shard failed: its file must not appear."""


def _write_shard(store: PartStore, shard: int, results: Iterable[Packed | Failure]) -> ShardRecord:
    """Writes one tar, unless every item failed."""
    # Here and not above: it imports torch, which takes seconds.
    from webdataset import TarWriter

    failures: list[Failure] = []
    examples: dict[str, int] = {}
    seconds = 0.0
    labels: Counter[int] = Counter()
    path = store.tar_path(shard)
    try:
        with atomic_file(path, store.parts) as file:
            # Nothing in a header may change from run to run.
            with TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
                for result in results:
                    if isinstance(result, Failure):
                        failures.append(result)
                        continue
                    writer.write({"__key__": result.key, "json": result.json, "mp4": result.video})
                    examples[result.key] = result.examples
                    failures += result.failures
                    seconds += result.seconds
                    labels += result.labels
            size = file.tell()
            rows = _index_rows(file, examples)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not examples:
                raise _NothingLeftError
    except _NothingLeftError:
        return ShardRecord(None, [], failures, 0.0, {})
    info = ShardInfo(path.name, len(examples), len(rows), size, digest)
    return ShardRecord(info, rows, failures, round(seconds, 3), dict(sorted(labels.items())))


def _index_rows(file: BufferedRandom, examples: dict[str, int]) -> list[list[int]]:
    """The index rows of a tar without the shard's number, read back from the tar itself."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        members = {member.name: member for member in tar}
    rows = []
    for key, count in examples.items():
        text, video = members[f"{key}.json"], members[f"{key}.mp4"]
        place = [text.offset_data, text.size, video.offset_data, video.size]
        rows += [[*place, item] for item in range(count)]
    return rows
