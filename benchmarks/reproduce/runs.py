"""Runs: trains, evaluates and records each once, several at a time, and goes on where an earlier call was cut off."""

import contextlib
import functools
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.reproduce.protocol import (
    DOWNSTREAM,
    HEAD,
    REGIMES,
    TAIL,
    Plan,
    Regime,
    Setting,
    identity,
    make_recipe,
    overrides_of,
)
from benchmarks.reproduce.records import Record, headline, read_curves, read_record, read_resamples, read_test
from data.errors import UserError
from data.recipe_files import PROJECT
from train.checkpoint_files import read_state
from train.run_log import duration
from train.whole_files import write_atomically

CLIPS_A_SECOND = 70.0
"""Of one job on a core of the machine that docs/reproduce.md names: what the first estimate goes by."""
_LAST_LINES = 15


@dataclass(frozen=True)
class Machine:
    """How runs are spread: `jobs` at a time, each with `threads` CPU threads and `workers` loader processes."""

    name: str
    jobs: int
    threads: int
    workers: int


@dataclass(frozen=True)
class Run:
    """One regime with one setting and seed. A trial is scored on `tune`, any other run on `heldout`."""

    regime: Regime
    setting: Setting
    seed: int
    trial: bool = False

    @property
    def name(self) -> str:
        if self.trial:
            own = self.setting
            ava = "" if own.ava_rate == 1 else f"-ava{own.ava_rate:g}"
            return f"{self.regime.name}-trial-{own.lr:g}-{own.schedule}{ava}"
        return f"{self.regime.name}-seed{self.seed}"


def run_of(record: Record) -> Run:
    """The run that left a record."""
    return Run(REGIMES[record["regime"]], Setting(**record["setting"]), record["seed"], record["trial"])


