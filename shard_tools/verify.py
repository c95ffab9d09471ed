"""Verifies the shard sets of a folder: checksums, counts, index, every sample, and on request every frame."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.shards import ShardSet
from shard_tools.options import positive
from shard_tools.progress import progress_bar
from shard_tools.shard_check import ShardTask, check_set, check_shards, repeated
from shard_tools.workers import Lost, run_ordered

SHARD_LIMIT_S = 24 * 3600.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Verifies every shard set of a folder. Prints one line per fault, which names the shard and the"
        " sample. exit: 0 all holds; 1 faults; 2 no shard set there."
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path, help="folder of shards")
    parser.add_argument("--decode", action="store_true", help="decode every video in full and compare it with its JSON")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="processes (default: one a core, %(default)s)")
    shown = "also draw a page of random examples with their labels and boxes"
    parser.add_argument("--contact-sheet", metavar="PNG", type=Path, help=shown)
    shown = "examples on the page (default: %(default)s)"
    parser.add_argument("--examples", type=positive, default=24, metavar="N", help=shown)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of examples (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        code = verify(arguments.shards, arguments.decode, max(arguments.workers, 1))
        if arguments.contact_sheet:
            look(arguments.shards, arguments.contact_sheet, arguments.examples, arguments.seed)
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def look(folder: Path, out: Path, examples: int, seed: int) -> None:
    """Draws the contact sheet of the sets in `folder`."""
    # Here and not above: it imports torch, which takes seconds.
    from shard_tools.contact_sheet import draw_sheet

    sets = []
    for prefix in set_prefixes(folder):
        with contextlib.suppress(UserError):  # which `verify` has told
            shards = ShardSet(prefix)
            if len(shards.index):
                sets.append(shards)
    if not sets:
        raise UserError(f"{folder}: no example to draw")
    try:
        drawn, faults = draw_sheet(sets, out, examples, seed)
    except OSError as error:
        raise UserError(f"--contact-sheet {out} cannot be written: {error.strerror}") from error
    for fault in faults:
        print(fault)
    print(f"{out}: {drawn} examples drawn")


def set_prefixes(folder: Path) -> list[str]:
    """FOLDER/{dataset}-{split} of the sets in a folder."""
    return sorted(str(path).removesuffix(".manifest.json") for path in folder.glob("*.manifest.json"))


def verify(folder: Path, decode: bool, workers: int) -> int:
    """Prints what is wrong with the sets in `folder`. Returns the exit code."""
    prefixes = set_prefixes(folder)
    if not prefixes:
        raise UserError(f"{folder}: no shard set there (no *.manifest.json)")
    if decode:
        from data.decode import require_ffmpeg

        require_ffmpeg()
    known = {Path(prefix).name for prefix in prefixes}
    faults = [
        f"{path.name}: parts of a set that is not finished; run its pack command again, or delete it"
        for path in sorted(folder.glob(".*.parts"))
        if path.name[1:].removesuffix(".parts") not in known
    ]
    for prefix in prefixes:
        faults += verify_set(prefix, decode, workers)
    for fault in faults:
        print(fault)
    if faults:
        print(f"error: {len(faults)} faults in {folder}", file=sys.stderr)
    return 1 if faults else 0


def verify_set(prefix: str, decode: bool, workers: int) -> list[str]:
    """Faults of one set, one line each; prints a line for a set without any."""
    name = Path(prefix).name
    try:
        shards = ShardSet(prefix)
        # In memory: it is cut up and sent to workers.
        index = np.array(shards.index)
    except UserError as error:
        return [f"{name}: {error}"]
    faults = check_set(shards)
    if len(index) and (np.diff(index["shard"].astype(np.int64)) < 0).any():
        faults.append(f"{name}.index.npy: its rows are not in the order of the shards")
    numbers = range(len(shards.manifest.shards))
    tasks = [ShardTask(shards, number, index[index["shard"] == number], decode) for number in numbers]
    keys: list[str] = []
    reports = run_ordered(check_shards, tasks, workers, SHARD_LIMIT_S)
    bar = progress_bar(reports, desc=name, total=len(tasks), unit="shard", disable=not sys.stderr.isatty())
    for task, report in zip(tasks, bar, strict=True):
        if isinstance(report, Lost):
            shard = shards.manifest.shards[task.number].name
            faults.append(f"{shard}: a decoder crashed or hung on it {report.error}".rstrip())
            continue
        keys += report.keys
        faults += report.faults
    faults += [f"{name}: key {key} occurs more than once" for key in repeated(keys)]
    if not faults:
        how = "checked and decoded" if decode else "checked"
        print(f"{name}: {len(tasks)} shards, {len(keys)} samples, {len(index)} examples, {how}: all holds")
    return faults


if __name__ == "__main__":
    sys.exit(main())
