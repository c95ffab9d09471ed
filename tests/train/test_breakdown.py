"""What a figure is made of: each rule by a case worked by hand, the bootstrap against evaluation of repeated files."""

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.shards import ClassInfo
from tests.train.slow_frame_map import Box
from tests.train.test_frame_map import LEFT, OFFICIAL, RIGHT, arrays, founds, truths
from train import compare as bootstrap
from train.breakdown import Breakdown, box_recall, class_recall, comparison_table, unique_names
from train.compare import Comparison, compare, draw_videos, resampled
from train.error_kinds import FALSE_POSITIVES, KINDS, error_kinds, kinds_of
from train.frame_map import match
from train.ties import have_ties, tie_range

FAR = (0.7, 0.7, 0.9, 0.9)


def matched(truth, found, classes=1):
    return match(arrays(truth, False), arrays(found, True), classes, OFFICIAL)


def people(truth):
    return arrays([box._replace(label=0) for box in truth], False)


def kinds(truth, found, classes=2) -> dict[str, int]:
    """How many false positives of each kind there are."""
    result = kinds_of(matched(truth, found, classes), people(truth))
    return {kind: n for place, kind in enumerate(FALSE_POSITIVES) if (n := int((result == place).sum()))}


def gains(truth, found, classes=1) -> dict[str, float]:
    errors = error_kinds(matched(truth, found, classes), people(truth))
    return dict(zip(KINDS, errors.gain[0].tolist(), strict=True))


def test_the_second_detection_of_a_box_is_a_duplicate():
    assert kinds([Box(0, LEFT, 0)], [Box(0, LEFT, 0, 0.9), Box(0, LEFT, 0, 0.8)]) == {"duplicate": 1}


def test_a_detection_on_a_person_who_does_something_else_is_of_the_wrong_class():
    assert kinds([Box(0, LEFT, 1)], [Box(0, LEFT, 0, 0.9)]) == {"wrong class": 1}


def test_a_detection_beside_a_person_who_does_it_is_a_localisation_error():
    # A quarter of the box: IoU 0.25.
    assert kinds([Box(0, LEFT, 0)], [Box(0, (0.0, 0.0, 0.25, 0.5), 0, 0.9)]) == {"localisation": 1}


def test_a_detection_beside_a_person_who_does_something_else_is_both():
    assert kinds([Box(0, LEFT, 1)], [Box(0, (0.0, 0.0, 0.25, 0.5), 0, 0.9)]) == {"both": 1}


def test_a_detection_without_a_person_is_background():
    assert kinds([Box(0, LEFT, 0)], [Box(0, FAR, 0, 0.9)]) == {"background": 1}
    # Less than a tenth of an overlap is none.
    assert kinds([Box(0, LEFT, 0)], [Box(0, (0.45, 0.0, 0.95, 1.0), 0, 0.9)]) == {"background": 1}


def test_who_lies_on_one_person_and_touches_another_has_the_wrong_class():
    near = (0.2, 0.0, 0.7, 1.0)  # IoU 0.3 / 0.7 with LEFT, which does class 0
    assert kinds([Box(0, LEFT, 0), Box(0, near, 1)], [Box(0, near, 0, 0.9)]) == {"wrong class": 1}


def test_persons_of_classes_that_are_not_evaluated_are_persons():
    errors = kinds_of(matched([Box(1, LEFT, 0)], [Box(1, RIGHT, 0, 0.9)]), people([Box(1, LEFT, 0), Box(1, RIGHT, 0)]))
    assert errors.tolist() == [FALSE_POSITIVES.index("wrong class")]


def test_a_box_that_a_localisation_error_is_about_is_not_missed():
    near = Box(0, (0.0, 0.0, 0.25, 0.5), 0, 0.9)
    for found, missed in (([near], 0), ([], 1), ([near._replace(corners=FAR)], 1)):
        assert error_kinds(matched([Box(0, LEFT, 0)], found), people([Box(0, LEFT, 0)])).top[0, -1] == missed


def test_only_as_many_detections_as_there_are_boxes_are_looked_at_first():
    truth = [Box(0, LEFT, 0), Box(1, LEFT, 0)]
    found = [Box(0, FAR, 0, 0.9), Box(0, LEFT, 0, 0.8), Box(1, FAR, 0, 0.7), Box(1, LEFT, 0, 0.6)]
    errors = error_kinds(matched(truth, found), people(truth))
    background = KINDS.index("background")
    assert (errors.right[0], errors.top[0, background], errors.everywhere[0, background]) == (1, 1, 2)


