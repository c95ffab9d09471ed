"""Which frames make a clip."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.sampling import around_keyframe, dense, padded, segments

FRAMES, CLIP, STRIDE = st.integers(1, 400), st.integers(1, 40), st.integers(1, 8)
RNG = st.none() | st.integers(0, 2**32).map(np.random.default_rng)


@given(FRAMES, CLIP, STRIDE, RNG)
def test_dense_keeps_its_stride_and_repeats_only_the_last_frame(frames, num_frames, stride, rng):
    indices = dense(frames, num_frames, stride, rng)
    assert indices.shape == (num_frames,) and indices.dtype == np.int64
    assert indices.min() >= 0 and indices.max() < frames
    steps = np.diff(indices)
    assert (steps[indices[1:] < frames - 1] == stride).all() and (steps >= 0).all()
    if (num_frames - 1) * stride < frames:
        assert (steps == stride).all()
    assert stride % 2 or indices[0] % 2 == 0, "frames that nothing depends on can be left out only at even places"


@given(FRAMES, CLIP, RNG)
def test_segments_take_one_frame_of_each_part(frames, num_frames, rng):
    indices = segments(frames, num_frames, rng)
    assert indices.shape == (num_frames,) and indices.dtype == np.int64
    parts = np.arange(num_frames) * frames / num_frames
    assert (indices >= np.floor(parts)).all() and (indices <= parts + frames / num_frames).all()
    assert indices.max() < frames and (np.diff(indices) >= 0).all()


@given(FRAMES, CLIP, STRIDE, st.data())
def test_keyframe_is_the_middle_frame_of_its_clip(frames, num_frames, stride, data):
    keyframe = data.draw(st.integers(0, frames - 1))
    indices = around_keyframe(frames, keyframe, num_frames, stride)
    assert indices[num_frames // 2] == keyframe
    assert indices.shape == (num_frames,) and indices.min() >= 0 and indices.max() < frames
    inner = (indices[:-1] > 0) & (indices[1:] < frames - 1)
    assert (np.diff(indices)[inner] == stride).all()


@pytest.mark.parametrize(
    ("keyframe", "expected"),
    [(20, [12, 14, 16, 18, 20, 22, 24, 26]), (3, [0, 0, 0, 1, 3, 5, 7, 9]), (37, [29, 31, 33, 35, 37, 37, 37, 37])],
)
def test_keyframe_clips_repeat_the_border_frame(keyframe, expected):
    assert around_keyframe(38, keyframe, 8, 2).tolist() == expected


def test_evaluation_is_centred():
    assert dense(38, 8, 2).tolist() == [10, 12, 14, 16, 18, 20, 22, 24]
    assert dense(38, 8, 3).tolist() == [8, 11, 14, 17, 20, 23, 26, 29]
    assert segments(40, 4).tolist() == [5, 15, 25, 35]


def test_short_videos_repeat_frames():
    assert dense(3, 5, 2).tolist() == [0, 2, 2, 2, 2]
    assert dense(1, 4, 3, np.random.default_rng(0)).tolist() == [0, 0, 0, 0]
    assert segments(2, 4).tolist() == [0, 0, 1, 1]
    assert around_keyframe(1, 0, 4, 2).tolist() == [0, 0, 0, 0]


def test_training_reaches_every_start_and_every_frame():
    rng = np.random.default_rng(0)
    assert {int(dense(20, 4, 5, rng)[0]) for _ in range(200)} == {0, 1, 2, 3, 4}
    assert {int(dense(20, 4, 4, rng)[0]) for _ in range(200)} == {0, 2, 4, 6}
    assert {int(i) for _ in range(200) for i in segments(20, 4, rng)} == set(range(20))


@given(FRAMES, CLIP, STRIDE, st.integers(1, 6))
def test_views_in_time_go_from_end_to_end(frames, num_frames, stride, views):
    clips = [dense(frames, num_frames, stride, view=(number, views)) for number in range(views)]
    if views == 1:
        assert clips[0].tolist() == dense(frames, num_frames, stride).tolist()
    else:
        assert clips[0][0] == 0
        grid = 1 if stride % 2 else 2
        assert clips[-1][-1] > frames - 1 - grid or (num_frames - 1) * stride >= frames
        starts = np.diff([clip[0] for clip in clips])
        assert starts.max() - starts.min() <= grid
    parts = [segments(frames, num_frames, view=(number, views)) for number in range(views)]
    if views == 1:
        assert parts[0].tolist() == segments(frames, num_frames).tolist()
    assert (np.diff(np.stack(parts), axis=0) >= 0).all()


def test_views_by_hand():
    assert [dense(38, 8, 2, view=(number, 3)).tolist()[0] for number in range(3)] == [0, 10, 22]
    assert [segments(40, 4, view=(number, 2)).tolist() for number in (0, 1)] == [[2, 12, 22, 32], [7, 17, 27, 37]]


def test_padded_frames_are_counted():
    assert padded(around_keyframe(38, 20, 8, 2), 2) == 0
    assert padded(around_keyframe(38, 3, 8, 2), 2) == 3
    assert padded(around_keyframe(38, 37, 8, 2), 2) == 3
    assert padded(dense(3, 5, 2), 2) == 3 and padded(segments(2, 4), 1) == 2
