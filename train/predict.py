"""Entry point of prediction: `python train/predict.py --checkpoint RUN --video V --out OUT.mp4 [--boxes CSV]`."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.errors import UserError
from data.shards import ClassInfo
from train.clip_scores import Head, clips, grid, load_head
from train.draw import Painter
from train.evaluators.keyframe_boxes import KeyframeBoxes
from train.frame_map import FrameBoxes
from train.launch import command, parse_args
from train.person_boxes import BoxFile, load_detector, read_box_file
from train.tracks import Person, PersonKeyframe, Tracks, looks
from train.video_files import VideoReader
from train.video_writer import CONTAINERS, VideoWriter, require_encoder

Scene = Callable[[float], tuple[list[Person], list[tuple[str, str]]]]
"""Second of the video -> persons and caption to draw."""

TOP = {"localisation": 3, "classification": 5}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python train/predict.py",
        description="Runs a trained model over a video and draws what it says: actions on persons, or a caption.",
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
    p.add_argument("--task", metavar="NAME", help="whose head (default: the first localisation task, else the first)")
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
        "video's own rate (default: the rate that the training set was packed to, or the video's own if to none)",
    )
    p.add_argument("--still", metavar="PNG", help="also write the frame with the most labels (default: none)")
    p.add_argument(
        "--detections", metavar="CSV", help="also write all scores in the official evaluator's format (default: none)"
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    return p


def main() -> None:
    run(parse_args(parser()))


def run(args: argparse.Namespace) -> None:
    """The steps of a prediction."""
    device = check(args)
    head = load_head(args.checkpoint, args.task, args.fps, device)
    video = VideoReader(Path(args.video))
    top = args.top or TOP[head.kind]
    try:
        scene, still = (localise if head.kind == "localisation" else classify)(args, head, video, top)
        draw(args, video, scene, still)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error


def check(args: argparse.Namespace) -> torch.device:
    """The device to use. Raises UserError for an argument that cannot be, before anything takes time."""
    require_encoder()
    for name in ("threshold", "box_threshold"):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected a number from 0 to 1")
    for name in ("every", "top", "fps"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e6:
            raise UserError(f"--{name} {value}: expected more than 0")
    if Path(args.out).suffix.lower() not in CONTAINERS:
        raise UserError(f"--out {args.out}: give a name that ends in {', '.join(CONTAINERS)}")
    if args.still is not None and Path(args.still).suffix.lower() != ".png":
        raise UserError(f"--still {args.still}: give a name that ends in .png")
    for name in ("out", "still", "detections"):
        if getattr(args, name) is not None:
            check_writable(f"--{name}", Path(getattr(args, name)))
    if Path(args.out).resolve() == Path(args.video).resolve():
        raise UserError(f"--out {args.out} is the video itself")
    name = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.empty(0, device=name).device
        if device.type == "meta":
            raise RuntimeError("it computes nothing; give cpu, cuda or cuda:1")
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from error


def check_writable(name: str, path: Path) -> None:
    """Raises UserError where a file cannot be written to `path`, whose folder is made later."""
    if path.is_dir():
        raise UserError(f"{name} {path}: is a folder; give a file")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{name} {path}: {folder} is not a folder that can be written to")


def localise(args: argparse.Namespace, head: Head, video: VideoReader, top: int) -> tuple[Scene, float]:
    """Scores the persons of every keyframe; what to draw, and the second of the still."""
    asked = persons(args, head, video)
    inhabited = [number for number, boxes in enumerate(asked.boxes) if len(boxes)]
    if not inhabited:
        told = "no box is used: none has both the score that --box-threshold asks for and an area inside of the frame"
        print(f"note: {told} (boxes are x1, y1, x2, y2 as fractions of it, 0 to 1)", file=sys.stderr)
    scores: dict[int, np.ndarray] = {}
    keyframes = []
    for place, clip in clips(head, video, asked.times[inhabited].tolist(), "keyframes"):
        number = inhabited[place]
        boxes = asked.boxes[number]
        scores[number] = head(clip, boxes).sigmoid().numpy()
        labels = [head.names(row, top, args.threshold) for row in scores[number]]
        # The keyframe itself is the clip's middle frame, and the clip holds the whole of it.
        seen = looks(clip[:, clip.shape[1] // 2], boxes)
        keyframes.append(PersonKeyframe(float(asked.times[number]), boxes, labels, seen))
    if args.detections is not None:
        write_detections(Path(args.detections), asked, scores, head.classes)
    counts = [sum(map(len, keyframe.labels)) for keyframe in keyframes]
    found = sum(len(keyframe.boxes) for keyframe in keyframes)
    print(
        f"{len(keyframes)} of {len(asked.times)} keyframes have persons: {found} with {sum(counts)} labels of at least"
        f" {args.threshold:g} (task {head.task})"
    )
    gap = float(np.median(np.diff(asked.times))) if len(asked.times) > 1 else 0.0
    tracks = Tracks(keyframes, reach=1.5 * max(args.every, gap), aspect=video.width / video.height)
    still = keyframes[int(np.argmax(counts))].time if keyframes else video.seconds / 2
    return lambda time: (tracks.at(time), []), still


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
    asked = grid(video.seconds, video.seconds if head.view.sampling == "segments" else args.every)
    times, captions = [], []
    for place, clip in clips(head, video, asked.tolist(), "clips"):
        names = head.names(head(clip).softmax(dim=1)[0].numpy(), top)
        times.append(asked[place])
        captions.append([(head.task, ""), *((name, f" {score:.2f}") for name, score in names)])
    print(f"{len(times)} clips (task {head.task})")
    return lambda time: ([], captions[int(np.abs(np.array(times) - time).argmin())]), float(times[len(times) // 2])


def write_detections(
    path: Path, keyframes: BoxFile, scores: dict[int, np.ndarray], classes: Sequence[ClassInfo]
) -> None:
    """Writes every class's score of every person, at seconds of the movie."""
    chosen = sorted(scores)
    KeyframeBoxes(
        keyframes=[(keyframes.video_id, round(float(time) + keyframes.start, 6)) for time in keyframes.times],
        frames=np.repeat(np.array(chosen, dtype=np.int64), [len(scores[n]) for n in chosen]),
        boxes=np.concatenate([np.zeros((0, 4)), *(keyframes.boxes[n] for n in chosen)]),
        scores=np.concatenate([np.zeros((0, len(classes)), np.float32), *(scores[n] for n in chosen)]),
        evaluated=np.arange(len(classes)),
        truth=FrameBoxes(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.int64)),
    ).write_detections(path, classes)


