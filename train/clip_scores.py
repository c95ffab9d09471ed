"""A trained head on clips of any video: frames taken by time, as the evaluation's view would take them."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import sampling
from data.crop import centre_square, whole_frame
from data.errors import UserError
from data.shards import ClassInfo, Kind
from data.view import ViewConfig
from models import CofinetuneModel
from train.checkpoint_files import find_weights
from train.model import read_model
from train.recipe import project_path
from train.video_files import DamagedVideo, VideoReader


@dataclass(frozen=True)
class Head:
    """A task's part of a trained model: how its clips are cut, and what its logits mean.

    `fps` is the frame rate that the training's videos had; None where each had its own.
    """

    model: CofinetuneModel
    task: str
    kind: Kind
    classes: list[ClassInfo]
    view: ViewConfig
    fps: float | None
    device: torch.device

    def names(self, scores: np.ndarray, top: int, least: float = 0.0) -> list[tuple[str, float]]:
        """The `top` highest of scores [C] that are at least `least`, as (name, score)."""
        order = np.argsort(-scores, kind="stable")[:top]
        return [(self.classes[i].name, float(scores[i])) for i in order.tolist() if scores[i] >= least]

    @torch.inference_mode()
    def __call__(self, clip: Tensor, boxes: np.ndarray | None = None) -> Tensor:
        """Logits of one clip, uint8 [3, T, S, S]: [1, C], or [k, C] of its boxes [k, 4] in the view."""
        rows = None if boxes is None else torch.from_numpy(boxes.astype(np.float32)).to(self.device)
        box_clip = None if rows is None else torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        logits: Tensor = self.model(self.task, clip[None].to(self.device), rows, box_clip)
        return logits.float().cpu()

    def clip(self, video: VideoReader, time: float) -> Tensor:
        """The evaluation's view around `time`: uint8 [3, T, S, S].

        Frames are taken at the moments at which a video of the training's frame rate would have them. A dense clip to
        classify is moved into the video where it would reach over an end, as in training, and begins with it where the
        video is too short; around a keyframe the border frames are repeated.
        """
        view, fps = self.view, self.fps or video.pace
        if self.kind == "classification" and view.sampling == "segments":
            times = (np.arange(view.num_frames) + 0.5) * video.seconds / view.num_frames
        else:
            if self.kind == "localisation":
                # The offsets, in frames, of a keyframe that is far from both ends.
                far = view.num_frames * view.stride
                offsets = sampling.around_keyframe(2 * far + 1, far, view.num_frames, view.stride) - far
                times = time + offsets / fps
            else:
                offsets = view.stride * np.arange(view.num_frames)
                seconds = (offsets[-1] + 1) / fps
                start = max(min(time - seconds / 2, video.seconds - seconds), 0.0)
                times = (math.floor(start * fps + 1e-6) + offsets) / fps
            # Packing takes the frame nearest in time, not the one that is shown.
            times = video.nearest(times)
        cut = whole_frame if self.kind == "localisation" else centre_square
        crop = cut(video.height, video.width)
        frames = [crop.apply(frame[None], view.image_size) for frame in video.frames_at(times)]
        return torch.cat(frames, dim=1)


def load_head(checkpoint: str, task: str | None, fps: float | None, device: torch.device) -> Head:
    """Raises UserError where there is no such checkpoint or task, or what it says of it does not fit its model."""
    model, config = read_model(find_weights(project_path(checkpoint)))
    heads: dict[str, Any] = config["heads"]
    if task is None:
        task = next((name for name, head in heads.items() if head["kind"] == "localisation"), next(iter(heads)))
    if task not in heads:
        raise UserError(f"--task {task}: the checkpoint has {', '.join(heads)}")
    try:
        told = config["tasks"][task]
        classes = [ClassInfo(**c) for c in told["classes"]]
        view = ViewConfig(**told["view"])
        packed = float(Fraction(told.get("fps") or 0))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint}: config.json does not say how {task} is used ({error!r})") from error
    backbone = config["backbone"]
    for what, told_of, built in (
        ("classes", len(classes), heads[task]["num_classes"]),
        ("frames", view.num_frames, backbone["num_frames"]),
        ("pixels a side", view.image_size, backbone["image_size"]),
    ):
        if told_of != built:
            raise UserError(f"{checkpoint}: config.json says {told_of} {what} of {task}, and its model has {built}")
    return Head(model.to(device).eval(), task, heads[task]["kind"], classes, view, fps or packed or None, device)


def clips(head: Head, video: VideoReader, times: Sequence[float], title: str) -> Iterator[tuple[int, Tensor]]:
    """(place in `times`, clip) of every time whose clip can be decoded; notes on stderr how many cannot.

    Raises:
        UserError: none of them can.
    """
    problems = []
    for place, time in enumerate(tqdm(times, title)):
        try:
            clip = head.clip(video, time)
        except DamagedVideo as error:
            problems.append(error)
        else:
            yield place, clip
    if problems and len(problems) == len(times):
        raise problems[0]
    if problems:
        print(f"note: {len(problems)} of {len(times)} clips are left out: {problems[0]}", file=sys.stderr)


def grid(seconds: float, every: float) -> np.ndarray:
    """The middles of the parts of `every` seconds that a video has, float64 [n]; its middle where it is shorter."""
    count = max(1, round(seconds / every))
    return np.minimum((np.arange(count) + 0.5) * every, seconds) if seconds > every else np.array([seconds / 2])
