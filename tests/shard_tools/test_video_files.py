"""Finding videos by name under a folder."""

import os

import pytest

from data.errors import UserError
from shard_tools.video_files import VideoFiles


@pytest.fixture
def folder(tmp_path):
    for name in (
        "train/pull_ups/x_000001_000011.mp4",
        "train/air drumming/y.mkv",
        "z.WEBM",
        "z.json",
        "z.mp4.part",
        "a/same.mp4",
        "b c/same.mp4",
        "no_extension",
        ".hidden.mp4",
        "-id.dat",
        "-id.mp4",
        "twice.mp4.mkv",
        "both.mp4",
        "both.mp4.webm",
        "loose_7_17.mp4",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("stems", "near", "found"),
    [
        (["x_000001_000011", "x"], ["pull ups"], "train/pull_ups/x_000001_000011.mp4"),
        (["y_000001_000011", "y"], [], "train/air drumming/y.mkv"),
        (["z"], [], "z.WEBM"),
        (["same"], [], "a/same.mp4"),
        (["same"], ["b_c"], "b c/same.mp4"),
        (["no_extension"], [], "no_extension"),
        (["-id"], [], "-id.mp4"),
        (["twice"], [], "twice.mp4.mkv"),
        (["both"], [], "both.mp4"),
        ([".hidden"], [], None),
        (["../" + "x"], [], None),
        (["train/pull_ups/x_000001_000011"], [], None),
        (["/etc/passwd", ""], [], None),
    ],
)
def test_a_video_is_found_by_name_alone(folder, stems, near, found):
    assert VideoFiles(folder).find(stems, near) == found


@pytest.mark.parametrize(
    ("stems", "near", "found"),
    [
        (["same"], ["b_c"], "b c/same.mp4"),
        (["same"], ["pull ups"], None),
        (["x_000001_000011", "z"], ["b c"], "z.WEBM"),
        (["y"], ["a", "train"], "train/air drumming/y.mkv"),
        (["x_000001_000011"], ["a", "train"], None),
    ],
)
def test_a_video_in_the_folder_of_another_class_is_another_one(folder, stems, near, found):
    match = VideoFiles(folder).match(stems, near, frozenset({"a", "b c", "pull ups"}))
    assert (match and match[1]) == found


def test_clips_are_found_by_their_video_padded_or_not(folder):
    files = VideoFiles(folder)
    assert files.clips("x") == [(1.0, 11.0, "train/pull_ups/x_000001_000011.mp4")]
    assert files.clips("loose") == [(7.0, 17.0, "loose_7_17.mp4")]


def test_a_folder_that_cannot_be_read_costs_its_own_videos(folder, monkeypatch, capsys):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("b c"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root reads everything
    files = VideoFiles(folder)
    assert files.find(["same"], ["b_c"]) == "a/same.mp4" and files.find(["z"]) == "z.WEBM"
    assert "b c cannot be listed (Permission denied): videos in it count as missing" in capsys.readouterr().err
    monkeypatch.setattr(os, "scandir", lambda path: refuse("b c"))
    with pytest.raises(UserError, match="videos cannot be listed"):
        VideoFiles(folder)


def test_links_to_folders_are_followed_once(folder, tmp_path):
    (folder / "a" / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "classes").symlink_to(folder / "train", target_is_directory=True)
    assert VideoFiles(folder).find(["y"]) in ("train/air drumming/y.mkv", "classes/air drumming/y.mkv")


def test_what_is_no_file_is_passed_over(folder):
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.mp4")
    files = VideoFiles(folder)
    assert [files.find([stem]) for stem in ("loop", "gone", "pipe", "z")] == [None, None, None, "z.WEBM"]


def test_a_missing_folder_is_said(tmp_path):
    with pytest.raises(UserError, match="none: videos cannot be listed: No such file"):
        VideoFiles(tmp_path / "none")
