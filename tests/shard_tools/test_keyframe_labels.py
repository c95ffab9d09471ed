"""From rows of an AVA file to keyframes: grouping, cleaning, what is dropped and counted."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ava_files import read_annotations
from data.errors import UserError
from shard_tools.keyframe_labels import collect_keyframes

CLASSES = {12, 17, 80}


def collect(tmp_path, rows, classes=CLASSES, excluded=(), proposals=None, keep_empty=False):
    path = tmp_path / "ava.csv"
    path.write_text("\n".join(rows) + "\n")
    return collect_keyframes(read_annotations(path), classes, set(excluded), proposals, keep_empty)


def test_rows_of_one_box_become_one_box_with_all_its_labels(tmp_path):
    rows = [
        "v,0903,0.1,0.2,0.5,0.9,80,1",
        "v,0902,0.1,0.2,0.5,0.9,17,1",
        "v,0902,0.6,0.2,0.9,0.9,12,2",
        "v,0902,0.1,0.2,0.5,0.9,12,1",
        "v,0902,0.1,0.2,0.5,0.9,12,1",
    ]
    videos, counts = collect(tmp_path, rows)
    first, second = videos["v"]
    assert (first.timestamp, second.timestamp) == (902.0, 903.0)
    assert first.boxes == [[0.1, 0.2, 0.5, 0.9], [0.6, 0.2, 0.9, 0.9]]
    assert first.labels == [[12, 17], [12]] and first.person_ids == [1, 2]
    assert not counts


def test_what_is_dropped_is_counted(tmp_path):
    rows = [
        "v,0902,0.1,0.2,0.5,0.9,12,1",
        "v,0902,0.1,0.2,0.5,0.9,99,1",
        "v,0903,0.5,0.2,0.1,0.9,12,1",
        "v,0904,0.5,0.2,0.5,0.9,12,1",
        "v,0905,-0.01,0.2,1.04,0.9,12,3_",
        "v,0906,0.1,0.2,0.5,0.9,12,1",
        "v,0907",
    ]
    videos, counts = collect(tmp_path, rows, excluded=[("v", 906.0), ("w", 902.0)])
    assert [keyframe.timestamp for keyframe in videos["v"]] == [902.0, 905.0]
    assert videos["v"][1].boxes == [[0.0, 0.2, 1.0, 0.9]] and videos["v"][1].person_ids == [3]
    assert counts == Counter(
        {
            "boxes without area, dropped (rows)": 2,
            "labels that are not in the label map, dropped (rows)": 1,
            "person ids that are no whole numbers, mended (rows)": 1,
            "boxes over the frame's edge, clipped (rows)": 1,
            "keyframes without a box, dropped": 3,
            "excluded keyframes, dropped": 1,
        }
    )


def test_an_evaluation_keeps_keyframes_without_boxes(tmp_path):
    videos, _ = collect(tmp_path, ["v,0902,0.1,0.2,0.5,0.9,99,1", "v,0903", "w,5.016949"], keep_empty=True)
    assert [(k.timestamp, k.boxes) for k in videos["v"]] == [(902.0, []), (903.0, [])]
    assert videos["w"][0].timestamp == 5.016949


def test_a_box_far_outside_the_frame_is_an_error_with_its_place(tmp_path):
    with pytest.raises(UserError, match=r"ava\.csv, line 2, column x2: 320, expected a share"):
        collect(tmp_path, ["v,0902,0.1,0.2,0.5,0.9,12,1", "v,0902,10,20,320,200,12,1"])


def test_proposals_are_joined_by_keyframe_and_keep_every_score(tmp_path):
    found = np.array([[0.1, 0.2, 0.5, 0.9, 0.03], [-0.2, 0.0, 1.3, 1.0, 0.9], [0.5, 0.5, 0.5, 0.9, 0.8]])
    videos, counts = collect(
        tmp_path, ["v,902,0.1,0.2,0.5,0.9,12,1", "v,903,0.1,0.2,0.5,0.9,12,1"], proposals={("v", 902.0): found}
    )
    assert videos["v"][0].proposals == [[0.1, 0.2, 0.5, 0.9, 0.03], [0.0, 0.0, 1.0, 1.0, 0.9]]
    assert videos["v"][1].proposals == []
    assert counts["keyframes without proposals"] == 1 and counts["proposals without area, dropped"] == 1
    with pytest.raises(UserError, match="these look like pixels"):
        collect(tmp_path, ["v,902,0.1,0.2,0.5,0.9,12,1"], proposals={("v", 902.0): found * 300})


near = st.floats(-0.05, 1.05)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(902, 905), near, near, near, near, st.sampled_from([12, 17, 99])), min_size=1)
)
def test_every_label_is_in_a_box_inside_the_frame_or_counted(tmp_path_factory, rows):
    lines = [f"v,{t},{a},{b},{c},{d},{label},0" for t, a, b, c, d, label in rows]
    videos, counts = collect(tmp_path_factory.mktemp("rows"), lines, keep_empty=True)
    kept = set()
    for keyframe in videos["v"]:
        for box, labels in zip(keyframe.boxes, keyframe.labels, strict=True):
            x1, y1, x2, y2 = box
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1
            kept |= {(keyframe.timestamp, *box, label) for label in labels}
    whole = {(t, *np.clip(r, 0, 1).tolist(), label) for t, *r, label in rows if label in CLASSES}
    assert kept == {row for row in whole if row[1] < row[3] and row[2] < row[4]}
    assert counts["labels that are not in the label map, dropped (rows)"] == sum(row[5] == 99 for row in rows)
