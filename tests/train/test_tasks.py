"""Losses: hard, soft and smoothed labels."""

import torch
from torch import Tensor

from data.batch import Batch
from train.recipe import TaskRecipe
from train.tasks import Task

LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 3, 3, 1])


def loss(labels: Tensor, smoothing: float = 0.0) -> Tensor:
    task = Task("look", TaskRecipe(kind="classification", shards="none", label_smoothing=smoothing), [], None, None)
    batch = Batch("look", torch.zeros(4, 0), [""] * 4, torch.arange(4), labels)
    assert task.weight(batch) == 4
    return task.loss(LOGITS, batch)


def test_soft_labels_are_shares_of_hard_ones():
    hard = torch.nn.functional.one_hot(LABELS, 5).float()
    assert torch.allclose(loss(hard), loss(LABELS))
    other = torch.tensor([1, 3, 0, 2])
    mixed = hard * 0.75 + torch.nn.functional.one_hot(other, 5) * 0.25
    assert torch.allclose(loss(mixed), 0.75 * loss(LABELS) + 0.25 * loss(other))


def test_smoothing_spreads_its_share_over_all_classes():
    even = torch.full((4, 5), 0.2)
    assert torch.allclose(loss(LABELS, 0.3), 0.7 * loss(LABELS) + 0.3 * loss(even))
    assert torch.allclose(loss(even, 0.3), loss(even))
