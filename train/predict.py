"""Entry point of prediction: `python train/predict.py --checkpoint RUN --video V --out OUT.mp4 [--boxes CSV]`."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import augment, sampling
from data.errors import UserError
from data.shards import ClassInfo
from data.view import ViewConfig
from models import CofinetuneModel
from train.checkpoint import find_weights
from train.draw import Painter
from train.evaluate import read_model
from train.evaluators.keyframe_boxes import KeyframeBoxes
from train.frame_map import FrameBoxes
from train.launch import command, parse_args
from train.person_boxes import BoxFile, load_detector, read_box_file
from train.recipe import project_path
from train.tracks import Person, PersonKeyframe, Tracks
from train.video_files import VideoReader, VideoWriter

Scene = Callable[[float], tuple[list[Person], list[tuple[str, str]]]]
"""Second of the video -> persons and caption to draw."""

TOP = {"localisation": 3, "classification": 5}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python train/predict.py",
        description="Runs a trained model over a video and draws what it says: actions on persons, or classes as a caption.",
    )
    p.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder, or a checkpoint's")
    p.add_argument("--video", required=True, metavar="FILE", help="any video that FFmpeg reads")
    p.add_argument("--out", required=True, metavar="FILE", help="video to write: .mp4, .mov or .mkv")
    p.add_argument(
        "--boxes",
        metavar="CSV",
        help="person boxes: SlowFast's CSV, mmaction2's pickle, or AVA's CSV (default: torchvision's detector, if its "
        "weights are in torch's cache)",
    )
    p.add_argument(
        "--task", metavar="NAME", help="whose head (default: the first localisation task, or else the first)"
    )
    p.add_argument(
        "--every", type=float, default=1.0, metavar="SECONDS", help="between predictions (default: %(default)s)"
    )
    p.add_argument("--top", type=int, metavar="N", help="labels shown (default: 3 per person, 5 in a caption)")
    p.add_argument(
        "--threshold", type=float, default=0.3, help="score that a person's label needs, 0 to 1 (default: %(default)s)"
    )
    p.add_argument(
        "--box-threshold", type=float, metavar="SCORE", help="score that a person box needs (default: the evaluation's)"
    )
    p.add_argument(
        "--video-start",
        type=float,
        metavar="SECONDS",
        help="second of the movie at which the file begins, for the timestamps of --boxes and --detections (default: "
        "0, or AVA's 900 where that fits the boxes)",
    )
    p.add_argument(
        "--fps",
        type=float,
        help="frame rate of the videos that the model was trained on; clips are sampled at that pace whatever the "
        "video's own rate (default: what the run has recorded, else the video's own)",
    )
    p.add_argument("--still", metavar="PNG", help="also write the frame with the most labels (default: none)")
    p.add_argument(
        "--detections", metavar="CSV", help="also write all scores in the official evaluator's format (default: none)"
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    return p


@dataclass(frozen=True)
class Head:
    """A task's part of a trained model: how its clips are cut, and what its logits mean."""

    model: CofinetuneModel
    task: str
    kind: str
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

        Frames are taken at the moments at which a video of the training's frame rate would have them.
        """
        view, fps = self.view, self.fps or video.fps
        if self.kind == "classification" and view.sampling == "segments":
            times = (np.arange(view.num_frames) + 0.5) * video.seconds / view.num_frames
        else:
            reach = view.num_frames * view.stride
            times = time + (sampling.around_keyframe(2 * reach + 1, reach, view.num_frames, view.stride) - reach) / fps
        cut = augment.whole_frame if self.kind == "localisation" else augment.centre_square
        crop = cut(video.height, video.width)
        frames = [crop.apply(frame[None], view.image_size) for frame in video.frames_at(times)]
        return torch.cat(frames, dim=1)


def load_head(checkpoint: str, task: str | None, fps: float | None, device: torch.device) -> Head:
    """Raises UserError where there is no such checkpoint or task."""
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
        fps = fps or told.get("fps")
    except (KeyError, TypeError) as error:
        raise UserError(f"{checkpoint}: config.json does not say how {task} is used ({error!r})") from error
    return Head(model.to(device).eval(), task, heads[task]["kind"], classes, view, fps, device)


def main() -> None:
    args = parse_args(parser())
    check(args)
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    head = load_head(args.checkpoint, args.task, args.fps, device)
    video = VideoReader(Path(args.video))
    top = args.top or TOP[head.kind]
    if head.kind == "localisation":
        scene, still = localise(args, head, video, top)
    else:
        scene, still = classify(args, head, video, top)
    draw(args, video, scene, still)


def check(args: argparse.Namespace) -> None:
    """Raises UserError for a number out of range, or for a file that would overwrite the video."""
    for name in ("threshold", "box_threshold"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a number from 0 to 1")
    for name in ("every", "top", "fps"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e6:
            raise UserError(f"--{name} {value}: expected more than 0")
    if Path(args.out).resolve() == Path(args.video).resolve():
        raise UserError(f"--out {args.out} is the video itself")


def localise(args: argparse.Namespace, head: Head, video: VideoReader, top: int) -> tuple[Scene, float]:
    """Scores the persons of every keyframe; what to draw, and the second of the still."""
    keyframes = persons(args, head, video)
    scored, all_scores = [], []
    for time, boxes in tqdm(
        zip(keyframes.times.tolist(), keyframes.boxes, strict=True), "keyframes", len(keyframes.boxes)
    ):
        # Also without persons, so that what is drawn does not depend on who else is there.
        scores = (
            head(head.clip(video, time), boxes).sigmoid().numpy() if len(boxes) else np.zeros((0, len(head.classes)))
        )
        all_scores.append(scores.astype(np.float32))
        scored.append(PersonKeyframe(time, boxes, [head.names(row, top, args.threshold) for row in scores]))
    gaps = np.diff(keyframes.times)
    tracks = Tracks(scored, reach=1.5 * max(args.every, float(np.median(gaps)) if len(gaps) else 0.0))
    if args.detections is not None:
        write_detections(Path(args.detections), keyframes, all_scores, head.classes)
    labels = [sum(map(len, keyframe.labels)) for keyframe in scored]
    print(
        f"{len(scored)} keyframes, {sum(map(len, keyframes.boxes))} persons, {sum(labels)} labels of {args.threshold:g} or"
        f" more (task {head.task})"
    )
    return lambda time: (tracks.at(time), []), scored[int(np.argmax(labels))].time


def persons(args: argparse.Namespace, head: Head, video: VideoReader) -> BoxFile:
    """Person boxes of the keyframes: from the file, at most one keyframe every `--every` seconds, or detected."""
    least = head.view.proposal_score_threshold if args.box_threshold is None else args.box_threshold
    if args.boxes is None:
        detect = load_detector(head.device)
        times = grid(video.seconds, args.every)
        found = [detect(frame) for frame in tqdm(video.frames_at(times), "detecting persons", len(times))]
        boxes = [rows[rows[:, 4] >= least, :4] for rows in found]
        return BoxFile(Path(args.video).stem, args.video_start or 0.0, times, boxes, 0)
    file = read_box_file(args.boxes, Path(args.video), video.seconds, args.video_start, least)
    kept: list[int] = []
    for number, time in enumerate(file.times.tolist()):
        if not kept or time - file.times[kept[-1]] >= args.every - 1e-6:
            kept.append(number)
    print(
        f"{args.boxes}: {len(file.times)} keyframes of {file.video_id} lie in the video, which begins at second"
        f" {file.start:g}; {len(kept)} are used, {file.outside} lie outside"
    )
    return BoxFile(file.video_id, file.start, file.times[kept], [file.boxes[n] for n in kept], file.outside)


def classify(args: argparse.Namespace, head: Head, video: VideoReader, top: int) -> tuple[Scene, float]:
    """Classifies a clip every `--every` seconds (once, where a clip spans the whole video)."""
    times = grid(video.seconds, video.seconds if head.view.sampling == "segments" else args.every)
    captions = []
    for time in tqdm(times.tolist(), "clips"):
        scores = head(head.clip(video, time)).softmax(dim=1)[0].numpy()
        captions.append([(head.task, ""), *((name, f" {score:.2f}") for name, score in head.names(scores, top))])
    print(f"{len(times)} clips (task {head.task})")
    return lambda time: ([], captions[int(np.abs(times - time).argmin())]), float(times[len(times) // 2])


def grid(seconds: float, every: float) -> np.ndarray:
    """The middles of the parts of `every` seconds that a video has; its middle where it is shorter."""
    count = max(1, round(seconds / every))
    return np.minimum((np.arange(count) + 0.5) * every, seconds) if seconds > every else np.array([seconds / 2])


def write_detections(
    path: Path, keyframes: BoxFile, scores: Sequence[np.ndarray], classes: Sequence[ClassInfo]
) -> None:
    """Writes every class's score of every person, at seconds of the movie."""
    KeyframeBoxes(
        keyframes=[(keyframes.video_id, round(float(time) + keyframes.start, 6)) for time in keyframes.times],
        frames=np.repeat(np.arange(len(keyframes.boxes)), [len(boxes) for boxes in keyframes.boxes]),
        boxes=np.concatenate(keyframes.boxes),
        scores=np.concatenate(scores),
        evaluated=np.arange(len(classes)),
        truth=FrameBoxes(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64)),
    ).write_detections(path, classes)


def draw(args: argparse.Namespace, video: VideoReader, scene: Scene, still: float) -> None:
    """Draws and encodes the video frame by frame."""
    painter = Painter(video.width, video.height)
    out, frames, image = Path(args.out), 0, None
    with VideoWriter(out, painter.width, painter.height, video.rate, Path(args.video)) as writer:
        for time, frame in tqdm(video.steady(), "drawing", int(video.seconds * video.rate) or None, unit="frame"):
            drawn = painter.paint(frame.permute(1, 2, 0).numpy(), *scene(time))
            writer.write(drawn)
            frames += 1
            if time <= still + 1e-6:
                image = drawn
    if args.still is not None and image is not None:
        image.save(args.still)
    if painter.hidden:
        print(f"note: in one frame {painter.hidden} persons have no room for their labels")
    print(f"{out}: {frames} frames of {painter.width}x{painter.height}")


if __name__ == "__main__":
    command(main)
