"""The gradients of single tasks, every so many steps: their norms, and how far two tasks pull the backbone one way."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from data.schedule import TaskStep
from models import CofinetuneModel
from train.launch import Rank


class GradientProbe:
    """Reads gradients on their way from autograd to the engine, and changes nothing about them.

    While a backward pass is watched, a hook on each parameter adds what comes by to a sum of the step's current task.
    Nothing is computed twice, random numbers stay as they are, and no engine is asked for what it has made of the
    gradients: all of them, with every stage of ZeRO and with offload, give the same figures. A hook sees the whole
    gradient of its parameter under stage 3 too.

    While such a step runs, each rank keeps one copy of the gradient of backbone and head, the sum, and of every task in
    the step its part, 1 / ranks, of the backbone's gradient, all in fp32. After each task the ranks add up their sums.

    Args:
        model: as the engine trains it.
        every: a step is read when it is so many times the `every`-th one of its task; 0: none is.
    """

    def __init__(self, model: CofinetuneModel, rank: Rank, every: int) -> None:
        self.model, self.rank, self.every = model, rank, every
        self.begin([])

    def begin(self, parts: Sequence[TaskStep]) -> None:
        """A step begins that trains `parts`.

        A task's own steps count, not the run's: of four tasks in a cycle, every 100th step would show but one.
        """
        self.active = self.every > 0 and any((part.first // part.clips + 1) % self.every == 0 for part in parts)
        self._task: str | None = None
        self._sums: dict[nn.Parameter, Tensor] = {}
        self._heads: dict[str, float] = {}
        self._parts: dict[str, list[Tensor]] = {}

    @contextmanager
    def watch(self, task: str) -> Iterator[None]:
        """Around the backward pass of each micro-batch; those of one task follow each other."""
        if not self.active:
            yield
            return
        if task != self._task:
            self._end_task()
            assert task not in self._parts, f"the micro-batches of {task} do not follow each other"
            self._task = task
        watched = [*_trained(self.model.backbone), *_trained(self.model.heads[task])]
        handles = [parameter.register_hook(self._adder(parameter)) for parameter in watched]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def figures(self) -> dict[str, float]:
        """What the step's gradients were, as the optimizer gets them but for clipping; none of a step that is not read.
        Called on every rank, behind the step's last backward pass.

        Returns:
            `gradients/backbone`, the norm of the step's gradient on the backbone; `gradients/backbone/TASK`, of the
            task's part of it; `gradients/head/TASK`; `gradients/cosine/TASK/OTHER`, in [-1, 1], of every two tasks'
            parts on the backbone, unless one is zero.
        """
        if not self.active:
            return {}
        self._end_task()
        tasks = list(self._parts)
        # products[i, j]: the inner product of the gradients of tasks i and j.
        products = torch.zeros(len(tasks), len(tasks), dtype=torch.float64, device=self.rank.device)
        for same_place in zip(*self._parts.values(), strict=True):
            rows = torch.stack(same_place).double()
            products += rows @ rows.T
        self._sum_over_ranks(products)
        norms = products.diagonal().sqrt().tolist()
        told = {"gradients/backbone": math.sqrt(max(float(products.sum()), 0.0))}
        told |= {f"gradients/backbone/{task}": norm for task, norm in zip(tasks, norms, strict=True)}
        told |= {f"gradients/head/{task}": norm for task, norm in self._heads.items()}
        for i, j in combinations(range(len(tasks)), 2):
            if norms[i] > 0 and norms[j] > 0:
                told[f"gradients/cosine/{tasks[i]}/{tasks[j]}"] = float(products[i, j]) / (norms[i] * norms[j])
        self.begin([])
        return told

    def _adder(self, parameter: nn.Parameter) -> Callable[[Tensor], None]:
        def add(gradient: Tensor) -> None:
            if parameter in self._sums:
                self._sums[parameter] += gradient
            else:
                self._sums[parameter] = gradient.clone()

        return add

    def _end_task(self) -> None:
        """Sums the task's gradient over ranks, and leaves its head's norm and this rank's part of the backbone's."""
        if self._task is None:
            return
        square = torch.zeros((), dtype=torch.float64, device=self.rank.device)
        for parameter in _trained(self.model.heads[self._task]):
            square += self._take(parameter).double().square().sum()
        self._heads[self._task] = float(square.sqrt())
        own = (self._take(parameter).flatten() for parameter in _trained(self.model.backbone))
        # Copied: a view would keep the whole.
        self._parts[self._task] = [whole.tensor_split(self.rank.world)[self.rank.index].clone() for whole in own]

    def _take(self, parameter: nn.Parameter) -> Tensor:
        """The parameter's part of the task's gradient."""
        total = self._sums.pop(parameter, None)
        if total is None:  # on this rank; all must take part in the sum
            shape = getattr(parameter, "ds_shape", parameter.shape)  # stage 3 leaves an empty tensor in its place
            total = torch.zeros(shape, dtype=parameter.dtype, device=self.rank.device)
        self._sum_over_ranks(total)
        return total.div_(self.rank.world)  # the mean over ranks: see Engine.backward

    def _sum_over_ranks(self, values: Tensor) -> None:
        if self.rank.world > 1:
            dist.all_reduce(values)


def _trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
