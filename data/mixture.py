"""A recipe's mixture: which clips every rank loads in every step, and the dataset that holds them."""

from collections.abc import Iterator, Sequence

from data.dataset import MixtureDataset, TaskData
from data.order import EpochOrder
from data.recipe import DataRecipe
from data.schedule import MicroStep, Schedule, micro_clips, micro_steps


class StepPlan:
    """What every rank does in every step, from the recipe and the number of ranks alone.

    Raises:
        UserError: a task's batch does not divide over the ranks.
    """

    def __init__(self, recipe: DataRecipe, world: int) -> None:
        tasks = recipe.tasks
        clips, shares = [task.batch for task in tasks.values()], [task.share for task in tasks.values()]
        self.schedule = Schedule(recipe.schedule, clips, recipe.steps, recipe.seed, shares)
        self.micro = [micro_clips(name, task.batch, world, task.micro_batch) for name, task in tasks.items()]
        self.world = world

    def micro_steps(self, step: int, rank: int) -> list[MicroStep]:
        return micro_steps(self.schedule.plan(step), self.micro, rank, self.world)

    def batches(self, start: int, rank: int) -> Iterator[list[tuple[int, int]]]:
        """The rank's micro-batches from step `start` on, as the loader takes them: lists of (task, position)."""
        for step in range(start, self.schedule.steps):
            for part in self.micro_steps(step, rank):
                yield [(part.task, position) for position in part.positions]


def build_mixture(sets: Sequence[TaskData], recipe: DataRecipe) -> MixtureDataset:
    """The training sets of a recipe's tasks, in the order of its tasks, each with its order of examples."""
    orders = [
        EpochOrder(data.shards.shard_examples, recipe.seed, data.name, recipe.window, recipe.tasks[data.name].batch)
        for data in sets
    ]
    return MixtureDataset(sets, orders, recipe.seed)
