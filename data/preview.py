"""Shows what a run trains on in any step: `python -m data.preview RECIPE --step N`.

Prints the step's plan and its clips, loads them as a run would, and tells what that cost; can draw them as well.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.batch import Example
from data.contact_sheet import draw_clips
from data.counters import add, figures
from data.dataset import MixtureDataset, TaskData
from data.decode import require_ffmpeg
from data.errors import UserError
from data.loader import train_loader
from data.mixture import StepPlan, build_mixture, open_cache, order_of
from data.recipe import DataRecipe, load_data_recipe, view_config
from data.schedule import TaskStep
from data.shards import ShardSet


@dataclass(frozen=True)
class Seat:
    """A clip's place in a step: its task and position, and the rank and micro-step that it is trained in."""

    task: int
    position: int
    rank: int
    micro_step: int


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m data.preview", description=__doc__)
    p.add_argument("recipe", metavar="RECIPE", help="the recipe, as in training; RUN/recipe.yaml is that of a run")
    p.add_argument("--step", type=int, default=0, metavar="N", help="optimizer step, counted from 0 (default: 0)")
    p.add_argument("--world", type=int, default=1, metavar="RANKS", help="number of ranks of the run (default: 1)")
    p.add_argument("--clips", type=int, default=8, metavar="N", help="clips of each task to show; 0: all (default: 8)")
    p.add_argument("--plan-only", action="store_true", help="load nothing (default: load the clips that are shown)")
    p.add_argument("--image", type=Path, metavar="PNG", help="draw the clips that are shown, with boxes and labels")
    p.add_argument("overrides", nargs="*", metavar="key=value", help="overrides of the recipe, as in seed=1")
    return p


def open_sets(recipe: DataRecipe) -> list[TaskData]:
    """The training sets of a recipe. Raises UserError, with the task's key, for one that cannot be used."""
    sets, cache = [], open_cache(recipe, [task.shards for task in recipe.tasks.values()])
    for name, task in recipe.tasks.items():
        try:
            # A few clips of a remote shard are no reason to fetch it.
            shards, view = ShardSet(task.shards, cache).by_range(), view_config(task.view, recipe.model)
            sets.append(TaskData(name, task.kind, shards, view))  # type: ignore[arg-type]  # checked
        except UserError as error:
            raise UserError(f"tasks.{name}.shards: {error}") from error
    return sets


def seats(plan: StepPlan, step: int) -> list[Seat]:
    """The clips of a step in the order of the global batch, task by task."""
    found = []
    for rank in range(plan.world):
        for number, part in enumerate(plan.micro_steps(step, rank)):
            found += [Seat(part.task, position, rank, number) for position in part.positions]
    return sorted(found, key=lambda seat: (seat.task, seat.position))


def describe_plan(recipe: DataRecipe, sets: Sequence[TaskData], plan: StepPlan, step: int) -> list[str]:
    """What the step takes of each task."""
    lines = [
        f"step {step} of {recipe.steps} (counted from 0), schedule {recipe.schedule}, seed {recipe.seed}, "
        f"{plan.world} {'rank' if plan.world == 1 else 'ranks'}"
    ]
    for part in plan.schedule.plan(step):
        lines.append(_describe_task(recipe, sets[part.task], plan, part))
    return lines


