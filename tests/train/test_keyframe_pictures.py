"""Pictures of keyframes: always the same ones, boxes where they are, and what cannot be read left out."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import counters
from data.dataset import TaskData
from data.errors import UserError
from data.load import BadSample, load_keyframe
from data.shards import ClassInfo
from tests.tiny_shards import (
    box_video,
    clock_video,
    make_classification_set,
    make_localisation_set,
    read_clock,
    video_record,
    write_set,
)
from tests.train.test_evaluators import ALONE, ByPlace, recipe_of, tasks_of
from train import keyframe_pictures
from train.draw import COLORS
from train.evaluators import evaluate_tasks
from train.evaluators.keyframe_boxes import KeyframeBoxes
from train.frame_map import FrameBoxes
from train.keyframe_pictures import GAP, KeyframePictures


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_classification_set(folder, "clips", "val", samples=2)
    make_localisation_set(folder, "people", "val")  # 4 samples of 2 keyframes
    return folder


def data_of(folder: Path) -> TaskData:
    data = tasks_of(recipe_of(folder))[1].val
    assert data is not None
    return data


def said(data: TaskData, boxes: np.ndarray, scores: np.ndarray) -> KeyframeBoxes:
    """The same boxes [k, 4] with scores [k, C] on every keyframe of a set."""
    keyframes = [load_keyframe(data, example)[0] for example in range(len(data.shards))]
    count = len(keyframes)
    return KeyframeBoxes(
        keyframes=[(k.video_id, k.timestamp) for k in keyframes],
        frames=np.repeat(np.arange(count), len(boxes)),
        boxes=np.tile(boxes, (count, 1)),
        scores=np.tile(scores, (count, 1)).astype(np.float32),
        evaluated=np.arange(scores.shape[1]),
        truth=FrameBoxes(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64)),
    )


def test_a_keyframe_comes_with_its_own_frame(tmp_path):
    keyframes = [
        {"timestamp": 902.0 + n, "frame": frame, "boxes": [], "labels": [], "proposals": []}
        for n, frame in enumerate((8, 23))
    ]
    record = {"key": "k", "video_id": "m", "video": video_record(38), "keyframes": keyframes}
    shards = write_set(tmp_path, "people", "val", "localisation", [ClassInfo(1, "a")], [(record, clock_video())])
    data = replace(data_of_set(tmp_path), shards=shards)
    for example, expected in ((0, 8), (1, 23)):
        keyframe, frame = load_keyframe(data, example)
        assert (keyframe.timestamp, frame.shape, frame.dtype) == (902.0 + example, (96, 128, 3), np.uint8)
        assert read_clock(frame.transpose(2, 0, 1)[:, None]) == [expected]


@pytest.mark.parametrize(
    ("count", "names"),
    [
        (0, []),
        (1, ["movie.2, 902 s"]),
        (2, ["movie.1, 902 s", "movie.3, 902 s"]),
        (4, ["movie.0, 903 s", "movie.1, 903 s", "movie.2, 903 s", "movie.3, 903 s"]),
        (100, [f"movie.{n}, {t} s" for n in range(4) for t in (902, 903)]),
    ],
)
def test_keyframes_are_spread_over_the_set_and_are_always_the_same(world, count, names):
    data = data_of(world)
    pictures = KeyframePictures(data, count)
    boxes = said(data, np.array([[0.1, 0.1, 0.5, 0.9]]), np.array([[0.2, 0.1, 0.05]]))
    assert list(pictures.draw(boxes)) == list(pictures.draw(boxes)) == names
    assert list(KeyframePictures(data, count).draw(boxes)) == names


def test_frames_are_read_once(world, monkeypatch):
    data = data_of(world)
    boxes = said(data, np.array([[0.1, 0.1, 0.5, 0.9]]), np.array([[0.2, 0.1, 0.05]]))
    pictures = KeyframePictures(data, 2)
    counters.take()
    first = pictures.draw(boxes)
    assert counters.take() == {}, "what they cost to read is told of no batch"
    monkeypatch.setattr(keyframe_pictures, "load_keyframe", None)
    assert all(np.array_equal(first[name], picture) for name, picture in pictures.draw(boxes).items())


def color_box(picture: np.ndarray, color: tuple[int, ...]) -> list[float]:
    """Left, top, right and bottom of the pixels of a colour, in [0, 1]."""
    rows, columns = np.nonzero((picture == color).all(axis=2))
    height, width = picture.shape[:2]
    return [columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height]


def test_ground_truth_is_on_the_left_and_detections_on_the_right_in_the_colour_of_their_person(world, monkeypatch):
    monkeypatch.setattr(keyframe_pictures, "TOP", 0)  # boxes alone
    data = data_of(world)
    own = load_keyframe(data, 2)[0].boxes[0]
    moved, elsewhere = own + [0.02, 0.03, 0.02, 0.03], np.array([0.7, 0.05, 0.95, 0.3])
    boxes = said(data, np.stack([elsewhere, moved]), np.zeros((2, 3)))
    picture = KeyframePictures(data, 2).draw(boxes)["movie.1, 902 s"]
    width = (picture.shape[1] - GAP) // 2
    head = picture.shape[0] - 480
    left, right = picture[head:, :width], picture[head:, -width:]
    assert left.shape[:2] == right.shape[:2] == (480, 640) and 15 < head < 40
    # The lower right corner: above the upper left one stands the person's class.
    assert color_box(left, COLORS[0])[2:] == pytest.approx(own[2:], abs=0.01)
    assert color_box(right, COLORS[0]) == pytest.approx(moved, abs=0.01)
    assert color_box(right, COLORS[1]) == pytest.approx(elsewhere, abs=0.01), "nobody's: a colour of its own"
    assert not (left == COLORS[1]).all(axis=2).any()


def texts_of(monkeypatch, pictures: KeyframePictures, boxes: KeyframeBoxes) -> list[str]:
    texts: list[str] = []
    original = keyframe_pictures.Painter._write

    def write(self, canvas, rect, lines, color):
        texts.extend(lines)
        original(self, canvas, rect, lines, color)

    monkeypatch.setattr(keyframe_pictures.Painter, "_write", write)
    pictures.draw(boxes)
    return texts


def test_what_is_written(world, monkeypatch):
    data = data_of(world)
    boxes = said(data, np.array([[0.1, 0.1, 0.5, 0.9]]), np.array([[0.25, 0.1, 0.75]]))
    texts = texts_of(monkeypatch, KeyframePictures(data, 1), boxes)
    assert texts[0] == "action 7" and "movie.2, 902 s: ground truth" in texts
    assert texts[-4:] == ["action 7 0.75", "action 1 0.25", "action 3 0.10", "model: the 3 highest scores"]
    nothing = replace(boxes, frames=boxes.frames[:0], boxes=boxes.boxes[:0], scores=boxes.scores[:0])
    assert texts_of(monkeypatch, KeyframePictures(data, 1), nothing)[-1] == "model: the 3 highest scores: no box"


def test_keyframes_without_a_person_or_a_readable_video_are_passed_over(tmp_path, capsys):
    box = [0.25, 0.25, 0.5, 0.75]
    entries = []
    for number, (boxes, video) in enumerate(
        [([box], None), ([box], b"no video"), ([], None), ([box], None), ([box], None), ([], None)]
    ):
        keyframe: dict[str, object] = {"timestamp": 902.0, "frame": 8, "boxes": boxes, "labels": [[1]] * len(boxes)}
        keyframe["proposals"] = [[*box, 0.9]]  # of which a set for evaluation has to have some
        record = {"key": f"k{number}", "video_id": f"m{number}", "video": video_record(38), "keyframes": [keyframe]}
        entries.append((record, video or box_video(boxes)))
    shards = write_set(tmp_path, "people", "val", "localisation", [ClassInfo(1, "a")], entries)
    data = replace(data_of_set(tmp_path), shards=shards)
    # Two parts of three: in the first the middle is damaged and the next one empty, in the second all is well.
    assert [c.name for c in KeyframePictures(data, 2).read()] == ["m4, 902 s"]
    assert "people: a keyframe less is drawn: example 1 and those behind it" in capsys.readouterr().err
    assert [c.name for c in KeyframePictures(data, 1).read()] == ["m3, 902 s"]


def data_of_set(folder: Path) -> TaskData:
    make_classification_set(folder, "clips", "val", samples=1)
    return data_of(folder)


def test_a_server_that_fails_costs_the_pictures_alone(world, monkeypatch, capsys):
    def fail(data, example):
        raise UserError("s3://bucket does not answer")

    monkeypatch.setattr(keyframe_pictures, "load_keyframe", fail)
    pictures = KeyframePictures(data_of(world), 3)
    assert pictures.read() == [] and pictures.read() == []
    assert capsys.readouterr().err == "note: people: no more keyframes are drawn: s3://bucket does not answer\n"


def test_a_keyframe_that_the_evaluation_could_not_read_is_left_out(world):
    recipe = recipe_of(world)
    result = evaluate_tasks(ByPlace(), tasks_of(recipe)[1:], ALONE, recipe, limit=4)["people"]
    assert result.boxes is not None
    # Every second example was evaluated: those of second 902.
    assert list(KeyframePictures(data_of(world), 8).draw(result.boxes)) == [f"movie.{n}, 902 s" for n in range(4)]


def test_a_damaged_record_is_a_bad_sample(tmp_path):
    entries = [({"key": "k", "video_id": "m", "video": video_record(38), "keyframes": [{}]}, box_video([]))]
    shards = write_set(tmp_path, "people", "val", "localisation", [ClassInfo(1, "a")], entries)
    with pytest.raises(BadSample, match="keyframe 0"):
        load_keyframe(replace(data_of_set(tmp_path), shards=shards), 0)
