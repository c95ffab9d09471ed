"""Counts per class: what was asked for, what is there, and what the summary says of it."""

from shard_tools.accounts import class_lines
from tests.shard_tools.raw import PICTURES, video


def test_clips_are_counted_by_class(world, capsys):
    for n in range(3):
        video(world.videos / f"a{n}.mp4", f"{PICTURES},hue=h={30 * n}")
    (world.videos / "b0.mp4").write_bytes(b"")
    rows = [f"run,a{n},0,10,train" for n in range(3)] + ["run,gone,0,10,train", "jump,b0,0,10,train"]
    rows += ["run,a0,0,10,train", "swim,a0,0,10,validate"]
    assert world.kinetics(rows, "--max-failures", 0.5) == 0
    manifest = world.shards("kinetics-train").manifest
    assert [c.name for c in manifest.classes] == ["jump", "run", "swim"]
    assert manifest.settings["per_class"] == [[1, 0], [4, 3], [0, 0]]
    lines = [
        "1 of 3 classes of which nothing is left: jump",
        "1 of 3 classes without an annotation: swim",
        "classes that lost most: run (1 of 4)",
    ]
    assert class_lines(manifest) == lines
    printed = capsys.readouterr().out
    assert all(line in printed for line in lines)


def test_keyframes_are_counted_by_label(world):
    video(world.videos / "m.mp4", PICTURES, 6.0)
    rows = [f"m,090{t},0.1,0.2,0.5,0.9,{label},1" for t, label in ((2, 12), (2, 80), (3, 12), (9, 12))]
    rows += ["gone,0902,0.1,0.2,0.5,0.9,17,1"]
    assert world.ava(rows, "--max-failures", 0.5) == 0
    manifest = world.shards("ava-train").manifest
    assert [c.id for c in manifest.classes] == [12, 17, 80]
    assert manifest.settings["per_class"] == [[3, 2], [1, 0], [1, 1]]
