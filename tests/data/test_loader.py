"""Batches, workers and ranks."""

import multiprocessing
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.batch import PADDING, Batch, clip_bytes, collate
from data.dataset import EvalDataset, MixtureDataset
from data.errors import UserError
from data.loader import eval_batches, eval_loader, train_loader, worker_death
from data.order import EpochOrder
from data.shards import ClassInfo, ShardSet
from tests.data.examples import mixture, record, task
from tests.tiny_shards import class_video, write_set

TENSORS = ("clips", "examples", "labels", "boxes", "box_clip")


def same(one: Batch, other: Batch) -> bool:
    for name in TENSORS:
        first, second = getattr(one, name), getattr(other, name)
        if (first is None) != (second is None) or (first is not None and not torch.equal(first, second)):
            return False
    return (one.task, one.keys, one.substitutes) == (other.task, other.keys, other.substitutes)


@pytest.fixture
def both(classification, localisation) -> MixtureDataset:
    tasks = [task(classification), task(localisation)]
    return MixtureDataset(tasks, [EpochOrder(t.shards.shard_examples, 0, t.name, 2) for t in tasks], seed=0)


MICRO_BATCHES = [[(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 1)], [(0, 3)], [(1, 2), (1, 3)], [(0, 9), (0, 8)]]


def children() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def test_batches_do_not_depend_on_the_workers(both):
    alone = list(train_loader(both, MICRO_BATCHES, workers=0))
    loader = train_loader(both, MICRO_BATCHES, workers=2)
    shared = list(loader)
    assert len(alone) == len(shared) == len(loader) == len(MICRO_BATCHES)
    assert all(same(one, other) for one, other in zip(alone, shared, strict=True))
    # A second pass by the same workers.
    assert all(same(one, other) for one, other in zip(alone, loader, strict=True))
    loader.close()


def test_batches_do_not_depend_on_how_they_are_cut(both):
    whole = next(iter(train_loader(both, [[(1, position) for position in range(4)]], workers=0)))
    parts = list(train_loader(both, [[(1, 0)], [(1, 1), (1, 2), (1, 3)]], workers=0))
    for name in ("clips", "examples", "labels", "boxes"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))


def test_clips_in_shared_memory_are_the_same(both):
    examples = [both[0, position] for position in range(3)]
    storage = torch.UntypedStorage._new_shared(clip_bytes(examples), device="cpu")
    one, other = collate(examples), collate(examples, storage)
    assert same(one, other) and other.clips.is_shared() and not one.clips.is_shared()
    # Channels last in memory, until a device has them.
    assert one.clips.permute(0, 2, 3, 4, 1).is_contiguous() and other.clips.stride() == one.clips.stride()
    assert one.to("cpu").clips.is_contiguous() and torch.equal(one.to("cpu").clips, one.clips)


def test_batches_that_are_kept_are_not_written_over(both):
    addresses = [[(number % 2, place), (number % 2, place + 1)] for number in range(2) for place in range(0, 40, 2)]
    alone = list(train_loader(both, addresses, workers=0))
    loader = train_loader(both, addresses, workers=2)
    kept, views = [], []
    for _ in range(2):
        for number, batch in enumerate(loader):
            # Some are let go at once, some leave no more than a view of their clips behind.
            if number % 3 == 0:
                kept.append((number, batch))
            elif number % 3 == 1:
                views.append((number, batch.clips[1].transpose(0, 1).numpy()))
    loader.close()
    assert len(kept) == 28 and all(same(alone[number], batch) for number, batch in kept)
    assert all((alone[number].clips[1].transpose(0, 1).numpy() == view).all() for number, view in views)


