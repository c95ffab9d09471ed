"""Finds videos by name under a folder, whatever the sub-folders and extensions are."""

import os
import re
import sys
from collections.abc import Sequence
from functools import lru_cache

from data.errors import UserError

_VIDEO = re.compile(r"\.(mp4|m4v|mov|mkv|webm|avi|flv|f4v|mpe?g|m?ts|m2ts|wmv|asf|3gp|3g2|ogv|ogg|gif|divx)", re.I)
_NO_VIDEO = re.compile(
    r"\.(txt|csv|tsv|jsonl?|xml|vtt|srt|md5?|sha256|log|np[yz]|pkl|pt|wav|mp3|m4a|flac|opus|jpe?g|png|webp|zip|tar|gz"
    r"|part|ytdl|tmp|lock)",
    re.I,
)
_CLIP = re.compile(r"(.+)_(\d+)_(\d+)", re.DOTALL)


class VideoFiles:
    """The files under a folder, listed once; sub-folders that are links are followed.

    Links that lead nowhere are passed over, as are pipes and devices, which would hang whoever opens them. A sub-folder
    that cannot be read is told on stderr; its videos count as missing.

    Names from annotations are only ever looked up here, never joined to a path: `../../x` is simply not found.

    Raises:
        UserError: the folder cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.path.abspath(folder)
        self._by_stem: dict[str, list[str]] = {}
        self._clips: dict[str, list[tuple[float, float, str]]] | None = None
        self._count = 0
        seen: set[tuple[int, int]] = set()
        pending = [""]
        while pending:
            relative = pending.pop()
            path = os.path.join(self.folder, relative) if relative else self.folder
            try:
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in seen:  # a link to a folder above
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(path) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        name = f"{relative}/{entry.name}" if relative else entry.name
                        if _is_folder(entry):
                            pending.append(name)
                        elif os.path.isfile(entry) if entry.is_symlink() else entry.is_file():
                            self._add(entry.name, name)
            except OSError as error:
                if not relative:
                    raise UserError(f"{path}: videos cannot be listed: {error.strerror}") from error
                text = f"warning: {path} cannot be listed ({error.strerror}): videos in it count as missing"
                print(text, file=sys.stderr, flush=True)
        for names in self._by_stem.values():
            names.sort(key=_usual)

    def _add(self, name: str, relative: str) -> None:
        stem, suffix = os.path.splitext(name)
        if not _NO_VIDEO.fullmatch(suffix):
            self._by_stem.setdefault(stem, []).append(relative)
            self._count += 1
            # Downloaders leave `id.mp4.mkv` and the like behind.
            inner, suffix = os.path.splitext(stem)
            if _VIDEO.fullmatch(suffix):
                self._by_stem.setdefault(inner, []).append(relative)

    def __len__(self) -> int:
        return self._count

    def find(self, stems: Sequence[str], near: Sequence[str] = ()) -> str | None:
        """Path relative to the folder of the file with the first of `stems` (names without extension) that exists.

        Among several, one in a folder named as in `near` (spaces and underscores alike), then one with a usual
        extension of videos, then the first by name.
        """
        match = self.match(stems, near)
        return match and match[1]

    def match(
        self, stems: Sequence[str], near: Sequence[str] = (), classes: frozenset[str] = frozenset()
    ) -> tuple[str, str] | None:
        """As `find`, with the stem ahead of the path: the path does not say it, where a file has two extensions.

        `classes` are names of folders, as `fold` makes them, of which one tells what is in it: a file that lies in such
        folders, and in none of `near`, is another video of the same name.
        """
        wanted = {fold(name) for name in near if name}
        for stem in stems:
            names = self._by_stem.get(stem)
            if names and classes:
                names = [name for name in names if _may_be(classes & _folders(name), wanted)]
            if names:
                one = len(names) == 1  # nearly always
                return stem, names[0] if one else max(names, key=lambda name: len(wanted & _folders(name)))
        return None

    def clips(self, video: str) -> list[tuple[float, float, str]]:
        """(start, end, path) of the clips that were cut out of a video, by start: seconds of it, as their names
        `{video}_{start:06d}_{end:06d}` say, padded or not, and the path relative to the folder."""
        if self._clips is None:
            self._clips = {}
            for stem, names in self._by_stem.items():
                if match := _CLIP.fullmatch(stem):
                    times = (float(match[2]), float(match[3]))
                    self._clips.setdefault(match[1], []).append((*times, names[0]))
        return sorted(self._clips.get(video, ()))

    def path(self, relative: str) -> str:
        return os.path.join(self.folder, relative)


def _usual(name: str) -> tuple[bool, bool, str]:
    stem, suffix = os.path.splitext(name)
    doubled = bool(_VIDEO.fullmatch(os.path.splitext(stem)[1]))
    return not _VIDEO.fullmatch(suffix), doubled, name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _folders(name: str) -> frozenset[str]:
    return _folded(name.rpartition("/")[0])


@lru_cache(maxsize=4096)  # there are many more files than folders
def _folded(folder: str) -> frozenset[str]:
    return frozenset(map(fold, folder.split("/")))


def _may_be(classes: frozenset[str], wanted: set[str]) -> bool:
    return not classes or not classes.isdisjoint(wanted)


def fold(name: str) -> str:
    """The name of a folder or class, spaces and underscores, capitals and small letters alike."""
    return name.replace("_", " ").lower()
