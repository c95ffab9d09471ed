"""The AVA tools' file formats, with the quirks of real copies."""

import gzip
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.ava_files import read_annotations, read_detections, read_excluded, read_labelmap, read_proposals
from data.errors import UserError
from data.shards import ClassInfo


@pytest.fixture
def write(tmp_path):
    def write(text, name="file.csv"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_annotations_of_ava(write):
    rows = read_annotations(write("1j20,0902,0.002,0.118,0.714,0.977,12,1\n-5K_,0903,0.1,0.2,0.3,0.4,80,0\n"))
    assert rows.video_ids == ["1j20", "-5K_"] and len(rows) == 2
    assert rows.timestamps.tolist() == [902.0, 903.0] and rows.timestamps.dtype == np.float64
    assert rows.boxes.tolist() == [[0.002, 0.118, 0.714, 0.977], [0.1, 0.2, 0.3, 0.4]]
    assert rows.action_ids.tolist() == [12, 80] and rows.person_ids.tolist() == [1, 0]
    assert rows.lines.tolist() == [1, 2] and rows.scores is None and rows.unlabelled == []


def test_annotations_of_ava_kinetics_have_no_person_and_may_have_no_label(write):
    text = "a,17.000000,0.1,0.2,0.3,0.4,12\nb,5.016949\n\nc,6,,,,,\na,17,0.1,0.2,0.3,0.4,17\n"
    rows = read_annotations(write(text))
    assert rows.unlabelled == [("b", 5.016949), ("c", 6.0)]
    assert rows.person_ids.tolist() == [-1, -1] and rows.lines.tolist() == [1, 5]
    assert rows.keyframes() == {("a", 17.0), ("b", 5.016949), ("c", 6.0)}


def test_a_person_id_that_is_no_number_is_mended_and_told(write):
    rows = read_annotations(
        write("a,1,0,0,1,1,12,3\na,1,0,0,1,1,17,3_\na,1,0,0,1,1,80,x\na,1,0,0,1,1,80,2.0\na,1,0,0,1,1,80,\n")
    )
    assert rows.person_ids.tolist() == [3, 3, -1, 2, -1] and rows.odd_lines == [2, 3, 4]


def test_detections_in_the_official_format(write):
    rows = read_detections(write("a,0902,0.1,0.2,0.3,0.4,12,0.875\na,902.5,0.1,0.2,0.3,0.4,12\n"))
    assert rows.scores.tolist() == [0.875, 1.0] and rows.timestamps.tolist() == [902.0, 902.5]
    assert rows.person_ids is None
    none = read_detections(write(""))
    assert len(none) == 0 and none.boxes.shape == (0, 4), "a detector may find nothing"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows in it"),
        ("a,902,0,0,1,1,12,1\na,902,0,0,1\n", "line 2: 5 columns, expected video_id,timestamp,x1"),
        ("a,902,0,0,1,1,12,1\n\na,902,0,zero,1,1,12,1\n", "line 3, column y1: 'zero', expected a number"),
        ("a,902,0,nan,1,1,12,1\n", "line 1, column y1: 'nan', expected a finite number"),
        ("a,902,0,0,1,1,stand,1\n", "line 1, column action_id: 'stand', expected a whole number"),
        ("a,902,0,0,1,1,99999999999999999999,1\n", "line 1, column action_id"),
        ("a,902,0,0,1,1,12,0.93\n", "line 1, column person_id: '0.93', expected a whole number"),
        ("a,-5,0,0,1,1,12,1\n", "line 1, column timestamp: '-5', expected seconds, 0 or more"),
        ("a,1e308,0,0,1,1,12,1\n", "line 1, column timestamp: '1e308', expected seconds, less than"),
        (",902,0,0,1,1,12,1\n", "line 1, column video_id"),
        ("video_id,time,x1,y1,x2,y2,action,person\na,902,0,0,1,1,12,1\n", "line 1: .*looks like a header"),
        ('"a,902,0,0,1,1,12,1\n"b,902,0,0,1,1,12,1\n', "runs over the end of its line"),
    ],
)
def test_a_wrong_row_is_named_by_file_line_and_column(write, text, message):
    path = write(text)
    with pytest.raises(UserError, match=message) as caught:
        read_annotations(path)
    assert str(caught.value).startswith(str(path))


def test_rows_far_into_a_file_have_their_line_number(write):
    good = "a,902,0,0,1,1,12,1\n"
    with pytest.raises(UserError, match="line 25002, column x2: 'no'"):
        read_annotations(write(good * 25_001 + "a,902,0,0,no,1,12,1\n"))
    rows = read_annotations(write(good * 12_000 + "\n" + good))
    assert len(rows) == 12_001 and rows.lines[-1] == 12_002