@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_are_mixed_alike_in_any_worker_and_micro_batch(classification, workers):
    def loaded(micro: int) -> list[Batch]:
        addresses = [[(0, start + place) for place in range(micro)] for start in range(0, 8, micro)]
        loader = train_loader(mixture(task(classification, mixup=0.8, cutmix=1.0)), addresses, workers)
        batches = list(loader)
        loader.close()
        return batches

    (whole,) = loaded(8)
    assert whole.labels.shape == (8, 3) and not (whole.labels == whole.labels.round()).all()
    for micro in (1, 2, 4):
        parts = loaded(micro)
        assert torch.equal(whole.clips, torch.cat([part.clips for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))


def test_a_batch_of_clips_with_boxes(both):
    first, second, empty = both[1, 0], both[1, 1], EvalDataset(both.tasks[1])[PADDING]
    second.boxes, second.labels = second.boxes.repeat(3, 1), second.labels.repeat(3, 1)
    batch = collate([first, empty, second])
    assert batch.boxes is not None and batch.box_clip is not None
    assert batch.clips.shape == (3, 3, 4, 64, 64) and batch.clips.dtype == torch.uint8 and len(batch) == 3
    assert batch.box_clip.tolist() == [0, 2, 2, 2] and batch.box_clip.dtype == torch.int64
    assert batch.boxes.shape == (4, 4) and batch.labels.shape == (4, 3) and batch.labels.dtype == torch.float32
    assert batch.examples.tolist() == [first.example, PADDING, second.example]
    nothing = collate([empty, empty])
    assert nothing.boxes is not None and nothing.box_clip is not None
    assert nothing.boxes.shape == (0, 4) and nothing.labels.shape == (0, 3) and nothing.box_clip.tolist() == []
    moved = batch.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
    assert moved.keys == batch.keys and batch.clips.device.type == "cpu"


def test_a_corrupt_sample_leaves_the_rest_of_its_batch_alone(tmp_path):
    entries = [(record(f"sample_{number}"), class_video(number, 4)) for number in range(4)]
    names = [ClassInfo(0, "only")]
    good = write_set(tmp_path / "good", "set", "train", "classification", names, entries)
    entries[2] = (entries[2][0], entries[2][1][:400])
    bad = write_set(tmp_path / "bad", "set", "train", "classification", names, entries)
    addresses = [[(0, position) for position in range(4)]]
    (whole,) = train_loader(mixture(task(good)), addresses, workers=0)
    (mended,) = train_loader(mixture(task(bad)), addresses, workers=2)
    assert whole.substitutes == [] and [bad.key for bad in mended.substitutes] == ["sample_2"]
    for place in (0, 1, 3):
        assert torch.equal(whole.clips[place], mended.clips[place]) and whole.keys[place] == mended.keys[place]
    assert len(mended.keys) == 4 and "sample_2" not in mended.keys


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9), st.integers(1, 6))
def test_ranks_share_an_evaluation(examples, world, batch_size, views):
    ranks = [eval_batches(examples, rank, world, batch_size, views) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    seen = [number for batches in ranks for batch in batches for number in batch if number != PADDING]
    assert sorted(seen) == list(range(examples * views))
    owners = {(number // views, rank) for rank, own in enumerate(ranks) for b in own for number in b if number >= 0}
    assert len(owners) == examples


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_covers_each_example_once(classification, world):
    batches = [list(eval_loader(task(classification), rank, world, 2, workers=0)) for rank in range(world)]
    assert len({len(part) for part in batches}) == 1
    seen = {
        int(number): (key, int(label), clip)
        for part in batches
        for batch in part
        for number, key, label, clip in zip(batch.examples, batch.keys, batch.labels, batch.clips, strict=True)
    }
    real = sum(int((batch.examples != PADDING).sum()) for part in batches for batch in part)
    assert real == len(classification) and set(seen) - {PADDING} == set(range(real))
    dataset = EvalDataset(task(classification))
    for number in range(real):
        key, label, clip = seen[number]
        assert key == f"kinetics_{number:05d}" and label == number % 3 and torch.equal(clip, dataset[number].clip)


def test_localisation_evaluation_keeps_its_rows_together(localisation):
    for batch in eval_loader(task(localisation, proposal_score_threshold=0.2), 0, 1, 3, workers=1):
        assert len(batch.infos) == len(batch.keys) == 3 and batch.boxes is not None
        for place, info in enumerate(batch.infos):
            rows = batch.boxes[batch.box_clip == place]
            assert torch.allclose(rows, torch.from_numpy(info.boxes).float())
            assert len(info.scores) == len(rows) == (0 if batch.examples[place] == PADDING else 2)


@pytest.fixture
def hopeless(tmp_path) -> ShardSet:
    entries = [(record(f"sample_{number}"), b"not a video") for number in range(3)]
    return write_set(tmp_path, "broken", "train", "classification", [ClassInfo(0, "only")], entries)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_users_error_comes_without_a_traceback(hopeless, workers):
    loader = train_loader(mixture(task(hopeless)), [[(0, 0)]], workers)
    with pytest.raises(UserError, match=r"^broken: 9 samples") as caught:
        list(loader)
    assert "Traceback" not in str(caught.value)
    traceback.clear_frames(caught.tb)
    loader.close()


def test_workers_leave_signals_to_the_run_and_end_with_the_loader(both):
    loader = train_loader(both, MICRO_BATCHES * 4, workers=2)
    batches = iter(loader)
    pids = children()
    assert len(pids) == 2
    for name in ("INT", "TERM", "USR1"):
        # By another process, as a scheduler would.
        subprocess.run(["kill", f"-{name}", *map(str, pids)], check=True)
    assert len(list(batches)) == 4 * len(MICRO_BATCHES)
    assert sorted(children()) == sorted(pids)
    loader.close()
    del batches
    assert children() == []


def test_a_worker_ends_when_its_own_process_says_so(both):
    """The interpreter terminates what is left of its children when it exits, and waits for them."""
    loader = train_loader(both, MICRO_BATCHES, workers=1)
    batches = iter(loader)
    next(batches)
    (worker,) = multiprocessing.active_children()
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0
    loader.close()


def test_a_dead_worker_ends_the_run_with_a_reason(classification):
    # In a process of its own: torch raises from a signal handler, in the loader or in any other line.
    script = f"""
import os, signal, time
from data.errors import UserError
from data.loader import eval_loader, worker_death
from data.shards import ShardSet
from tests.data.examples import task
from tests.data.test_loader import children
try:
    batches = iter(eval_loader(task(ShardSet({classification.prefix!r})), 0, 1, 1, workers=1))
    next(batches)
    os.kill(children()[0], signal.SIGKILL)
    for _ in batches:
        time.sleep(0.2)
except UserError as error:
    print(error, flush=True)
except RuntimeError as error:
    print(worker_death(error), flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert "a process that loads data has died" in done.stdout and "lower `workers`" in done.stdout, done.stderr
    assert worker_death(RuntimeError("shapes do not match")) is None


def test_the_loader_draws_nothing_from_the_global_generator(both):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(train_loader(both, MICRO_BATCHES[:1], workers=0))
    list(eval_loader(both.tasks[0], 0, 1, 4, workers=0))
    assert torch.equal(torch.rand(3), expected)


def test_no_room_in_shared_memory_is_explained(both, monkeypatch):
    def full(self: Batch) -> Batch:
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(Batch, "share_memory_", full)
    loader = train_loader(both, MICRO_BATCHES, workers=1)
    with pytest.raises(UserError, match="--shm-size") as caught:
        next(iter(loader))
    traceback.clear_frames(caught.tb)
    loader.close()
