"""Does co-finetuning beat transfer learning here? Trains all regimes on the toy world and writes a report.

    python -m benchmarks.reproduce [--quick] [--jobs N]      (make reproduce [QUICK=1] [RESULTS=DIR])

The protocol, fixed before the runs, is docs/reproduce.md. Each finished run leaves a record, RESULTS/runs/*.json, and
the report is made of these alone: RESULTS/report.md and its pictures. The same command goes on where it was stopped,
and does nothing again that has a record. Records of another protocol or world are left out.

Ideas of your own go into results of their own: some regimes, other recipe keys, compared with the runs without them:

    python -m benchmarks.reproduce --quick --work runs/reproduce_quick --results runs/idea \\
        --against runs/reproduce_quick/results --regimes weighted,accumulate model.pos_embed=sincos
"""

import argparse
import functools
import os
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from benchmarks.loader import machine as machine_name
from benchmarks.reproduce.ideas import check_against, idea_plan, mark_results
from benchmarks.reproduce.protocol import FULL, QUICK, REGIMES, ROUND, WORLD_SEED, Plan, Setting
from benchmarks.reproduce.report import write_report
from benchmarks.reproduce.runs import Laboratory, Machine
from benchmarks.reproduce.trials import run_all
from benchmarks.reproduce.world import make_world, world_identity
from data.decode import require_ffmpeg
from data.errors import UserError
from data.recipe_files import PROJECT


def main() -> int:
    signal.signal(signal.SIGTERM, _interrupt)
    arguments = _parser().parse_intermixed_args()
    plan, name = (QUICK, "reproduce_quick") if arguments.quick else (FULL, "reproduce")
    # Other results are of runs of their own: a training that is there would not be done again.
    work = arguments.work or (arguments.results / "work" if arguments.results else PROJECT / "runs" / name)
    results = arguments.results or (work / "results" if arguments.quick else PROJECT / "benchmarks" / "results" / name)
    try:
        if _is_idea(arguments):
            plan = _idea(plan, arguments)
        require_ffmpeg()
        machine, world = _machine(arguments.jobs), world_identity(plan.size, WORLD_SEED)
        open_world = functools.partial(make_world, work.resolve(), plan.size, WORLD_SEED)
        # An idea may also be one in the code: its trainings are never those of another call that shares the world.
        folder = (results / "work" if plan.idea else work).resolve()
        laboratory = Laboratory(folder, results / "runs", open_world, world, plan, machine)
        if arguments.against is not None:
            check_against(arguments.against, results, plan, world)
        mark_results(results, plan, world)
        if not arguments.report_only:
            print(f"{machine.name}: {machine.jobs} runs at a time", flush=True)
            if known := laboratory.records_found():
                machines = ", ".join(sorted({record["machine"] for record in known}))
                print(
                    f"{len(known)} runs have a record in {laboratory.records} ({machines}) and are not done again; "
                    "another --results (make reproduce RESULTS=DIR) does them anew",
                    flush=True,
                )
            run_all(laboratory)
        command = shlex.join(["python", "-m", "benchmarks.reproduce", *sys.argv[1:]])
        print(write_report(results, plan, laboratory.records_found(), command, arguments.against))
        print(f"written: {results / 'report.md'}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduce",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--quick",
        action="store_true",
        help="the small world, three regimes, two seeds, no tuning: 11 minutes on 2 cores",
    )
    shown = "trainings at a time (default: one on a GPU, else one per CPU core)"
    add("--jobs", type=int, metavar="N", help=shown)
    shown = "for the world, checkpoints and logs; may be deleted afterwards (default: runs/reproduce, with --quick"
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help=f"{shown} runs/reproduce_quick, with --results RESULTS/work; of an idea the world alone)",
    )
    shown = "for records and report (default: benchmarks/results/reproduce, with --quick WORK/results)"
    add("--results", type=Path, metavar="DIR", help=shown)
    idea = parser.add_argument_group("ideas, with --results")
    shown = f"those to run, with commas between them, in place of all (--quick: of three): {', '.join(REGIMES)}"
    idea.add_argument("--regimes", metavar="NAMES", help=shown)
    idea.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 (default: those of the plan)")
    shown = f"a multiple of 20; a run of all sets sees {sum(ROUND.values())} clips a round"
    shown += f" (default: {FULL.rounds}, with --quick {QUICK.rounds})"
    idea.add_argument("--rounds", type=int, metavar="N", help=shown)
    shown = "learning rate of all regimes, in place of trials (default: trials, with --quick 2e-3)"
    idea.add_argument("--lr", type=float, metavar="RATE", help=shown)
    shown = "how it goes on after the warm-up, with --lr (default: cosine)"
    idea.add_argument("--lr-schedule", choices=("cosine", "constant"), help=shown)
    shown = "results whose runs of the same regime and seed those of this one are compared with, in the report"
    idea.add_argument("--against", type=Path, metavar="DIR", help=shown)
    shown = "learning rate, schedule and AVA's own rate of each regime: those of its runs in --against"
    idea.add_argument("--same-settings", action="store_true", default=None, help=shown)
    shown = "keys of every training's recipe that the protocol leaves alone, as in model.pos_embed=sincos"
    idea.add_argument("overrides", nargs="*", metavar="key=value", help=shown)
    add("--report-only", action="store_true", help="write the report of the records there are; nothing is trained")
    return parser


def _is_idea(arguments: argparse.Namespace) -> bool:
    own = ("regimes", "seeds", "rounds", "lr", "lr_schedule", "against", "same_settings")
    return bool(arguments.overrides) or any(getattr(arguments, name) is not None for name in own)


def _idea(plan: Plan, arguments: argparse.Namespace) -> Plan:
    if arguments.results is None:
        raise UserError("an idea needs --results DIR: its records and report must not get among those of the protocol")
    if arguments.lr_schedule and arguments.lr is None:
        raise UserError("--lr-schedule needs --lr")
    setting = None if arguments.lr is None else Setting(arguments.lr, arguments.lr_schedule or Setting.schedule)
    regimes = None if arguments.regimes is None else [name.strip() for name in arguments.regimes.split(",")]
    if arguments.same_settings and (arguments.against is None or setting is not None):
        raise UserError("--same-settings needs --against, and no --lr")
    same_as = arguments.against if arguments.same_settings else None
    return idea_plan(plan, regimes, arguments.seeds, arguments.rounds, setting, arguments.overrides, same_as)


def _machine(jobs: int | None) -> Machine:
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: expected 1 or more")
    cores = len(os.sched_getaffinity(0))
    name = machine_name(cores)
    if torch.cuda.is_available():
        jobs = jobs or 1
        return Machine(f"{torch.cuda.get_device_name()}, {name}", jobs, 1, max(1, min(8, (cores - 1) // jobs)))
    jobs = jobs or cores
    # A training that decodes its own clips fills a core; more threads or loader processes would only share it.
    return Machine(name, jobs, max(1, cores // jobs), 0 if jobs >= cores else 1)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
