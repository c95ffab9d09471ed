"""A view's settings are checked, and the message names the key."""

import dataclasses
import json
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
        ("ratio", (1.3, 0.7)),
        ("ratio", (0.0, 1.0)),
        ("ratio", "wide"),
        ("short_side", (56, 80)),
        ("short_side", (80, 64)),
        ("short_side", (64.5, 80)),
        ("short_side", 64),
        ("min_visible", -0.1),
        ("randaugment_ops", -1),
        ("randaugment_ops", True),
        ("randaugment_magnitude", 31),
        ("randaugment_prob", 2),
        ("random_erasing", "yes"),
        ("mixup", -0.5),
        ("cutmix", float("nan")),
        ("mixup_prob", 1.5),
        ("mixup_switch_prob", None),
        ("eval_views", (0, 1)),
        ("eval_views", 3),
        ("eval_views", (1, 2, 3)),
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


def test_a_view_from_json_is_the_one_from_python():
    """A checkpoint keeps its views as JSON, an older one without the keys of today."""
    view = ViewConfig(num_frames=8, stride=2, image_size=64, short_side=(64, 80), eval_views=(4, 3), mixup=0.8)
    assert ViewConfig(**json.loads(json.dumps(dataclasses.asdict(view)))) == view
    assert hash(ViewConfig(**json.loads(json.dumps(dataclasses.asdict(view))))) == hash(view)
    assert view.views == 12 and view.mixes and not ViewConfig(num_frames=8, stride=2, image_size=64).mixes


@pytest.mark.parametrize(("key", "value"), [("mixup", 0.1), ("cutmix", 1.0), ("eval_views", (2, 1))])
def test_what_localisation_does_not_have(key, value):
    values: dict[str, Any] = {key: value}
    view = ViewConfig(num_frames=8, stride=2, image_size=64, **values)
    view.check_kind("classification")
    with pytest.raises(UserError, match=f"^{key}: is for classification only"):
        view.check_kind("localisation")
