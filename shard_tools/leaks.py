"""Guards against training on videos that are evaluated: AVA-Kinetics labels keyframes of Kinetics' own videos."""

from collections.abc import Collection

from data.errors import UserError
from data.text_files import read_rows
from shard_tools.annotations import LabelledClip, read_kinetics


def read_ids(path: str) -> set[str]:
    """Reads video ids: the column `youtube_id` of a file with such a header, else the first column of every row (a list
    with one id a line, or an annotation file of AVA or AVA-Kinetics).

    Raises:
        UserError: a file that cannot be read, or without any row; a header alone is a list without an id.
    """
    ids: set[str] = set()
    column: int | None = None
    for part in read_rows(path):
        rows = part.rows
        if column is None:
            header = [name.strip().lower() for name in rows[0]]
            column = header.index("youtube_id") if "youtube_id" in header else 0
            rows = rows[1:] if "youtube_id" in header else rows
        for line, row in zip(part.lines[len(part.rows) - len(rows) :], rows, strict=True):
            if len(row) <= column or not row[column].strip():
                raise UserError(f"{path}, line {line}, column {column + 1}: empty, expected a video id")
            ids.add(row[column].strip())
    if column is None:
        raise UserError(f"{path}: no video ids in it, expected one a line or as the first column")
    return ids


def without_ids(clips: list[LabelledClip], ids: set[str]) -> tuple[list[LabelledClip], dict[str, int]]:
    """The Kinetics clips whose video is not among `ids`, and a count of those left out, for `Plan.dropped`: also of
    none, which says that they were looked for."""
    kept = [clip for clip in clips if clip.uncut is None or clip.uncut[0] not in ids]
    return kept, {"clips of --exclude-ids": len(clips) - len(kept)}


def leaking_clips(ids: Collection[str], kinetics: str) -> list[LabelledClip]:
    """The clips of a Kinetics training CSV whose video is among `ids`. Raises UserError for a malformed file."""
    clips, _, _ = read_kinetics(kinetics, "train")
    return [clip for clip in clips if clip.uncut and clip.uncut[0] in ids]
