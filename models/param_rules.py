"""Which layer a parameter belongs to and whether it is decayed: timm's rules, by name."""

import re
from typing import Final

from torch import Tensor

_BLOCK: Final = re.compile(r"blocks\.(\d+)\.")
_EMBEDDING: Final = re.compile(r"cls_token|pos_embed|patch_embed\.")
_FINAL_NORM: Final = re.compile(r"norm\.")
_UNDECAYED: Final = frozenset({"pos_embed", "cls_token"})


def layer_index(name: str, depth: int) -> int:
    """Layer of a parameter for layer-wise learning-rate decay, where layer i learns at decay ** (depth + 1 - i).

    As timm's `VisionTransformer.group_matcher` counts them: the embeddings are layer 0, block i is layer i + 1, the
    final norm goes with the last block, and all that follows (the heads) is layer depth + 1.

    Args:
        name: of a parameter of CofinetuneModel or of its backbone.
        depth: number of blocks.

    Returns:
        An int in [0, depth + 1].
    """
    inner = name.removeprefix("backbone.")
    if _EMBEDDING.match(inner):
        return 0
    if block := _BLOCK.match(inner):
        return int(block[1]) + 1
    return depth if _FINAL_NORM.match(inner) else depth + 1


def no_weight_decay(name: str, param: Tensor) -> bool:
    """Whether timm's optimizers leave a parameter without weight decay: biases, norms, position and class token."""
    return param.ndim <= 1 or name.endswith(".bias") or name.rpartition(".")[2] in _UNDECAYED
