"""An optimizer's state by parameter: one file that any engine on any number of ranks writes and goes on from.

ZeRO keeps moments in flat partitions whose borders depend on the number of ranks. Here they are put together again, so
that a checkpoint does not depend on who wrote it. No value is rounded: sums over ranks add zeros to the one owner's.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

STATE_FILE = "optimizer.safetensors"
WEIGHTS_FILE = "model.safetensors"
MASTER = "master"
"""Key of the fp32 weights, where the model's own are of lower precision."""


@dataclass(frozen=True)
class Piece:
    """What this process holds of one parameter's optimizer state.

    Args:
        parameter: the model's.
        held: what the optimizer steps: the parameter itself, or a flat fp32 partition with a part of it.
        states: the optimizer's `state`.
        place: first element within the parameter, first element within `held`, and number of elements; None where
            this process holds nothing of it.
    """

    parameter: nn.Parameter
    held: Tensor
    states: MutableMapping[Any, dict[str, Any]]
    place: tuple[int, int, int] | None


def full_state(module: nn.Module, pieces: list[Piece], reduce: bool = False) -> dict[str, Tensor]:
    """The state of all parameters, on the CPU: "exp_avg/NAME" in the parameter's shape, "step/NAME" of shape [].

    Args:
        pieces: the same parameters in the same order on every rank.
        reduce: sum over ranks; then all must call this.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, Tensor] = {}
    for piece in pieces:
        name = names[id(piece.parameter)]
        state = dict(piece.states[piece.held]) if piece.held in piece.states else {}
        if piece.held.dtype != piece.parameter.dtype:
            state[MASTER] = piece.held
        for key, value in state.items():
            if not isinstance(value, Tensor):
                continue
            if value.shape != piece.held.shape or value.dim() == 0:
                found[f"{key}/{name}"] = value.detach().cpu().clone()
                continue
            whole = torch.zeros(piece.parameter.numel(), dtype=value.dtype, device=piece.parameter.device)
            if piece.place is not None:
                inside, here, count = piece.place
                whole[inside : inside + count] = value.detach().flatten()[here : here + count]
            if reduce:
                dist.all_reduce(whole)
            found[f"{key}/{name}"] = whole.reshape(piece.parameter.shape).cpu().clone()
    return found


def write_state(folder: Path, state: dict[str, Tensor]) -> None:
    """Writes what `full_state` gave."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / STATE_FILE)


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fills the model, in place, from the checkpoint's weights. Raises RuntimeError where they are another model's."""
    module.load_state_dict(load_file(folder / WEIGHTS_FILE))


def load_state(module: nn.Module, pieces: list[Piece], folder: Path) -> None:
    """Fills the optimizer's state from the checkpoint; a parameter without an entry has none yet.

    Raises:
        ValueError: a tensor of another shape than its parameter.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    with safe_open(folder / STATE_FILE, framework="pt") as file:
        keys: dict[str, list[str]] = {}
        for entry in file.keys():  # noqa: SIM118 - not a mapping
            key, _, name = entry.partition("/")
            keys.setdefault(name, []).append(key)
        for held in {id(piece.held): piece.held for piece in pieces}.values():
            pieces[0].states.pop(held, None)
        for piece in pieces:
            name = names[id(piece.parameter)]
            for key in keys.get(name, []):
                value = file.get_tensor(f"{key}/{name}")
                if value.dim() == 0:
                    # fused AdamW wants its step count beside the weights.
                    piece.states.setdefault(piece.held, {}).setdefault(key, value.to(piece.held.device))
                    continue
                if value.shape != piece.parameter.shape:
                    raise ValueError(f"{key} of {name} is {list(value.shape)}, not {list(piece.parameter.shape)}")
                if key == MASTER:
                    target = piece.held.data
                else:
                    state = piece.states.setdefault(piece.held, {})
                    target = state.setdefault(key, torch.zeros_like(piece.held, dtype=value.dtype))
                if piece.place is not None:
                    inside, here, count = piece.place
                    target.view(-1)[here : here + count] = value.flatten()[inside : inside + count].to(target.device)
