"""A sample's JSON may hold anything: what is needed is checked, and the reason names the field."""

import copy
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sample_json import SampleError, class_label, frame_count, read_keyframe, sample_key

DENSE = {1: 0, 12: 1, 80: 2}
SAMPLE: dict[str, Any] = {
    "key": "movie_0902",
    "video_id": "a.movie",
    "video": {"frames": 50},
    "keyframes": [
        {"timestamp": 902, "frame": 0, "boxes": [], "labels": [], "proposals": []},
        {
            "timestamp": 903.5,
            "frame": 49,
            "boxes": [[0, 0, 1, 1], [0.25, 0.5, 0.75, 1.0]],
            "labels": [[80, 1], []],
            "proposals": [[0.2, 0.2, 0.4, 0.9, 0.97]],
        },
    ],
}


def test_a_keyframe_is_read():
    keyframe = read_keyframe(SAMPLE, 1, DENSE)
    assert (keyframe.video_id, keyframe.timestamp, keyframe.frame) == ("a.movie", 903.5, 49)
    assert keyframe.labels == [[2, 0], []]
    np.testing.assert_array_equal(keyframe.boxes, [[0, 0, 1, 1], [0.25, 0.5, 0.75, 1.0]])
    np.testing.assert_array_equal(keyframe.proposals, [[0.2, 0.2, 0.4, 0.9, 0.97]])
    empty = read_keyframe(SAMPLE, 0, DENSE)
    assert empty.boxes.shape == (0, 4) and empty.proposals.shape == (0, 5) and empty.labels == []


@pytest.mark.parametrize("name", ["", 7, "a\nb", "a\x00", "a\ud800", "x" * 256])
def test_names_of_videos_that_no_file_could_bear(name):
    with pytest.raises(SampleError, match="bad video_id"):
        read_keyframe({**SAMPLE, "video_id": name}, 0, DENSE)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("timestamp", "0903", "timestamp"),
        ("timestamp", math.nan, "timestamp"),
        ("timestamp", 10**400, "timestamp"),
        ("frame", 50, "frame 50"),
        ("frame", -1, "frame -1"),
        ("frame", 3.0, "frame 3.0"),
        ("boxes", None, "boxes: not a list"),
        ("boxes", [[0, 0, 1, 1]], "each of its 1 boxes"),
        ("boxes", [[0, 0, 1, 1], [0.5, 0, 0.5, 1]], "bad box"),
        ("boxes", [[0, 0, 1, 1], [0.5, 0, 1.01, 1]], "bad box"),
        ("boxes", [[0, 0, 1, 1], [0.5, 0, math.nan, 1]], "bad box"),
        ("boxes", [[0, 0, 1, 1], [0.5, 0, 1]], "bad box"),
        ("boxes", [[0, 0, 1, 1], "0011"], "bad box"),
        ("boxes", [[0, 0, 1, 1], [0, 0, 1, True]], "bad box"),
        ("labels", {}, "one list of labels"),
        ("labels", [[1], 12], "no list"),
        ("labels", [[1], [2]], "label 2 is not a class"),
        ("labels", [[1], [[]]], "is not a class"),
        ("labels", [[True], []], "is not a class"),
        ("proposals", [[0, 0, 1, 1]], "bad box"),
        ("proposals", [[0, 0, 1, 1, math.inf]], "bad box"),
    ],
)
def test_bad_fields_of_a_keyframe_are_named(field, value, reason):
    sample = copy.deepcopy(SAMPLE)
    sample["keyframes"][1][field] = value
    with pytest.raises(SampleError, match=reason):
        read_keyframe(sample, 1, DENSE)


@pytest.mark.parametrize("keyframes", [None, [], [{}], ["", 3]])
def test_missing_keyframes_are_named(keyframes):
    with pytest.raises(SampleError, match="no keyframe number 1"):
        read_keyframe({**SAMPLE, "keyframes": keyframes}, 1, DENSE)


@pytest.mark.parametrize("video", [None, [], {}, {"frames": 0}, {"frames": "50"}, {"frames": 10**30}, {"frames": True}])
def test_bad_frame_counts(video):
    with pytest.raises(SampleError, match=r"video\.frames"):
        frame_count({"video": video})


def test_labels_of_classification():
    assert class_label({"label": 2}, 3) == 2
    assert class_label({"label": None}, 3) == -1
    for sample in ({}, {"label": 3}, {"label": -1}, {"label": "walk"}, {"label": 1.0}, {"label": True}):
        with pytest.raises(SampleError, match="label"):
            class_label(sample, 3)


@pytest.mark.parametrize("key", [None, "", "a.b", "../x", 7, "x" * 10 + "\n"])
def test_bad_keys(key):
    with pytest.raises(SampleError, match="key"):
        sample_key({"key": key})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(["timestamp", "frame", "boxes", "labels", "proposals"]), JSON)
def test_whatever_a_field_holds_is_a_keyframe_or_a_sample_error(field, value):
    sample = {**SAMPLE, "keyframes": [{**SAMPLE["keyframes"][0], field: value}]}
    try:
        read_keyframe(sample, 0, DENSE)
    except SampleError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
