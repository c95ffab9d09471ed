"""Person boxes by torchvision's Faster R-CNN, with weights of a file, or of torch's cache, or downloaded into it."""

import hashlib
import os
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from data.errors import UserError
from models.checkpoint_files import read_tensors

PATIENCE = 10.0
"""Seconds without anything from the server of the weights after which it is given up."""

COCO_PERSON = 1

Detector = Callable[[Tensor], np.ndarray]
"""A frame, uint8 [3, H, W], to float64 [k, 5]: persons as x1 y1 x2 y2 in [0, 1] and score."""


def fasterrcnn_resnet50_fpn(num_classes: int, **_: None) -> nn.Module:
    """torchvision's model of that name with frozen batch norm, as torchvision itself builds it for published weights;
    those that were trained with their batch norm fit as well. Without weights torchvision would build the other kind.
    """
    return detection.FasterRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), num_classes)


_KNOWN = (
    (detection.fasterrcnn_resnet50_fpn_v2, detection.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.url),
    (fasterrcnn_resnet50_fpn, detection.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url),
)
"""The models that are known, the better one first, and where torchvision has their weights from."""


def load_detector(file: str | None, device: torch.device) -> Detector:
    """torchvision's Faster R-CNN with a ResNet-50.

    Args:
        file: of its weights, a state dict as .pth or .safetensors, also as torchvision's training script wraps it;
            None: those in torch's cache, where torchvision itself looks, or else downloaded into it.

    Raises:
        UserError: weights that are not this model's, or none that can be had.
    """
    path = Path(file) if file is not None else _cached() or _download(_KNOWN[0][1])
    try:
        state, _ = read_tensors(path)
    except ValueError as error:
        raise UserError(str(error)) from error
    return _detector(_build(state, path).to(device).eval(), device)


def _cache() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def _cached() -> Path | None:
    files = [_cache() / os.path.basename(url) for _, url in _KNOWN]
    return next((path for path in files if path.is_file()), None)


def _download(url: str) -> Path:
    """Into the cache, whole or not at all."""
    path, before = _cache() / os.path.basename(url), socket.getdefaulttimeout()
    try:
        _check_server(url)
        socket.setdefaulttimeout(PATIENCE)  # the only way to tell torch.hub
        print(f"downloading torchvision's person detector to {path}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = torch.hub.HASH_REGEX.search(path.name)
        torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"no person boxes: torchvision's person detector is not at {path} and cannot be downloaded ({error}). Give"
            " --boxes CSV (rows of video_id,timestamp,x1,y1,x2,y2,,score), or download"
            f" {url} elsewhere and give it as --detector FILE"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def _check_server(url: str) -> None:
    """Raises OSError unless a server answers within PATIENCE. In a thread: to look up its name has no time limit."""
    problem: list[OSError] = [TimeoutError(f"no answer within {PATIENCE:g} seconds")]

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE).close()
            problem.clear()
        except urllib.error.URLError as error:
            problem[:] = [error.reason if isinstance(error.reason, OSError) else error]
        except OSError as error:
            problem[:] = [error]

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if problem:
        raise problem[0]


def _build(state: Mapping[str, Tensor], path: Path) -> nn.Module:
    scores = state.get("roi_heads.box_predictor.cls_score.weight")
    for build, url in _KNOWN if scores is not None and scores.ndim else ():
        assert scores is not None
        model: nn.Module = build(weights=None, weights_backbone=None, num_classes=len(scores))
        try:
            model.load_state_dict(state)  # which knows the older names of layers too
        except RuntimeError:
            continue
        if _is_published(path, url):
            for module in model.modules():
                if isinstance(module, FrozenBatchNorm2d):
                    module.eps = 0.0  # as torchvision does: when these weights were made, it had none
        return model
    names = ", ".join(build.__name__ for build, _ in _KNOWN)
    raise UserError(f"{path}: not the weights of a person detector of torchvision ({names})")


def _is_published(path: Path, url: str) -> bool:
    """Whether a file is what torchvision publishes at `url`, whose name has the beginning of its SHA-256."""
    digest = torch.hub.HASH_REGEX.search(os.path.basename(url))
    if digest is None or not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(digest[1])


def _detector(model: nn.Module, device: torch.device) -> Detector:
    @torch.inference_mode()
    def detect(frame: Tensor) -> np.ndarray:
        found = model([frame.to(device).float() / 255])[0]
        persons = found["labels"] == COCO_PERSON
        height, width = frame.shape[-2:]
        boxes = found["boxes"][persons].cpu().double().numpy() / (width, height, width, height)
        scores = found["scores"][persons].cpu().double().numpy()
        return np.hstack([boxes, scores[:, None]])

    return detect