def _describe_task(recipe: DataRecipe, data: TaskData, plan: StepPlan, part: TaskStep) -> str:
    size, last = len(data.shards), part.first + part.clips - 1
    examples = order_of(data, recipe).examples(np.arange(part.first, last + 1))
    shards = sorted({int(shard) for shard in data.shards.index["shard"][examples]})
    epochs = sorted({part.first // size, last // size})
    micro = plan.micro[part.task]
    return (
        f"  {data.name}: {part.clips} clips, positions {part.first} to {last}: epoch {' and '.join(map(str, epochs))}, "
        f"{part.first % size / size:.1%} of it done; {size} examples\n"
        f"    {len(shards)} of {len(data.shards.manifest.shards)} shards: {_shorten(shards)}\n"
        f"    each rank: {part.clips // plan.world // micro} micro-steps of {micro} clips"
    )


def _shorten(numbers: Sequence[int], most: int = 16) -> str:
    return ", ".join(map(str, numbers[:most])) + (", ..." if len(numbers) > most else "")


def rows(mixture: MixtureDataset, chosen: Sequence[Seat], loaded: Sequence[Example | None]) -> list[str]:
    """A line per clip: where it is trained, and what it is."""
    lines = [f"  {'task':<12}{'position':>10}{'rank':>6}{'micro-step':>12}{'example':>10}{'shard':>7}  clip"]
    for seat, example in zip(chosen, loaded, strict=True):
        data = mixture.tasks[seat.task]
        number = mixture.orders[seat.task].example(seat.position) if example is None else example.example
        shard = int(data.shards.index["shard"][number])
        what = "" if example is None else f"{example.key}: {'; '.join(labels(data, example)) or 'no person in view'}"
        lines.append(
            f"  {data.name:<12}{seat.position:>10}{seat.rank:>6}{seat.micro_step:>12}{number:>10}{shard:>7}  {what}"
        )
        for bad in [] if example is None else example.substitutes:
            lines.append(f"    in place of {bad.key}: {bad.reason}")
    return lines


def labels(data: TaskData, example: Example) -> list[str]:
    """The class of a clip, those of a mixed one with their shares, or for each of its persons the classes."""
    names = [c.name for c in data.shards.manifest.classes]
    if example.boxes is None and example.labels.is_floating_point():
        parts = example.labels.nonzero().flatten().tolist()
        return [" + ".join(f"{float(example.labels[i]):.0%} {names[i]}" for i in parts)]
    if example.boxes is None:
        return [names[int(example.labels)]]
    return [", ".join(names[i] for i in row.nonzero().flatten().tolist()) or "no class" for row in example.labels]


def load(mixture: MixtureDataset, chosen: Sequence[Seat], recipe: DataRecipe) -> tuple[list[Example], list[str]]:
    """Loads clips through the run's loader, one a batch; returns them and a table of what that cost."""
    examples: list[Example] = []
    counts: dict[str, dict[str, float]] = {}
    began = time.perf_counter()
    with closing(train_loader(mixture, [[(s.task, s.position)] for s in chosen], recipe.workers)) as loader:
        for batch in loader:
            add(counts.setdefault(batch.task, {}), batch.counts)
            first = int(batch.examples[0])
            alone = Example(batch.task, batch.keys[0], first, batch.clips[0], batch.labels, batch.boxes)
            if batch.boxes is None:
                alone = replace(alone, labels=batch.labels[0])
            examples.append(replace(alone, substitutes=batch.substitutes))
        elapsed = time.perf_counter() - began
    told = {task: figures(own, elapsed) for task, own in counts.items()}
    names = list(dict.fromkeys(name for own in told.values() for name in own))
    lines = [f"loaded {len(examples)} clips in {elapsed:.2f} s, workers={recipe.workers} (their start included)"]
    lines.append("  " + f"{'':<30}" + "".join(f"{task:>14}" for task in told))
    for name in names:
        cells = [f"{own[name]:>14.4g}" if name in own else f"{'-':>14}" for own in told.values()]
        lines.append(f"  {name:<30}" + "".join(cells))
    return examples, lines


def run(args: argparse.Namespace) -> None:
    """The steps of a preview."""
    recipe = load_data_recipe(args.recipe, args.overrides)
    for name, least in (("step", 0), ("world", 1), ("clips", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name} {getattr(args, name)}: expected {least} or more")
    if args.step >= recipe.steps:
        raise UserError(f"--step {args.step}: the run's last step is {recipe.steps - 1} (steps={recipe.steps})")
    if args.plan_only and args.image:
        raise UserError("--image draws clips, --plan-only loads none: leave one of them out")
    plan = StepPlan(recipe, args.world)
    sets = open_sets(recipe)
    print("\n".join(describe_plan(recipe, sets, plan, args.step)))

    mixture = build_mixture(sets, recipe)
    everything = seats(plan, args.step)
    chosen: list[Seat] = []
    for task in range(len(sets)):
        own = [seat for seat in everything if seat.task == task]
        chosen += own[: args.clips or None]
    print()
    if args.plan_only:
        print("\n".join(rows(mixture, chosen, [None] * len(chosen))))
        return
    require_ffmpeg()
    loaded, costs = load(mixture, chosen, recipe)
    print("\n".join([*rows(mixture, chosen, loaded), "", *costs]))
    if args.image:
        captions = [
            f"{sets[seat.task].name}, position {seat.position}, {example.key}"
            for seat, example in zip(chosen, loaded, strict=True)
        ]
        tags = [labels(sets[seat.task], example) for seat, example in zip(chosen, loaded, strict=True)]
        try:
            draw_clips(loaded, captions, tags).save(args.image, format="PNG")
        except OSError as error:
            raise UserError(f"--image {args.image} cannot be written: {error.strerror or error}") from error
        print(f"drawn: {args.image}")


def main() -> int:
    try:
        run(parser().parse_intermixed_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
