"""Pictures of a breakdown: every class is on them, names do not overlap, and odd input does not break them."""

import warnings
from collections.abc import Sequence

import numpy as np
import pytest
from matplotlib.figure import Figure

from data.shards import ClassInfo
from tests.train.slow_frame_map import Box
from tests.train.test_breakdown import matched, people
from tests.train.test_frame_map import LEFT
from train.breakdown import Breakdown, class_recall
from train.compare import compare
from train.error_kinds import error_kinds
from train.figures import save
from train.frequency_picture import ap_by_frequency
from train.report_pictures import class_bars, draw_report

FRAMES = np.arange(60)


def breakdown(
    names: Sequence[str], training: np.ndarray | None = None, same: bool = False, boxes: int = 4
) -> Breakdown:
    """A made-up evaluation of 60 keyframes, compared with one of half the detections (or, if `same`, with itself)."""
    rng, classes = np.random.default_rng(0), len(names)
    truth = [Box(int(f), LEFT, int(c)) for f in FRAMES for c in rng.integers(0, classes, boxes)]
    found = [Box(int(f), LEFT, int(c), float(rng.random())) for f in FRAMES for c in rng.integers(0, classes, 8)]
    this, other = matched(truth, found, classes), matched(truth, found if same else found[::2], classes)
    return Breakdown(
        [ClassInfo(n, name) for n, name in enumerate(names)],
        this.frame_map(),
        {},
        class_recall(this.groundtruth, this.is_found, classes),
        1.0,
        np.arange(classes) if training is None else training,
        error_kinds(this, people(truth)),
        compare(this, other, FRAMES // 5, FRAMES, resamples=20),
    )


def long_names(classes: int) -> list[str]:
    return [f"an action with a long name, number {n}, and more" for n in range(classes)]


def overlaps(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts inside of the first axes that lie on each other."""
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    return [
        (texts[i].get_text(), texts[j].get_text())
        for i in range(len(boxes))
        for j in range(i)
        if boxes[i].overlaps(boxes[j])
    ]


@pytest.mark.parametrize("classes", [1, 90])
def test_pictures_have_every_class_and_names_that_do_not_overlap(tmp_path, classes):
    b = breakdown(long_names(classes))
    drawn = draw_report(tmp_path, b, (10, 100), "this", "other")
    pages = ["classes.png"] if classes == 1 else ["classes-1.png", "classes-2.png"]
    assert drawn[0] == "ap_by_frequency.png" and [name for name in drawn if name.startswith("classes")] == pages
    assert all((tmp_path / name).stat().st_size > 5000 for name in drawn)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(drawn), "nothing half written is left"
    figure = ap_by_frequency(b, (10, 100), "this", "other")
    assert len(figure.axes[0].texts) >= (1 if classes == 1 else 6)
    assert overlaps(figure) == []


def test_names_cross_no_border_and_no_mean():
    b = breakdown(long_names(90))
    figure = ap_by_frequency(b, (10, 40), "this", "other")
    (axes,) = figure.axes
    lines = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    assert len([line for line in axes.lines if line.get_linestyle() == "--"]) == 3
    assert {10, 40} <= {line.get_xdata()[0] for line in axes.lines}
    area = axes.get_window_extent()
    names = [text for text in axes.texts if text.get_window_extent().y1 < area.y1]
    for (x0, y0), (x1, y1) in lines:
        for box in (text.get_window_extent() for text in names):
            assert not (
                box.x0 < max(x0, x1) and box.x1 > min(x0, x1) - 1e-6 and box.y0 < max(y0, y1) and box.y1 > min(y0, y1)
            )


def test_means_of_narrow_stretches_stand_beside_each_other():
    figure = ap_by_frequency(breakdown(["a", "b", "c"], np.array([100, 105, 100_000])), (101, 110))
    assert {text.get_text().partition(":")[0] for text in figure.axes[0].texts} >= {"head", "mid", "tail"}
    assert overlaps(figure) == []


def test_an_axis_of_little_width_has_ticks():
    figure = ap_by_frequency(breakdown(["a", "b", "c"], np.array([210, 300, 480])), (100, 110))
    shown = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    low, high = figure.axes[0].get_xlim()
    assert {"200", "500"} <= set(shown) and low < 200 and high > 500


def test_classes_that_were_never_trained_stand_at_0():
    for training in ([0, 0, 0], [0, 30, 90_000]):
        figure = ap_by_frequency(breakdown(["a", "b", "c"], np.array(training)), (100, 110))
        ticks = zip(figure.axes[0].get_xticks(), figure.axes[0].get_xticklabels(), strict=True)
        assert (0.5, "0") in [(place, label.get_text()) for place, label in ticks]


def test_a_figure_stands_beside_its_own_bar_and_not_beside_the_mark_of_the_other_run():
    b = breakdown(["a", "b"])
    assert b.comparison is not None
    b.result.per_class[:], b.comparison.other[:] = [0.3, 0.3], [0.8, 0.31]
    (figure,) = class_bars(b, "this", "other")
    by_row = {text.get_position()[1]: text.get_position()[0] for text in figure.axes[0].texts}
    assert 30 < by_row[1] < 40, "class a, whose mark is far away"
    assert 31 < by_row[0] < 40, "class b, behind the mark"


def test_names_are_no_formulas(tmp_path):
    # Two $ around what is no formula made matplotlib raise an error.
    b = breakdown(["pay _$^ and ^$", r"$\frac$", "_hidden"])
    assert len(draw_report(tmp_path, b, (1, 2), "$_^$ this", "other")) == 4


def test_without_ground_truth_nothing_is_drawn(tmp_path):
    assert draw_report(tmp_path, breakdown(["a", "b"], boxes=0), (1, 2), "this", "other") == []


@pytest.mark.parametrize("case", ["same run", "never trained", "cutoffs of one value"])
def test_odd_figures_are_drawn_without_a_warning(tmp_path, case):
    training = np.zeros(3, dtype=np.int64) if case == "never trained" else np.array([5, 5, 9])
    b = breakdown(["a", "b", "c"], training, same=case == "same run")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_report(tmp_path, b, (5, 5), "this", "other")


def test_a_picture_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    figure = ap_by_frequency(breakdown(["a"]), (1, 2))
    path = tmp_path / "x.png"
    save(figure, path)
    before = path.read_bytes()

    def fail(*_args, **_options):
        raise OSError("no room")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no room"):
        save(figure, path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["x.png"]
