"""The mAP command on files: official formats in, a table and one JSON line out, and errors that name file and line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from train.ava_map import main

SCRIPT = Path(__file__).parents[2] / "train" / "ava_map.py"
LABELMAP = 'label {\n  name: "stand"\n  label_id: 12\n}\nlabel {\n  name: "talk to"\n  label_id: 79\n}\n'
LEFT, RIGHT = "0.000,0.000,0.500,1.000", "0.500,0.000,1.000,1.000"


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Writes files by name (`groundtruth`, `detections`, ...) in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str | list[str]) -> list[str]:
        texts = {"labelmap": LABELMAP, **texts}
        for name, text in texts.items():
            Path(name).write_text(text if isinstance(text, str) else "".join(f"{row}\n" for row in text))
        return [part for name in texts for part in (f"--{name}", name)]

    return write


def evaluate(arguments: list[str], capsys) -> dict:
    assert main(arguments) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_last_line_is_the_result_as_json(files, capsys):
    arguments = files(
        groundtruth=[f"vid-1,0902,{LEFT},12,0", f"vid-1,0903,{LEFT},12,0"],
        detections=[f"vid-1,0902,{LEFT},12,0.9", f"vid-1,0903,{RIGHT},12,0.8"],
    )
    assert main(arguments) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert result["mAP"] == 0.5
    assert result["per_class"] == {"stand": 0.5, "talk to": None}
    assert (result["protocol"], result["max_per_image"]) == ("activitynet-2020", 50)
    assert [line.split() for line in lines] == [
        ["id", "class", "AP,", "%", "boxes", "detections", "box", "recall,", "%"],
        ["12", "stand", "50.00", "2", "2", "50.00"],
        ["79", "talk", "to", "-", "0", "0", "-"],
        ["mAP", "50.00", "2", "2", "50.00"],
        [],
        [*"boxes: 50.00 % of the persons have a detection with IoU >= 0.5; no scores on these boxes".split()]
        + "can give more than 50.00 mAP".split(),
    ]


def test_it_runs_from_any_folder(files, tmp_path):
    arguments = files(groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,902.000,{LEFT},12,0.9"])
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # `0902` and `902.000` are one keyframe.
    assert json.loads(done.stdout.splitlines()[-1])["mAP"] == 1.0


def test_no_ground_truth_of_the_label_map_gives_null(files, capsys):
    arguments = files(groundtruth=[f"v,0902,{LEFT},1,0"], detections=[f"v,0902,{LEFT},12,0.9"])
    assert evaluate(arguments, capsys)["mAP"] is None


def test_rows_of_other_classes_than_the_label_maps_are_left_out_but_name_their_keyframe(files, capsys):
    arguments = files(
        groundtruth=[f"v,0902,{LEFT},12,0", f"v,0903,{LEFT},1,0"],
        detections=[f"v,0902,{LEFT},80,0.99", f"v,0903,{LEFT},12,0.9", f"v,0902,{LEFT},12,0.8"],
    )
    result = evaluate(arguments, capsys)
    # Keyframe 0903 was annotated, so "stand" there is a false positive above the true one.
    assert result["per_class"]["stand"] == 0.5 and result["detections"] == 2 and result["keyframes"] == 2


def test_rows_of_two_columns_name_a_keyframe_without_boxes(files, capsys):
    detections = [f"v,0903,{LEFT},12,0.9", f"v,0902,{LEFT},12,0.8"]
    named = files(groundtruth=[f"v,0902,{LEFT},12,0", "v,0903"], detections=detections)
    assert evaluate(named, capsys)["mAP"] == 0.5
    unnamed = files(groundtruth=[f"v,0902,{LEFT},12,0"], detections=detections)
    assert evaluate(unnamed, capsys)["mAP"] == 1.0


def test_the_exclusion_list_is_used_by_2019_and_its_uselessness_told_by_2020(files, capsys):
    arguments = files(
        groundtruth=[f"v,0902,{LEFT},12,0", f"v,0903,{LEFT},12,0"],
        detections=[f"v,0902,{LEFT},12,0.9"],
        excluded=["v,0903"],
    )
    assert evaluate([*arguments, "--protocol", "activitynet-2019"], capsys)["mAP"] == 1.0
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["mAP"] == 0.5
    assert "takes no exclusion list" in captured.err and "1 of which" in captured.err


def test_max_per_image(files, capsys):
    arguments = files(
        groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0902,{LEFT},79,0.9", f"v,0902,{LEFT},12,0.8"]
    )
    caps = {cap: evaluate([*arguments, "--max-per-image", cap], capsys)["mAP"] for cap in ("0", "1", "2")}
    assert caps == {"0": 1.0, "1": 0.0, "2": 1.0}
    assert evaluate([*arguments, "--protocol", "slowfast"], capsys)["max_per_image"] == 0
    assert main([*arguments, "--max-per-image", "-1"]) == 2


def test_the_mean_is_split_by_how_often_a_class_was_trained(files, capsys):
    arguments = files(
        groundtruth=[f"v,0902,{LEFT},12,0", f"v,0902,{LEFT},79,0"],
        detections=[f"v,0902,{LEFT},12,0.9"],
        **{"train-groundtruth": [f"t,0902,{LEFT},12,0"] * 3 + [f"t,0902,{LEFT},79,0"]},
    )
    parts = evaluate([*arguments, "--cutoffs", "2", "2"], capsys)["parts"]
    assert parts == {"head (> 2)": 1.0, "mid (2 to 2)": None, "tail (< 2)": 0.0}


def test_all_80_classes_of_ava_are_pointed_out(files, capsys):
    classes = "".join(f'label {{\n  name: "class {i}"\n  label_id: {i}\n}}\n' for i in range(1, 81))
    arguments = files(labelmap=classes, groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0902,{LEFT},12,0.9"])
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "published figures average 60" in captured.err
    parts = json.loads(captured.out.splitlines()[-1])["parts"]
    assert parts == {"person pose": 1.0, "person-object": None, "person-person": None}


def test_classes_that_share_a_name_keep_an_entry_each(files, capsys):
    arguments = files(
        labelmap=LABELMAP.replace("talk to", "stand"),
        groundtruth=[f"v,0902,{LEFT},12,0"],
        detections=[f"v,0902,{LEFT},12,0.9"],
    )
    assert evaluate(arguments, capsys)["per_class"] == {"stand (12)": 1.0, "stand (79)": None}


def test_rows_that_do_not_count_are_told(files, capsys):
    arguments = files(
        groundtruth=[f"v,0902,{LEFT},12,0", f"v,0902,{LEFT},1,0"],
        detections=[
            f"v,0902,{LEFT},12,0.9",
            f"other,0902,{LEFT},12,0.9",
            f"v,0902,{LEFT},80,0.9",
            "v,0902,0.5,0.5,0.1,0.9,12,0.9",
            "v,0902,10,20,200,300,12,0.9",
        ],
    )
    assert main(arguments) == 0
    told = capsys.readouterr().err
    assert "groundtruth: 1 of 2 rows are of classes that the label map does not name" in told
    assert "detections: 1 of 5 rows are of classes" in told
    assert "1 of 5 rows have no area" in told and "1 of 5 rows are far outside of the frame" in told
    assert "1 of 4 detections are on keyframes that the ground truth does not name" in told
    assert main(files(groundtruth=[f"v,0902,{LEFT},12,0"], detections=[])) == 0
    assert "detections: no boxes in it" in capsys.readouterr().err
    assert main(files(groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0902,{LEFT},12,0.9"])) == 0
    assert capsys.readouterr().err == "", "a note on files in which all is well"


def test_cutoffs_in_the_wrong_order_are_refused(files, capsys):
    arguments = files(groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0902,{LEFT},12,0.9"])
    assert main([*arguments, "--cutoffs", "10000", "1000"]) == 2
    assert "--cutoffs 10000 1000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("groundtruth", [f"v,0902,{LEFT},12,0", f"v,0902,{LEFT}"], "groundtruth, line 2"),
        ("groundtruth", [f"v,0902,{LEFT},stand,0"], "groundtruth, line 1, column action_id"),
        ("detections", [f"v,0902,{LEFT},12,0.9", f"v,0902,{LEFT},12,high"], "detections, line 2, column score"),
        ("detections", [f"v,0902,{LEFT},12,nan"], "detections, line 1, column score"),
        ("detections", ["v,0902,0.0,x,0.5,1.0,12,0.9"], "detections, line 1, column y1"),
        ("excluded", [f"v,0902,{LEFT},12"], "excluded, line 1"),
        ("labelmap", "label {\n  name: 12\n", "labelmap"),
    ],
)
def test_malformed_files_end_with_their_file_and_line(files, capsys, name, text, place):
    texts = {"groundtruth": [f"v,0902,{LEFT},12,0"], "detections": [f"v,0902,{LEFT},12,0.9"], name: text}
    assert main(files(**texts)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and place in error


def test_a_missing_file_is_an_error_of_the_user(files, capsys):
    arguments = files(groundtruth=[f"v,0902,{LEFT},12,0"])
    assert main([*arguments, "--detections", "nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err
