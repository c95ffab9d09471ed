"""Persons between keyframes: the same one keeps its number and moves without jumps."""

import numpy as np
import pytest
import torch

from train.tracks import FARTHEST, PersonKeyframe, Tracks, link, looks, unlikeness

RED, BLUE = (0.8, 0.1, 0.1), (0.1, 0.1, 0.8)


def keyframe(time: float, *boxes: tuple[float, ...], colors: list[tuple[float, ...]] | None = None) -> PersonKeyframe:
    labels = [[(f"walk {time:g}", 0.5)] for _ in boxes]
    seen = np.array(colors or [RED] * len(boxes)).reshape(-1, 3)
    return PersonKeyframe(time, np.array(boxes, dtype=float).reshape(-1, 4), labels, seen)


LEFT, RIGHT, MOVED = (0.0, 0.0, 0.2, 0.4), (0.7, 0.0, 0.9, 0.4), (0.04, 0.0, 0.24, 0.4)


def test_between_keyframes_a_person_moves_in_a_straight_line_and_keeps_its_number():
    tracks = Tracks([keyframe(1, LEFT, RIGHT), keyframe(2, RIGHT, MOVED)], reach=1.5)
    persons = tracks.at(1.25)
    assert [person.track for person in persons] == [0, 1]
    assert persons[0].box == pytest.approx([0.01, 0.0, 0.21, 0.4])
    assert persons[1].box == pytest.approx(RIGHT)
    # Labels are those of the nearer keyframe.
    assert persons[0].labels[0][0] == "walk 1" and tracks.at(1.75)[0].labels[0][0] == "walk 2"


def test_who_comes_or_goes_does_so_half_way():
    tracks = Tracks([keyframe(1, LEFT), keyframe(2, RIGHT)], reach=1.5)
    assert [person.track for person in tracks.at(1.4)] == [0]
    assert [person.track for person in tracks.at(1.6)] == [1]


def test_far_from_any_keyframe_nobody_is_shown():
    tracks = Tracks([keyframe(1, LEFT), keyframe(10, LEFT)], reach=1.5)
    assert [len(tracks.at(time)) for time in (0.0, 0.3, 1.7, 1.8, 5.0, 9.3, 10.7, 11.0)] == [0, 1, 1, 0, 0, 1, 1, 0]
    # Nor is somebody who is back after so long known to be the same.
    assert tracks.at(10)[0].track != tracks.at(1)[0].track
    assert Tracks([], reach=1.5).at(3.0) == []


def test_each_is_linked_to_at_most_one_other_and_the_surest_first():
    assert link(np.array([[0.5, 9.0], [0.2, 0.4]])) == [(1, 0)]
    assert link(np.array([[0.5, 0.6], [0.2, 0.4]])) == [(1, 0), (0, 1)]
    assert link(np.zeros((0, 2))) == []


def test_who_walks_further_than_he_is_wide_is_still_the_same():
    """A box of 0.1 that moves by 0.3 in a second overlaps nothing of what it was."""
    tracks = Tracks([keyframe(t, (0.1 + 0.3 * t, 0.2, 0.2 + 0.3 * t, 0.8)) for t in range(3)], reach=1.5, aspect=16 / 9)
    for time in np.arange(0, 2, 0.1):
        (person,) = tracks.at(time)
        assert person.track == 0 and person.box[0] == pytest.approx(0.1 + 0.3 * time)


def test_two_who_pass_each_other_are_told_apart_by_their_looks():
    a, b = (0.3, 0.2, 0.4, 0.8), (0.6, 0.2, 0.7, 0.8)
    tracks = Tracks([keyframe(0, a, b, colors=[RED, BLUE]), keyframe(1, a, b, colors=[BLUE, RED])], reach=1.5)
    assert [person.box[0] for person in tracks.at(0.25)] == pytest.approx([0.3 + 0.25 * 0.3, 0.6 - 0.25 * 0.3])


def test_another_person_in_the_same_place_is_another():
    cut = Tracks([keyframe(0, LEFT, colors=[RED]), keyframe(1, LEFT, colors=[BLUE])], reach=1.5)
    assert cut.at(0.4)[0].track != cut.at(0.6)[0].track
    child = (0.05, 0.3, 0.1, 0.38)
    assert unlikeness(keyframe(0, LEFT), keyframe(1, child), 1.0)[0, 0] > FARTHEST


def test_distance_is_measured_in_persons_whatever_the_frames_shape():
    low, right = (0.1, 0.5, 0.2, 0.7), (0.2, 0.1, 0.3, 0.3)
    start = keyframe(0, (0.1, 0.1, 0.2, 0.3))
    assert unlikeness(start, keyframe(1, low), 2.0)[0, 0] == pytest.approx(2.0)
    # A tenth of the width of a frame that is twice as wide as high is as long as a fifth of its height.
    assert unlikeness(start, keyframe(1, right), 2.0)[0, 0] == pytest.approx(1.0)
    # Somebody who lies is as long as the box is wide.
    lying, moved = (0.1, 0.5, 0.3, 0.6), (0.2, 0.5, 0.4, 0.6)
    assert unlikeness(keyframe(0, lying), keyframe(1, moved), 2.0)[0, 0] == pytest.approx(0.5)


def test_looks_are_the_colours_of_the_box_from_head_to_foot():
    frame = torch.zeros(3, 90, 120, dtype=torch.uint8)
    for part, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        frame[:, 30 * part : 30 * (part + 1), 40:80] = torch.tensor(color)[:, None, None]
    # The box is wider than the person: its sides do not count.
    seen = looks(frame, np.array([[0.25, 0.0, 0.75, 1.0], [0.999, 0.999, 1.0, 1.0]]))
    assert seen[0].tolist() == pytest.approx([1, 0, 0, 0, 1, 0, 0, 0, 1])
    assert seen[1].tolist() == [0] * 9, "a box of less than a pixel"
    assert looks(frame, np.zeros((0, 4))).shape == (0, 9)
