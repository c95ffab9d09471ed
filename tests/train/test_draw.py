"""Drawing: text inside of the frame and never on other text, at any size, in any crowd; persons between keyframes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ImageDraw

from train.draw import COLORS, Painter, Rect, drawn_size, place, tidy
from train.tracks import Person, PersonKeyframe, Tracks, link

WIDTH, HEIGHT = 320, 240
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


def rects():
    return st.builds(
        lambda x, y, w, h: Rect(x, y, min(x + w, WIDTH), min(y + h, HEIGHT)),
        st.integers(0, WIDTH - 1),
        st.integers(0, HEIGHT - 1),
        st.integers(1, WIDTH),
        st.integers(1, HEIGHT),
    )


@settings(max_examples=100, deadline=None)
@given(
    boxes=st.lists(rects(), max_size=25),
    sizes=st.lists(st.tuples(st.integers(1, WIDTH + 50), st.integers(1, 120)), min_size=25, max_size=25),
    before=st.lists(st.none() | st.integers(0, 8), min_size=25, max_size=25),
)
def test_texts_lie_inside_of_the_frame_and_never_on_each_other(boxes, sizes, before):
    blocks = sizes[: len(boxes)]
    placed = place(boxes, blocks, WIDTH, HEIGHT, before[: len(boxes)])
    rectangles = [spot[0] for spot in placed if spot is not None]
    for rect in rectangles:
        assert 0 <= rect.left < rect.right <= WIDTH and 0 <= rect.top < rect.bottom <= HEIGHT
    for number, rect in enumerate(rectangles):
        assert not any(rect.overlaps(other) for other in rectangles[:number])
    for spot, (w, h) in zip(placed, blocks, strict=True):
        assert spot is None or (spot[0].right - spot[0].left, spot[0].bottom - spot[0].top) == (w, h)
    if blocks and blocks[0][0] <= WIDTH and blocks[0][1] <= HEIGHT:
        assert placed[0] is not None


def test_a_text_goes_above_its_box_or_stays_on_the_side_where_it_was():
    box = Rect(100, 100, 150, 200)
    assert place([box], [(40, 20)], WIDTH, HEIGHT, [None]) == [(Rect(100, 80, 140, 100), 0)]
    assert place([box], [(40, 20)], WIDTH, HEIGHT, [2]) == [(Rect(100, 200, 140, 220), 2)]
    # At the upper border there is no room above.
    (spot,) = place([Rect(100, 5, 150, 200)], [(40, 20)], WIDTH, HEIGHT, [None])
    assert spot == (Rect(100, 200, 140, 220), 2)


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


def test_in_a_crowd_each_person_gets_one_label_and_those_without_room_are_counted(monkeypatch):
    painter, _, texts = written(monkeypatch, (340, 256), people(12))
    assert len(texts) == 36 and painter.hidden == 0
    painter, _, texts = written(monkeypatch, (340, 256), people(40))
    assert len(texts) == 40 and painter.hidden == 0
    painter, _, texts = written(monkeypatch, (340, 256), people(300))
    assert len(texts) + painter.hidden == 300 and painter.hidden > 0
    assert texts[0].endswith("0.90")  # the surest first


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


def keyframe(time: float, *boxes: tuple[float, ...]) -> PersonKeyframe:
    labels = [[(f"walk {time:g}", 0.5)] for _ in boxes]
    return PersonKeyframe(time, np.array(boxes, dtype=float).reshape(-1, 4), labels)


LEFT, RIGHT, MOVED = (0.0, 0.0, 0.2, 0.4), (0.6, 0.0, 0.8, 0.4), (0.04, 0.0, 0.24, 0.4)


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


def test_each_box_is_linked_to_at_most_one_other_and_the_best_first():
    boxes, others = np.array([LEFT, MOVED]), np.array([MOVED, RIGHT])
    assert link(boxes, others) == [(1, 0)]
    assert link(np.zeros((0, 4)), others) == []


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