def draw(args: argparse.Namespace, video: VideoReader, scene: Scene, still: float) -> None:
    """Draws and encodes the video frame by frame."""
    painter = Painter(video.width, video.height)
    out, frames, image = Path(args.out), 0, None
    if video.has_sound and video.sound is None:
        print(f"note: {video.path}: its sound cannot be decoded, and is left out", file=sys.stderr)
    with VideoWriter(out, painter.width, painter.height, video.rate, video.sound) as writer:
        for time, frame in tqdm(video.steady(), "drawing", int(video.seconds * video.rate) or None, unit="frame"):
            drawn = painter.paint(frame.permute(1, 2, 0).numpy(), *scene(time))
            writer.write(drawn)
            frames += 1
            if time <= still + 1e-6:
                image = drawn
    if args.still is not None and image is not None:
        Path(args.still).parent.mkdir(parents=True, exist_ok=True)
        image.save(args.still)
    if painter.hidden:
        print(f"note: {painter.hidden} persons of one frame have no room for their labels", file=sys.stderr)
    if video.damage is not None:
        stand_in = "the frame before stands for each, and the video ends with the last good one"
        print(f"note: {video.damage}: {stand_in}", file=sys.stderr)
    print(f"{out}: {frames} frames of {painter.width}x{painter.height}")


if __name__ == "__main__":
    command(main)
