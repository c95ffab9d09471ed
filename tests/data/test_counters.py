"""What loading costs, carried by the batches whoever loads them."""

import pytest

from data.counters import add, count, figures, take, timed
from data.dataset import TaskData
from data.loader import eval_loader, train_loader
from data.shards import ClassInfo
from data.storage import take_counts
from data.view import ViewConfig
from tests.data.examples import mixture, record, task
from tests.tiny_shards import class_video, write_set


def test_counts_are_taken_once():
    take()
    with timed("load_s"):
        count(hits=2)
        count(hits=1, misses=0.5)
    with pytest.raises(KeyError), timed("load_s"):
        raise KeyError
    taken = take()
    assert taken["hits"] == 3 and taken["misses"] == 0.5 and taken["load_s"] > 0
    assert take() == {}
    add(total := {"hits": 1.0}, taken)
    assert total["hits"] == 4 and total["misses"] == 0.5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_tells_what_it_cost(localisation, classification, workers):
    sets = mixture(task(classification), task(localisation, num_frames=24))
    take()
    take_counts()  # what tests before this one have read
    count(elsewhere=100)  # of the run's own process, not of its workers
    batches = list(train_loader(sets, [[(0, 0), (0, 1)], [(1, 0), (1, 1), (1, 2)], [(0, 2)]], workers))
    assert [batch.counts["clips"] for batch in batches] == [2, 3, 1]
    for batch in batches:
        counts = batch.counts
        parts = [counts[f"{part}_s"] for part in ("read", "decode", "view")]
        assert min(parts) > 0 and sum(parts) < counts["load_s"] and counts["send_s"] > 0
        assert 500 * counts["clips"] < counts["read_bytes"] < 1e6
        assert counts["substitutes"] == 0
    # 24 frames at stride 3 do not fit into 38; 4 do.
    assert [batch.counts["padded_clips"] for batch in batches] == [0, 3, 0]
    assert ("elsewhere" in batches[0].counts) == (workers == 0)
    take()


def test_substitutes_and_padding_are_counted(tmp_path):
    entries = [(record(f"sample_{n}", frames=20), b"no video" if n == 1 else class_video(0, 1, 20)) for n in range(3)]
    shards = write_set(tmp_path, "set", "train", "classification", [ClassInfo(0, "only")], entries)
    data = TaskData("set", "classification", shards, ViewConfig(num_frames=4, stride=9, image_size=32))
    (batch,) = train_loader(mixture(data), [[(0, 0), (0, 1), (0, 2)]], 0)
    assert batch.counts["substitutes"] == 1 and batch.counts["padded_clips"] == batch.counts["clips"] == 3
    batches = list(eval_loader(data, 0, 1, 2, 0))
    assert [batch.counts["clips"] for batch in batches] == [1, 1], "neither a bad example nor padding is a clip"


def test_figures():
    told = figures({"clips": 10, "read_bytes": 5e6, "load_s": 0.2, "decode_s": 0.15, "padded_clips": 1}, 2.0)
    assert told["clips_per_second"] == 5 and told["read_megabytes_per_second"] == 2.5
    assert told["load_ms"] == pytest.approx(20) and told["decode_ms"] == pytest.approx(15) and told["view_ms"] == 0
    assert told["padded_share"] == 0.1 and told["substitutes"] == 0 and "cache_hit_rate" not in told
    assert figures({"clips": 1, "hits": 3, "misses": 1}, 1.0)["cache_hit_rate"] == 0.75
    assert figures({}, 1.0) == {}
