"""Examples by number, for training and for evaluation; a bad sample is replaced or reported, never fatal."""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset

from data.batch import PADDING, Example, ExampleInfo, Substitute
from data.errors import UserError
from data.load import BadSample, TaskData, load_example, load_views
from data.lookahead import Lookahead
from data.mixing import Mix, draw_mix

__all__ = ["EvalDataset", "MixtureDataset", "Order", "TaskData"]

ATTEMPTS = 8
"""How many substitutes are tried for one bad sample. All of them bad means that most of the set is."""

_MIXING = ATTEMPTS + 1
"""The stream of random numbers that mixes clips, beside those of the attempts to load them."""

EVAL_LOOKAHEAD = 3
"""Shards that an evaluation fetches ahead, the one in use included: a rank reads neighbours, and what lies beyond its
share is the next rank's."""


class Order(Protocol):
    """Where a task's training examples come from, position by position."""

    def example(self, position: int) -> int: ...


class MixtureDataset(Dataset[Example]):
    """The training examples of all tasks, addressed by (task index, position in the task's order).

    What an address holds is a function of it, the seed and the task's name alone: not of the other tasks, nor of
    which process asks, nor of what was asked before or along with it.

    Where a task mixes its clips, the partner of position p is position p XOR 1, its neighbour in an even pair, and how
    the two are mixed is drawn from (seed, task, p // 2). Asked for in one batch, both are decoded once; a batch that
    cuts a pair apart decodes the partner too.

    Args:
        tasks: with distinct names.
        orders: one for each task.
        seed: at least 0.
        lookahead: fetches ahead what comes next of remote sets.
    """

    def __init__(
        self, tasks: Sequence[TaskData], orders: Sequence[Order], seed: int, lookahead: Lookahead | None = None
    ) -> None:
        assert len(tasks) == len(orders)
        if len({task.name for task in tasks}) < len(tasks):
            raise UserError(f"tasks need distinct names, not {[task.name for task in tasks]}")
        if seed < 0:
            raise UserError(f"seed: must be at least 0, not {seed}")
        self.tasks = list(tasks)
        self.orders = list(orders)
        self.seed = seed
        self._lookahead = lookahead

    def __getitem__(self, index: tuple[int, int]) -> Example:
        """The example at an address, or its substitute, the same one each time.

        Raises:
            UserError: neither the sample nor any of ATTEMPTS substitutes can be used.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[tuple[int, int]]) -> list[Example]:
        """The examples at several addresses, in their order; else as `self[index]`."""
        examples = []
        left = list(indices)
        plain: dict[tuple[int, int], Example] = {}
        for number, position in indices:
            examples.append(
                self._mixed(number, position, plain) if self.tasks[number].view.mixes else self._load(number, position)
            )
            left.remove((number, position))
            # A pair that is done is let go.
            for done in [address for address in plain if address not in left and _partner(address) not in left]:
                del plain[done]
        return examples

    def _mixed(self, number: int, position: int, plain: dict[tuple[int, int], Example]) -> Example:
        """The example with its share of its partner, and soft labels; `plain` holds examples before they are mixed."""
        task = self.tasks[number]

        def load(address: tuple[int, int]) -> tuple[Example, Tensor]:
            if address not in plain:
                plain[address] = self._load(*address)
            example = plain[address]
            return example, one_hot(example.labels, len(task.shards.manifest.classes)).float()

        example, labels = load((number, position))
        mix = self._mix(task, position)
        if mix is None:
            return replace(example, labels=labels)
        other, other_labels = load(_partner((number, position)))
        return replace(example, clip=mix.clips(example.clip, other.clip), labels=mix.labels(labels, other_labels))

    def _mix(self, task: TaskData, position: int) -> Mix | None:
        view = task.view
        rng = self._rng(task.name, position // 2, _MIXING)
        return draw_mix(view.mixup, view.cutmix, view.mixup_prob, view.mixup_switch_prob, view.image_size, rng)

    def _load(self, number: int, position: int) -> Example:
        if self._lookahead is not None:
            self._lookahead.at(number, position)
        task = self.tasks[number]
        example = self.orders[number].example(position)
        substitutes: list[Substitute] = []
        for attempt in range(ATTEMPTS + 1):
            rng = self._rng(task.name, position, attempt)
            if attempt:
                example = int(rng.integers(len(task.shards)))
            try:
                loaded = load_example(task, example, rng)
            except BadSample as bad:
                substitutes.append(bad.substitute)
            else:
                loaded.substitutes = substitutes
                return loaded
        raise UserError(
            f"{task.name}: {len(substitutes)} samples of {task.shards.prefix} in a row could not be used, the last one"
            f" is {substitutes[-1].key}: {substitutes[-1].reason}; check the shards with shard_tools/verify.py --decode"
        )

    def _rng(self, task: str, position: int, attempt: int) -> np.random.Generator:
        entropy = (self.seed, zlib.crc32(task.encode()), position)
        return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(attempt,)))


def _partner(address: tuple[int, int]) -> tuple[int, int]:
    return address[0], address[1] ^ 1


class EvalDataset(Dataset[Example]):
    """The evaluation's views of the examples of one task, by number; PADDING gives a view that counts nowhere.

    Number n is view n % V of example n // V, where V is `task.view.views`: one in localisation, and S views in space
    of each of T views in time in classification.
    """

    def __init__(self, task: TaskData) -> None:
        self.task = task
        self._shard = -1

    def __len__(self) -> int:
        return len(self.task.shards) * self.task.view.views

    def __getitem__(self, number: int) -> Example:
        """View number `number`. A bad sample comes back as padding that carries the reason in `substitutes`."""
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Example]:
        """Several views; neighbours that show the same frames are decoded once."""
        spatial = self.task.view.eval_views[1]
        examples: list[Example] = []
        for frames, group in itertools.groupby(
            numbers, lambda number: number // spatial if number != PADDING else None
        ):
            own = list(group)
            if frames is None:
                examples += [self._padding() for _ in own]
                continue
            example, time = divmod(frames, self.task.view.eval_views[0])
            self._fetch_ahead(int(self.task.shards.index[example]["shard"]))
            try:
                examples += load_views(self.task, example, time, [number % spatial for number in own])
            except BadSample as bad:
                examples += [self._padding(bad.substitute) for _ in own]
        return examples

    def _fetch_ahead(self, shard: int) -> None:
        if shard != self._shard:
            self._shard = shard
            self.task.shards.prefetch(range(shard, min(shard + EVAL_LOOKAHEAD, len(self.task.shards.manifest.shards))))

    def _padding(self, *substitutes: Substitute) -> Example:
        view, classes = self.task.view, len(self.task.shards.manifest.classes)
        localised = self.task.kind == "localisation"
        return Example(
            task=self.task.name,
            key="",
            example=PADDING,
            clip=torch.zeros(3, view.num_frames, view.image_size, view.image_size, dtype=torch.uint8),
            labels=torch.zeros(0, classes) if localised else torch.tensor(-1),
            boxes=torch.zeros(0, 4) if localised else None,
            info=ExampleInfo.padding() if localised else None,
            substitutes=list(substitutes),
        )
