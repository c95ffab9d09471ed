"""What a run will take, from its recipe alone: clips, epochs, steps, memory, operations and hours. Reads no video."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from data.errors import UserError
from data.mixture import StepPlan
from models import CofinetuneModel
from models.cofinetune import assemble, build_parts
from models.flops import count_parameters, num_tokens, task_cost
from train.model import EXECUTION
from train.recipe import Recipe
from train.run_log import duration
from train.tasks import open_tasks

PEAK_TFLOPS = 989.0
"""Dense bf16 tensor-core rate of an H100 SXM by NVIDIA's data sheet, 10^12 operations a second."""
UTILISATION = 0.4
"""Of the peak, by the model's own operations: this project's assumption, not a measurement."""
ASSUMED_CLASSES = 400
"""Of a task whose shards are not there. A head is a thousandth of a backbone, so it hardly matters."""
GIB = 2**30


@dataclass(frozen=True)
class TaskPlan:
    """One task of a run.

    Attributes:
        clips: per optimizer step that trains the task, over all ranks.
        steps: optimizer steps that train it.
        micro_steps: per rank and such step.
        micro_batch: clips of one of these.
        examples: of an epoch; None where the shards cannot be opened, and `missing` says why.
        training_flops: operations per clip, forward and backward.
    """

    name: str
    clips: int
    steps: int
    micro_steps: int
    micro_batch: int
    examples: int | None
    missing: str | None
    training_flops: int

    @property
    def epochs(self) -> float | None:
        return None if self.examples is None else self.steps * self.clips / self.examples


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, from the number of parameters; `activations` is a rough estimate that was not measured.

    Communication buckets and fragmentation come on top.

    Attributes:
        gradients: those of the step, and the most that the recipe's `gradients_every` keeps beside them.
        average: the moving average of the weights, the recipe's `ema`.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations


@dataclass(frozen=True)
class Plan:
    """A whole run on `ranks` ranks; `memory` by ZeRO stage that it can have, stage 0 being plain PyTorch."""

    recipe: Recipe
    ranks: int
    tasks: list[TaskPlan]
    parameters: int
    memory: dict[int, Memory]

    @property
    def total_flops(self) -> float:
        return float(sum(task.steps * task.clips * task.training_flops for task in self.tasks))

    def hours(self, peak_tflops: float, utilisation: float) -> float:
        return self.total_flops / (self.ranks * peak_tflops * 1e12 * utilisation) / 3600


