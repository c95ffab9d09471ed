"""Clips of evaluated videos are listed and left out of training."""

import pytest

from data.errors import UserError
from shard_tools.leaks import read_ids
from tests.shard_tools.raw import PICTURES, video

KINETICS = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("-a\nb_c\n\n-a\n", {"-a", "b_c"}),
        ("x,17.0,0.1,0.1,0.2,0.2,12\ny,5.016949\n", {"x", "y"}),
        (KINETICS + "run,x,0,10,train\n", {"x"}),
        ("youtube_id\n", set()),
    ],
)
def test_ids_come_as_a_list_or_in_an_annotation_file(tmp_path, text, ids):
    (tmp_path / "ids").write_text(text)
    assert read_ids(str(tmp_path / "ids")) == ids


@pytest.mark.parametrize(("text", "message"), [("", "no video ids"), ("a\n,5\n", "line 2, column 1: empty")])
def test_a_file_without_ids_is_refused(tmp_path, text, message):
    (tmp_path / "ids").write_text(text)
    with pytest.raises(UserError, match=message):
        read_ids(str(tmp_path / "ids"))


def test_leaks_are_listed_and_what_is_listed_is_left_out(world, capsys):
    for name in ("seen_000000_000010", "seen_000030_000040", "free_000000_000010"):
        video(world.videos / f"{name}.mp4", PICTURES, 2.0)
    rows = ["run,seen,0,10,train", "run,seen,30,40,train", "run,free,0,10,train"]
    csv = world.file("train.csv", KINETICS + "\n".join(rows) + "\n")
    val = ["seen,1.0,0.1,0.2,0.5,0.9,12"]
    assert world.ava_kinetics(val, "--kinetics-train", csv, "--dry-run", split="val") == 0
    assert "2 clips are of 1 videos that are evaluated here\n" in capsys.readouterr().out
    assert not world.out.exists()
    assert world.ava_kinetics(val, "--kinetics-train", csv, split="val") == 0
    leaks = world.out / "ava_kinetics-val.leaks.txt"
    assert leaks.read_text() == "youtube_id\nseen\n"
    assert world.kinetics(rows, "--exclude-ids", leaks) == 0
    shards = world.shards("kinetics-train")
    assert [shards.read_json(n)["source"] for n in range(len(shards))] == ["free_000000_000010.mp4"]
    assert shards.manifest.settings["dropped"] == {"clips of --exclude-ids": 2}


def test_a_list_of_no_leaks_is_a_list_too(world):
    video(world.videos / "seen_000000_000010.mp4", PICTURES, 2.0)
    csv = world.file("train.csv", KINETICS + "run,other,0,10,train\n")
    leaks = world.out / "ava_kinetics-val.leaks.txt"
    world.out.mkdir()
    leaks.write_text("of an earlier run\n")
    assert world.ava_kinetics(["seen,1.0,0.1,0.2,0.5,0.9,12"], "--kinetics-train", csv, split="val") == 0
    assert leaks.read_text() == "youtube_id\n"
    assert world.kinetics(["run,seen,0,10,train"], "--exclude-ids", leaks) == 0
    # A set that holds none of them says so too: a run would warn of leaks that there are not.
    assert world.shards("kinetics-train").manifest.settings["dropped"] == {"clips of --exclude-ids": 0}
