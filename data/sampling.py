"""Which frames of a video make a clip: dense, by segments, or around a keyframe.

A rule holds for videos that are too short: a clip never wraps around and never skips backwards. Dense and
keyframe-centred clips repeat the border frame for every index beyond it; segments of less than one frame repeat the
frame that they fall in.
"""

import numpy as np


def dense(frames: int, num_frames: int, stride: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """`num_frames` frames at a fixed stride, from a random start, or centred in the video where `rng` is None.

    Args:
        frames: frames of the video, at least 1.
        num_frames: frames of the clip, at least 1.
        stride: distance between two frames of the clip, in frames of the video.

    Returns:
        int64 [num_frames], ascending, in [0, frames).
    """
    slack = max(frames - (num_frames - 1) * stride - 1, 0)
    start = slack // 2 if rng is None else int(rng.integers(slack + 1))
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), frames - 1)


def segments(frames: int, num_frames: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """One frame of each of `num_frames` equal parts of the video (Temporal Segment Networks, arXiv 1608.00859).

    The frame is drawn uniformly inside its part, or is the part's centre where `rng` is None. Arguments and result
    as in `dense`.
    """
    inside = np.full(num_frames, 0.5) if rng is None else rng.random(num_frames)
    # Rounding may carry the last frame's position up to `frames` itself.
    return np.minimum(((np.arange(num_frames) + inside) * frames / num_frames).astype(np.int64), frames - 1)


def around_keyframe(frames: int, keyframe: int, num_frames: int, stride: int) -> np.ndarray:
    """The clip whose frame number `num_frames // 2` is frame `keyframe` of the video. Result as in `dense`."""
    offsets = stride * (np.arange(num_frames, dtype=np.int64) - num_frames // 2)
    return np.clip(keyframe + offsets, 0, frames - 1)
