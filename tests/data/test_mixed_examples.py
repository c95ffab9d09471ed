"""Mixup and CutMix: what a pair of clips makes of each of them, however batches are cut."""

import torch

from tests.data.examples import mixture, same, task


def mixed_task(shards, **changes):
    return task(shards, **{"mixup": 0.8, "cutmix": 1.0, **changes})


def test_mixed_clips_are_what_their_pair_makes_of_them(classification):
    plain, mixed = mixture(task(classification)), mixture(mixed_task(classification))
    changed = 0
    for position in range(8):
        own, other, example = plain[0, position], plain[0, position ^ 1], mixed[0, position]
        partner = mixed[0, position ^ 1]
        assert (example.key, example.example) == (own.key, own.example)
        assert example.labels.shape == (3,) and example.labels.dtype == torch.float32
        assert example.labels.sum() == 1 and example.labels[[int(own.labels), int(other.labels)]].sum() >= 1
        # Both of a pair are mixed alike, so that together they are what they were.
        total = example.clip.int() + partner.clip.int() - own.clip.int() - other.clip.int()
        assert total.abs().max() <= 1
        changed += not torch.equal(example.clip, own.clip)
    assert changed >= 6


def test_how_a_batch_is_cut_does_not_matter_to_its_pairs(classification):
    dataset = mixture(mixed_task(classification))
    alone = [dataset[0, position] for position in range(6)]
    for size in (2, 3, 6):
        batches = [range(start, start + size) for start in range(0, 6, size)]
        cut = [example for batch in batches for example in dataset.__getitems__([(0, p) for p in batch])]
        assert all(same(one, other) for one, other in zip(alone, cut, strict=True))


def test_a_pair_in_one_batch_is_decoded_once(classification, monkeypatch):
    from data import dataset as module

    loaded: list[int] = []
    load = module.load_example

    def noted(task, example, rng):
        loaded.append(example)
        return load(task, example, rng)

    monkeypatch.setattr(module, "load_example", noted)
    dataset = mixture(mixed_task(classification))
    dataset.__getitems__([(0, position) for position in range(6)])
    assert loaded == [0, 1, 2, 3, 4, 5]
    loaded.clear()
    dataset.__getitems__([(0, 1), (0, 2)])
    assert sorted(loaded) == [0, 1, 2, 3]
    loaded.clear()
    mixture(mixed_task(classification, mixup_prob=0.0)).__getitems__([(0, 1)])
    assert loaded == [1]


def test_labels_stay_soft_where_a_pair_is_not_mixed(classification):
    example = mixture(mixed_task(classification, mixup_prob=0.0))[0, 4]
    assert example.labels.tolist() == [0, 1, 0]
    assert torch.equal(example.clip, mixture(task(classification))[0, 4].clip)


def test_a_bad_sample_in_a_pair_is_told_once(damaged):
    batch = mixture(mixed_task(damaged)).__getitems__([(0, 0), (0, 1)])
    assert batch[0].substitutes == [] and batch[1].substitutes[0].key == "sample_1"
    assert batch[1].substitutes == mixture(task(damaged))[0, 1].substitutes
