"""Confusion: the cells by hand, their CSV, and which classes of many are drawn."""

import csv
import warnings

import numpy as np
import pytest

from data.shards import ClassInfo
from train.confusion import Confusion
from train.confusion_picture import MOST_CLASSES, MOST_PAIRS, confusion_picture, shown_classes
from train.evaluators.predictions import Predictions
from train.figures import pixels


def confusion(cells: dict[tuple[int, int], int], classes: int, name: str = "class {}") -> Confusion:
    """Of `cells[true, predicted]` examples each; a true class of -1 is an example without a label."""
    pairs = [pair for pair, count in cells.items() for _ in range(count)]
    true, best = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    top = np.stack([best, (best + 1) % classes], axis=1)
    found = Predictions(np.array(["key"] * len(pairs)), true, top, np.full((len(pairs), 2), 0.5))
    return Confusion.of(found, [ClassInfo(n, name.format(n)) for n in range(classes)])


def test_the_best_class_of_each_labelled_example_is_counted():
    c = confusion({(0, 0): 3, (0, 2): 1, (2, 0): 2, (-1, 1): 5}, 3)
    assert list(zip(c.true.tolist(), c.predicted.tolist(), c.count.tolist(), strict=True)) == [
        (0, 0, 3),
        (0, 2, 1),
        (2, 0, 2),
    ]
    assert c.totals.tolist() == [4, 0, 2] and c.examples == 6 and c.right == 3


def test_rows_are_shares_of_a_classs_examples():
    c = confusion({(0, 0): 3, (0, 2): 1, (2, 0): 2}, 3)
    rows = c.rows(np.array([2, 0, 1]))
    assert rows[:2].tolist() == [[0, 1, 0, 0], [0.25, 0.75, 0, 0]]
    assert np.isnan(rows[2]).all(), "class 1 has no examples"
    # What lies outside of the chosen classes is in the last column.
    assert c.rows(np.array([0])).tolist() == [[0.75, 0.25]]


def test_the_most_frequent_mistakes_come_first_and_of_equal_ones_those_of_the_rarer_class():
    c = confusion({(0, 0): 9, (0, 1): 2, (1, 0): 2, (1, 1): 1, (2, 1): 5}, 3)
    assert [(int(c.true[i]), int(c.predicted[i])) for i in c.mistakes] == [(2, 1), (1, 0), (0, 1)]


def test_the_csv_has_names_and_no_cell_of_0(tmp_path):
    confusion({(0, 0): 3, (0, 1): 1, (1, 0): 2}, 2, 'eat, "drink"').write(tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.reader(file))
    eat, other = 'eat, "drink" (0)', 'eat, "drink" (1)'
    assert rows == [["true", "predicted", "count"], [eat, eat, "3"], [eat, other, "1"], [other, eat, "2"]]


def test_few_classes_are_all_drawn_in_their_order():
    assert shown_classes(confusion({(3, 1): 5}, MOST_CLASSES)).tolist() == list(range(MOST_CLASSES))


def test_of_many_classes_the_most_confused_stand_beside_each_other_and_then_the_most_frequent():
    cells = {(n, n): 1 for n in range(700)} | {(500, 7): 9, (600, 601): 8, (7, 3): 7, (42, 42): 50, (43, 43): 40}
    shown = shown_classes(confusion(cells, 700)).tolist()
    assert shown[:5] == [500, 7, 3, 600, 601] and shown[5:7] == [42, 43]
    assert len(shown) == len(set(shown)) == MOST_CLASSES


def test_a_chain_of_confusions_takes_no_more_room_than_there_is():
    cells = {(n, n + 1): 1000 - n for n in range(600)}
    assert shown_classes(confusion(cells, 700)).tolist() == list(range(MOST_CLASSES))


def test_a_long_chain_does_not_push_out_greater_mistakes():
    cells = {(n, n + 1): 500 - n for n in range(300)} | {(650, 651): 499}
    shown = shown_classes(confusion(cells, 700)).tolist()
    assert {650, 651} <= set(shown) and len(shown) == MOST_CLASSES


@pytest.mark.parametrize("classes", [2, 12, 700])
def test_pictures_show_names_and_shares(classes):
    rng = np.random.default_rng(0)
    cells = {(int(t), int(p)): int(n) for t, p, n in rng.integers(0, [classes, classes, 9], (3 * classes, 3)) if n}
    c = confusion({(0, 1): 3, **cells}, classes, "Pretending or failing to wipe something off of something, number {}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = confusion_picture(c)
        assert pixels(figure).std() > 5
    matrix, pairs = figure.axes
    assert len(matrix.get_yticks()) == min(classes, MOST_CLASSES)
    assert [label.get_text() for label in matrix.get_xticklabels()][-1:] == (
        ["other classes"] if classes == 700 else [label.get_text() for label in matrix.get_yticklabels()][-1:]
    )
    assert len(pairs.texts) == min(len(c.mistakes), MOST_PAIRS)
    number = int(c.mistakes[0])
    assert pairs.texts[0].get_text() == f"{c.count[number]} of {c.totals[c.true[number]]}"
    names = [label.get_window_extent() for label in [*matrix.get_yticklabels(), *pairs.get_yticklabels()]]
    assert not any(a.overlaps(b) for n, a in enumerate(names) for b in names[:n]), "names lie on each other"
    page = figure.get_window_extent()
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in names), "names leave the page"


def test_names_are_no_formulas():
    # Two $ around what is no formula made matplotlib raise an error.
    assert pixels(confusion_picture(confusion({(0, 1): 3}, 2, "{} costs $_^$"))).std() > 5


def test_a_matrix_without_mistakes_or_examples_is_drawn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert confusion_picture(confusion({(0, 0): 3}, 2)).axes[1].get_title(loc="left") == "no mistakes"
        confusion_picture(confusion({(-1, 0): 3}, 2))
