"""The way of every pack command from its arguments to shards, a summary and an exit code."""

import argparse
import errno
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from data.errors import UserError
from data.shards import Manifest, ShardSet
from shard_tools.accounts import class_lines
from shard_tools.failures import Failure
from shard_tools.ffmpeg_check import check_clips, require_ffmpeg
from shard_tools.items import Item, Plan
from shard_tools.options import pack_options, settings
from shard_tools.packing import PackOptions, pack, share_out
from shard_tools.part_store import PartStore
from shard_tools.progress import progress_bar
from shard_tools.video_files import VideoFiles


def main(parser: argparse.ArgumentParser, make_plan: Callable[[argparse.Namespace], Plan]) -> NoReturn:
    """Runs a pack command and exits as `options.EPILOG` says."""
    signal.signal(signal.SIGTERM, _interrupt)
    for stream in (sys.stdout, sys.stderr):  # names of files may hold anything
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    arguments = parser.parse_args()
    try:
        sys.exit(run(arguments, make_plan))
    except UserError as error:
        _exit(2, f"error: {error}")
    except BrokenPipeError:
        # Whoever read the output has gone, as in `| head`. Python would complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        what = f"no space left for {arguments.out} (disk full, or over quota)" if full else str(error)
        _exit(
            2, f"error: {what}\nNothing half written is left. With that mended, the same command goes on where it was."
        )
    except KeyboardInterrupt:
        _exit(130, "interrupted; the same command goes on where it was")


def run(arguments: argparse.Namespace, make_plan: Callable[[argparse.Namespace], Plan]) -> int:
    """Plans, packs, merges and sums up. Returns the exit code."""
    options = pack_options(arguments)
    ffmpeg = require_ffmpeg(options.video.copy)
    plan = make_plan(arguments)
    shards = share_out(plan.items, options.samples_per_shard, options.seed)
    store = PartStore(arguments.out, plan, len(shards), {**settings(options), **plan.settings})
    if arguments.dry_run:
        return _describe(plan, store, shards)
    manifest = store.finished_set()
    if manifest:
        print(f"{store.prefix}: already packed")
        return _sum_up(manifest, store, arguments.max_failures)
    try:
        if not options.video.copy:
            check_clips()
        store.begin(ffmpeg)
        left = _pack(store, plan, shards, options)
        manifest = store.finished_set()
        if not manifest and left:
            part, parts = options.part
            what = f"{len(plan.runs)} runs of segments" if plan.runs else f"{len(shards)} shards"
            print(f"{store.prefix}: part {part}/{parts} done, {left} of {what} to come from other parts")
            return 0
        manifest = manifest or store.merge()
    except FileNotFoundError:
        # Another part was at the same work, has finished the set, and has removed the folder of parts.
        manifest = store.finished_set()
        if not manifest:
            raise
    code = _sum_up(manifest, store, arguments.max_failures)
    _show_decode_cost(store)
    return code


def _show_decode_cost(store: PartStore) -> None:
    # Here and not above: it imports torch, which takes seconds.
    from shard_tools.decode_cost import FRAMES, STRIDE, decode_cost

    try:
        cost = decode_cost(ShardSet(store.prefix), store.plan.items)
    except (OSError, ValueError):  # no set, as nothing could be packed; or another part is at it
        return
    if cost:
        before, after, clips = cost
        print(
            f"decoding {FRAMES} frames at stride {STRIDE}, one thread, median of {clips} clips:"
            f" {before:.1f} ms from the original, {after:.1f} ms packed"
        )


def require_videos(items: Sequence[Item], lost: Sequence[Failure], files: VideoFiles) -> None:
    """Raises UserError where nothing of what is annotated was found: the folder must be the wrong one, or the times."""
    other = next((failure for failure in lost if failure.reason != "missing"), None)
    if not items and other is not None:
        raise UserError(
            f"{files.folder}: videos are there, but nothing that is annotated in them: {other.source}: {other.reason},"
            f" {other.detail}; are the annotations' times those of these files (AVA: --movie-start; AVA-Kinetics: the"
            " seconds in the names of clips)?"
        )
    if not items:
        example = f", for example {lost[0].source}" if lost else ""
        raise UserError(
            f"{files.folder}: none of the annotated videos is among the {len(files)} files there{example}; is --videos"
            " right?"
        )


