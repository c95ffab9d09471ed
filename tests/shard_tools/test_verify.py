"""The verifier passes what the pack commands write, and names whatever is wrong with it."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from data.errors import UserError
from data.shards import Manifest
from shard_tools.contact_sheet import HEIGHT
from shard_tools.verify import look, verify
from tests.shard_tools.raw import PICTURES, World, video
from tests.tiny_shards import write_set


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder of two small sets."""
    world = World(tmp_path_factory.mktemp("packed"))
    for n in range(4):
        video(world.videos / f"id{n}.mp4", f"{PICTURES},hue=h={40 * n}")
    video(world.videos / "film.mp4", "testsrc2=s=160x96:r=15", 6.0)
    world.kinetics([f"a,id{n},0,10,train" for n in range(4)] + ["a,none,0,10,train"], "--samples-per-shard", 2)
    rows = [f"film,{t},0.1,0.2,0.5,0.9,12,1" for t in (902, 903, 904)]
    assert world.ava(rows) == 0
    return world.out


@pytest.fixture
def shards(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "shards")


def faults(folder, capsys, decode=False):
    """The lines that the verifier prints, "" where all holds."""
    code = verify(folder, decode, 2)
    shown = capsys.readouterr().out
    assert (code == 0) == all(line.endswith("all holds") for line in shown.splitlines())
    return "" if code == 0 else shown


def rewrite(folder, name, change):
    """Writes a set anew with its samples changed, and all else made to fit: only the samples can be at fault."""
    manifest = Manifest.from_json((folder / f"{name}.manifest.json").read_bytes(), name)
    files = [str(folder / shard.name) for shard in manifest.shards]
    entries = []
    for sample in webdataset.WebDataset(files, shardshuffle=False, empty_check=False):
        entries.append(change(json.loads(sample["json"]), sample["mp4"]))
    for file in files:
        Path(file).unlink()
    write_set(folder, manifest.dataset, manifest.split, manifest.kind, manifest.classes, entries)
    path = folder / f"{name}.manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "failures": manifest.failures}))


@pytest.mark.parametrize("decode", [False, True])
def test_packed_sets_hold(shards, capsys, decode):
    assert faults(shards, capsys, decode) == ""


def test_a_flipped_byte_is_found(shards, capsys):
    path = shards / "kinetics-train-000001.tar"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "kinetics-train-000001.tar: its sha256 is not that of the manifest" in faults(shards, capsys)


def test_a_missing_and_a_cut_tar_are_found(shards, capsys):
    (shards / "kinetics-train-000001.tar").unlink()
    path = shards / "ava-train-000000.tar"
    path.write_bytes(path.read_bytes()[:5000])
    shown = faults(shards, capsys)
    assert "kinetics-train-000001.tar: No such file" in shown
    assert "ava-train-000000.tar: has 5000 bytes" in shown and "ava-train-000000.tar: has 0 samples" in shown


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda s: s["keyframes"][1].update(boxes=[[0.1, 0.2, 1.5, 0.9]]),
            "sample film_0902: keyframe 1: boxes: bad box",
        ),
        (lambda s: s["keyframes"][2].update(frame=10_000), "sample film_0902: keyframe 2: bad frame 10000"),
        (lambda s: s["keyframes"][0].update(labels=[[99]]), "keyframe 0: label 99 is not a class"),
        (lambda s: s["video"].pop("fps"), "bad video.width, video.height or video.fps"),
        (lambda s: s["video"].update(width=10**400), "bad video.width, video.height or video.fps"),
        (lambda s: s["video"].update(fps=[10**400, 1]), "bad video.width, video.height or video.fps"),
        (lambda s: s["video"].update(keyframes=[5]), "bad video.keyframes"),
        (lambda s: s["video"].update(times=[None] * s["video"]["frames"]), "bad video.times"),
        (lambda s: s["video"].update(frames=2, keyframes=[0], times=[0, "a"]), "sample film_0902: bad video.times"),
        (lambda s: s.update(dataset="other"), "dataset or source is not that of ava"),
    ],
)
def test_a_bad_record_is_found_and_named(shards, capsys, change, fault):
    def apply(sample, content):
        change(sample)
        return sample, content

    rewrite(shards, "ava-train", apply)
    assert fault in faults(shards, capsys)


def test_a_record_that_is_nested_too_deeply_is_found_and_named(shards, capsys):
    nested = b"[" * 100_000 + b"]" * 100_000
    rewrite(
        shards, "kinetics-train", lambda sample, content: (nested if sample["key"][:3] == "id1" else sample, content)
    )
    shown = faults(shards, capsys)
    assert "sample 0: its JSON is nested too deeply" in shown and "crashed" not in shown


