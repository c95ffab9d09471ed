"""One door for everything that a backbone's first weights can come from: video checkpoints and image ViTs."""

import os
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from models.checkpoint_files import CONFIG_FILE, WEIGHT_FILES, naming, read_json, read_tensors
from models.inflate import init_from_image_vit, read_image_vit
from models.load_report import LoadReport
from models.pretrained import init_from_checkpoint, latest_checkpoint, read_checkpoint
from models.videomae import KERNEL, is_videomae
from models.vit import VideoViT

ARCHITECTURE: Final = (
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "tubelet_size",
    "class_token",
    "pos_embed",
    "act_layer",
    "norm_eps",
    "qkv_bias",
    "init_values",
    "final_norm",
)
"""The options of VideoViTConfig that a source of weights decides."""


@dataclass(frozen=True)
class Source:
    """What a source of weights asks of the backbone.

    Attributes:
        video: whether it is a video model; else an image model, whose patches are to be inflated.
        options: VideoViTConfig's options that the backbone must have; of an image model those that it says. A video
            model's has all of ARCHITECTURE.
    """

    video: bool
    options: dict[str, Any]


def read_source(
    source: str | os.PathLike[str],
    num_heads: int | None = None,
    source_num_frames: int | None = None,
    source_image_size: int | None = None,
) -> Source:
    """The network of a source, without loading it: of a timm name nothing is fetched.

    Args:
        source: whatever `init_from_checkpoint` or `init_from_image_vit` takes.

    The other arguments are those of `backbone_from_checkpoint`.

    Raises:
        ValueError: names the source: not there, unreadable, or a network that the backbone cannot be.
    """
    if not is_video(source):
        image = read_image_vit(source, network_only=True)
        return Source(False, image.options)
    checkpoint = read_checkpoint(source, num_heads, source_num_frames, source_image_size)
    options = {key: value for key, value in asdict(checkpoint.config).items() if key in ARCHITECTURE}
    return Source(True, options)


def init_backbone(
    backbone: VideoViT,
    source: str | os.PathLike[str],
    inflate: Literal["central_frame", "average"] = "central_frame",
    *,
    allow_missing: Collection[str] = (),
    allow_unexpected: Collection[str] = (),
    source_num_frames: int | None = None,
    source_image_size: int | None = None,
) -> LoadReport:
    """Loads a video checkpoint, or inflates an image ViT, whichever `source` is: arguments and errors as there."""
    allow: dict[str, Any] = {"allow_missing": allow_missing, "allow_unexpected": allow_unexpected}
    if not is_video(source):
        return init_from_image_vit(backbone, source, inflate, **allow)
    trained: dict[str, Any] = {"source_num_frames": source_num_frames, "source_image_size": source_image_size}
    return init_from_checkpoint(backbone, source, **allow, **trained)


def is_video(source: str | os.PathLike[str]) -> bool:
    """Whether `source` is, by its tubelet kernel or its config.json, a video model."""
    path = Path(source)
    if not path.exists():
        return False
    if path.is_file():
        tensors = read_tensors(path)[0]
        if is_videomae(tensors) or KERNEL in tensors:
            return is_videomae(tensors)
    folder = path if path.is_dir() else path.parent
    config = folder / CONFIG_FILE
    if config.is_file():
        with naming(config):
            document = read_json(config)
        return "format" in document or "model_type" in document
    # A run of this project; or nothing at all, which the reader of video models says best.
    return latest_checkpoint(path) is not None or not any((path / name).is_file() for name in WEIGHT_FILES)
