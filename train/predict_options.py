"""The options of prediction, and what can be said of them before anything takes time."""

import argparse
import math
import os
from pathlib import Path

import torch

from data.errors import UserError
from train.video_files import check_file
from train.video_writer import CONTAINERS, require_encoder

OF_LOCALISATION = ("boxes", "detector", "detections", "box_threshold", "video_start")
"""Options that a classification head has no use for."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python train/predict.py",
        description="Runs a trained model over a video of any length and draws what it says: actions on persons, or a "
        "caption of the best classes. Writes the scores beside it, to OUT_detections.csv or OUT_predictions.csv.",
    )
    p.add_argument("--checkpoint", required=True, metavar="RUN", help="a run's folder, or a checkpoint's")
    p.add_argument("--video", required=True, metavar="FILE", help="any video that FFmpeg reads")
    p.add_argument("--out", required=True, metavar="FILE", help="video to write: .mp4, .mov or .mkv")
    p.add_argument(
        "--boxes",
        metavar="CSV",
        help="person boxes: SlowFast's CSV, mmaction2's pickle, or AVA's CSV (default: torchvision's Faster R-CNN)",
    )
    p.add_argument(
        "--detector",
        metavar="FILE",
        help="weights of torchvision's Faster R-CNN, ResNet-50 (v2 or not), as .pth or .safetensors (default: those in "
        "torch's cache, downloaded if they are not there)",
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
        "--detections",
        metavar="CSV",
        help="where a localisation head's scores go, of all persons and classes, in the official evaluator's format "
        "(default: OUT_detections.csv)",
    )
    p.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")
    return p


def table_path(args: argparse.Namespace, kind: str) -> Path:
    """Where the scores go. Raises UserError for options that a head of this kind has no use for."""
    out = Path(args.out)
    if kind == "localisation":
        table = Path(args.detections) if args.detections is not None else out.with_name(f"{out.stem}_detections.csv")
        if args.boxes is not None and table.resolve() == Path(args.boxes).resolve():
            raise UserError(
                f"--boxes {args.boxes} would be overwritten by the scores: say with --detections where they go"
            )
        return table
    given = [f"--{name.replace('_', '-')}" for name in OF_LOCALISATION if getattr(args, name) is not None]
    if given:
        raise UserError(f"{', '.join(given)}: a classification head has no use for it; --task chooses the head")
    return out.with_name(f"{out.stem}_predictions.csv")


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
    if args.video_start is not None and not math.isfinite(args.video_start):
        raise UserError(f"--video-start {args.video_start}: expected a number of seconds")
    if Path(args.out).suffix.lower() not in CONTAINERS:
        raise UserError(f"--out {args.out}: give a name that ends in {', '.join(CONTAINERS)}")
    if args.still is not None and Path(args.still).suffix.lower() != ".png":
        raise UserError(f"--still {args.still}: give a name that ends in .png")
    if args.boxes is not None and args.detector is not None:
        raise UserError("--boxes and --detector: give one of them")
    check_file(Path(args.video))
    for name in ("boxes", "detector"):
        if getattr(args, name) is not None and not Path(getattr(args, name)).is_file():
            raise UserError(f"--{name} {getattr(args, name)}: there is no such file")
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
