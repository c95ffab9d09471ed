"""Cuts movies into segments of consecutive keyframes, each with enough film on both sides for every clip in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from shard_tools.clip_command import Span
from shard_tools.failures import Failure, Unpackable
from shard_tools.items import Item, Keys
from shard_tools.keyframe_labels import KeyframeLabels
from shard_tools.source_video import Source
from shard_tools.transcode import Clip
from shard_tools.video_files import VideoFiles

KEYFRAMES_PER_SEGMENT = 8
SEGMENTS_PER_RUN = 8
"""How many are cut in one go, where FFmpeg's version allows it. Each has an encoder of its own, whose memory is kept to
the end of the run: 25 MB at 768x320, 200 MB at 1920x1080."""
_FAR = 60.0  # seconds of film without a keyframe that are sought over and not read through


@dataclass(frozen=True)
class Cut:
    """How movies are cut.

    Attributes:
        movie_start: second of the movie at which its file begins.
        margin: seconds of film before the first and after the last keyframe of a segment; half a window at least.
        window: frames of the clip that training takes around a keyframe, all frames of its span counted; a key frame
            of the codec is put where each such clip starts.
    """

    movie_start: float
    margin: float
    window: int


@dataclass(frozen=True, slots=True)
class Segment(Item):
    """Some keyframes of a movie, consecutive in time, and the film around them.

    The frame grid is laid so that the first keyframe is exactly a frame; at a whole number of frames per second, which
    is the default, every keyframe on a whole second is one too.
    """

    video_id: str
    keyframes: tuple[KeyframeLabels, ...]
    cut: Cut

    @property
    def examples(self) -> int:
        return len(self.keyframes)

    def identity(self) -> list[Any]:
        return [*Item.identity(self), self.video_id, [keyframe.record() for keyframe in self.keyframes]]

    def rate(self, source: Source) -> Fraction:
        return Fraction(max(round(source.fps), 1))

    def span(self, source: Source, fps: Fraction) -> Span:
        first = self._file_second(0)
        if source.seconds is not None and first >= source.seconds:
            raise Unpackable(
                "outside the file", f"the file has {source.seconds:.1f} s, this begins at {float(first):g} s"
            )
        frames = self._frames(fps)
        keys = sorted({max(frame - self.cut.window // 2, 0) for frame in frames})
        return Span(first - frames[0] / fps, frames[-1] + self._margin(fps) + 1, tuple(keys))

    def finish(self, source: Source, clip: Clip) -> tuple[dict[str, Any], int, list[Failure]]:
        keyframes, lost = [], []
        for number, (keyframe, frame) in enumerate(zip(self.keyframes, self._frames(clip.fps), strict=True)):
            if frame < clip.frames:
                keyframes.append({**keyframe.record(), "frame": frame})
                continue
            inside = source.seconds is not None and self._file_second(number) < source.seconds - source.slack
            reason = "truncated" if inside else "outside the file"
            lost.append(Failure(self.source, reason, f"keyframe {keyframe.timestamp:g} s is beyond the last frame"))
        if not keyframes:
            raise Unpackable(lost[0].reason, lost[0].detail)
        sample = {
            **self.fields,
            "key": self.key,
            "source": self.source,
            "video_id": self.video_id,
            "start": round(self.keyframes[0].timestamp - float(self._frames(clip.fps)[0] / clip.fps), 6),
            "video": clip.record(),
            "keyframes": keyframes,
        }
        return sample, len(keyframes), lost

    def _file_second(self, number: int) -> Fraction:
        """Second of the file at which a keyframe is; movie seconds count from elsewhere."""
        return Fraction(f"{self.keyframes[number].timestamp - self.cut.movie_start:.6f}")

    def _margin(self, fps: Fraction) -> int:
        """Frames of film around the keyframes: never less than a clip takes, however few make a second."""
        return max(math.ceil(Fraction(self.cut.margin) * fps), self.cut.window // 2)

    def _frames(self, fps: Fraction) -> list[int]:
        """Frame numbers of the keyframes in the segment."""
        first = self._file_second(0)
        # Where the file begins later than the margin does, the margin is shorter; the grid stays.
        lead = min(self._margin(fps), math.floor(first * fps))
        return [lead + round((self._file_second(n) - first) * fps) for n in range(len(self.keyframes))]


def plan_segments(
    dataset: str, videos: Mapping[str, Sequence[KeyframeLabels]], files: VideoFiles, cut: Cut
) -> tuple[list[Segment], list[Failure]]:
    """Segments of up to eight keyframes whose clips touch, and what is lost: missing movies, one entry each, and
    keyframes before the beginning of the file. `dataset` is the name that the samples bear."""
    segments: list[Segment] = []
    lost: list[Failure] = []
    keys = Keys()
    for video, all_keyframes in videos.items():
        file = files.find([video])
        if file is None:
            lost.append(Failure(video, "missing", "no file of this name under the videos", len(all_keyframes)))
            continue
        keyframes = [keyframe for keyframe in all_keyframes if keyframe.timestamp >= cut.movie_start]
        for keyframe in all_keyframes[: len(all_keyframes) - len(keyframes)]:
            detail = f"keyframe {keyframe.timestamp:g} s is before the file's beginning, {cut.movie_start:g} s"
            lost.append(Failure(file, "outside the file", detail))
        segments += _cut_up(dataset, video, file, files.path(file), keyframes, cut, keys)
    return segments, lost


def segment_runs(segments: Sequence[Segment]) -> list[int]:
    """Numbers of successive segments to cut in one go, as `Plan.runs`."""
    runs: list[int] = []
    last: Segment | None = None
    for segment in segments:
        near = (
            last is not None
            and last.path == segment.path
            and 0 <= segment.keyframes[0].timestamp - last.keyframes[-1].timestamp <= _FAR
        )
        if near and runs[-1] < SEGMENTS_PER_RUN:
            runs[-1] += 1
        else:
            runs.append(1)
        last = segment
    return runs


def plan_clip_segments(
    dataset: str, videos: Mapping[str, Sequence[KeyframeLabels]], files: VideoFiles, margin: float, window: int
) -> tuple[list[Segment], list[Failure]]:
    """Segments around the keyframes of AVA-Kinetics, whose videos are Kinetics clips cut out of the annotated videos.

    A keyframe is taken from the clip that holds most film around it, so once however many clips hold it, and from an
    uncut video only where no clip does. The name of a clip's file, `{id}_{start:06d}_{end:06d}`, says where it begins.

    Args:
        dataset: the name that the samples bear.
        margin, window: as in `Cut`.

    Returns:
        as `plan_segments`.
    """
    segments: list[Segment] = []
    lost: list[Failure] = []
    keys = Keys()
    for video, keyframes in videos.items():
        clips, whole = files.clips(video), files.find([video])
        if not clips and whole is None:
            lost.append(Failure(video, "missing", "no clip of this video under the videos", len(keyframes)))
            continue
        found: dict[tuple[str, float], list[KeyframeLabels]] = {}
        for keyframe in keyframes:
            second = keyframe.timestamp
            around = [(min(second - start, end - second), -start, file) for start, end, file in clips]
            around = [clip for clip in around if clip[0] >= 0]
            if around:
                _, start, file = max(around)
                found.setdefault((file, -start), []).append(keyframe)
            elif whole is not None:
                found.setdefault((whole, 0.0), []).append(keyframe)
            else:
                detail = f"keyframe {second:g} s is in none of this video's clips"
                lost.append(Failure(clips[0][2], "outside the file", detail))
        for (file, start), group in found.items():
            cut = Cut(start, margin, window)
            segments += _cut_up(dataset, video, file, files.path(file), group, cut, keys)
    return segments, lost


def _cut_up(
    dataset: str, video: str, file: str, path: str, keyframes: Sequence[KeyframeLabels], cut: Cut, keys: Keys
) -> list[Segment]:
    segments = []
    for group in _runs(keyframes, 2 * cut.margin):
        key = keys.make(f"{video}_{group[0].timestamp:07.2f}".removesuffix(".00"))
        segments.append(Segment(key, file, path, {"dataset": dataset}, video, tuple(group), cut))
    return segments


def _runs(keyframes: Sequence[KeyframeLabels], reach: float) -> list[list[KeyframeLabels]]:
    """Groups keyframes that are at most `reach` seconds apart: one longer film costs less than two that overlap."""
    runs: list[list[KeyframeLabels]] = []
    for keyframe in keyframes:
        near = runs and keyframe.timestamp - runs[-1][-1].timestamp <= reach
        if near and len(runs[-1]) < KEYFRAMES_PER_SEGMENT:
            runs[-1].append(keyframe)
        else:
            runs.append([keyframe])
    return runs
