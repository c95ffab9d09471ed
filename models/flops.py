"""What a model costs per clip: parameters, and floating-point operations of the forward pass and of training.

Counted are the products of matrices, [m, k] x [k, n] as 2 m k n operations, attention's included, and nothing else: no
norms, activations, softmax or RoIAlign. Training counts each product's two gradients, but none with respect to the
clips. What checkpointing or a fused attention kernel computes twice is not counted: utilisation is of the model's own
operations, as MFU is usually stated (Chowdhery et al., "PaLM", arXiv 2204.02311, appendix B).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from models.cofinetune import CofinetuneModel
from models.options import check_choice
from models.vit import CHANNELS, VideoViT


@dataclass(frozen=True)
class Cost:
    """Of one clip.

    Attributes:
        parameters: number of parameters that the clip's task trains.
        forward_flops: operations of the forward pass.
        training_flops: operations of the forward and the backward pass.
    """

    parameters: int
    forward_flops: int
    training_flops: int


def backbone_cost(backbone: VideoViT) -> Cost:
    """The backbone alone."""
    blocks, embedding = flops_per_clip(backbone) - _embedding_flops(backbone), _embedding_flops(backbone)
    return Cost(count_parameters(backbone), blocks + embedding, 3 * blocks + 2 * embedding)


def task_cost(model: CofinetuneModel, task: str, boxes: float = 0.0) -> Cost:
    """Backbone and the head of one task.

    Args:
        model: any, also on the meta device.
        task: whose head runs. Of a head that has no `flops(tokens, boxes)`, only the parameters count.
        boxes: of a clip, on average (localisation only).

    Raises:
        ValueError: unknown task.
    """
    check_choice("task", task, model.heads.keys())
    backbone, head = backbone_cost(model.backbone), model.heads[task]
    count = getattr(head, "flops", None)
    flops = round(count(num_tokens(model.backbone), boxes)) if callable(count) else 0
    return Cost(
        backbone.parameters + count_parameters(head),
        backbone.forward_flops + flops,
        backbone.training_flops + 3 * flops,
    )


def flops_per_clip(backbone: VideoViT) -> int:
    """Operations of the backbone's forward pass over one clip."""
    config, tokens = backbone.config, num_tokens(backbone)
    linear = 2 * tokens * config.embed_dim * (4 * config.embed_dim + 2 * config.mlp_dim)
    attention = 4 * tokens * tokens * config.embed_dim
    return _embedding_flops(backbone) + config.depth * (linear + attention)


def num_tokens(backbone: VideoViT) -> int:
    """P + t h w."""
    time, height, width = backbone.grid
    return backbone.num_prefix_tokens + time * height * width


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, frozen ones included."""
    return sum(_sizes(module.parameters()))


def _sizes(parameters: Iterable[nn.Parameter]) -> Iterable[int]:
    # ZeRO-3 leaves an empty tensor on each rank and keeps the whole one's size beside it.
    return (getattr(parameter, "ds_numel", parameter.numel()) for parameter in parameters)


def _embedding_flops(backbone: VideoViT) -> int:
    """Of the tubelet projection."""
    time, height, width = backbone.grid
    frames, rows, columns = backbone.config.tubelet_size
    return 2 * time * height * width * CHANNELS * frames * rows * columns * backbone.embed_dim
