"""Columns straight from bytes: exactly what Python's own float and the CSV reader give, or left to them."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data import text_files
from data.ava_files import read_annotations, read_detections
from data.errors import UserError
from data.plain_csv import Block

decimals = st.from_regex(r"-?[0-9]{0,12}\.?[0-9]{0,12}", fullmatch=True)
written = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(0, 1).map(lambda value: f"{value:.9g}"),
    st.integers(0, 10**20).map(str),
    decimals,
)


@settings(max_examples=150, deadline=None)
@given(st.lists(written, min_size=1, max_size=20))
@example(["9007199254740993", "0.1", "-0.0", "123456789.123456789", "1e-05", "0000000000.500"])
def test_numbers_are_the_ones_that_float_gives(texts):
    def number(text):
        try:
            return float(text)
        except ValueError:
            return None

    expected = [number(text) for text in texts]
    block = Block.parse("".join(f"x,{text}\n" for text in texts).encode())
    values = block.floats(1)
    if None in expected:
        assert values is None
    else:
        assert values.tobytes() == np.array(expected).tobytes(), "to the last bit, and the sign of 0"


@given(st.lists(st.one_of(st.integers(-(10**14), 10**14).map(str), decimals), min_size=1, max_size=20))
def test_whole_numbers_are_digits_alone(texts):
    values = Block.parse("".join(f"{text},\n" for text in texts).encode()).ints(0)
    if all(text.removeprefix("-").isdecimal() for text in texts) and all(abs(int(text)) < 2**53 for text in texts):
        assert values.tolist() == [int(text) for text in texts]
    else:
        assert values is None


@given(st.lists(st.text("ab\u00e9_-", max_size=3), min_size=1, max_size=30))
def test_a_column_of_few_texts(texts):
    distinct, which = Block.parse("".join(f"{text},1\n" for text in texts).encode()).texts(0)
    assert [distinct[number] for number in which] == texts
    assert len(set(distinct)) == len(distinct)


@pytest.mark.parametrize("text", ["a,1\nb\n", 'a,"1"\n', "a,1\r\n", "a,1\n\nb,2\n", "\na,1\n"])
def test_other_lines_are_left_to_the_reader_of_rows(text):
    assert Block.parse(text.encode()) is None


rows = st.lists(
    st.one_of(
        st.builds("{},{:04d},0.1,0.2,0.3,0.4,{},{}".format, st.sampled_from("ab"), *[st.integers(0, 99)] * 3),
        st.sampled_from(["a,902,0,0,1,1,12", "b,7", "", '"a",1,0,0,1,1,3,4', "c,2.5,1e-3,0,1,1,12,7"]),
    ),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(rows=rows, size=st.integers(40, 400), newline=st.sampled_from(["\n", "\r\n"]), end=st.booleans())
def test_the_size_of_blocks_and_how_they_are_read_do_not_matter(rows, size, newline, end, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "file.csv"
    path.write_text("\ufeff" + newline.join(rows) + newline * end, encoding="utf-8", newline="")

    def read():
        found = read_detections(path)
        columns = (found.timestamps, found.action_ids, found.scores, found.lines, found.boxes)
        return found.video_ids, found.unlabelled, [column.tolist() for column in columns]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_BLOCK", size)
        fast = read()
        patch.setattr(Block, "parse", classmethod(lambda cls, data: None))
        assert read() == fast


def test_a_wrong_row_of_a_later_block_has_its_line(tmp_path, monkeypatch):
    path = tmp_path / "file.csv"
    path.write_text("a,902,0,0,1,1,12,1\n" * 50 + "a,902,0,0,1,1,stand,1\n")
    monkeypatch.setattr(text_files, "_BLOCK", 100)
    with pytest.raises(UserError, match="line 51, column action_id: 'stand'"):
        read_annotations(path)


def test_a_line_without_end_is_no_text_file(tmp_path, monkeypatch):
    (tmp_path / "file.csv").write_bytes(b"x" * 1000)
    monkeypatch.setattr(text_files, "_BLOCK", 100)
    with pytest.raises(UserError, match="line 1: has no end"):
        read_annotations(tmp_path / "file.csv")
