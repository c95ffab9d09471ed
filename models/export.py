"""Classification models for Hugging Face: `python -m models.export RUN_OR_FOLDER --out DIR [--task T]`."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoint_files import CONFIG_FILE
from models.cofinetune import CofinetuneModel
from models.heads import ClassificationHead
from models.hf_layout import to_hf, write_config
from models.positions import sincos_positions
from models.pretrained import PREPROCESSOR_FILE, locate
from models.vit import VideoViTConfig
from models.weights import WEIGHTS_FILE, load_model, replacing

CLASSES: Final = {"vivit": "VivitForVideoClassification", "videomae": "VideoMAEForVideoClassification"}
BILINEAR: Final = 2  # PIL's number


def obstacles(model: CofinetuneModel, task: str) -> dict[str, list[str]]:
    """Why a task's model is not one of Hugging Face's: model_type -> options that it cannot express; empty: it is one.

    Layer scale is no obstacle (it is multiplied into the matrices before it), and neither is a key bias.
    """
    head = model.heads[task]
    if not isinstance(head, ClassificationHead):
        return {family: ["it localises, and Hugging Face's only classify"] for family in CLASSES}
    config = model.backbone.config
    both = [f"subtract_mean_frame={model.subtract_mean_frame:g}"] if model.subtract_mean_frame else []
    vivit, videomae = list(both), list(both)
    if not config.class_token:
        vivit.append("class_token=false")
    if head.pool != "class_token":
        vivit.append(f"the head's pool={head.pool}")
    if not config.final_norm:
        vivit.append("final_norm=false")
    has_fc_norm = isinstance(head.fc_norm, torch.nn.LayerNorm)
    if has_fc_norm:
        vivit.append("the head's fc_norm=true")
    if config.class_token:
        videomae.append("class_token=true")
    if head.pool != "mean":
        videomae.append(f"the head's pool={head.pool}")
    if config.final_norm:
        videomae.append("final_norm=true")
    if not has_fc_norm:
        videomae.append("the head's fc_norm=false")
    if config.pos_embed != "sincos":
        videomae.append(f"pos_embed={config.pos_embed}")
    elif not config.class_token:
        positions = model.backbone.pos_embed
        if not torch.allclose(positions, sincos_positions(positions.shape[1], config.embed_dim), atol=1e-6):
            videomae.append("sine-cosine positions that were interpolated from another grid")
    return {"vivit": vivit, "videomae": videomae}


def export_task(model: CofinetuneModel, config: Mapping[str, Any], task: str, folder: Path) -> str:
    """Writes one task's model as config.json, model.safetensors and preprocessor_config.json into `folder`.

    Args:
        model: float32.
        config: as `load_model` returned it with the model.
        task: of a classification head.
        folder: made if need be; each file appears whole or not at all, config.json last.

    Returns:
        The class of `transformers` that loads it.

    Raises:
        ValueError: an option that none of Hugging Face's models has; names all of them.
        OSError: the folder cannot be written.
    """
    hindered = obstacles(model, task)
    family = next((family for family, reasons in hindered.items() if not reasons), None)
    if family is None:
        reasons = dict.fromkeys(f"{CLASSES[family]}: {', '.join(reasons)}" for family, reasons in hindered.items())
        raise ValueError(f"task {task}: no model of Hugging Face's has these options: {'; '.join(reasons)}")
    backbone = model.backbone.config
    document = {"architectures": [CLASSES[family]], **write_config(backbone, family), **_labels(config, model, task)}
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / WEIGHTS_FILE) as temporary:
        save_file(_tensors(model, task, family), temporary, metadata={"format": "pt"})
    for name, content in ((PREPROCESSOR_FILE, _preprocessor(config, backbone, family)), (CONFIG_FILE, document)):
        with replacing(folder / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return CLASSES[family]


def _tensors(model: CofinetuneModel, task: str, family: str) -> dict[str, Tensor]:
    state = {name: tensor.detach() for name, tensor in model.backbone.state_dict().items()}
    for name in [name for name in state if name.endswith((".ls1.gamma", ".ls2.gamma"))]:
        block, _, rest = name.rpartition(".ls")
        gamma = state.pop(name)
        matrix = f"{block}.attn.proj" if rest.startswith("1") else f"{block}.mlp.fc2"
        state[f"{matrix}.weight"] = gamma[:, None] * state[f"{matrix}.weight"]
        state[f"{matrix}.bias"] = gamma * state[f"{matrix}.bias"]
    tensors = to_hf(state, family)
    head = model.heads[task]
    assert isinstance(head, ClassificationHead)
    tensors |= {"classifier.weight": head.fc.weight.detach(), "classifier.bias": head.fc.bias.detach()}
    if isinstance(head.fc_norm, torch.nn.LayerNorm):
        tensors |= {f"fc_norm.{name}": tensor.detach() for name, tensor in head.fc_norm.state_dict().items()}
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _labels(config: Mapping[str, Any], model: CofinetuneModel, task: str) -> dict[str, Any]:
    """id2label and label2id; where the checkpoint does not name its classes, their numbers alone."""
    head = model.heads[task]
    assert isinstance(head, ClassificationHead)
    try:
        names = [str(told["name"]) for told in config["tasks"][task]["classes"]]
    except (KeyError, TypeError):
        names = []
    if len(names) != head.fc.out_features:
        names = [f"LABEL_{index}" for index in range(head.fc.out_features)]
    return {
        "id2label": {str(index): name for index, name in enumerate(names)},
        "label2id": {name: index for index, name in enumerate(names)},
    }


def _preprocessor(config: Mapping[str, Any], backbone: VideoViTConfig, family: str) -> dict[str, Any]:
    """The evaluation's view, the central square, and the normalisation, as Hugging Face's processors have it."""
    _, height, width = backbone.clip_size
    mean, std = list(config["mean"]), list(config["std"])
    shared = {
        "do_resize": True,
        "size": {"shortest_edge": max(height, width)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "do_normalize": True,
    }
    if family == "videomae":
        return {
            "image_processor_type": "VideoMAEImageProcessor",
            "video_processor_type": "VideoMAEVideoProcessor",
            **shared,
            "rescale_factor": 1 / 255,
            "image_mean": mean,
            "image_std": std,
        }
    # ViViT's processors first map to [-1, 1] (one of them has no option not to), so mean and std are those of 2 x - 1.
    return {
        "image_processor_type": "VivitImageProcessor",
        "video_processor_type": "VivitVideoProcessor",
        **shared,
        "rescale_factor": 1 / 127.5,
        "offset": True,
        "image_mean": [2 * value - 1 for value in mean],
        "image_std": [2 * value for value in std],
    }


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m models.export",
        description="Writes the classification heads of a trained model, each with the backbone, as models that "
        "Hugging Face's VivitForVideoClassification or VideoMAEForVideoClassification loads; where no such model has "
        "the options of a task, says which. Exit status: 0 where something was written, 1 where nothing could be, "
        "2 for bad arguments.",
    )
    p.add_argument(
        "checkpoint", metavar="RUN_OR_FOLDER", help="a run's folder (its newest checkpoint), or a checkpoint's"
    )
    p.add_argument("--out", required=True, metavar="DIR", help="where to; each task gets a folder of its name in it")
    p.add_argument("--task", metavar="NAME", help="this task alone (default: all)")
    return p


def run(args: argparse.Namespace) -> int:
    """The steps of an export; the exit status."""
    folder, _ = locate(Path(args.checkpoint))
    model, config = load_model(folder)
    if args.task is not None and args.task not in model.heads:
        raise ValueError(f"--task {args.task}: the checkpoint has {', '.join(model.heads)}")
    written = 0
    for task in model.heads if args.task is None else [args.task]:
        try:
            kind = export_task(model, config, task, Path(args.out) / task)
        except ValueError as error:
            print(f"not exported: {error}", file=sys.stderr)
            continue
        written += 1
        print(f"{Path(args.out) / task}: {kind}")
    return 0 if written else 1


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    try:
        sys.exit(run(args))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
