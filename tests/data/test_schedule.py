"""Schedules and the division of a step among ranks."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.schedule import SCHEDULES, Schedule, apportion, micro_clips, micro_steps


def tasks_of(schedule: Schedule) -> list[int]:
    return [schedule.plan(step)[0].task for step in range(schedule.steps)]


@given(st.integers(0, 500), st.lists(st.floats(0.01, 100), min_size=1, max_size=6))
def test_apportion_is_exact(steps, shares):
    counts = apportion(steps, shares)
    assert sum(counts) == steps
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - steps * share / sum(shares)) < 1


def test_accumulate_sees_every_task_in_every_step():
    schedule = Schedule("accumulate", [4, 2], 3, 0, [1, 1])
    assert [(part.task, part.first, part.clips) for part in schedule.plan(2)] == [(0, 8, 4), (1, 4, 2)]


@given(st.integers(1, 200), st.lists(st.floats(0.1, 10), min_size=1, max_size=5), st.integers(0, 9))
def test_weighted_has_exact_counts(steps, shares, seed):
    schedule = Schedule("weighted", [2] * len(shares), steps, seed, shares)
    seen = Counter(tasks_of(schedule))
    assert [seen[task] for task in range(len(shares))] == apportion(steps, shares)
    assert [schedule.steps_of(task) for task in range(len(shares))] == apportion(steps, shares)


def test_weighted_is_mixed_and_seeded():
    first, second = (tasks_of(Schedule("weighted", [1, 1], 200, seed, [3, 1])) for seed in (0, 1))
    assert first != second
    assert 15 <= sum(first[:100]) <= 35  # about a quarter of each half


@given(st.sampled_from(SCHEDULES), st.integers(1, 60), st.integers(0, 3))
def test_each_stream_is_taken_without_gaps(name, steps, seed):
    schedule = Schedule(name, [4, 6, 2], steps, seed, [1, 2, 3])
    next_position = [0, 0, 0]
    for step in range(steps):
        for part in schedule.plan(step):
            assert part.first == next_position[part.task]
            next_position[part.task] += part.clips


def test_alternating_and_task_by_task():
    assert tasks_of(Schedule("alternating", [1, 1, 1], 5, 0, [1, 1, 1])) == [0, 1, 2, 0, 1]
    assert tasks_of(Schedule("task_by_task", [1, 1], 4, 0, [3, 1])) == [0, 0, 0, 1]


def test_uniform_draws_all():
    seen = Counter(tasks_of(Schedule("uniform", [1, 1], 400, 0, [9, 1])))
    assert 150 < seen[0] < 250


@given(st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 12), st.sampled_from(SCHEDULES))
def test_ranks_and_micro_batches_only_cut_the_step(world, most, name):
    clips = [24, 48]
    schedule = Schedule(name, clips, 5, 0, [1, 1])
    micro = [micro_clips("t", size, world, most) for size in clips]
    for step in range(5):
        plan = schedule.plan(step)
        ranks = [micro_steps(plan, micro, rank, world) for rank in range(world)]
        # All ranks run the same task in the same micro-step, with equally many clips.
        for together in zip(*ranks, strict=True):
            assert len({part.task for part in together}) == 1
            assert len({len(part.positions) for part in together}) == 1
            assert len(together[0].positions) <= most
        # Rank after rank, the positions of a task are the plan itself.
        for part in plan:
            merged = [
                p
                for steps in ranks
                for micro_step in steps
                if micro_step.task == part.task
                for p in micro_step.positions
            ]
            assert merged == list(range(part.first, part.first + part.clips))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_million_steps_are_planned_exactly(name):
    steps, shares = 1_000_000, [542, 791, 169, 210]
    schedule = Schedule(name, [128, 128, 64, 64], steps, 0, shares)
    counts = [schedule.steps_of(task) for task in range(4)]
    if name == "accumulate":
        assert counts == [steps] * 4
    elif name in ("weighted", "task_by_task"):
        assert counts == apportion(steps, shares)
    else:
        assert sum(counts) == steps and all(abs(count - steps / 4) < 2000 for count in counts)
    for part in schedule.plan(steps - 1):
        # The last step of a task takes the last batch of its stream, unless another task comes last.
        assert part.first == (counts[part.task] - 1) * schedule.clips[part.task]


def test_an_indivisible_batch_says_what_would_fit():
    with pytest.raises(UserError, match=r"tasks.ava.batch=16 .* 3 ranks.*batch=18.*1, 2, 4, 8, 16"):
        micro_clips("ava", 16, 3, 8)


@pytest.mark.parametrize("shares", [[-1, 2], [0, 0]])
def test_senseless_shares_are_refused(shares):
    with pytest.raises(UserError, match="share"):
        Schedule("weighted", [1, 1], 10, 0, shares)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="accumulate, weighted"):
        Schedule("random", [1], 10, 0, [1])
