"""A recipe's mixture: which clips every rank loads in every step, and the dataset that holds them."""

from collections.abc import Iterable, Iterator, Sequence

from data.dataset import MixtureDataset, TaskData
from data.lookahead import Lookahead
from data.order import EpochOrder
from data.recipe import DataRecipe
from data.schedule import MicroStep, NodeShare, Schedule, micro_clips, micro_steps
from data.shard_cache import GB, ShardCache
from data.storage import is_remote


def schedule_of(recipe: DataRecipe) -> Schedule:
    tasks = recipe.tasks.values()
    clips, shares = [task.batch for task in tasks], [task.share for task in tasks]
    return Schedule(recipe.schedule, clips, recipe.steps, recipe.seed, shares)


def order_of(data: TaskData, recipe: DataRecipe) -> EpochOrder:
    batch = recipe.tasks[data.name].batch
    return EpochOrder(data.shards.shard_examples, recipe.seed, data.name, recipe.window, batch)


def open_cache(recipe: DataRecipe, prefixes: Iterable[str]) -> ShardCache | None:
    """The recipe's cache, where any of the sets is remote. Raises UserError where it cannot be used."""
    return ShardCache(recipe.cache.folder, recipe.cache.max_gb * GB) if any(map(is_remote, prefixes)) else None


class StepPlan:
    """What every rank does in every step, from the recipe and the number of ranks alone.

    Raises:
        UserError: a task's batch does not divide over the ranks.
    """

    def __init__(self, recipe: DataRecipe, world: int) -> None:
        self.schedule = schedule_of(recipe)
        self.micro = [micro_clips(name, task.batch, world, task.micro_batch) for name, task in recipe.tasks.items()]
        self.world = world

    def micro_steps(self, step: int, rank: int) -> list[MicroStep]:
        return micro_steps(self.schedule.plan(step), self.micro, rank, self.world)

    def batches(self, start: int, rank: int) -> Iterator[list[tuple[int, int]]]:
        """The rank's micro-batches from step `start` on, as the loader takes them: lists of (task, position)."""
        for step in range(start, self.schedule.steps):
            for part in self.micro_steps(step, rank):
                yield [(part.task, position) for position in part.positions]


def build_mixture(sets: Sequence[TaskData], recipe: DataRecipe, node: NodeShare | None = None) -> MixtureDataset:
    """The training sets of a recipe's tasks, in the order of its tasks, each with its order of examples.

    Args:
        node: the machine's part of a global batch, so that of remote sets it fetches ahead what it reads; None: all.
    """
    orders = [order_of(data, recipe) for data in sets]
    lookahead = None
    if any(data.shards.cache is not None and data.shards.whole_shards for data in sets):
        lookahead = Lookahead([data.shards for data in sets], orders, schedule_of(recipe), node or NodeShare())
    return MixtureDataset(sets, orders, recipe.seed, lookahead)