ODD = "member 'id0_000000_000010.json' "


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        # 1.0 of GNU's format: the file begins with a map of what it holds, here nothing.
        (
            {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(20 * 10**9)},
            f"{ODD}is no plain file",
        ),
        ({"GNU.sparse.map": "a,b"}, "invalid literal for int"),
        ({"size": str(20 * 10**9)}, f"{ODD}claims 20000000000 bytes, the shard has 10240"),
        ({"size": str(10**30)}, f"{ODD}claims 1{'0' * 30} bytes"),
    ],
)
def test_a_member_that_claims_more_than_the_shard_is_not_read(shards, capsys, fields, fault):
    path = shards / "kinetics-train-000000.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("id0_000000_000010.json")
        member.size, member.pax_headers = 512, fields
        tar.addfile(member, io.BytesIO(b"0\n".ljust(512, b"\0")))
    shown = faults(shards, capsys)
    assert f"cannot be read on after 0 samples: {fault}" in shown and "crashed" not in shown


def test_headers_that_lead_to_others_without_end_are_one_fault(shards, capsys):
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    (shards / "kinetics-train-000000.tar").write_bytes(header.tobuf() * 2000)
    shown = faults(shards, capsys)
    assert "kinetics-train-000000.tar: cannot be read on after 0 samples: " in shown and "crashed" not in shown


def test_a_label_that_is_not_the_class_is_found(shards, capsys):
    rewrite(shards, "kinetics-train", lambda sample, content: ({**sample, "class_name": "b"}, content))
    assert "label 0 is not class 'b'" in faults(shards, capsys)


def test_a_video_that_does_not_decode_as_its_record_says_is_found_by_decoding(shards, capsys):
    def apply(sample, content):
        if sample["key"].startswith("id0"):
            sample["video"]["frames"] += 1
        if sample["key"].startswith("id1"):
            content = content[: len(content) // 2]
        return sample, content

    rewrite(shards, "kinetics-train", apply)
    assert faults(shards, capsys) == ""
    shown = faults(shards, capsys, decode=True)
    assert "sample id0_000000_000010: its video has frames 15, the JSON says 16" in shown
    assert "sample id1_000000_000010: " in shown and "id2" not in shown


def test_an_index_that_points_elsewhere_is_found(shards, capsys):
    path = shards / "kinetics-train.index.npy"
    index = np.load(path)
    index["video_offset"][1] += 512
    np.save(path, index)
    assert "kinetics-train-000000.tar: the index does not point at its samples" in faults(shards, capsys)


def test_leftovers_and_a_list_of_failures_that_does_not_fit_are_found(shards, capsys):
    (shards / ".kinetics-train.parts").mkdir()
    (shards / ".moments-train.parts").mkdir()
    shutil.copy(shards / "ava-train-000000.tar", shards / "ava-train-000007.tar")
    (shards / "kinetics-train.failures.jsonl").write_text("")
    shown = faults(shards, capsys)
    assert ".kinetics-train.parts: left over" in shown and ".moments-train.parts: parts of a set" in shown
    assert "ava-train-000007.tar: is not in the manifest" in shown
    assert "kinetics-train.failures.jsonl: counts {}, the manifest says {'missing': 1}" in shown


def test_a_damaged_manifest_is_a_fault_and_no_manifest_an_error(shards, capsys, tmp_path):
    (shards / "ava-train.manifest.json").write_text("{}")
    assert "ava-train.manifest.json: not a shard manifest" in faults(shards, capsys)
    manifest = shards / "kinetics-train.manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"settings": 3}))
    assert "kinetics-train.manifest.json: settings must be an object, not 3" in faults(shards, capsys)
    with pytest.raises(UserError, match="no shard set there"):
        verify(tmp_path / "none", False, 1)


def test_the_contact_sheet_shows_the_boxes_where_they_are(world, tmp_path, capsys):
    video(world.videos / "m.mp4", "color=c=green:s=128x96:r=15", 6.0, "-pix_fmt", "yuv420p")
    assert world.ava(["m,0902,0.25,0.25,0.75,0.75,12,1"]) == 0
    page = tmp_path / "page.png"
    look(world.out, page, examples=1, seed=0)
    assert "1 examples drawn" in capsys.readouterr().out
    picture = np.asarray(Image.open(page), dtype=int)
    orange = np.argwhere(np.abs(picture[:HEIGHT] - (255, 176, 0)).sum(axis=2) < 30)
    assert np.abs([orange.min(axis=0), orange.max(axis=0)] - np.array([[60, 80], [180, 240]])).max() <= 2
    assert (picture[HEIGHT:] > 200).any()


def test_a_sample_that_the_index_puts_out_of_its_shard_is_not_drawn(shards, tmp_path, capsys):
    path = shards / "kinetics-train.index.npy"
    index = np.load(path)
    index["video_offset"] = 2**63
    np.save(path, index)
    look(shards, tmp_path / "page.png", examples=4, seed=0)
    assert "kinetics-train: example 0 cannot be drawn" in capsys.readouterr().out


def test_a_sample_that_cannot_be_drawn_is_named(shards, tmp_path, capsys):
    for tar in shards.glob("kinetics-train-*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    look(shards, tmp_path / "page.png", examples=4, seed=0)
    assert "kinetics-train: example 0 cannot be drawn" in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be written: No such file"):
        look(shards, tmp_path / "none" / "page.png", examples=4, seed=0)