def test_what_mending_brings():
    truth = [Box(0, LEFT, 0), Box(1, LEFT, 0)]
    # Background, then right: AP is 1/2 of 2 boxes at precision 1/2, so 1/4. One box is missed.
    result = gains(truth, [Box(0, FAR, 0, 0.9), Box(0, LEFT, 0, 0.8)])
    assert result["background"] == 0.5 - 0.25, "without it, the right one has precision 1"
    assert result["missed"] == 0.5 - 0.25, "of one box, found at precision 1/2"
    assert result["duplicate"] == result["localisation"] == 0


def test_a_mended_box_counts_once_and_only_where_nothing_else_has_found_it():
    near = (0.0, 0.0, 0.25, 0.5)
    alone = gains([Box(0, LEFT, 0)], [Box(0, near, 0, 0.9), Box(0, near, 0, 0.8)])
    assert alone["localisation"] == 1.0, "the first one finds it, the second is left out"
    found = gains([Box(0, LEFT, 0)], [Box(0, near, 0, 0.9), Box(0, LEFT, 0, 0.8)])
    assert found["localisation"] == 0.5, "AP 1/2 becomes 1: the box is found already, so the error is left out"


@settings(max_examples=60, deadline=None)
@given(truth=truths, found=founds, seed=st.integers(0, 2**32 - 1))
def test_every_false_positive_has_one_kind_and_mending_never_harms(truth, found, seed):
    scores = np.random.default_rng(seed).permutation(len(found)) + 0.5
    found = [box._replace(score=float(score)) for box, score in zip(found, scores, strict=True)]
    matches = matched(truth, found, 3)
    errors = error_kinds(matches, people(truth))
    assert errors.everywhere[:, :-1].sum() + matches.is_match.sum() == len(matches.detections)
    assert (errors.top <= errors.everywhere).all()
    known = matches.instances > 0
    assert (errors.gain[known] >= -1e-12).all() and np.isnan(errors.gain[~known]).all()
    assert (errors.gain[known] + matches.frame_map().per_class[known, None] <= 1 + 1e-12).all()


def test_tied_scores_can_move_the_figure_and_by_how_much():
    truth = [Box(0, LEFT, 0)]
    tied = matched(truth, [Box(0, LEFT, 0, 0.5), Box(0, RIGHT, 0, 0.5)])
    # The right one first: AP 1; behind the wrong one: 1/2.
    assert have_ties(tied) and tie_range(tied) == (0.5, 1.0)
    clear = matched(truth, [Box(0, LEFT, 0, 0.5), Box(0, RIGHT, 0, 0.4), Box(0, FAR, 0, 0.4)])
    assert not have_ties(clear) and tie_range(clear) == (1.0, 1.0), "a tie of two wrong ones moves nothing"


def test_equal_scores_of_two_classes_are_no_tie():
    assert not have_ties(matched([Box(0, LEFT, 0), Box(0, LEFT, 1)], [Box(0, LEFT, 0, 0.5), Box(0, FAR, 1, 0.5)], 2))


@settings(max_examples=60, deadline=None)
@given(truth=truths, found=founds, seed=st.integers(0, 2**32 - 1))
def test_every_order_of_tied_scores_gives_a_figure_in_the_range(truth, found, seed):
    rng = np.random.default_rng(seed)
    found = [box._replace(score=float(rng.integers(1, 4))) for box in found]
    low, high = tie_range(matched(truth, found, 3))
    for _ in range(5):
        value = matched(truth, [found[i] for i in rng.permutation(len(found))], 3).frame_map().mean
        assert math.isnan(value) or low - 1e-12 <= value <= high + 1e-12


def test_what_boxes_of_any_class_and_score_cover_can_be_reached():
    truth = arrays([Box(0, LEFT, 0), Box(0, RIGHT, 1), Box(1, LEFT, 0)], False)
    covered = box_recall(truth, arrays([Box(0, LEFT, 1, 0.01), Box(0, LEFT, 0, 0.9), Box(1, RIGHT, 0, 0.9)], True))
    assert covered.tolist() == [True, False, False]
    assert class_recall(truth, covered, 3)[:2].tolist() == [0.5, 0.0] and math.isnan(class_recall(truth, covered, 3)[2])


@settings(max_examples=60, deadline=None)
@given(truth=truths, found=founds)
def test_no_scores_give_more_than_the_boxes_allow(truth, found):
    matches = matched(truth, [box._replace(score=1.0) for box in found], 3)
    recall = class_recall(matches.groundtruth, box_recall(matches.groundtruth, matches.detections), 3)
    known = matches.instances > 0
    assert (matches.frame_map().per_class[known] <= recall[known] + 1e-12).all()


