"""Leaves out of an MP4 file with H.264 video what decoding some of its frames does not need.

Packed clips show every second frame without another frame depending on it (`nal_ref_idc` 0, ITU-T H.264 7.4.1), so
that a clip at an even stride needs half of the decoding. Decoders do not know which frames are wanted: they get a file
without the others. The container's tables are those of ISO/IEC 14496-12.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

MAX_FRAMES = 2**20
"""Frames of a video whose tables are read: a header can claim any number."""

_SLICES = range(1, 6)
_IDR = 5
_TICK = 512


class _Unsuited(Exception):
    """Not a file that frames can be left out of."""


@dataclass(frozen=True)
class _Box:
    """One box of the container: its type, where it begins, where its content begins, and where it ends."""

    kind: bytes
    start: int
    content: int
    end: int


def thin(video: bytes, indices: np.ndarray, frames: int) -> tuple[bytes, np.ndarray] | None:
    """A file that shows the frames `indices` of a video, and those that they depend on, in the same order.

    Args:
        video: a video file.
        indices: int64 [n], n > 0, ascending, distinct, in [0, frames).
        frames: how many frames the video must have.

    Returns:
        an MP4 file and int64 [n], which of its frames they are; None where the file is not suited: no MP4 file with one
        H.264 stream that plays from its first frame to its last, or another number of frames.
    """
    try:
        return _thin(video, indices, frames)
    except (_Unsuited, struct.error, ValueError, IndexError):
        return None


def _thin(video: bytes, indices: np.ndarray, frames: int) -> tuple[bytes, np.ndarray]:
    brand, movie = _only(video, None, b"ftyp"), _only(video, None, b"moov")
    if any(box.kind in (b"moof", b"mvex") for box in (*_boxes(video), *_boxes(video, movie))):
        raise _Unsuited("fragmented")
    track = _only(video, movie, b"trak")
    media = _only(video, track, b"mdia")
    info = _only(video, media, b"minf")
    table = _only(video, info, b"stbl")
    length_size = _length_size(video, table)
    samples = _Samples.read(video, table, frames)
    _check_edit(video, track, samples)

    shown = np.argsort(samples.shown_at, kind="stable")
    place = np.empty(frames, np.int64)
    place[shown] = np.arange(frames)
    wanted = shown[indices]
    needed = np.zeros(frames, bool)
    if not all(_is_idr(video, samples, key, length_size) for key in samples.keys):
        raise _Unsuited("open groups")
    # No frame depends on one beyond a key frame, which comes before the others of its group in any order.
    group = np.searchsorted(place[samples.keys], indices, side="right") - 1
    if group[0] < 0:
        raise _Unsuited("does not begin with a key frame")
    for number in np.unique(group):
        for sample in range(int(samples.keys[number]), int(wanted[group == number].max()) + 1):
            needed[sample] = _is_reference(video, samples, sample, length_size)
    needed[wanted] = True
    kept = np.flatnonzero(needed)
    order = np.argsort(np.argsort(place[kept]))

    data = b"".join(
        video[start : start + size] for start, size in zip(samples.offsets[kept], samples.sizes[kept], strict=True)
    )
    description = _bytes(video, _only(video, table, b"stsd"))
    head = _bytes(video, brand)

    def moov(offset: int) -> bytes:
        stbl = _make(b"stbl", description, *_tables(samples, kept, order, offset))
        minf = _replaced(video, info, b"stbl", stbl)
        mdia = _replaced(video, media, b"minf", minf)
        return _replaced(video, movie, b"trak", _replaced(video, track, b"mdia", mdia))

    offset = len(head) + len(moov(0)) + 8
    return head + moov(offset) + _make(b"mdat", data), order[np.searchsorted(kept, wanted)]


@dataclass(frozen=True)
class _Samples:
    """Where the coded frames lie, in the order of decoding: offset and size in bytes, when shown, which are keys."""

    offsets: np.ndarray
    sizes: np.ndarray
    shown_at: np.ndarray
    keys: np.ndarray

    @classmethod
    def read(cls, video: bytes, table: _Box, frames: int) -> "_Samples":
        found = {box.kind: box for box in _boxes(video, table)}
        if not {b"stsz", b"stco", b"stsc", b"stts"} <= found.keys() or frames > MAX_FRAMES:
            raise _Unsuited("tables are missing")
        box = found[b"stsz"]
        same, count = struct.unpack_from(">II", video, box.content + 4)
        if same or count != frames:
            raise _Unsuited("sizes")
        sizes = _numbers(video, box, box.content + 12, count)
        # Ranges may overlap: a small file could say of any number of frames that each is all of it.
        if sizes.sum() > len(video):
            raise _Unsuited("frames share their bytes")
        chunks = _column(video, found[b"stco"], 1)[:, 0]
        runs = _column(video, found[b"stsc"], 3)
        per_chunk = np.repeat(runs[:, 1], np.diff(np.append(runs[:, 0] - 1, len(chunks))))
        if per_chunk.sum() != frames:
            raise _Unsuited("chunks")
        before = np.cumsum(sizes) - sizes
        firsts = np.cumsum(per_chunk) - per_chunk
        offsets = np.repeat(chunks - before[firsts], per_chunk) + before
        if (offsets + sizes).max() > len(video):
            raise _Unsuited("cut off")
        durations = _runs(video, found[b"stts"], frames)
        shown_at = np.cumsum(durations) - durations
        if b"ctts" in found:
            shown_at = shown_at + _runs(video, found[b"ctts"], frames)
        # Without the table every frame is a key.
        keys = _column(video, found[b"stss"], 1)[:, 0] - 1 if b"stss" in found else np.arange(frames)
        if len(keys) and not 0 <= keys.min() <= keys.max() < frames:
            raise _Unsuited("key frames")
        return cls(offsets, sizes, shown_at, keys)


def _tables(samples: _Samples, kept: np.ndarray, order: np.ndarray, offset: int) -> list[bytes]:
    """The sample tables of the frames `kept`, shown in `order`, in one chunk at `offset`."""
    count = len(kept)
    keys = np.isin(kept, samples.keys)
    ahead = order - np.arange(count)
    shift = -int(ahead.min())
    # A demuxer that seeks a key frame by when it is shown compares that with when others are decoded. The pause before
    # each keeps it from taking the next one.
    durations = np.where(np.append(keys[1:], False), 1 + shift, 1)
    ones = np.ones(count, np.int64)
    sizes = struct.pack(">III", 0, 0, count) + samples.sizes[kept].astype(">u4").tobytes()
    return [
        _make_table(b"stts", np.stack([ones, durations * _TICK], axis=1)),
        _make_table(b"ctts", np.stack([ones, (ahead + shift) * _TICK], axis=1)),
        _make_table(b"stss", np.flatnonzero(keys) + 1),
        _make_table(b"stsc", np.array([[1, count, 1]])),
        _make(b"stsz", sizes),
        _make_table(b"stco", np.array([offset])),
    ]


def _check_edit(video: bytes, track: _Box, samples: _Samples) -> None:
    """An edit list may leave frames out; the usual one says that time begins with the first frame."""
    for edits in _boxes(video, track):
        if edits.kind == b"edts":
            (listed,) = _boxes(video, edits)
            version, count, _, start, rate = struct.unpack_from(">IIIiI", video, listed.content)
            if (version, count, start, rate) != (0, 1, samples.shown_at.min(), 0x10000):
                raise _Unsuited("edit list")


def _length_size(video: bytes, table: _Box) -> int:
    """Bytes of the length before each NAL unit, of the stream's only description, which has to be H.264's."""
    stsd = _only(video, table, b"stsd")
    (count,) = struct.unpack_from(">I", video, stsd.content + 4)
    (entry,) = _boxes(video, _Box(b"", stsd.start, stsd.content + 8, stsd.end))
    if count != 1 or entry.kind != b"avc1":
        raise _Unsuited("not H.264")
    codec = _only(video, _Box(b"", entry.start, entry.content + 78, entry.end), b"avcC")
    return (video[codec.content + 4] & 3) + 1


def _units(video: bytes, samples: _Samples, sample: int, length_size: int) -> Iterator[int]:
    """The first bytes of the NAL units of one coded frame."""
    at, end = int(samples.offsets[sample]), int(samples.offsets[sample] + samples.sizes[sample])
    while at + length_size < end:
        yield video[at + length_size]
        at += length_size + int.from_bytes(video[at : at + length_size])


def _is_reference(video: bytes, samples: _Samples, sample: int, length_size: int) -> bool:
    return any(unit & 31 in _SLICES and unit & 96 for unit in _units(video, samples, sample, length_size))


def _is_idr(video: bytes, samples: _Samples, sample: int, length_size: int) -> bool:
    return any(unit & 31 == _IDR for unit in _units(video, samples, sample, length_size))


def _boxes(video: bytes, parent: _Box | None = None) -> Iterator[_Box]:
    at, end = (0, len(video)) if parent is None else (parent.content, parent.end)
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", video, at)
        content = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", video, content)
            content += 8
        if not content - at <= size <= end - at:
            raise _Unsuited("a box that does not fit")
        yield _Box(kind, at, content, at + size)
        at += size


def _only(video: bytes, parent: _Box | None, kind: bytes) -> _Box:
    found = [box for box in _boxes(video, parent) if box.kind == kind]
    if len(found) != 1:
        raise _Unsuited(f"{len(found)} boxes {kind!r}")
    return found[0]


def _bytes(video: bytes, box: _Box) -> bytes:
    return video[box.start : box.end]


def _numbers(video: bytes, box: _Box, start: int, count: int) -> np.ndarray:
    if start + 4 * count > box.end:
        raise _Unsuited("a table that does not fit")
    return np.frombuffer(video, ">u4", count, start).astype(np.int64)


def _column(video: bytes, box: _Box, width: int) -> np.ndarray:
    """A table's rows: int64 [rows, width]."""
    (count,) = struct.unpack_from(">I", video, box.content + 4)
    return _numbers(video, box, box.content + 8, count * width).reshape(count, width)


def _runs(video: bytes, box: _Box, frames: int) -> np.ndarray:
    """A table of (count, value) written out: int64 [frames]."""
    table = _column(video, box, 2)
    if table[:, 0].sum() != frames:
        raise _Unsuited("runs")
    # Version 1 has signed values.
    return np.repeat(table[:, 1].astype(np.int32).astype(np.int64), table[:, 0])


def _make(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def _make_table(kind: bytes, rows: np.ndarray) -> bytes:
    return _make(kind, struct.pack(">II", 0, len(rows)), rows.astype(">u4").tobytes())


def _replaced(video: bytes, parent: _Box, kind: bytes, new: bytes) -> bytes:
    """The box `parent` with another child of a kind, and without the edits of the times that are no more."""
    children = (new if box.kind == kind else _bytes(video, box) for box in _boxes(video, parent) if box.kind != b"edts")
    return _make(parent.kind, *children)
