"""Box files for prediction: those of the field, at the seconds of this video."""

from pathlib import Path

import pytest

from data.errors import UserError
from tests.train.predicting import write_boxes
from train.person_boxes import read_box_file


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["v,0002,0.1,0.1,0.5,0.9,,0.9", "v,0002,0.2,0.1,0.5,0.9,,0.7"], [1]),
        (["v,0002,0.1,0.1,0.5,0.9,12,0.9", "v,0002,0.1,0.1,0.5,0.9,14,0.9"], [1]),
        (["v,0002,0.1,0.1,0.5,0.9,12,0", "v,0002,0.1,0.1,0.5,0.9,14,0", "v,0002,0.3,0.1,0.5,0.9,14,1"], [2]),
        (["v,1.5,0.1,0.1,0.5,0.9,12", "v,2.5,-0.1,0.1,0.5,1.2,12", "v,2.75,0.5,0.1,0.5,0.9,12"], [1, 1, 0]),
    ],
    ids=["SlowFast", "SlowFast with labels", "AVA", "AVA-Kinetics"],
)
def test_box_files_of_the_field(tmp_path, rows, expected):
    file = read_box_file(str(write_boxes(tmp_path / "b.csv", *rows)), Path("v.mp4"), 10.0, None, 0.8)
    assert [len(boxes) for boxes in file.boxes] == expected
    assert all((boxes >= 0).all() and (boxes <= 1).all() for boxes in file.boxes)


def test_the_beginning_of_the_movie_is_told_or_guessed(tmp_path):
    box = "0.1,0.1,0.5,0.9,,0.9"
    path = str(write_boxes(tmp_path / "b.csv", f"v,0902,{box}", f"v,0903,{box}", f"v,1700,{box}"))
    file = read_box_file(path, Path("v.mp4"), 10.0, None, 0.8)
    assert (file.start, file.times.tolist(), file.outside) == (900.0, [2.0, 3.0], 1)
    assert read_box_file(path, Path("v.mp4"), 5000.0, None, 0.8).times.tolist() == [902.0, 903.0, 1700.0]
    assert read_box_file(path, Path("v.mp4"), 10.0, 1695.0, 0.8).times.tolist() == [5.0]
    with pytest.raises(UserError, match="say with --video-start"):
        read_box_file(path, Path("v.mp4"), 10.0, 0.0, 0.8)


def test_a_file_of_several_videos_must_name_this_one(tmp_path):
    box = "0001,0.1,0.1,0.5,0.9,,0.9"
    path = str(write_boxes(tmp_path / "b.csv", f"one,{box}", f"two,{box}"))
    assert read_box_file(path, Path("two.mp4"), 10.0, None, 0.8).video_id == "two"
    with pytest.raises(UserError, match="has no boxes of a video 'three'; it has one, two"):
        read_box_file(path, Path("three.mp4"), 10.0, None, 0.8)


def test_a_file_without_boxes_is_told(tmp_path):
    excluded = tmp_path / "excluded.csv"
    excluded.write_text("v,0902\nother,0903\n")
    with pytest.raises(UserError, match=r"excluded\.csv: has no boxes"):
        read_box_file(str(excluded), Path("v.mp4"), 10.0, None, 0.8)
