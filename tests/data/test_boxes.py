"""Arithmetic of boxes."""

import numpy as np
from hypothesis import given

from data.boxes import iou
from tests.data.test_crop import boxes


@given(boxes(), boxes())
def test_iou(first, second):
    overlap = iou(first, second)
    assert overlap.shape == (len(first), len(second))
    assert ((overlap >= 0) & (overlap <= 1 + 1e-9)).all()
    np.testing.assert_allclose(np.diag(iou(first, first)), 1)
    np.testing.assert_allclose(overlap, iou(second, first).T)


def test_iou_of_halves():
    assert iou(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 0.5, 1], [0.5, 0.5, 1, 1]])).tolist() == [[0.5, 0.25]]
