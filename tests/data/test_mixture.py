"""The global batch of a step: the same clips, pixels and boxes however a run is spread, cut and interrupted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batch import Batch
from data.dataset import TaskData
from data.errors import UserError
from data.loader import train_loader
from data.mixture import StepPlan, build_mixture
from data.recipe import ClipSize, DataRecipe, TaskSource, view_config
from data.schedule import SCHEDULES
from data.shards import ClassInfo, ShardSet
from tests.tiny_shards import class_video, make_localisation_set, video_record, write_set

STRONG = {"stride": 3, "scale": [0.3, 1.0], "color_jitter": 0.2, "randaugment_ops": 2, "random_erasing": 0.5}
VIEWS = {"kinetics": {**STRONG, "mixup": 0.8, "cutmix": 1.0}, "ava": STRONG}
"""All of the augmentation."""


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, ShardSet]:
    """Two small sets; sample 4 of the first one is damaged, so that substitutes are among what must agree."""
    folder = tmp_path_factory.mktemp("mixture")
    entries = []
    for number in range(9):
        record = {"key": f"clip_{number}", "label": number % 3, "video": video_record(20)}
        entries.append((record, b"no video" if number == 4 else class_video(number % 3, 3, 20)))
    names = [ClassInfo(number, f"class {number}") for number in range(3)]
    kinetics = write_set(folder, "kinetics", "train", "classification", names, entries, shards=3)
    return {"kinetics": kinetics, "ava": make_localisation_set(folder, "ava", "train", samples=3, frames=24)}


def recipe(sets: dict[str, ShardSet], batch: int = 24, micro: int = 24, **changes) -> DataRecipe:
    tasks = {
        name: TaskSource(
            kind=shards.manifest.kind, shards=shards.prefix, batch=batch, micro_batch=micro, share=2, view=VIEWS[name]
        )
        for name, shards in sets.items()
    }
    return DataRecipe(
        **{"steps": 3, "tasks": tasks, "window": 2, "model": ClipSize(num_frames=3, image_size=32), **changes}
    )


def load(sets: dict[str, ShardSet], wanted: DataRecipe, world: int, start: int, workers: int) -> list[list[Batch]]:
    """The batches of each rank from step `start` on."""
    opened = [
        TaskData(name, shards.manifest.kind, shards, view_config(VIEWS[name], wanted.model))
        for name, shards in sets.items()
    ]
    plan = StepPlan(wanted, world)
    ranks = []
    for rank in range(world):
        loader = train_loader(build_mixture(opened, wanted), plan.batches(start, rank), workers)
        ranks.append(list(loader))
        loader.close()
    return ranks


def merged(ranks: list[list[Batch]], steps: int) -> list[tuple]:
    """What the ranks hold together, step by step and task by task: keys, then clips, labels and boxes as one tensor."""
    result = []
    for step in range(steps):
        for task in ("kinetics", "ava"):
            own = []
            for batches in ranks:
                # Each rank has equally many batches in each step.
                share = batches[step * len(batches) // steps : (step + 1) * len(batches) // steps]
                own += [batch for batch in share if batch.task == task]
            boxes = [batch.boxes for batch in own if batch.boxes is not None]
            result.append(
                (
                    task,
                    [key for batch in own for key in batch.keys],
                    [(bad.key, bad.reason) for batch in own for bad in batch.substitutes],
                    torch.cat([batch.clips for batch in own]),
                    torch.cat([batch.labels for batch in own]),
                    torch.cat(boxes) if boxes else None,
                    [len(batch.keys) for batch in own][:1],
                )
            )
    return result


def same(first: list[tuple], second: list[tuple]) -> bool:
    for one, other in zip(first, second, strict=True):
        if one[:3] != other[:3]:
            return False
        for a, b in zip(one[3:6], other[3:6], strict=True):
            if (a is None) != (b is None) or (a is not None and not torch.equal(a, b)):
                return False
    return True


@pytest.fixture(scope="module")
def alone(sets) -> list[tuple]:
    """Steps 1 and 2 of the run in one process, reached from step 0, one micro-batch a task."""
    whole = merged(load(sets, recipe(sets), 1, 0, 0), 3)
    assert any(task[2] for task in whole[2:]), "no substitute: the test says nothing about them"
    soft = whole[2][4]
    assert soft.shape == (24, 3) and ((soft > 0) & (soft < 1)).any(), "no mixed clip"
    assert not same(whole[:2], whole[2:4])
    return whole[2:]


@pytest.mark.parametrize(
    ("world", "micro", "workers"), [(1, 4, 2), (2, 12, 0), (2, 3, 1), (3, 8, 0), (3, 1, 0), (4, 6, 0), (8, 3, 0)]
)
def test_the_global_batch_is_the_same_wherever_it_is_loaded(sets, alone, world, micro, workers):
    """Started at step 1, as after an interruption."""
    found = merged(load(sets, recipe(sets, micro=micro), world, 1, workers), 2)
    assert same(alone, found)
    assert found[0][6] == [min(micro, 24 // world)], "cut otherwise than the test means"


def test_an_indivisible_batch_says_what_would_fit(sets):
    with pytest.raises(UserError, match=r"tasks\.kinetics\.batch=24 .* 5 ranks.*kinetics\.batch=25.*1, 2, 3, 4, 6, 8"):
        StepPlan(recipe(sets), 5)


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.integers(1, 9),
    st.integers(0, 40),
    st.sampled_from(SCHEDULES),
    st.integers(0, 9),
)
def test_the_plan_of_a_step_does_not_depend_on_ranks_micro_batch_or_start(sets, parts, world, micro, start, name, seed):
    wanted = recipe(sets, world * parts, micro, steps=start + 2, schedule=name, seed=seed)
    whole = [list(batches) for batches in StepPlan(wanted, 1).batches(0, 0)]
    ranks = [list(StepPlan(wanted, world).batches(start, rank)) for rank in range(world)]
    assert len({tuple(map(len, rank)) for rank in ranks}) == 1, "ranks have equal batches"
    assert len({tuple(batch[0][0] for batch in rank) for rank in ranks}) == 1, "and of the same tasks"
    taken = {address for rank in ranks for batch in rank for address in batch}
    done = sum(part.clips for step in range(start) for part in StepPlan(wanted, 1).schedule.plan(step))
    assert sorted(taken) == sorted([address for batch in whole for address in batch][done:])
    assert all(len(batch) <= micro for rank in ranks for batch in rank)
