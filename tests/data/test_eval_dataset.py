"""Examples of an evaluation: views, proposals, ground truth."""

import numpy as np
import torch

from data.dataset import EvalDataset
from data.shards import ClassInfo
from tests.data.examples import evaluated, record, same, task
from tests.tiny_shards import box_video, clock_video, read_clock, write_set


def test_views_of_an_evaluation_are_a_grid_in_time_and_space(tmp_path):
    names = [ClassInfo(0, "tick")]
    shards = write_set(
        tmp_path,
        "clock",
        "val",
        "classification",
        names,
        [(record(f"tick{number}"), clock_video()) for number in range(2)],
    )
    dataset = EvalDataset(task(shards, eval_views=(3, 2)))
    assert len(dataset) == 12
    views = dataset.__getitems__(range(12))
    assert [view.example for view in views] == [0] * 6 + [1] * 6
    assert [read_clock(view.clip.numpy())[0] for view in views[:6]] == [0, 0, 14, 14, 28, 28]
    assert all(same(view, dataset[number]) for number, view in enumerate(views))
    # Left and right of a picture whose left half is red.
    video = box_video([[0, 0, 0.5, 1]], size=(192, 64))
    wide = write_set(tmp_path, "wide", "val", "classification", names, [(record("wide"), video)])
    red = [
        float((view.clip[0].float() - view.clip[1].float()).mean())
        for view in (EvalDataset(task(wide, eval_views=(1, 3))).__getitems__(range(3)))
    ]
    assert red[0] > 100 and 40 < red[1] < 100 and red[2] < 10


def test_views_of_the_same_frames_are_decoded_once(classification, monkeypatch):
    from data import load as module

    decoded: list[list[int]] = []
    decode = module.decode

    def noted(video, indices, frames):
        decoded.append(indices.tolist())
        return decode(video, indices, frames)

    monkeypatch.setattr(module, "decode", noted)
    EvalDataset(task(classification, eval_views=(2, 3))).__getitems__(range(6))
    assert len(decoded) == 2 and decoded[0] != decoded[1]


def test_evaluation_takes_proposals_over_the_threshold(localisation):
    example = evaluated(task(localisation), 3)
    info = example.info
    assert (info.video_id, info.timestamp, example.example) == ("movie.1", 903.0, 3)
    assert info.scores.tolist() == [0.95] and info.boxes.tolist() == info.gt_boxes.tolist()
    assert info.gt_labels == [[1]]
    np.testing.assert_allclose(example.boxes.numpy(), info.boxes, atol=1e-6)
    assert example.labels.shape == (1, 3) and example.labels.isnan().all()
    assert len(evaluated(task(localisation, proposal_score_threshold=0.3), 3).boxes) == 2
    assert len(evaluated(task(localisation, proposal_score_threshold=0.96), 3).boxes) == 0
    assert torch.equal(example.clip, evaluated(task(localisation), 3).clip)


def test_evaluation_on_ground_truth(localisation):
    example = evaluated(task(localisation, eval_boxes="groundtruth"), 3)
    assert example.info.scores.tolist() == [1.0] and example.labels.tolist() == [[0, 1, 0]]


def test_evaluation_of_classification_takes_the_centre_square(tmp_path):
    names = [ClassInfo(0, "edges")]
    # What is left and right of the centre square of 128x96 is red.
    video = box_video([[0, 0, 0.125, 1], [0.875, 0, 1, 1]])
    shards = write_set(tmp_path, "edges", "val", "classification", names, [(record("edges"), video)])
    clip = evaluated(task(shards), 0).clip.int()
    assert (clip[0] - clip[1])[..., 2:-2].max() < 30
    shards = write_set(
        tmp_path, "inner", "val", "classification", names, [(record("inner"), box_video([[0.125, 0, 0.25, 1]]))]
    )
    clip = evaluated(task(shards), 0).clip.int()
    assert (clip[0] - clip[1])[..., :8].min() > 90
