"""Frame mAP: each rule by a case worked by hand, and equality with the slow reference on random files."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.slow_frame_map import Box, slow_frame_map
from train.frame_map import PROTOCOLS, FrameBoxes, FrameMap, average_precision, frame_map

LEFT = (0.0, 0.0, 0.5, 1.0)
RIGHT = (0.5, 0.0, 1.0, 1.0)
OFFICIAL = PROTOCOLS["activitynet-2020"]


def arrays(boxes: list[Box], scored: bool) -> FrameBoxes:
    return FrameBoxes(
        np.array([b.frame for b in boxes], dtype=np.int64),
        np.array([b.corners for b in boxes], dtype=np.float64).reshape(-1, 4),
        np.array([b.label for b in boxes], dtype=np.int64),
        np.array([b.score for b in boxes], dtype=np.float64) if scored else None,
    )


def evaluate(truth: list[Box], found: list[Box], protocol=OFFICIAL, classes=1, **frames) -> FrameMap:
    frames = {name: np.array(sorted(numbers), dtype=np.int64) for name, numbers in frames.items()}
    return frame_map(arrays(truth, False), arrays(found, True), classes, protocol, **frames)


def ap(*args, **kwargs) -> float:
    return evaluate(*args, **kwargs).per_class[0]


def test_a_perfect_detection_of_the_only_box_has_ap_1():
    assert ap([Box(0, LEFT, 0)], [Box(0, LEFT, 0, 0.3)]) == 1.0


def test_iou_of_exactly_one_half_matches():
    # Half of the box covered, nothing beside it: IoU is 0.5 exactly.
    assert ap([Box(0, (0, 0, 1, 1), 0)], [Box(0, LEFT, 0, 0.3)]) == 1.0


def test_iou_below_one_half_does_not_match():
    assert ap([Box(0, (0, 0, 1, 1), 0)], [Box(0, (0, 0, 0.499, 1), 0, 0.3)]) == 0.0


def test_a_second_match_of_a_box_is_a_false_positive_and_the_higher_score_is_the_first():
    truth = [Box(0, LEFT, 0), Box(1, LEFT, 0)]
    found = [Box(0, LEFT, 0, 0.7), Box(0, LEFT, 0, 0.8), Box(1, LEFT, 0, 0.6)]
    # Ranked: match, second match (wrong), match: precision 1 up to recall 1/2, then 2/3.
    assert ap(truth, found) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_a_detection_is_not_given_its_second_best_box_when_the_best_is_taken():
    low, high = (0.0, 0.0, 1.0, 0.6), (0.0, 0.0, 1.0, 0.8)
    found = [Box(0, high, 0, 0.9), Box(0, (0.0, 0.0, 1.0, 0.72), 0, 0.8)]
    # The second overlaps `high` (0.9) more than `low` (0.83), though only `low` is free: one of two boxes is found.
    assert ap([Box(0, low, 0), Box(0, high, 0)], found) == 0.5


def test_the_best_box_is_sought_among_those_of_the_detections_class_only():
    truth = [Box(0, LEFT, 1), Box(0, (0.0, 0.0, 0.5, 0.6), 0)]
    # It overlaps the box of class 1 entirely, but is scored against the box of class 0 (IoU 0.6).
    assert ap(truth, [Box(0, LEFT, 0, 0.9)], classes=2) == 1.0


def test_boxes_of_another_keyframe_do_not_match():
    assert ap([Box(0, LEFT, 0), Box(1, RIGHT, 0)], [Box(1, LEFT, 0, 0.9)]) == 0.0


def test_precision_is_the_envelope_over_all_higher_recalls():
    truth = [Box(frame, LEFT, 0) for frame in range(3)]
    found = [Box(0, RIGHT, 0, 0.9), Box(0, LEFT, 0, 0.8), Box(1, LEFT, 0, 0.7), Box(2, RIGHT, 0, 0.6)]
    # Wrong, right, right, wrong: precisions 1/2 and 2/3 at the hits, so 2/3 for both; the third box is never found.
    assert ap(truth, found) == pytest.approx(2 / 3 * 2 / 3)


def test_a_class_without_ground_truth_is_not_averaged_and_one_without_detections_counts_0():
    result = evaluate([Box(0, LEFT, 0), Box(0, LEFT, 1)], [Box(0, LEFT, 0, 0.9), Box(0, LEFT, 2, 0.9)], classes=3)
    assert result.per_class[:2].tolist() == [1.0, 0.0] and math.isnan(result.per_class[2])
    assert result.mean == 0.5
    assert result.instances.tolist() == [1, 1, 0] and result.detections.tolist() == [1, 0, 1]


def test_without_any_ground_truth_there_is_no_mean():
    assert math.isnan(evaluate([], [Box(0, LEFT, 0, 0.9)]).mean)
    assert evaluate([Box(0, LEFT, 0)], []).mean == 0.0


def test_the_cap_keeps_the_highest_scores_of_a_keyframe_over_all_classes():
    truth = [Box(0, LEFT, 0), Box(1, LEFT, 0)]
    found = [Box(0, LEFT, 0, 0.1), Box(0, LEFT, 1, 0.3), Box(0, RIGHT, 1, 0.2), Box(1, LEFT, 0, 0.1)]
    # Two rows of keyframe 0 count, both of class 1, so that its box of class 0 is lost.
    assert evaluate(truth, found, replace(OFFICIAL, max_per_image=2), classes=2).per_class[0] == 0.5
    assert evaluate(truth, found, replace(OFFICIAL, max_per_image=3), classes=2).per_class[0] == 1.0
    assert evaluate(truth, found, replace(OFFICIAL, max_per_image=0), classes=2).per_class[0] == 1.0


def test_where_the_cap_cuts_through_tied_scores_the_official_heap_decides():
    truth = [Box(0, LEFT, 0), Box(0, LEFT, 1), Box(0, LEFT, 2)]
    capped = replace(OFFICIAL, max_per_image=2)
    tied = [Box(0, LEFT, 2, 0.5), Box(0, LEFT, 0, 0.5), Box(0, LEFT, 1, 0.5)]
    # Full with the first two: the third is no higher and stays out.
    assert evaluate(truth, tied, capped, classes=3).per_class.tolist() == [1.0, 0.0, 1.0]
    # A higher row takes the place of the tied row of the lowest class, not of the later one.
    higher = [Box(0, LEFT, 0, 0.5), Box(0, LEFT, 2, 0.5), Box(0, LEFT, 1, 0.9)]
    assert evaluate(truth, higher, capped, classes=3).per_class.tolist() == [0.0, 1.0, 1.0]


def test_the_official_cap_is_50_and_its_copies_have_none():
    truth = [Box(0, LEFT, 0)]
    found = [Box(0, RIGHT, 1, 0.9 - i / 1000) for i in range(50)] + [Box(0, LEFT, 0, 0.1)]
    aps = {name: evaluate(truth, found, protocol, classes=2).per_class[0] for name, protocol in PROTOCOLS.items()}
    assert aps == {"activitynet-2019": 0.0, "activitynet-2020": 0.0, "slowfast": 1.0, "mmaction2": 1.0}


def test_a_detection_without_area_uses_up_a_row_of_the_cap_and_is_then_dropped():
    truth = [Box(0, LEFT, 0)]
    found = [Box(0, (0.5, 0.0, 0.5, 1.0), 0, 0.9), Box(0, LEFT, 0, 0.8)]
    assert evaluate(truth, found).per_class[0] == 1.0
    assert evaluate(truth, found).detections[0] == 1
    assert evaluate(truth, found, replace(OFFICIAL, max_per_image=1)).per_class[0] == 0.0


@pytest.mark.parametrize("corners", [(0.2, 0.2, 0.2, 0.2), (0.5, 0.0, 0.0, 1.0)])
def test_ground_truth_without_area_is_a_box_that_cannot_be_found(corners):
    assert ap([Box(0, LEFT, 0), Box(0, corners, 0)], [Box(0, LEFT, 0, 0.9)]) == 0.5


def test_2020_scores_exactly_the_named_keyframes():
    truth, found = [Box(0, LEFT, 0)], [Box(1, LEFT, 0, 0.9), Box(2, LEFT, 0, 0.8), Box(0, LEFT, 0, 0.7)]
    # Keyframe 1 was annotated as empty, so its detection is wrong; keyframe 2 was not annotated and says nothing.
    assert ap(truth, found, named={0, 1}) == 0.5
    assert ap(truth, found, named={0, 1, 2}) == pytest.approx(1 / 3)
    assert ap(truth, found) == 1.0


@pytest.mark.parametrize("name", ["activitynet-2019", "slowfast", "mmaction2"])
def test_the_others_count_detections_on_unnamed_keyframes_as_wrong(name):
    truth, found = [Box(0, LEFT, 0)], [Box(1, LEFT, 0, 0.9), Box(0, LEFT, 0, 0.7)]
    assert ap(truth, found, PROTOCOLS[name], named={0}) == 0.5


def test_excluded_keyframes_are_dropped_on_both_sides_except_by_2020():
    truth = [Box(0, LEFT, 0), Box(1, LEFT, 0)]
    found = [Box(1, RIGHT, 0, 0.9), Box(0, LEFT, 0, 0.7)]
    aps = {name: ap(truth, found, protocol, excluded={1}) for name, protocol in PROTOCOLS.items()}
    # Without keyframe 1 its box is not missed and its detection is not wrong; with it, precision and recall are 1/2.
    assert aps == {"activitynet-2019": 1.0, "slowfast": 1.0, "mmaction2": 1.0, "activitynet-2020": 0.25}


def test_slowfast_gives_a_box_to_the_detection_that_comes_first_in_the_file():
    truth, found = [Box(0, LEFT, 0)], [Box(0, LEFT, 0, 0.7), Box(0, LEFT, 0, 0.8)]
    aps = {name: ap(truth, found, protocol) for name, protocol in PROTOCOLS.items()}
    # The row of score 0.7 matches, and the row of 0.8 above it is the second match.
    assert aps == {"activitynet-2019": 1.0, "activitynet-2020": 1.0, "slowfast": 0.5, "mmaction2": 1.0}


def test_of_tied_scores_the_first_row_goes_first():
    truth = [Box(0, LEFT, 0)]
    right, wrong = Box(0, LEFT, 0, 0.5), Box(0, RIGHT, 0, 0.5)
    assert ap(truth, [right, wrong]) == 1.0
    assert ap(truth, [wrong, right]) == 0.5


def test_of_equal_overlaps_the_first_ground_truth_box_is_the_best():
    # Twice the same box: both detections choose the first of them, so one of the two is never found.
    truth, found = [Box(0, LEFT, 0), Box(0, LEFT, 0)], [Box(0, LEFT, 0, 0.9), Box(0, LEFT, 0, 0.8)]
    assert ap(truth, found) == 0.5


def test_average_precision_of_nothing():
    assert average_precision(np.zeros(0, dtype=bool), 3) == 0.0
    assert math.isnan(average_precision(np.zeros(2, dtype=bool), 0))


@pytest.mark.parametrize("scores", [None, np.array([np.nan]), np.array([0.5, 0.5])])
def test_detections_need_a_finite_score_each(scores):
    with pytest.raises(ValueError, match="score"):
        found = FrameBoxes(np.zeros(1, np.int64), np.array([LEFT]), np.zeros(1, np.int64), scores)
        frame_map(arrays([Box(0, LEFT, 0)], False), found, 1)


def test_a_class_out_of_range_is_refused():
    with pytest.raises(ValueError, match="classes"):
        evaluate([Box(0, LEFT, 1)], [], classes=1)


# Corners on a coarse grid make equal overlaps, IoU of exactly 0.5 and boxes without area common.
grid = st.integers(0, 4).map(lambda i: i / 4)
corners = st.tuples(grid, grid, grid, grid)
truths = st.lists(st.builds(Box, st.integers(0, 4), corners, st.integers(0, 2)), max_size=25)
founds = st.lists(st.builds(Box, st.integers(0, 5), corners, st.integers(0, 2)), max_size=40)


@settings(max_examples=250, deadline=None)
@given(
    truth=truths,
    found=founds,
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(sorted(PROTOCOLS)),
    most=st.sampled_from([0, 1, 3, 50]),
    alike=st.sampled_from([1, 1, 3, 10, 100]),
    extra=st.sets(st.integers(0, 5)),
    excluded=st.sets(st.integers(0, 5), max_size=2),
)
def test_equals_the_slow_reference(truth, found, seed, name, most, alike, extra, excluded):
    scores = np.random.default_rng(seed).permutation(len(found)) // alike + 0.5
    found = [box._replace(score=float(score)) for box, score in zip(found, scores, strict=True)]
    named = extra | {box.frame for box in truth}
    protocol = replace(PROTOCOLS[name], max_per_image=most)
    result = evaluate(truth, found, protocol, classes=3, named=named, excluded=excluded)
    expected = slow_frame_map(
        truth,
        found,
        range(3),
        most=most,
        named=named if name == "activitynet-2020" else None,
        excluded=set() if name == "activitynet-2020" else excluded,
        file_order=name == "slowfast",
    )
    for label, value in expected.items():
        if value is None:
            assert math.isnan(result.per_class[label])
        else:
            assert result.per_class[label] == pytest.approx(value, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(truth=truths, found=founds, seed=st.integers(0, 2**32 - 1))
def test_the_size_of_the_work_portions_does_not_matter(truth, found, seed):
    scores = np.random.default_rng(seed).permutation(len(found)) + 0.5
    found = [box._replace(score=float(score)) for box, score in zip(found, scores, strict=True)]
    whole = evaluate(truth, found, classes=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.frame_map._CHUNK", 3)
        assert np.array_equal(evaluate(truth, found, classes=3).per_class, whole.per_class, equal_nan=True)
