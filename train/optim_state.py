"""An optimizer's state on disk: every process writes what it holds, by parameter; any number of processes goes on.

ZeRO keeps moments in flat partitions whose borders depend on the number of processes. In files an entry is instead
`exp_avg/NAME@START`: a run of values [n] of the parameter NAME, flattened, from its value START on. A state of one
number, as `step/NAME`, has no place. Nothing is gathered and nothing is rounded.
"""

import math
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

WEIGHTS_FILE = "model.safetensors"
OPTIMIZER_FILES = "optimizer-*.safetensors"
MASTER = "master"
"""Key of the fp32 weights, where the model's own are of lower precision."""


@dataclass(frozen=True)
class Piece:
    """What this process holds of one parameter's optimizer state.

    Args:
        parameter: the model's.
        shape: of the whole parameter.
        held: what the optimizer steps: the parameter itself, or a flat fp32 partition with a part of it.
        states: the optimizer's `state`.
        place: first value within the flattened parameter, first one within `held`, and number of values; None where
            this process holds nothing of it.
    """

    parameter: nn.Parameter
    shape: Sequence[int]
    held: Tensor
    states: MutableMapping[Any, dict[str, Any]]
    place: tuple[int, int, int] | None


def whole_pieces(optimizer: torch.optim.Optimizer) -> list[Piece]:
    """The pieces of a process that holds everything, in plain PyTorch."""
    params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [Piece(p, p.shape, p, optimizer.state, (0, 0, p.numel())) for p in params]


def optimizer_file(index: int, world: int) -> str:
    """The name of one process's file."""
    return f"optimizer-{index:05d}-of-{world:05d}.safetensors"


def held_state(module: nn.Module, pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """This process's entries, copied into host memory: training may go on while they are written."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, Tensor] = {}
    for piece in pieces:
        if piece.place is None:
            continue
        name, (inside, here, count) = names[id(piece.parameter)], piece.place
        state = dict(piece.states[piece.held]) if piece.held in piece.states else {}
        if piece.held.dtype != piece.parameter.dtype:
            state[MASTER] = piece.held
        for key, value in state.items():
            if isinstance(value, int):
                found[f"{key}/{name}"] = torch.tensor(value)
            elif isinstance(value, Tensor) and value.dim() == 0:
                found[f"{key}/{name}"] = value.detach().to("cpu", copy=True)
            elif isinstance(value, Tensor):
                assert value.shape == piece.held.shape, f"{key} of {name} is not a value per weight"
                part = value.detach().flatten()[here : here + count]
                found[f"{key}/{name}@{inside}"] = part.to("cpu", copy=True)
            else:
                assert value is None, f"{key} of {name} is a {type(value).__name__}, which has no place in a checkpoint"
    return found


def load_weights(module: nn.Module, folder: Path) -> None:
    """Fills the model, in place and tensor by tensor, from the checkpoint's weights.

    Raises:
        ValueError: the weights of another model.
    """
    own = module.state_dict()
    with safe_open(folder / WEIGHTS_FILE, framework="pt") as file, torch.no_grad():
        if set(file.keys()) != own.keys():
            differing = sorted(set(file.keys()) ^ own.keys())
            raise ValueError(f"{WEIGHTS_FILE} is of another model: {', '.join(differing[:4])}")
        for name, tensor in own.items():
            value = file.get_tensor(name)
            if value.shape != tensor.shape:
                raise ValueError(f"{name} is {list(value.shape)}, not {list(tensor.shape)}")
            tensor.copy_(value)


def load_state(module: nn.Module, pieces: Sequence[Piece], folder: Path) -> None:
    """Fills the optimizer's state, in place, with this process's part of what all processes wrote.

    A parameter without entries has no state yet.

    Raises:
        ValueError: entries that do not make up their parameter: a file is missing, or is another model's.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob(OPTIMIZER_FILES))]
        entries = _entries(files)
        for piece in pieces:
            piece.states.pop(piece.held, None)
        for piece in pieces:
            name = names[id(piece.parameter)]
            for key, parts in entries.get(name, {}).items():
                if parts[0].start is None:
                    number = parts[0].file.get_tensor(parts[0].entry)
                    # Copied: what the file gives lies in the file.
                    value = int(number) if number.dtype == torch.int64 else number.to(piece.held.device, copy=True)
                    # Parameters of one flat partition have one such number together.
                    piece.states.setdefault(piece.held, {}).setdefault(key, value)
                else:
                    _fill(piece, key, name, parts)


@dataclass(frozen=True)
class _Part:
    file: Any
    entry: str
    start: int | None
    count: int


def _entries(files: Sequence[Any]) -> dict[str, dict[str, list[_Part]]]:
    """Name of a parameter -> key of a state -> its parts in order."""
    found: dict[str, dict[str, list[_Part]]] = {}
    for file in files:
        for entry in file.keys():  # noqa: SIM118 - no mapping
            key, _, rest = entry.partition("/")
            name, placed, start = rest.partition("@")
            part = _Part(file, entry, int(start) if placed else None, math.prod(file.get_slice(entry).get_shape()))
            found.setdefault(name, {}).setdefault(key, []).append(part)
    for states in found.values():
        for parts in states.values():
            parts.sort(key=lambda part: part.start or 0)
    return found


def _fill(piece: Piece, key: str, name: str, parts: Sequence[_Part]) -> None:
    end, total = 0, math.prod(piece.shape)
    for part in parts:
        end = end + part.count if part.start == end else -1
    if end != total:
        raise ValueError(f"the parts of {key} of {name} do not make up its {total} values")
    if key == MASTER:
        target = piece.held.detach()
    else:
        dtype = parts[0].file.get_slice(parts[0].entry)[:0].dtype
        state = piece.states.setdefault(piece.held, {})
        target = state.setdefault(key, torch.zeros_like(piece.held, dtype=dtype))
    for value, start, count in _overlaps(piece, parts):
        target.view(-1)[start : start + count].copy_(value)


def _overlaps(piece: Piece, parts: Sequence[_Part]) -> Iterator[tuple[Tensor, int, int]]:
    """What of `parts` lies in this process's piece: values, first place within `held`, and their number."""
    if piece.place is None:
        return
    inside, here, count = piece.place
    for part in parts:
        assert part.start is not None
        first, last = max(inside, part.start), min(inside + count, part.start + part.count)
        if first < last:
            values = part.file.get_slice(part.entry)[first - part.start : last - part.start]
            yield values, here + first - inside, last - first