def _pack(store: PartStore, plan: Plan, shards: list[list[Item]], options: PackOptions) -> int:
    # Once, before workers are forked from here: each would spend seconds on it. Imported late for a quick --help.
    from data.decode import require_ffmpeg as require_decoder

    require_decoder()
    part, parts = options.part
    groups = plan.item_runs() if plan.runs else shards
    total = sum(len(items) for items in groups[part::parts])
    unit = "clip" if plan.kind == "classification" else "segment"
    quiet = not sys.stderr.isatty()
    with progress_bar(total=total, unit=unit, desc=store.name, mininterval=30 if quiet else 0.2, smoothing=0.05) as bar:
        lost = sum(failure.examples for failure in plan.lost)
        packed, begin = 0, time.monotonic()

        def progress(done: int, lost_now: int, size: int) -> None:
            nonlocal lost, packed
            lost, packed = lost + lost_now, packed + size
            speed = packed / 1e6 / max(time.monotonic() - begin, 1e-3)
            bar.set_postfix_str(f"{speed:.1f} MB/s, lost {lost}", refresh=False)
            bar.update(done)

        return pack(store, shards, options, progress)


def _describe(plan: Plan, store: PartStore, shards: list[list[Item]]) -> int:
    missing = Counter(failure.reason for failure in plan.lost)
    wanted = sum(item.examples for item in plan.items)
    lost = sum(failure.examples for failure in plan.lost)
    print(f"{store.prefix}: {wanted} {plan.unit} in {len(plan.items)} samples, {len(shards)} shards, not written")
    print(f"{len(plan.classes)} classes; left out: {_counts(plan.dropped)}")
    print(f"lost before any work: {lost} {plan.unit} ({_counts(missing)} videos or keyframes)")
    for failure in plan.lost[:10]:
        print(f"  {failure.reason}: {failure.source} {failure.detail}".rstrip())
    if len(plan.lost) > 10:
        print(f"  and {len(plan.lost) - 10} more")
    return 0


def _sum_up(manifest: Manifest | None, store: PartStore, max_failures: float) -> int:
    listed = f"{store.prefix}.failures.jsonl"
    unit = store.plan.unit
    if manifest is None:
        _complain(f"error: {store.prefix}: nothing could be packed; the reasons are in {listed}")
        return 1
    size = sum(shard.bytes for shard in manifest.shards)
    hours, hours_lost = manifest.settings.get("hours", 0.0), manifest.settings.get("hours_lost", 0.0)
    lost = sum(manifest.failures.values())
    share = lost / (lost + manifest.examples)
    held = f"{manifest.examples} {unit}" + ("" if unit == "clips" else f" in {manifest.samples} segments")
    print(f"{store.prefix}:")
    print(f"in:     {lost + manifest.examples} {unit}, {hours + hours_lost:.2f} h of video that could be read")
    print(f"packed: {held}, {hours:.2f} h, {len(manifest.shards)} shards, {size / 1e6:.1f} MB")
    print(f"lost:   {lost} {unit} ({share:.1%}): {_counts(manifest.failures)}; list: {listed}")
    print(f"left out: {_counts(manifest.settings.get('dropped', {}))}")
    for line in class_lines(manifest):
        print(line)
    versions = manifest.settings.get("ffmpeg", "")
    if ", " in versions:
        _complain(
            f"note: several versions of FFmpeg took part ({versions}): the same input gives other bytes with each"
        )
    if share > max_failures:
        _complain(f"error: {share:.1%} lost, more than --max-failures {max_failures:g} allows")
        return 1
    return 0


def _counts(counts: dict[str, int] | Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _complain(message: str) -> None:
    print(message, file=sys.stderr)


def _exit(code: int, message: str) -> NoReturn:
    _complain(message)
    sys.exit(code)
