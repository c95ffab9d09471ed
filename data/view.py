"""The settings of a task's view: which frames and which part of them the model gets to see."""

import math
from dataclasses import dataclass, field
from typing import Literal

from data.errors import UserError


@dataclass(frozen=True)
class ViewConfig:
    """How a clip is cut out of a video. Every field is a key of a recipe's `view`.

    Args:
        num_frames: frames of a clip.
        stride: distance between two frames of a clip, in frames of the packed video.
        image_size: side of the square view, in pixels.
        sampling: `dense` (frames at `stride`) or `segments` (one frame of each of `num_frames` equal parts of the
            video). Localisation clips are always dense and centred on their keyframe.
        flip: mirror half of the training clips; false where left and right matter.
        scale: smallest and largest share of the frame's area that a training crop covers.
        color_jitter: largest relative change of brightness, contrast and saturation in training, 0 (off) to 1.
        train_proposals: localisation training also takes proposals of this score or more that overlap a person, with
            the person's labels; None takes ground truth only.
        eval_boxes: localisation evaluation takes `proposals` or, as an upper bound, `groundtruth`.
        proposal_score_threshold: the score that a proposal needs to be evaluated.

    Raises:
        UserError: naming the key whose value is out of range.
    """

    num_frames: int
    stride: int = field(default=2, kw_only=True)
    image_size: int
    sampling: Literal["dense", "segments"] = "dense"
    flip: bool = True
    scale: tuple[float, float] = (0.5, 1.0)
    color_jitter: float = 0.0
    train_proposals: float | None = None
    eval_boxes: Literal["proposals", "groundtruth"] = "proposals"
    proposal_score_threshold: float = 0.8

    def __post_init__(self) -> None:
        for key in ("num_frames", "stride", "image_size"):
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{key}: must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.flip, bool):
            raise UserError(f"flip: must be true or false, not {self.flip!r}")
        for key, choices in (("sampling", ("dense", "segments")), ("eval_boxes", ("proposals", "groundtruth"))):
            if getattr(self, key) not in choices:
                raise UserError(f"{key}: must be {' or '.join(choices)}, not {getattr(self, key)!r}")
        for key in ("color_jitter", "proposal_score_threshold"):
            if not _is_share(getattr(self, key)):
                raise UserError(f"{key}: must be a number from 0 to 1, not {getattr(self, key)!r}")
        if self.train_proposals is not None and not _is_share(self.train_proposals):
            raise UserError(f"train_proposals: must be null or a number from 0 to 1, not {self.train_proposals!r}")
        try:
            smallest, largest = self.scale
        except (TypeError, ValueError):
            smallest = largest = math.nan
        if not (_is_share(smallest) and _is_share(largest) and 0 < smallest <= largest):
            raise UserError(f"scale: must be two numbers, 0 < smallest <= largest <= 1, not {self.scale!r}")
        # Lists are what YAML and JSON have; a frozen config compares and hashes by its tuple.
        object.__setattr__(self, "scale", (smallest, largest))


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
