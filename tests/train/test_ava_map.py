"""The mAP command on files: official formats in, a table and one JSON line out, and errors that name file and line."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data.shards import ClassInfo, Manifest
from train.ava_map import main, run_names

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
    assert [line.split() for line in lines[:4]] == [
        ["id", "class", "AP,", "%", "boxes", "detections", "box", "recall,", "%"],
        ["12", "stand", "50.00", "2", "2", "50.00"],
        ["79", "talk", "to", "-", "0", "0", "-"],
        ["mAP", "50.00", "2", "2", "50.00"],
    ]
    assert lines[5].startswith("boxes: 50.00 % of the persons have a detection with IoU >= 0.5")
    assert lines[5].endswith("no scores on these boxes can give more than 50.00 mAP")


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
    assert main(files(groundtruth=[f"v,0902,{LEFT},12,0", f"v,902.0,{LEFT},12,1"], detections=[])) == 0
    assert "groundtruth: 1 rows repeat another's keyframe, box and class" in capsys.readouterr().err
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


def test_detections_on_unnamed_keyframes_are_what_the_option_says(files, capsys):
    arguments = files(
        groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0950,{LEFT},12,0.9", f"v,0902,{LEFT},12,0.8"]
    )
    for protocol, default in (("activitynet-2020", 1.0), ("activitynet-2019", 0.5)):
        assert evaluate([*arguments, "--protocol", protocol], capsys)["mAP"] == default
        for option, value in (("ignore", 1.0), ("false-positives", 0.5)):
            given = ["--protocol", protocol, "--unnamed-keyframes", option]
            assert evaluate([*arguments, *given], capsys)["mAP"] == value


def test_ties_that_move_the_figure_are_told(files, capsys):
    arguments = files(
        groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0902,{LEFT},12,0.5", f"v,0902,{RIGHT},12,0.5"]
    )
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "other orders of equal scores give mAP from 50.0000 to 100.0000 %" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["ties"] == {"low": 0.5, "high": 1.0}


def test_training_counts_come_from_a_manifest_too(files, capsys):
    manifest = Manifest("ava", "train", "localisation", [ClassInfo(12, "stand"), ClassInfo(79, "talk to")], [])
    counted = replace(manifest, settings={"per_class": [[9, 5], [2, 1]]})
    Path("train.manifest.json").write_text(counted.to_json())
    arguments = files(groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0902,{LEFT},12,0.9"])
    given = ["--train-groundtruth", "train.manifest.json", "--cutoffs", "2", "4"]
    assert main([*arguments, *given]) == 0
    out = capsys.readouterr().out.splitlines()
    # 5 boxes of "stand" were packed (not the 9 annotated), so it is head.
    assert out[1].split() == ["12", "stand", "100.00", "5", "1", "1", "100.00"]
    assert json.loads(out[-1])["parts"]["head (> 4)"] == 1.0
    Path("train.manifest.json").write_text(manifest.to_json())
    assert main([*arguments, *given]) == 2 and "holds no counts per class" in capsys.readouterr().err


def test_a_report_holds_every_figure_and_its_pictures(files, capsys):
    found = [f"v{v},0902,{LEFT},12,0.{9 - v}" for v in range(4)]
    arguments = files(
        groundtruth=[f"v{v},0902,{LEFT if v else RIGHT},{a},0" for v in range(4) for a in (12, 79)],
        detections=[*found, f"v1,0902,{LEFT},79,0.8"],
        compare=found[:2],
    )
    assert main([*arguments, "--errors", "--report", "folder/report", "--resamples", "20"]) == 0
    out = capsys.readouterr().out
    assert "wrong class" in out and "95% interval" in out
    result = json.loads(out.splitlines()[-1])
    folder = Path("folder/report")
    report = json.loads((folder / "report.json").read_text())
    assert report == {**result, "cutoffs": [1000, 10000]}
    assert result["comparison"]["videos"] == 4 and result["comparison"]["parts"]["mAP"]["difference"] > 0
    rows = list(csv.DictReader((folder / "classes.csv").open()))
    assert [row["class"] for row in rows] == ["stand", "talk to"]
    assert float(rows[0]["ap"]) == result["per_class"]["stand"]
    assert (rows[0]["boxes"], rows[0]["box_recall"], rows[0]["all_background"]) == ("4", "0.75", "1")
    names = {"ap_by_frequency.png", "classes.png", "errors.png", "errors_by_class.png"}
    assert {path.name for path in folder.iterdir()} == {"report.json", "classes.csv", *names}
    Path("file").write_text("")
    assert main([*arguments, "--report", "file/report"]) == 2 and "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("option", "value"), [("--resamples", "0"), ("--confidence", "1"), ("--seed", "-1")])
def test_options_out_of_range_are_refused(files, capsys, option, value):
    arguments = files(groundtruth=[f"v,0902,{LEFT},12,0"], detections=[f"v,0902,{LEFT},12,0.9"])
    assert main([*arguments, option, value]) == 2 and f"{option} {value}" in capsys.readouterr().err


def test_runs_are_named_by_where_their_paths_differ():
    assert run_names("/runs/a/eval/d.csv", "/runs/b/eval/d.csv") == ("a", "b")
    assert run_names("x/one.csv", "x/two.csv") == ("one.csv", "two.csv")
    assert run_names("x.csv", "x.csv") == ("x.csv", "x.csv")
