"""Damaged and hostile inputs of every kind: an error that says so, never an exception of another kind, never a half."""

import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest

from data.ava_files import read_annotations, read_excluded, read_labelmap, read_proposals
from data.errors import UserError
from shard_tools.annotations import read_kinetics, read_moments, read_ssv2
from shard_tools.keyframe_labels import collect_keyframes
from shard_tools.leaks import read_ids
from shard_tools.verify import verify
from tests.shard_tools.raw import LABELMAP, PICTURES, video

KINETICS = 'label,youtube_id,time_start,time_end,split\npull ups,-a_b,1,11,train\n"a, b",x,0,10,train\n'
AVA = "m.1,0902,0.1,0.2,0.5,0.9,12,1\nm.1,902,0,0.2,1,0.9,80,1\nm.1,0903\nk,5.016949,0.1,0.2,0.5,0.9,17\n"
BOXES = "m.1,0902,0.1,0.2,0.5,0.9,,0.25\nm.1,903,0.3,0.2,0.6,0.9,1,0.97\n"
SSV2 = json.dumps([{"id": "7", "template": "Spinning [something]", "placeholders": ["x"]}, {"id": "8"}])
TOKENS = [
    b"nan",
    b"inf",
    b"-1",
    b"1e309",
    b"9" * 400,
    b"\x00",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\xff\xfe",
    "é".encode(),
    b"../",
]


def mutations(content: bytes, count: int, seed: int = 0) -> list[bytes]:
    chance = random.Random(seed)
    made = []
    for _ in range(count):
        text = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(text) + 1)
            end = min(at + chance.choice((1, 4, 16, len(text) // 3)), len(text))
            match chance.randrange(5):
                case 0:
                    text[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
                case 1:
                    del text[at:end]
                case 2:
                    text[at:at] = text[chance.randrange(len(text) + 1) :][: end - at]
                case 3:
                    text[at:at] = chance.choice(TOKENS)
                case 4:
                    del text[at:]
        made.append(bytes(text))
    return made


def pickled() -> bytes:
    boxes = {"m.1,0902": np.array([[0.1, 0.2, 0.5, 0.9, 0.97]]), "m.1,0903": np.zeros((0, 5), np.float32)}
    return pickle.dumps(boxes, protocol=2)


def read_all_keyframes(path: str) -> None:
    collect_keyframes(read_annotations(path), {12, 17, 80}, set(), None, keep_empty=True)


def read_all_proposals(path: str) -> None:
    rows = Path(path).with_name("rows")
    rows.write_text(AVA)
    collect_keyframes(read_annotations(rows), {12, 17, 80}, set(), read_proposals(path), keep_empty=True)


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("kinetics.csv", KINETICS.encode(), lambda path: read_kinetics(path, "train")),
        ("ids.csv", KINETICS.encode(), read_ids),
        ("set.csv", b"a/x.mp4,1\nb/y.1.mp4,2\n", lambda p: read_moments(p, write(Path(p).parent, "c", "a,0\nb,1\n"))),
        ("cat.txt", b"a,0\nb,1\n", lambda path: read_moments(write(Path(path).parent, "set", "a/x.mp4,1\n"), path)),
        ("set.json", SSV2.encode(), lambda p: read_ssv2(p, write(Path(p).parent, "l", '{"Spinning something": "0"}'))),
        (
            "labels.json",
            b'{"Spinning something": "0", "b": 1}',
            lambda p: read_ssv2(write(Path(p).parent, "s", SSV2), p),
        ),
        ("ava.csv", AVA.encode(), read_all_keyframes),
        ("excluded.csv", b"m.1,0902\nm.1,903\n", read_excluded),
        ("labels.pbtxt", LABELMAP.encode(), read_labelmap),
        ("boxes.csv", BOXES.encode(), read_all_proposals),
        ("boxes.pkl", pickled(), read_all_proposals),
    ],
)
def test_damaged_annotation_files_are_read_or_refused(tmp_path, name, content, read):
    path = tmp_path / name
    path.write_bytes(content)
    read(str(path))
    refused = 0
    for mutation in [b"", b"\n", *mutations(content, 300)]:
        path.write_bytes(mutation)
        try:
            read(str(path))
        except UserError as error:
            refused += 1
            assert str(error), "says what is wrong"
    assert refused > 20


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_runs_nothing(world, protocol):
    video(world.videos / "m.mp4")
    ran = world.folder / "ran"
    for content in (Hostile(ran), {"m,0900": Hostile(ran)}, {"m,0900": np.array([Hostile(ran)], dtype=object)}):
        (world.folder / "boxes.pkl").write_bytes(pickle.dumps(content, protocol))
        with pytest.raises(UserError, match=r"refused|not a pickled|numeric"):
            world.ava(["m,0900,0.1,0.2,0.5,0.9,12,1"], "--proposals", world.folder / "boxes.pkl")
    assert not ran.exists() and not world.out.exists()


def test_damaged_videos_are_packed_whole_or_listed(world):
    sources = [
        video(world.folder / "a.mp4", PICTURES, 1.0, "-g", "5", "-pix_fmt", "yuv420p"),
        video(world.folder / "a.webm", PICTURES, 1.0, "-c:v", "libvpx", "-deadline", "realtime"),
        video(world.folder / "a.avi", PICTURES, 1.0, "-c:v", "mpeg4"),
        video(world.folder / "a.ts", PICTURES, 1.0, "-c:v", "mpeg2video", "-r", "25"),
        video(world.folder / "a.gif", PICTURES, 1.0),
        video(world.folder / "a.flv", PICTURES, 1.0, "-c:v", "flv1"),
    ]
    count = 0
    for source in sources:
        for mutation in mutations(source.read_bytes(), 8, seed=1):
            (world.videos / f"v{count}{source.suffix}").write_bytes(mutation)
            count += 1
    video(world.videos / f"v{count}.mp4")
    rows = [f"a,v{n},0,10,train" for n in range(count + 1)]
    assert world.kinetics(rows, "--max-failures", 1, "--samples-per-shard", 10, "--time-limit", 20) == 0
    manifest = world.shards("kinetics-train").manifest
    lost = world.failures("kinetics-train")
    assert (
        manifest.examples + len(lost) == count + 1 and "timeout" not in lost.values() and "crashed" not in lost.values()
    )
    assert verify(world.out, decode=True, workers=2) == 0


def test_damaged_shards_are_found(world, capsys):
    for n in range(4):
        video(world.videos / f"v{n}.mp4", f"{PICTURES},hue=h={40 * n}")
    assert world.kinetics([f"a,v{n},0,10,train" for n in range(4)]) == 0
    (tar,) = world.out.glob("*.tar")
    whole = tar.read_bytes()
    for file in (tar, *world.out.glob("*.json"), *world.out.glob("*.npy"), *world.out.glob("*.jsonl")):
        before = file.read_bytes()
        for mutation in mutations(before, 25, seed=2):
            file.write_bytes(mutation)
            try:
                code = verify(world.out, decode=False, workers=1)
            except UserError:
                code = 2
            # A manifest's settings are free text, and JSON may be written in more than one way.
            assert code or mutation == before or file.suffix == ".json", f"{file.name} changed unseen"
        file.write_bytes(before)
    assert tar.read_bytes() == whole and verify(world.out, decode=True, workers=1) == 0
    capsys.readouterr()
