"""Which frames of a video make a clip: dense, by segments, or around a keyframe.

A rule holds for videos that are too short: a clip never wraps around and never skips backwards. Dense and
keyframe-centred clips repeat the border frame for every index beyond it; segments of less than one frame repeat the
frame that they fall in.
"""

import numpy as np


def dense(
    frames: int, num_frames: int, stride: int, rng: np.random.Generator | None = None, view: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """`num_frames` frames at a fixed stride, from a random start, or from that of an evaluation view.

    At an even stride a clip starts at an even frame: no other frame of a packed clip depends on the odd ones, so that
    half of the frames need not be decoded.

    Args:
        frames: frames of the video, at least 1.
        num_frames: frames of the clip, at least 1.
        stride: distance between two frames of the clip, in frames of the video.
        view: where `rng` is None, the number of the view and how many there are. They are spread evenly from the
            video's beginning to its end; a single one is centred.

    Returns:
        int64 [num_frames], ascending, in [0, frames).
    """
    slack = max(frames - (num_frames - 1) * stride - 1, 0)
    grid = 1 if stride % 2 else 2
    starts = slack // grid
    number, views = view
    if rng is not None:
        start = grid * int(rng.integers(starts + 1))
    else:
        start = grid * (starts // 2 if views == 1 else starts * number // (views - 1))
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), frames - 1)


def segments(
    frames: int, num_frames: int, rng: np.random.Generator | None = None, view: tuple[int, int] = (0, 1)
) -> np.ndarray:
    """One frame of each of `num_frames` equal parts of the video (Temporal Segment Networks, arXiv 1608.00859).

    The frame is drawn uniformly inside its part. Where `rng` is None, it is the centre of the `view[0]`-th of
    `view[1]` equal pieces of the part: with one view, the part's centre. Arguments and result as in `dense`.
    """
    inside = np.full(num_frames, (view[0] + 0.5) / view[1]) if rng is None else rng.random(num_frames)
    # Rounding may carry the last frame's position up to `frames` itself.
    return np.minimum(((np.arange(num_frames) + inside) * frames / num_frames).astype(np.int64), frames - 1)


def around_keyframe(frames: int, keyframe: int, num_frames: int, stride: int) -> np.ndarray:
    """The clip whose frame number `num_frames // 2` is frame `keyframe` of the video. Result as in `dense`."""
    offsets = stride * (np.arange(num_frames, dtype=np.int64) - num_frames // 2)
    return np.clip(keyframe + offsets, 0, frames - 1)


def padded(indices: np.ndarray, step: int) -> int:
    """How many frames of a clip stand for others that the video does not have: those closer than `step` to a neighbour,
    because a border frame was taken in place of one beyond it, or (`step` 1) segments are shorter than a frame."""
    return int((np.diff(indices) < step).sum())