def make_plan(recipe: Recipe, ranks: int) -> Plan:
    """The plan of a recipe on `ranks` ranks. Manifests are read where there are any; no weights are read or made.

    Raises:
        UserError: `ranks` below 1, a batch that does not divide over them, or a recipe that makes no model.
    """
    if ranks < 1:
        raise UserError(f"--plan-ranks {ranks}: must be at least 1")
    steps = StepPlan(recipe, ranks)
    found = {name: _examples(recipe, name) for name in recipe.tasks}
    model = _meta_model(recipe, {name: classes for name, (_, classes, _) in found.items()})
    tasks = []
    for index, (name, task) in enumerate(recipe.tasks.items()):
        examples, _, missing = found[name]
        micro = steps.micro[index]
        flops = task_cost(model, name).training_flops
        count = steps.schedule.steps_of(index)
        tasks.append(TaskPlan(name, task.batch, count, task.batch // ranks // micro, micro, examples, missing, flops))
    parameters = count_parameters(model)
    kept = max(task.micro_batch for task in tasks) * activation_bytes(model, recipe)
    together = len(steps.schedule.plan(0)) if recipe.gradients_every else 0
    memory = memory_by_stage(parameters, ranks, kept, ema=recipe.ema > 0, watched=together)
    return Plan(recipe, ranks, tasks, parameters, memory)


def memory_by_stage(
    parameters: int, ranks: int, activations: float, ema: bool = False, watched: int = 0
) -> dict[int, Memory]:
    """What each rank holds at ZeRO stages 0 to 3 with fp32 parameters and gradients and AdamW's two fp32 moments.

    The stages divide optimizer state, then gradients, then parameters over the ranks (Rajbhandari et al., "ZeRO",
    arXiv 1910.02054). From stage 1 on, DeepSpeed's optimizer has a rank's share of the parameters as a copy of its own.

    Args:
        ema: with a moving average of the weights, which every rank holds whole. Stage 3 cannot have one.
        watched: tasks of a step whose gradients train/gradients.py reads; 0: it reads none.
    """
    whole, share = 4.0 * parameters, 4.0 * parameters / ranks
    average = whole if ema else 0.0
    read = whole + watched * share if watched else 0.0
    stages = {
        0: Memory(whole, whole + read, 2 * whole, average, activations),
        1: Memory(whole, whole + read, 3 * share, average, activations),
        2: Memory(whole, share + read, 3 * share, average, activations),
    }
    return stages if ema else stages | {3: Memory(share, share + read, 3 * share, average, activations)}


def activation_bytes(model: CofinetuneModel, recipe: Recipe) -> float:
    """Estimate of what one clip keeps for the backward pass: per token and block, the outputs of matrix products and of
    attention in the compute type, and the two inputs of norms in fp32 (see models/recompute.py).

    Left out: heads, the clips themselves, temporary memory, and what a kernel's library takes.
    """
    config, size = model.backbone.config, 2 if recipe.precision == "bf16" else 4
    width, mlp = config.embed_dim, config.mlp_dim
    if recipe.model.grad_checkpointing == "full":
        token = 4.0 * width
    else:
        inner = mlp if recipe.model.grad_checkpointing == "none" else 0
        token = 2 * 4.0 * width + size * (3 * width + width + inner)
    return config.depth * num_tokens(model.backbone) * token


def describe_plan(plan: Plan, peak_tflops: float = PEAK_TFLOPS, utilisation: float = UTILISATION) -> str:
    """The plan as a text for people.

    Raises:
        UserError: a peak that is not above 0, or a utilisation that is not in (0, 1].
    """
    if not peak_tflops > 0:
        raise UserError(f"--plan-tflops {peak_tflops:g}: must be above 0")
    if not 0 < utilisation <= 1:
        raise UserError(f"--plan-utilisation {utilisation:g}: must be above 0 and at most 1")
    recipe, ranks = plan.recipe, f"{plan.ranks} rank{'s' if plan.ranks > 1 else ''}"
    lines = [f"{recipe.name}: {recipe.steps:,} steps, schedule {recipe.schedule}, {ranks}"]
    lines += [
        f"  {'task':<16}{'clips/step':>11}{'steps':>10}{'micro-steps':>14}{'clips':>14}{'examples':>12}{'epochs':>9}"
        f"{'TFLOP/clip':>12}"
    ]
    for task in plan.tasks:
        micro = f"{task.micro_steps} x {task.micro_batch}"
        examples = "unknown" if task.examples is None else f"{task.examples:,}"
        epochs = "unknown" if task.epochs is None else f"{task.epochs:.1f}"
        lines.append(
            f"  {task.name:<16}{task.clips:>11,}{task.steps:>10,}{micro:>14}{task.steps * task.clips:>14,}"
            f"{examples:>12}{epochs:>9}{task.training_flops / 1e12:>12.3g}"
        )
    lines.append("  micro-steps: of one rank in one step of the task, each of so many clips")
    lines += [f"  {task.name}: examples and classes unknown: {task.missing}" for task in plan.tasks if task.missing]
    lines += [
        f"parameters: {plan.parameters:,}",
        "memory of a rank in GiB, fp32 weights, gradients and AdamW; activations are a rough estimate:",
        f"  {'ZeRO stage':<14}{'weights':>9}{'gradients':>11}{'optimizer':>11}{'average':>9}{'activations':>13}"
        f"{'sum':>9}",
    ]
    for stage, memory in plan.memory.items():
        name = "0 (plain)" if stage == 0 else str(stage)
        lines.append(
            f"  {name:<14}{memory.weights / GIB:>9.2f}{memory.gradients / GIB:>11.2f}{memory.optimizer / GIB:>11.2f}"
            f"{memory.average / GIB:>9.2f}{memory.activations / GIB:>13.2f}{memory.total / GIB:>9.2f}"
        )
    if recipe.ema:
        lines.append("  average: of the weights (ema), on every rank; not with stage 3")
    if recipe.gradients_every:
        lines.append("  gradients: with what gradients_every keeps beside them in some steps")
    hours = plan.hours(peak_tflops, utilisation)
    lines += [
        f"operations: {plan.total_flops / recipe.steps / 1e12:,.4g} TFLOP a step on average, "
        f"{plan.total_flops / 1e18:,.4g} EFLOP in all (matrix products, forward and backward)",
        f"time: {duration(hours * 3600)} ({hours:,.4g} hours, {hours * plan.ranks:,.4g} device hours) "
        f"at {utilisation:.0%} of {peak_tflops:g} TFLOP/s a rank; data, evaluation and checkpoints not counted",
    ]
    return "\n".join(lines)


def _examples(recipe: Recipe, name: str) -> tuple[int | None, int, str | None]:
    """Examples, classes, and why they are not known."""
    alone = replace(recipe, tasks={name: recipe.tasks[name]})
    try:
        (task,) = open_tasks(alone, val=False, check=False)
    except (UserError, OSError) as error:
        return None, ASSUMED_CLASSES, str(error)
    assert task.train is not None
    return len(task.train.shards), len(task.classes), None


def _meta_model(recipe: Recipe, classes: dict[str, int]) -> CofinetuneModel:
    """The recipe's model without memory. What it leaves open for the source of weights is at its default."""
    backbone = {key: value for key, value in asdict(recipe.model).items() if value is not None}
    shared = {key: backbone.pop(key) for key in ("mean", "std", "subtract_mean_frame")}
    for key in ("init", *EXECUTION):
        del backbone[key]
    heads: dict[str, Any] = {}
    for name, task in recipe.tasks.items():
        options = {key: value for key, value in asdict(task.head).items() if value is not None}
        heads[name] = {"kind": task.kind, "num_classes": classes[name], **options}
    config = {"backbone": backbone, "heads": heads, **shared}
    try:
        return assemble(config, *build_parts(config, "meta"))
    except ValueError as error:
        raise UserError(f"model: {error}") from error
