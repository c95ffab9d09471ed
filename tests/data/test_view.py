"""A view's settings are checked, and the message names the key."""

from typing import Any

import pytest

from data.errors import UserError
from data.view import ViewConfig


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_frames", 0),
        ("num_frames", "8"),
        ("stride", True),
        ("image_size", 2.5),
        ("sampling", "random"),
        ("flip", "no"),
        ("scale", (0.0, 1.0)),
        ("scale", (0.9, 0.5)),
        ("scale", 0.5),
        ("scale", (0.5, float("nan"))),
        ("color_jitter", 1.5),
        ("color_jitter", "much"),
        ("train_proposals", 90),
        ("eval_boxes", "both"),
        ("proposal_score_threshold", None),
    ],
)
def test_bad_values_are_named(key, value):
    with pytest.raises(UserError, match=f"^{key}: "):
        ViewConfig(**{"num_frames": 8, "stride": 2, "image_size": 64, key: value})


def test_lists_from_yaml_are_taken():
    values: dict[str, Any] = {"num_frames": 8, "stride": 2, "image_size": 64, "scale": [0.3, 1]}
    assert ViewConfig(**values).scale == (0.3, 1)
