"""An optimizer's state in files: any cut of the parameters into pieces reads what any other cut wrote."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from train.optim_state import Piece, held_state, load_state, optimizer_file

SHAPES = {"weight": (5, 3), "bias": (7,)}
TOTAL = 22


def module(dtype=torch.float32):
    made = nn.Module()
    for name, shape in SHAPES.items():
        made.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))
    return made


def cut(made, borders, values=None):
    """The pieces of each rank where the flat parameters are cut at `borders`, with `values` as moments."""
    ranks = []
    for first, last in zip([0, *borders], [*borders, TOTAL], strict=True):
        held, pieces, offset = torch.zeros(last - first + 2), [], 0  # 2 of padding
        states: dict[torch.Tensor, dict[str, Any]] = {}
        for parameter in made.parameters():
            begin, end = max(first, offset), min(last, offset + parameter.numel())
            place = (begin - offset, begin - first, end - begin) if begin < end else None
            pieces.append(Piece(parameter, parameter.shape, held, states, place))
            offset += parameter.numel()
        if values is not None:
            moments = torch.cat([values[first:last], torch.zeros(2)])
            states[held] = {"exp_avg": moments, "step": torch.tensor(3.0), "count": 4, "unused": None}
            held[: last - first] = values[first:last] + 0.25
        ranks.append(pieces)
    return ranks


def write(folder, made, ranks):
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for index, pieces in enumerate(ranks):
        save_file(held_state(made, pieces), folder / optimizer_file(index, len(ranks)))


BORDERS = st.lists(st.integers(0, TOTAL), max_size=4).map(sorted)


@settings(deadline=None, max_examples=40)
@given(BORDERS, BORDERS)
def test_any_cut_reads_what_any_other_wrote(tmp_path_factory, before, after):
    folder, values = tmp_path_factory.getbasetemp() / "cut", torch.randn(TOTAL)
    made = module(torch.bfloat16)  # whose fp32 weights are the optimizer's
    write(folder, made, cut(made, before, values))
    ranks = cut(made, after)
    for pieces in ranks:
        load_state(made, pieces, folder)
    flats = [pieces[0].held for pieces in ranks]
    states = [pieces[0].states[pieces[0].held] for pieces in ranks]
    assert torch.equal(torch.cat([state["exp_avg"][:-2] for state in states]), values)
    assert torch.equal(torch.cat([flat[:-2] for flat in flats]), values + 0.25)
    assert all(not state["exp_avg"][-2:].any() for state in states), "padding"
    assert all(state["step"] == 3.0 and state["count"] == 4 and "unused" not in state for state in states)


def test_a_missing_part_is_told(tmp_path):
    made = module()
    write(tmp_path / "cut", made, cut(made, [10], torch.randn(TOTAL)))
    (tmp_path / "cut" / optimizer_file(0, 2)).unlink()
    with pytest.raises(ValueError, match="the parts of exp_avg of weight do not make up its 15 values"):
        load_state(made, cut(made, [])[0], tmp_path / "cut")
