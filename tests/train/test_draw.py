"""Drawing: text inside of the frame and never on other text, at any size, in any crowd."""

import numpy as np
import pytest
from PIL import ImageDraw

from train.draw import CALM, COLORS, MOST_COVERED, Painter, drawn_size, tidy
from train.label_places import Rect
from train.tracks import Person

LONG = "take (an object) from (a person) and put it where nobody will ever look for it again, not even in a long life"


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((340, 256), (638, 480)),
        ((64, 64), (480, 480)),
        ((270, 480), (480, 854)),
        ((427, 240), (854, 480)),
        ((1921, 1081), (1920, 1080)),
        ((4000, 20), (4000, 20)),
        ((1, 1), (480, 480)),
    ],
)
def test_small_frames_are_enlarged_and_sides_are_even(size, drawn):
    assert drawn_size(*size) == drawn


def people(count: int, labels: int = 3, name: str = "watch (a person)") -> list[Person]:
    draw = np.random.default_rng(count)
    corner = draw.random((count, 2)) * 0.8
    boxes = np.hstack([corner, corner + 0.05 + draw.random((count, 2)) * 0.15])
    return [Person(i, box, [(name, 0.9 - i / 1000)] * labels) for i, box in enumerate(boxes)]


def written(monkeypatch, size: tuple[int, int], persons: list[Person], caption=()) -> tuple[Painter, list, list]:
    """What `paint` draws: the painter, every text's (left, top, right, bottom), and every text."""
    drawn, texts = [], []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, string, **options):
        drawn.append(self.textbbox(xy, string, font=options["font"], anchor=options["anchor"]))
        texts.append(string)
        original(self, xy, string, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    painter = Painter(*size)
    painter.paint(np.full((size[1], size[0], 3), 90, np.uint8), persons, caption)
    return painter, drawn, texts


@pytest.mark.parametrize("size", [(48, 32), (340, 256), (427, 240), (270, 480), (1920, 1080), (700, 90)])
@pytest.mark.parametrize("count", [1, 12, 60])
def test_all_text_is_inside_of_the_frame_and_apart(monkeypatch, size, count):
    painter, drawn, _ = written(monkeypatch, size, people(count))
    assert drawn
    for left, top, right, bottom in drawn:
        assert left >= 0 and top >= 0 and right <= painter.width and bottom <= painter.height
    rectangles = [Rect(*map(int, box)) for box in drawn]
    for number, rect in enumerate(rectangles):
        assert not any(rect.overlaps(other) for other in rectangles[:number])
    # A line of text is at least 10 pixels high.
    assert max(bottom - top for _, top, _, bottom in drawn) >= 10


def test_in_a_crowd_each_person_gets_fewer_lines_and_those_without_room_are_counted(monkeypatch):
    _, _, texts = written(monkeypatch, (340, 256), people(4))
    assert len(texts) == 12
    painter, _, texts = written(monkeypatch, (340, 256), people(8))
    assert len(texts) == 16 and painter.hidden == 0
    painter, _, texts = written(monkeypatch, (340, 256), people(40))
    assert len(texts) == 40 and painter.hidden == 0
    painter, _, texts = written(monkeypatch, (340, 256), people(300))
    assert len(texts) + painter.hidden == 300 and painter.hidden > 0
    assert texts[0].endswith("0.90")  # the surest first


def test_labels_cover_a_small_part_of_the_frame(monkeypatch):
    grounds = []
    monkeypatch.setattr(Painter, "_write", lambda self, canvas, rect, lines, color: grounds.append(rect))
    for count in (5, 8, 12):
        grounds.clear()
        painter = Painter(640, 480)
        painter.paint(np.zeros((480, 640, 3), np.uint8), people(count))
        assert len(grounds) == count
        covered = sum((rect.right - rect.left) * (rect.bottom - rect.top) for rect in grounds)
        assert covered <= MOST_COVERED * 640 * 480


def test_lines_do_not_come_and_go_with_every_frame(monkeypatch):
    shown = []
    monkeypatch.setattr(Painter, "_write", lambda self, canvas, rect, lines, color: shown.append(len(lines)))
    painter, frame = Painter(340, 256), np.zeros((256, 340, 3), np.uint8)

    def lines(persons: list[Person]) -> int:
        shown.clear()
        painter.paint(frame, persons)
        return max(shown)

    assert lines(people(2)) == 3
    assert lines(people(20)) == 1
    assert [lines(people(2)) for _ in range(CALM + 1)] == [1] * CALM + [3]
    # Fewer labels are no crowd: the third comes back at once.
    assert lines(people(2, labels=2)) == 2 and lines(people(2)) == 3


def test_a_long_label_keeps_its_score_and_loses_its_end(monkeypatch):
    _, _, texts = written(monkeypatch, (340, 256), people(1, labels=1, name=LONG))
    assert texts[0].startswith("take (an object) from") and texts[0].endswith("… 0.90")
    _, _, texts = written(monkeypatch, (340, 256), [], caption=[("kinetics", ""), (LONG, " 0.12")])
    assert texts[0] == "kinetics" and texts[1].endswith("… 0.12")


def test_avas_examples_in_brackets_are_left_out():
    assert tidy("talk to (e.g., self, a person, a group)") == "talk to"
    assert tidy("watch (a person)") == "watch (a person)"


def test_boxes_are_drawn_where_they_are_in_their_persons_color():
    person = Person(2, np.array([0.25, 0.5, 0.75, 1.0]), [])
    picture = np.asarray(Painter(960, 480).paint(np.zeros((480, 960, 3), np.uint8), [person]))
    rows, columns = np.nonzero((picture == COLORS[2]).all(axis=2))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (240, 719, 240, 479)
    assert picture[300, 480].tolist() == [0, 0, 0]  # an outline, not a filled box


def test_persons_in_one_frame_have_colors_of_their_own_and_keep_them():
    painter = Painter(480, 480)
    boxes = [np.array([x, 0.5, x + 0.2, 0.9]) for x in (0.05, 0.3, 0.55)]
    count = len(COLORS)
    painter.paint(np.zeros((480, 480, 3), np.uint8), [Person(0, boxes[0], []), Person(count, boxes[1], [])])
    first = dict(painter.colors)
    assert len(set(first.values())) == 2
    painter.paint(
        np.zeros((480, 480, 3), np.uint8), [Person(n, b, []) for n, b in zip((2 * count, count), boxes, strict=False)]
    )
    assert painter.colors[count] == first[count] and len(set(painter.colors.values())) == 2


def test_of_more_persons_than_colors_neighbours_have_different_ones():
    boxes = [np.array([x, 0.1, x + 0.04, 0.9]) for x in np.arange(21) / 22]
    painter = Painter(640, 480)
    painter.paint(np.zeros((480, 640, 3), np.uint8), [Person(n, box, []) for n, box in enumerate(boxes)])
    colors = [painter.colors[n] for n in range(21)]
    assert all(len(set(colors[n : n + 4])) == 4 for n in range(18))
