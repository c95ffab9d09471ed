"""Mixup and CutMix: shares of pixels and labels agree."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.mixing import Mix, draw_mix

ONE, TWO = torch.full((3, 2, 16, 16), 200, dtype=torch.uint8), torch.full((3, 2, 16, 16), 40, dtype=torch.uint8)
FIRST, SECOND = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])


@given(st.integers(0, 2**32), st.floats(0.05, 4), st.booleans())
def test_labels_are_shared_as_pixels_are(seed, alpha, cut):
    mixup, cutmix = (0.0, alpha) if cut else (alpha, 0.0)
    mix = draw_mix(mixup, cutmix, 1.0, 0.5, 16, np.random.default_rng(seed))
    assert mix is not None and 0 <= mix.share <= 1 and (mix.box is not None) == cut
    clip, other = mix.clips(ONE, TWO), mix.clips(TWO, ONE)
    share = (clip.double().mean() - 40) / 160
    assert abs(share - mix.share) < (1e-9 if cut else 0.5 / 160 + 1e-9)
    if cut:
        assert set(clip.unique().tolist()) <= {40, 200}
    # Nothing of the pair is lost or shown twice.
    assert (clip.int() + other.int() - 240).abs().max() <= 1
    labels = mix.labels(FIRST, SECOND)
    assert labels.tolist() == [np.float32(mix.share), 0, np.float32(1 - mix.share)] and labels.sum() == 1
    assert ONE.unique().tolist() == [200] and TWO.unique().tolist() == [40]


def test_mixup_of_all_pixels_is_the_rounded_mean():
    one, two = (torch.randint(0, 256, (3, 2, 9, 9), dtype=torch.uint8) for _ in range(2))
    one[:, 0, 0], two[:, 0, 0] = 255, 255
    for parts in (0, 1, 100, 255, 256):
        mixed = Mix(parts / 256).clips(one, two)
        exact = (one.double() * parts + two.double() * (256 - parts)) / 256
        assert torch.equal(mixed.double(), torch.floor(exact + 0.5))


def test_which_of_the_two_and_whether():
    rng = np.random.default_rng(0)
    drawn = [draw_mix(0.8, 1.0, 0.5, 0.25, 64, rng) for _ in range(2000)]
    mixed = [mix for mix in drawn if mix is not None]
    assert 900 < len(mixed) < 1100
    assert 0.2 < sum(mix.box is not None for mix in mixed) / len(mixed) < 0.3
    assert draw_mix(0.0, 0.0, 1.0, 0.5, 64, rng) is None
