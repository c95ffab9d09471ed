"""Labels: inside of the frame, never on each other, and off people where that can be."""

from hypothesis import given, settings
from hypothesis import strategies as st

from train.label_places import ELSEWHERE, Rect, Spot, place

WIDTH, HEIGHT = 320, 240


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
    before=st.lists(st.none() | st.builds(Spot, rects(), st.integers(0, ELSEWHERE)), min_size=25, max_size=25),
)
def test_texts_lie_inside_of_the_frame_and_never_on_each_other(boxes, sizes, before):
    blocks = sizes[: len(boxes)]
    placed = place(boxes, blocks, boxes, WIDTH, HEIGHT, before[: len(boxes)])
    rectangles = [spot.rect for spot in placed if spot is not None]
    for rect in rectangles:
        assert 0 <= rect.left < rect.right <= WIDTH and 0 <= rect.top < rect.bottom <= HEIGHT
    for number, rect in enumerate(rectangles):
        assert not any(rect.overlaps(other) for other in rectangles[:number])
    for spot, (w, h) in zip(placed, blocks, strict=True):
        assert spot is None or (spot.rect.right - spot.rect.left, spot.rect.bottom - spot.rect.top) == (w, h)
    if blocks and blocks[0][0] <= WIDTH and blocks[0][1] <= HEIGHT:
        assert placed[0] is not None


BOX, BLOCK = Rect(100, 100, 150, 200), (40, 20)
ABOVE, BELOW = Rect(100, 80, 140, 100), Rect(100, 200, 140, 220)


def one(box: Rect, *others: Rect, before: Spot | None = None) -> Spot | None:
    return place([box], [BLOCK], [box, *others], WIDTH, HEIGHT, [before])[0]


def test_a_label_goes_above_its_box_or_stays_on_the_side_where_it_was():
    assert one(BOX) == Spot(ABOVE, 0)
    assert one(BOX, before=Spot(BELOW, 2)) == Spot(BELOW, 2)
    moved = Rect(103, 90, 153, 190)
    assert one(moved, before=Spot(BELOW, 2)) == Spot(Rect(103, 190, 143, 210), 2)
    # At the upper border there is no room above.
    assert one(Rect(100, 5, 150, 200)) == Spot(BELOW, 2)


def test_a_label_goes_where_it_hides_nobody():
    behind = Rect(60, 40, 115, 120)
    assert one(BOX, behind) == Spot(BELOW, 2)
    # It leaves the side where it was only for a place that is better by far.
    assert one(BOX, behind, before=Spot(ABOVE, 0)) == Spot(ABOVE, 0)
    assert one(BOX, Rect(60, 75, 160, 195), before=Spot(ABOVE, 0)) == Spot(BELOW, 2)


def test_a_face_is_hidden_last():
    # Above it is somebody's face, below it the legs of another.
    assert one(BOX, Rect(60, 75, 200, 195), Rect(60, 120, 200, 240)) == Spot(BELOW, 2)


def test_a_label_without_room_at_its_box_goes_elsewhere_and_stays_there():
    boxes = [BOX] * 12
    placed = place(boxes, [BLOCK] * 12, [BOX], WIDTH, HEIGHT, [None] * 12)
    assert placed[-1] is not None and placed[-1].side == ELSEWHERE
    was = Spot(Rect(7, 9, 47, 29), ELSEWHERE)
    assert place(boxes, [BLOCK] * 12, [BOX], WIDTH, HEIGHT, [*placed[:-1], was]) == [*placed[:-1], was]