def test_unreadable_files_are_said(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_annotations(tmp_path / "none.csv")
    row = b"a,902,0,0,1,1,1,0.5\n"
    for content, message in (
        (row * 70_000 + b"caf\xe9,902,0,0,1,1,1,0.5\n", r"line 70001: not UTF-8 text \(byte 0xe9\)"),
        (gzip.compress(row), "line 1: not UTF-8 text, but gzip: unpack it"),
        (row + b"a,902,0,0,1,1,1," + b"5" * 200_000 + b"\n", "line 2: not a CSV text file"),
        (b"\0" * 2_000_000, "line 1: has no end"),
    ):
        (tmp_path / "bytes.csv").write_bytes(content)
        for read in (read_detections, read_proposals, read_excluded):
            with pytest.raises(UserError, match=message if read is read_detections else "line"):
                read(tmp_path / "bytes.csv")


def test_a_label_map_says_which_line_is_no_text(tmp_path):
    (tmp_path / "map.pbtxt").write_bytes(b'\xef\xbb\xbfitem {\r\n  name: "caf\xe9"\r\n  id: 1\r\n}\r\n')
    with pytest.raises(UserError, match=r"map\.pbtxt, line 2: not UTF-8"):
        read_labelmap(tmp_path / "map.pbtxt")


def test_excluded_keyframes(write):
    assert read_excluded(write("a,1038\nb,0902\n")) == {("a", 1038.0), ("b", 902.0)}
    assert read_excluded(write("")) == set()
    with pytest.raises(UserError, match="line 1: 3 columns, expected video_id,timestamp"):
        read_excluded(write("a,1038,1\n"))


LABELS = [ClassInfo(1, 'bend/bow {at the "waist"}'.replace('"', "'")), ClassInfo(80, "watch (a person)")]


@pytest.mark.parametrize(
    "text",
    [
        'label {\n  name: "watch (a person)"\n  label_id: 80\n  label_type: PERSON_INTERACTION\n}\n'
        "label {\n  name: \"bend/bow {at the 'waist'}\"\n  label_id: 1\n  label_type: PERSON_MOVEMENT\n}\n",
        "item {\n  name: \"bend/bow {at the 'waist'}\"\n  id: 1\n}\n# a comment\n"
        'item { id: 80 name: "watch (a person)" }',
    ],
)
def test_label_maps_of_both_kinds(write, text):
    assert read_labelmap(write(text)) == LABELS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no classes"),
        ("1: stand\n2: sit\n", "line 1: not a label map"),
        ('label { name: "a" label_id: 1 }\nlabel { name: "b" label_id: 1 }\n', "line 2: class id 1 is there twice"),
        ('\nlabel { name: "a" }\n', "line 2: a class needs a name and a whole number"),
        ('label { name: "a" label_id: 1.5 }\n', "line 1: a class needs"),
        (f'label {{ name: "a" label_id: {"9" * 5000} }}\n', "line 1: a class needs"),
        ('label { name: "a"\n label_id: 1\n', "cut short"),
        ('label { label { name: "a" label_id: 1 } }\n', "line 1: not a label map"),
    ],
)
def test_a_wrong_label_map_is_named_by_line(write, text, message):
    with pytest.raises(UserError, match=message):
        read_labelmap(write(text, "labels.pbtxt"))


def test_proposals_of_slowfast_are_grouped_and_taken_once(write):
    rows = ["a,0902,0.1,0.2,0.5,0.9,,0.99", "b,902,0.3,0.2,0.5,0.9,,0.5"]
    rows += [f"a,902,0.6,0.2,0.9,0.9,{label},0.04" for label in (80, 12)]
    proposals = read_proposals(write("\n".join(rows)))
    assert set(proposals) == {("a", 902.0), ("b", 902.0)}
    assert proposals["a", 902.0].tolist() == [[0.1, 0.2, 0.5, 0.9, 0.99], [0.6, 0.2, 0.9, 0.9, 0.04]]
    with pytest.raises(UserError, match="line 1: 7 columns"):
        read_proposals(write("a,0902,0.1,0.2,0.5,0.9,0.99\n"))
    with pytest.raises(UserError, match=r"line 1: .*looks like a header"):
        read_proposals(write("video_id,timestamp,x1,y1,x2,y2,,score\n" + rows[0]))
    with pytest.raises(UserError, match="no proposals"):
        read_proposals(write(""))


@pytest.mark.parametrize("protocol", range(6))
def test_proposals_of_mmaction2(tmp_path, protocol):
    content = {
        "a,b,0902": np.array([[0.1, 0.2, 0.5, 0.9, 0.99]]),
        "c,0903": np.array([[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]], dtype=np.float32),
        "d,1": np.empty((0, 5)),
    }
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    proposals = read_proposals(path)
    assert proposals["a,b", 902.0].tolist() == [[0.1, 0.2, 0.5, 0.9, 0.99]]
    assert proposals["c", 903.0][:, 4].tolist() == [1.0, 1.0] and proposals["c", 903.0].dtype == np.float64
    assert proposals["d", 1.0].shape == (0, 5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": np.zeros((1, 5))}, "key 'a' is not"),
        ({"a,x": np.zeros((1, 5))}, "key 'a,x' is not"),
        ({"a,902": np.zeros((1, 3))}, r"shape \[1, 3\], expected finite"),
        ({"a,902": np.full((1, 5), np.nan)}, "expected finite"),
        ({}, "no proposals"),
    ],
)
def test_wrong_pickles_are_refused(tmp_path, content, message):
    path = tmp_path / "p.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=message):
        read_proposals(path)


numbers = st.floats(0, 1).map(lambda value: round(value, 4))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["a", "-b_", "c"]), st.integers(0, 9999), *[numbers] * 4, st.integers(1, 80), numbers
        ),
        max_size=30,
    )
)
def test_detections_are_read_as_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "detections.csv"
    path.write_text("".join(f"{v},{t:04d},{a},{b},{c},{d},{label},{s}\n" for v, t, a, b, c, d, label, s in rows))
    read = read_detections(path)
    assert [
        (video, int(seconds), *box, int(label), score)
        for video, seconds, box, label, score in zip(
            read.video_ids, read.timestamps, read.boxes.tolist(), read.action_ids, read.scores.tolist(), strict=True
        )
    ] == rows
