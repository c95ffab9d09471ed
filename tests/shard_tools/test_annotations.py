"""Annotation files of Kinetics, Moments and Something-Something v2, with their quirks."""

import json

import pytest

from data.errors import UserError
from shard_tools.annotations import read_kinetics, read_moments, read_ssv2

HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.fixture
def write(tmp_path):
    def write(text, name="file"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


def test_kinetics_rows_become_clips_with_every_name_a_file_may_have(write):
    clips, classes, _ = read_kinetics(
        write(HEADER + "pull ups,-a_b-c,41,51,train\nair drumming,x,0,10,train\n"), "train"
    )
    assert [c.name for c in classes] == ["air drumming", "pull ups"] and [c.id for c in classes] == [0, 1]
    assert clips[0].stems == ("-a_b-c_000041_000051", "-a_b-c", "-a_b-c_41_51")
    assert clips[0].label == 1 and clips[1].label == 0


@pytest.mark.parametrize("split", ["val", "validate", "validation", "VALIDATE"])
def test_kinetics_takes_the_rows_of_its_split_whatever_its_name(write, split):
    path = write(HEADER + "a,1,0,10,train\nb,2,0,10,validate\n")
    clips, classes, left_out = read_kinetics(path, split)
    assert [clip.name for clip in clips] == ["2_000000_000010"]
    assert len(classes) == 2 and left_out == {"rows of other splits": 1}


def test_kinetics_never_packs_training_rows_as_validation(write):
    with pytest.raises(UserError, match="no row of split 'val'; its column split says train"):
        read_kinetics(write(HEADER + "a,1,0,10,train\n"), "val")


def test_kinetics_takes_all_rows_of_one_split_under_a_name_of_its_own(write):
    path = write(HEADER + "a,1,0,10,val\nb,2,0,10,validate\na,3,0,10,\n")
    clips, _, left_out = read_kinetics(path, "val_mini")
    assert len(clips) == 3 and not left_out


def test_kinetics_never_packs_several_splits_under_a_name_of_its_own(write):
    path = write(HEADER + "a,1,0,10,train\nb,2,0,10,validate\na,3,0,10,train\n")
    with pytest.raises(
        UserError, match=r"no row of split 'train_mini'.*train, validate: give --split one of th"
    ) as told:
        read_kinetics(path, "train_mini")
    assert str(told.value).startswith(path) and "a file with the rows of one split" in str(told.value)


def test_kinetics_columns_may_come_in_any_order_and_test_files_have_no_label(write):
    clips, classes, _ = read_kinetics(
        write("youtube_id,split,time_end,time_start\nx,test,10.0,0.0\n"), "test", ["b", "a"]
    )
    assert clips[0].name == "x_000000_000010" and clips[0].label is None
    assert [c.name for c in classes] == ["b", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        (HEADER, "no rows"),
        ("pull ups,x,41,51,train\n", "line 1: 'pull ups,x,41,51,train' is no header"),
        (HEADER + "a,x,0,10,train\na,x,zero,10,train\n", "line 3, column time_start: 'zero', expected a number"),
        (HEADER + "a,x,0,10\n", "line 2: 4 columns"),
        (HEADER + "a,,0,10,train\n", "line 2: '' from 0 to 10 s is no clip"),
        (HEADER + "a,x,10,0,train\n", "line 2: 'x' from 10 to 0 s is no clip"),
        (HEADER + "a,x,0,10,train\n,y,0,10,train\n", "line 3: label '' is not among the 1 classes"),
    ],
)
def test_kinetics_says_where_a_file_is_wrong(write, text, message):
    path = write(text)
    with pytest.raises(UserError, match=message) as caught:
        read_kinetics(path, "train")
    assert str(caught.value).startswith(path)


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_kinetics(str(tmp_path / "none.csv"), "train")


@pytest.mark.parametrize("categories", ["clapping,0\nadult+female+singing,1\n", "clapping\nadult+female+singing"])
def test_moments_labels_are_folders_and_categories_may_be_numbered_or_not(write, categories):
    table = "adult+female+singing/yt-x.1_2.mp4,1,0\nclapping/y.mp4,4\ntraining/clapping/z.mp4\n"
    clips, classes, _ = read_moments(write(table), write(categories, "categories"))
    assert [(clip.stems, clip.label) for clip in clips] == [(("yt-x.1_2",), 1), (("y",), 0), (("z",), 0)]
    assert [c.name for c in classes] == ["clapping", "adult+female+singing"]


@pytest.mark.parametrize(
    ("table", "categories", "message"),
    [
        ("clapping\n", "clapping,0\n", "line 1, column 1: 'clapping', expected label/file.mp4"),
        ("a/x.mp4\nb/x.mp4\n", "a,0\n", "line 2: label 'b' is not in"),
        ("a/x.mp4\n", "a,0\na,1\n", "line 2: 'a,a,1'|line 2: 'a,1'"),
        ("a/x.mp4\n", "a,0\nb,2\n", "indices are not 0 to 1"),
        ("", "a,0\n", "no rows"),
        ("a/x.mp4\n", f"a,{'9' * 5000}\n", "line 1: .*expected name,index"),
    ],
)
def test_moments_says_where_a_file_is_wrong(write, table, categories, message):
    with pytest.raises(UserError, match=message):
        read_moments(write(table), write(categories, "categories"))


def test_ssv2_templates_lose_their_brackets_and_test_items_have_none(write):
    labels = write(json.dumps({"Pushing something": "1", "Spinning something so it stops": "0"}), "labels")
    items = [{"id": "7", "template": "Spinning [something] so it stops", "placeholders": ["cube"]}, {"id": 8}]
    clips, classes, _ = read_ssv2(write(json.dumps(items)), labels)
    assert [(clip.name, clip.label) for clip in clips] == [("7", 0), ("8", None)]
    assert [c.name for c in classes] == ["Spinning something so it stops", "Pushing something"]


@pytest.mark.parametrize(
    ("items", "labels", "message"),
    [
        ('[{"id": "1", "template": "Folding [it]"}]', '{"a": "0"}', "entry 1 .id 1.: template 'Folding it' is not in"),
        ('[{"template": "a"}]', '{"a": "0"}', "entry 1: has no id"),
        ("[1]", '{"a": "0"}', "entry 1: has no id"),
        ("{}", '{"a": "0"}', "expected a list"),
        ("[", '{"a": "0"}', "line 1: not JSON"),
        ("[" * 100_000, '{"a": "0"}', "not JSON"),
        ('[{"id": "1"}]', '{"a": "1"}', "indices are not 0 to 0"),
        ('[{"id": "1"}]', "[]", "expected an object"),
        ('[{"id": "1"}]', '{"a": "' + "9" * 5000 + '"}', "expected an object"),
        ('[{"id": ' + "9" * 5000 + "}]", '{"a": "0"}', "not JSON of a dataset"),
    ],
)
def test_ssv2_says_where_a_file_is_wrong(write, items, labels, message):
    with pytest.raises(UserError, match=message):
        read_ssv2(write(items), write(labels, "labels"))
