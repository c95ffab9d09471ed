"""The settings of a task's view: which frames and which part of them the model gets to see."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from data.errors import UserError

LEVELS = 30
"""Magnitudes of RandAugment are 0 to 30, as torchvision's; timm's `m` is a third of it."""


@dataclass(frozen=True)
class ViewConfig:
    """How a clip is cut out of a video and augmented. Every field is a key of a recipe's `view`; each augmentation is
    drawn from (seed, task, position) alone.

    Args:
        num_frames: frames of a clip.
        stride: distance between two frames of a clip, in frames of the packed video.
        image_size: side of the square view, in pixels.
        sampling: `dense` (frames at `stride`) or `segments` (one frame of each of `num_frames` equal parts of the
            video). Localisation clips are always dense and centred on their keyframe.
        flip: mirror half of the training clips; false where left and right matter.
        scale: smallest and largest share of the frame's area that a training crop covers.
        ratio: narrowest and widest shape of a training crop: a factor of a square's, or, in localisation, the frame's.
        short_side: in place of `scale` and `ratio`, SlowFast's scale jitter: the smallest and largest length in pixels
            that the frame's short side is resized to, before a square of `image_size` is cut out of it. In
            localisation both sides are resized to it, as evaluation stretches the whole frame to the square.
        min_visible: a person of whom a smaller share of the box than this can be seen is dropped, labels and all.
        color_jitter: largest relative change of brightness, contrast and saturation in training, 0 (off) to 1.
        randaugment_ops: operations of RandAugment that are drawn for a training clip; 0 is off.
        randaugment_magnitude: their strength, 0 to 30 (torchvision's scale).
        randaugment_prob: the chance of each drawn operation to be applied (timm: 0.5; torchvision and the paper: 1).
        random_erasing: the chance of a training clip to have a rectangle of it replaced by noise.
        mixup: alpha of mixup; 0 is off. Classification only.
        cutmix: alpha of CutMix; 0 is off. Classification only.
        mixup_prob: the chance of a pair of training clips to be mixed by one of the two.
        mixup_switch_prob: the chance of CutMix in place of mixup where both are on.
        eval_views: clips of a video that evaluation averages over, [in time, in space]. Classification only.
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
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    short_side: tuple[int, int] | None = None
    min_visible: float = 0.25
    color_jitter: float = 0.0
    randaugment_ops: int = 0
    randaugment_magnitude: int = 9
    randaugment_prob: float = 1.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    eval_views: tuple[int, int] = (1, 1)
    train_proposals: float | None = None
    eval_boxes: Literal["proposals", "groundtruth"] = "proposals"
    proposal_score_threshold: float = 0.8

    def __post_init__(self) -> None:
        # Lists are what YAML and JSON have; a frozen config compares and hashes by its tuples.
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, list):
                object.__setattr__(self, part.name, tuple(value))
        for key in ("num_frames", "stride", "image_size"):
            self._demand(key, _is_whole(getattr(self, key), 1), "a whole number of at least 1")
        self._demand("flip", isinstance(self.flip, bool), "true or false")
        self._demand("sampling", self.sampling in ("dense", "segments"), "dense or segments")
        self._demand("eval_boxes", self.eval_boxes in ("proposals", "groundtruth"), "proposals or groundtruth")
        shares = ("min_visible", "color_jitter", "proposal_score_threshold", "randaugment_prob", "random_erasing")
        for key in (*shares, "mixup_prob", "mixup_switch_prob"):
            self._demand(key, _is_share(getattr(self, key)), "a number from 0 to 1")
        proposals = self.train_proposals
        self._demand("train_proposals", proposals is None or _is_share(proposals), "null or a number from 0 to 1")
        self._demand("randaugment_ops", _is_whole(self.randaugment_ops, 0), "a whole number of at least 0")
        magnitude = self.randaugment_magnitude
        good = _is_whole(magnitude, 0) and magnitude <= LEVELS
        self._demand("randaugment_magnitude", good, f"a whole number from 0 to {LEVELS}")
        for key in ("mixup", "cutmix"):
            self._demand(key, _is_number(getattr(self, key), 0, 1e6), "a number of at least 0")
        self._check_pairs()

    def _check_pairs(self) -> None:
        good = _is_pair(self.scale, lambda value: _is_share(value) and value > 0)
        self._demand("scale", good, "two numbers, 0 < smallest <= largest <= 1")
        good = _is_pair(self.ratio, lambda value: _is_number(value, 0.01, 100))
        self._demand("ratio", good, "two numbers, 0.01 <= narrowest <= widest <= 100")
        if self.short_side is not None:
            good = _is_pair(self.short_side, lambda value: _is_whole(value, self.image_size))
            expected = f"two whole numbers, smallest <= largest, neither below image_size ({self.image_size})"
            self._demand("short_side", good, expected)
        views = self.eval_views
        good = isinstance(views, tuple) and len(views) == 2 and all(_is_whole(value, 1) for value in views)
        self._demand("eval_views", good, "two whole numbers of at least 1, views in time and in space")

    def _demand(self, key: str, good: bool, expected: str) -> None:
        if not good:
            raise UserError(f"{key}: must be {expected}, not {getattr(self, key)!r}")

    def check_kind(self, kind: str) -> None:
        """Raises UserError where a key is set that tasks of this kind do not have."""
        if kind != "localisation":
            return
        for key, off in (("mixup", 0), ("cutmix", 0), ("eval_views", (1, 1))):
            if getattr(self, key) != off:
                raise UserError(f"{key}: is for classification only, not {getattr(self, key)!r}")

    @property
    def mixes(self) -> bool:
        """Whether training clips are mixed, and so have soft labels."""
        return bool(self.mixup or self.cutmix)

    @property
    def views(self) -> int:
        """Evaluation views of one example."""
        return self.eval_views[0] * self.eval_views[1]


def _is_number(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _is_share(value: Any) -> bool:
    return _is_number(value, 0, 1)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_pair(value: Any, good: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(good, value)) and value[0] <= value[1]
