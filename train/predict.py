"""Entry point of prediction: `python train/predict.py --checkpoint RUN --video V --out OUT.mp4 [--boxes CSV]`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from data.errors import UserError
from data.shards import ClassInfo
from train.clip_scores import Head, clips, grid, load_head
from train.draw import Painter
from train.evaluators.keyframe_boxes import KeyframeBoxes
from train.evaluators.predictions import Predictions
from train.frame_map import FrameBoxes
from train.launch import command, parse_args
from train.person_boxes import BoxFile, read_box_file
from train.predict_options import check, parser, table_path
from train.tracks import Person, PersonKeyframe, Tracks, looks
from train.video_files import DamagedVideo, VideoReader
from train.video_writer import VideoWriter

if TYPE_CHECKING:
    from train.detector import Detector

Scene = Callable[[float], tuple[list[Person], list[tuple[str, str]]]]
"""Second of the video -> persons and caption to draw."""

TOP = {"localisation": 3, "classification": 5}


def main() -> None:
    run(parse_args(parser()))


def run(args: argparse.Namespace) -> None:
    """The steps of a prediction."""
    device = check(args)
    head = load_head(args.checkpoint, args.task, args.fps, device)
    table = table_path(args, head.kind)
    video = VideoReader(Path(args.video))
    args.every = max(args.every, 1 / float(video.rate))
    try:
        scene, still = (localise if head.kind == "localisation" else classify)(args, head, video, table)
        draw(args, video, scene, still)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be written: {error.strerror}") from error


def localise(args: argparse.Namespace, head: Head, video: VideoReader, table: Path) -> tuple[Scene, float]:
    """Scores the persons of every keyframe; what to draw, and the second of the still."""
    top = args.top or TOP[head.kind]
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
    write_detections(table, asked, scores, head.classes)
    counts = [sum(map(len, keyframe.labels)) for keyframe in keyframes]
    found = sum(len(keyframe.boxes) for keyframe in keyframes)
    print(
        f"{len(keyframes)} of {len(asked.times)} keyframes have persons: {found} with {sum(counts)} labels of at least"
        f" {args.threshold:g} (task {head.task}); all scores: {table}"
    )
    gap = float(np.median(np.diff(asked.times))) if len(asked.times) > 1 else 0.0
    tracks = Tracks(keyframes, reach=1.5 * max(args.every, gap), aspect=video.width / video.height)
    still = keyframes[int(np.argmax(counts))].time if keyframes else video.seconds / 2
    return lambda time: (tracks.at(time), []), still


def persons(args: argparse.Namespace, head: Head, video: VideoReader) -> BoxFile:
    """Person boxes of the keyframes: from the file, at most one keyframe every `--every` seconds, or detected."""
    least = head.view.proposal_score_threshold if args.box_threshold is None else args.box_threshold
    if args.boxes is None:
        from train.detector import load_detector  # torchvision takes a second to import

        detect = load_detector(args.detector, head.device)
        times = grid(video.seconds, args.every)
        boxes = [rows[rows[:, 4] >= least, :4] for rows in detected(detect, video, times)]
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


def detected(detect: "Detector", video: VideoReader, times: np.ndarray) -> list[np.ndarray]:
    """What the detector finds at each time, float64 [k, 5]: no persons where the video is damaged, of which a note on
    stderr says how often.

    Raises:
        DamagedVideo: it is so at all of them.
    """
    found, problems = [], []
    for time in tqdm(times, "detecting persons"):
        try:
            (frame,) = video.frames_at(np.array([time]))
        except DamagedVideo as error:
            problems.append(error)
            found.append(np.zeros((0, 5)))
        else:
            found.append(detect(frame))
    if len(problems) == len(times):
        raise problems[0]
    if problems:
        told = f"persons are not looked for at {len(problems)} of {len(times)} moments"
        print(f"note: {told}: {problems[0]}", file=sys.stderr)
    return found


def classify(args: argparse.Namespace, head: Head, video: VideoReader, table: Path) -> tuple[Scene, float]:
    """Classifies a clip every `--every` seconds (once, where a clip spans the whole video)."""
    asked = grid(video.seconds, video.seconds if head.view.sampling == "segments" else args.every)
    found = {
        float(asked[place]): head(clip).softmax(dim=1)[0] for place, clip in clips(head, video, asked.tolist(), "clips")
    }
    times, scores = np.array(list(found)), torch.stack(list(found.values())).numpy()
    write_predictions(table, times, scores, head.classes)
    print(f"{len(times)} clips (task {head.task}); the best classes of each: {table}")

    def scene(time: float) -> tuple[list[Person], list[tuple[str, str]]]:
        best = head.names(scores[np.abs(times - time).argmin()], args.top or TOP[head.kind])
        return [], [(head.task, ""), *((name, f" {score:.2f}") for name, score in best)]

    return scene, float(times[len(times) // 2])


def write_predictions(path: Path, times: np.ndarray, scores: np.ndarray, classes: Sequence[ClassInfo]) -> None:
    """Writes the best classes of every clip, as evaluation does; the key is the second of the clip's middle."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, : TOP["classification"]]
    Predictions(
        keys=np.array([f"{time:.3f}" for time in times]),
        labels=np.full(len(times), -1),
        classes=best,
        probabilities=np.take_along_axis(scores, best, axis=1),
    ).write(path, classes)


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
