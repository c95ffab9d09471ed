"""Which classes of AVA the benchmark averages, and the groups of classes that its results are broken down by."""

from collections.abc import Sequence

import numpy as np

from data.shards import ClassInfo

ALL_IDS = frozenset(range(1, 81))
NOT_EVALUATED = frozenset({2, 16, 18, 19, 21, 23, 25, 31, 32, 33, 35, 39, 40, 42, 44, 50, 53, 55, 71, 75})
"""Ids that AVA v2.2's `ava_action_list_v2.2_for_activitynet_2019.pbtxt` leaves out: too rare in the validation set."""

GROUPS = {"person pose": range(1, 15), "person-object": range(15, 64), "person-person": range(64, 81)}
"""AVA's three kinds of action by id (Gu et al., arXiv 1705.08421)."""

DEFAULT_CUTOFFS = (1000, 10000)
"""Classes with fewer training boxes than the first are tail, with more than the second head."""


def is_evaluated(classes: Sequence[ClassInfo]) -> np.ndarray:
    """bool [C]: the classes that are averaged: all, except that of AVA's list of 80 it is the benchmark's 60."""
    ids = [c.id for c in classes]
    left_out = NOT_EVALUATED if set(ids) == ALL_IDS else frozenset()
    return np.array([number not in left_out for number in ids], dtype=bool)


def group_masks(classes: Sequence[ClassInfo]) -> dict[str, np.ndarray]:
    """Group name -> bool [C]; empty unless the classes are AVA's 80 or the benchmark's 60."""
    ids = [c.id for c in classes]
    if set(ids) not in (ALL_IDS, ALL_IDS - NOT_EVALUATED):
        return {}
    return {name: np.array([number in members for number in ids]) for name, members in GROUPS.items()}


def frequency_masks(counts: np.ndarray, cutoffs: Sequence[int] = DEFAULT_CUTOFFS) -> dict[str, np.ndarray]:
    """Head, mid and tail -> bool [C], from each class's number of training boxes (int64 [C])."""
    low, high = cutoffs
    return {
        f"head (> {high})": counts > high,
        f"mid ({low} to {high})": (counts >= low) & (counts <= high),
        f"tail (< {low})": counts < low,
    }