class Laboratory:
    """Where runs are done and kept.

    Args:
        folder: for checkpoints and logs; it may be deleted when all is done.
        records: the folder of the records.
        open_world: makes what is not there yet of the world, and returns the folder of its shards; called once, before
            the first run.
        world: what names it.
    """

    def __init__(
        self,
        folder: Path,
        records: Path,
        open_world: Callable[[], Path],
        world: dict[str, Any],
        plan: Plan,
        machine: Machine,
    ) -> None:
        self.folder, self.records, self.world = folder, records, world
        self.open_world = functools.cache(open_world)
        self.plan, self.machine = plan, machine
        self._identities: dict[str, str] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock, self._ending = threading.Lock(), False

    def record_of(self, run: Run) -> Record | None:
        """What a finished run left; None where it is still to be done, or was of another protocol or world."""
        path = self.records / f"{run.name}.json"
        record = read_record(path) if path.exists() else None
        return record if record is not None and record["identity"] == self._identity(run) else None

    def records_found(self) -> list[Record]:
        """All records of this protocol and world, trials included, by name."""
        return [record for record in self._all() if self._is_ours(record)]

    def _is_ours(self, record: Record) -> bool:
        try:
            return bool(record["identity"] == self._identity(run_of(record)))
        except (KeyError, TypeError):  # a regime or a setting that is not of this protocol
            return False

    def _all(self) -> list[Record]:
        return [read_record(path) for path in sorted(self.records.glob("*.json"))]

    def clips(self, runs: Sequence[Run]) -> int:
        """What those will see that are still to be done."""
        return sum(self.seen(run) for run in runs if self.record_of(run) is None)

    def do(self, runs: Sequence[Run], what: str, later: int = 0) -> list[Record]:
        """The records of all runs, in their order; those that are missing are made.

        Args:
            what: these runs are, for the lines that tell how far they are.
            later: clips of what will follow, for the time that is left.

        Raises:
            UserError: a run failed; says which, and the end of its log.
        """
        left = [run for run in runs if self.record_of(run) is None]
        if left:
            self.open_world()
        pool = ThreadPoolExecutor(self.machine.jobs)
        try:
            futures: dict[Future[None], Run] = {pool.submit(self._do, run): run for run in left}
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    record = self.record_of(futures[future])
                    assert record is not None
                    told = f"{futures[future].name}: {headline(record)}, {duration(record['seconds'])}"
                    number, rest = len(runs) - len(waiting), self.clips([futures[each] for each in waiting])
                    self.tell(f"{what} {number}/{len(runs)}  {told}", rest + later)
        except BaseException:
            self._end()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
        return [record for run in runs if (record := self.record_of(run)) is not None]

    def tell(self, line: str, clips: int) -> None:
        """Prints a line, with the time that so many clips will take at the rate of this machine's runs so far."""
        own = [record for record in self._all() if record["machine"] == self.machine.name]
        # The median: a run that stood still for an hour says nothing of those to come.
        rate = statistics.median(_clips(record) / record["seconds"] for record in own) if own else CLIPS_A_SECOND
        left = duration(clips / rate / self.machine.jobs)
        print(f"{time.strftime('%H:%M:%S')}  {line}  left {left}" + ("" if own else " (a guess)"), flush=True)

    def seen(self, run: Run) -> int:
        """Clips of a run."""
        return run.regime.total_clips(self.plan.rounds, run.seed)

    def _identity(self, run: Run) -> str:
        key = f"{run.name} {run.setting}"
        if key not in self._identities:
            self._identities[key] = identity(
                run.regime, self.plan.rounds, run.setting, run.seed, self.world, self.plan.overrides
            )
        return self._identities[key]

    def _do(self, run: Run) -> None:
        folder = self.folder / f"{run.name}-{self._identity(run)}"
        folder.mkdir(parents=True, exist_ok=True)
        trained: list[Path] = []
        shards = self.open_world()
        rounds = self.plan.rounds
        for number, training in enumerate(run.regime.trainings):
            out, recipe = folder / f"training-{number}", folder / f"training-{number}.yaml"
            made = make_recipe(
                training,
                out=out,
                shards=shards,
                rounds=rounds,
                setting=run.setting,
                seed=run.seed,
                workers=self.machine.workers,
                init=trained[-1] if trained else None,
            )
            OmegaConf.save(made, recipe)
            changes = overrides_of(training, self.plan.overrides)
            self._command(folder, "train/main.py", "--recipe", str(recipe), "--resume", *changes)
            _check_whole(out, training.steps(rounds))
            if not run.trial:
                sets = [f"tasks.{task}.val_shards={shards / f'{task}-heldout'}" for task in training.tasks]
                cutoffs = ["--cutoffs", str(TAIL), str(HEAD)]
                self._command(folder, "train/evaluate.py", "--checkpoint", str(out), *cutoffs, *sets)
            trained.append(out)
        record: Record = {
            "identity": self._identity(run),
            "regime": run.regime.name,
            "seed": run.seed,
            "trial": run.trial,
            "setting": asdict(run.setting),
            "clips": run.regime.seen(rounds, run.seed),
            "steps": [training.steps(rounds) for training in run.regime.trainings],
            **_spent(folder),
            "machine": self.machine.name,
            "jobs": self.machine.jobs,
            "commits": _commits(trained),
            "curves": [read_curves(out) for out in trained],
        }
        if not run.trial:
            record["test"] = read_test(trained[-1])
            if len(trained) > 1:
                record["test_before_transfer"] = read_test(trained[-2])
            if DOWNSTREAM in record["test"]:
                counts = record["test"][DOWNSTREAM]["training_counts"]
                record["resamples"] = read_resamples(trained[-1], DOWNSTREAM, counts, (TAIL, HEAD))
        self.records.mkdir(parents=True, exist_ok=True)
        write_atomically(self.records / f"{run.name}.json", json.dumps(record) + "\n")

    def _command(self, folder: Path, script: str, *arguments: str) -> None:
        """Runs one of the project's programs; what it says goes to FOLDER/log.txt.

        Raises:
            UserError: it failed. KeyboardInterrupt: all is to end.
        """
        log = folder / "log.txt"
        # The project that this file is of, wherever an installed one lies.
        paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = str(self.machine.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths)}
        began = time.monotonic()
        with log.open("ab") as file, self._lock:
            if self._ending:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                [sys.executable, str(PROJECT / script), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
            )
            self._processes.add(process)
        _, status, usage = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        with self._lock:
            self._processes.discard(process)
        spent = {"seconds": time.monotonic() - began, "cpu_seconds": usage.ru_utime + usage.ru_stime}
        with (folder / "spent.jsonl").open("a") as file:
            file.write(json.dumps(spent) + "\n")
        if self._ending:
            raise KeyboardInterrupt
        if code:
            lines = log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
            raise UserError("\n".join([f"{script} ended with exit code {code}; {log} ends with:", *lines]))

    def _end(self) -> None:
        """Asks what runs to save and end, so that the next call goes on from there."""
        with self._lock:
            self._ending = True
            for process in self._processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGTERM)


def _clips(record: Record) -> int:
    return sum(record["clips"].values())


def _check_whole(training: Path, steps: int) -> None:
    """Raises UserError unless a training has come to its end: one that is asked to stop saves, and ends as well."""
    checkpoints = training / "checkpoints"
    done = read_state(checkpoints / (checkpoints / "latest").read_text().strip()).step
    if done != steps:
        raise UserError(f"{training} was stopped after step {done} of {steps}; the same command goes on")


def _spent(folder: Path) -> dict[str, float]:
    """Seconds of all commands of a run, interrupted ones too, by the clock and of the CPU."""
    rows = [json.loads(line) for line in (folder / "spent.jsonl").read_text().splitlines()]
    return {key: round(sum(row[key] for row in rows), 1) for key in ("seconds", "cpu_seconds")}


def _commits(trainings: Sequence[Path]) -> list[str]:
    """The commits that a run was trained under, `+` where files differed; "unknown" outside of a checkout."""
    found: dict[str, None] = {}
    for training in trainings:
        for line in (training / "environment.jsonl").read_text().splitlines():
            git = json.loads(line)["git"]
            found["unknown" if git is None else git["commit"][:12] + ("+" if git["changed"] else "")] = None
    return list(found)
