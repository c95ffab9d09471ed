"""A model with random weights, and prediction with it in this process."""

import json
import subprocess
from pathlib import Path

import torch

from models import create_model, save_model
from train.predict import run
from train.predict_options import parser

VIEW = {"num_frames": 4, "stride": 3, "image_size": 32}
CPU = torch.device("cpu")


def make_model(folder: Path) -> Path:
    """A randomly initialised model with a head of each kind; the localisation head is sure of class 3."""
    config = {
        "backbone": {
            "name": "vit_tiny",
            "embed_dim": 32,
            "depth": 1,
            "num_heads": 2,
            "num_frames": 4,
            "image_size": 32,
        },
        "heads": {
            "clips": {"kind": "classification", "num_classes": 6},
            "order": {"kind": "classification", "num_classes": 3},
            "people": {"kind": "localisation", "num_classes": 3},
        },
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    net = create_model(config)
    with torch.no_grad():
        net.get_parameter("heads.people.fc.bias").copy_(torch.tensor([-4.0, 4.0, 0.0]))
    classes = {
        "clips": [{"id": i, "name": f"class {i}"} for i in range(6)],
        "order": [{"id": i, "name": f"order {i}"} for i in range(3)],
        "people": [{"id": i, "name": f"action {i}"} for i in (1, 3, 7)],
    }
    views = {"clips": VIEW, "order": VIEW | {"sampling": "segments"}, "people": VIEW}
    tasks = {task: {"classes": classes[task], "view": views[task]} for task in classes}
    save_model(folder, net, config, {"tasks": tasks})
    return folder


def probe(path: Path) -> dict:
    command = ["ffprobe", "-v", "error", "-show_streams", "-of", "json", str(path)]
    streams = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["streams"]
    return {stream["codec_type"]: stream for stream in streams}


def predict(model: Path, video: Path, out: Path, *options: str | Path) -> None:
    arguments = ["--checkpoint", model, "--video", video, "--out", out, "--device", "cpu", *options]
    run(parser().parse_args(list(map(str, arguments))))


def write_boxes(path: Path, *rows: str) -> Path:
    path.write_text("".join(f"{row}\n" for row in rows))
    return path