@settings(max_examples=40, deadline=None)
@given(truth=truths, found=founds, seed=st.integers(0, 2**32 - 1), few=st.booleans())
def test_a_resample_is_what_evaluation_gives_on_repeated_videos(truth, found, seed, few):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(len(found)) + 0.5
    found = [box._replace(score=float(score)) for box, score in zip(found, scores, strict=True)]
    found = [box for box in found if box.frame in {t.frame for t in truth}]
    videos = np.array([0, 0, 1, 2, 2, 1])  # of the six keyframes
    weights = draw_videos(3, 4, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "_FEW_VIDEOS", 512 if few else 0)
        patch.setattr(bootstrap, "_CELLS", 7)
        values = resampled(matched(truth, found, 3), videos, weights)
    for drawn, own in zip(weights.astype(int), values, strict=True):

        def repeated(boxes, drawn=drawn):
            return [b._replace(frame=b.frame + 10 * n) for b in boxes for n in range(drawn[videos[b.frame]])]

        expected = matched(repeated(truth), repeated(found), 3).frame_map().per_class
        assert np.allclose(own, expected, equal_nan=True, atol=1e-12)


def test_a_draw_has_as_many_videos_as_there_are_and_the_seed_decides_it():
    weights = draw_videos(5, 100, 3)
    assert (weights.sum(axis=1) == 5).all() and (weights == draw_videos(5, 100, 3)).all()
    assert (weights != draw_videos(5, 100, 4)).any() and draw_videos(0, 7, 0).shape == (7, 0)


def run(right: int, videos: int = 12):
    """A run that finds the box of the first `right` of so many videos with one keyframe each."""
    found = [Box(v, LEFT if v < right else RIGHT, 0, 0.5 + v / 100) for v in range(videos)]
    return matched([Box(v, LEFT, 0) for v in range(videos)], found)


def test_a_run_is_no_better_than_itself_and_clearly_better_than_one_that_finds_nothing():
    videos = np.arange(12)
    same = compare(run(6), run(6), videos, videos, resamples=200).of_class(0)
    assert (same.value, same.low, same.high) == (0, 0, 0) and not same.is_clear
    better = compare(run(12), run(0), videos, videos, resamples=200).of_class(0)
    assert (better.value, better.low, better.high) == (1, 1, 1) and better.is_clear
    doubt = compare(run(1), run(0), videos, videos, resamples=200).of_class(0)
    # The one video that makes the difference is absent from a third of the draws: (11 / 12) ** 12.
    assert doubt.low == 0 < doubt.value and not doubt.is_clear


def test_classes_that_were_not_drawn_are_left_out_of_that_draws_mean():
    draws = np.array([[0.2, np.nan], [0.4, 0.0], [np.nan, np.nan]])
    c = Comparison(np.array([0.5, 0.5]), np.array([0.2, 0.4]), draws, 0.9, 3)
    mean = c.of_mean(np.array([True, True]))
    assert mean.value == pytest.approx(0.2) and mean.low == pytest.approx(0.2) and mean.high == pytest.approx(0.2)
    assert math.isnan(c.of_mean(np.array([False, False])).value)


@settings(max_examples=50, deadline=None)
@given(found=founds)
def test_distinct_boxes_are_all_the_boxes_there_are(found):
    def seen(boxes):
        return {(frame, *corners) for frame, corners in zip(boxes.frames.tolist(), boxes.boxes.tolist(), strict=True)}

    boxes = arrays(found, False)
    distinct = boxes.distinct()
    assert seen(distinct) == seen(boxes) and len(distinct) <= len(boxes)
    # Rows of one box in a row, as a detector writes its classes, become one.
    rows = boxes.take(np.repeat(np.arange(len(boxes)), 3)).distinct()
    assert len(rows) == len(distinct)


def test_names_differ_also_where_one_looks_like_another_with_its_id():
    classes = [ClassInfo(1, "run"), ClassInfo(2, "run"), ClassInfo(3, "run (1)"), ClassInfo(4, "walk")]
    assert len(set(unique_names(classes))) == 4 and unique_names(classes)[3] == "walk"


def test_a_part_without_a_known_class_is_told_without_a_warning():
    videos = np.arange(12)
    b = Breakdown(
        classes=[ClassInfo(1, "run")],
        result=run(6).frame_map(),
        parts={"head": np.array([False]), "tail": np.array([True])},
        recall=np.array([0.5]),
        person_recall=0.5,
        comparison=compare(run(6), run(3), videos, videos, resamples=10),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lines = comparison_table(b).splitlines()
    assert lines[2].split()[:4] == ["head", "-", "-", "-"] and lines[3].split()[1] == f"{100 * b.result.mean:.2f}"
