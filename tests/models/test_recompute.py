"""What is computed anew in the backward pass: the same bits, and less memory."""

import copy
import shutil

import pytest
import torch
from torch import nn

from models import compilation
from models.recompute import CHECKPOINTING, recomputed
from tests.models.test_vit import small
from tests.models.toy import randomise


def gradients(backbone, autocast=False):
    clips = torch.randn(2, 3, 4, 16, 24, generator=torch.Generator().manual_seed(2), dtype=torch.float32)
    backbone.zero_grad()
    torch.manual_seed(1)  # of stochastic depth
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        tokens = backbone(clips.to(next(backbone.parameters()).dtype))
    tokens.square().sum().backward()
    return tokens.detach(), torch.rand(1), *(param.grad for param in backbone.parameters())


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "autocast"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("options", [{}, {"init_values": 0.5, "act_layer": "gelu_tanh"}], ids=["plain", "layer scale"])
def test_checkpointing_changes_no_bit_of_result_gradient_or_random_state(attention, options, autocast, monkeypatch):
    backbone = small(attention=attention, drop_path_rate=0.5, depth=4, **options)
    randomise(backbone)
    results = {}
    for backbone.grad_checkpointing in CHECKPOINTING:
        results[backbone.grad_checkpointing] = gradients(backbone, autocast)
    # And one that keeps everything.
    monkeypatch.setattr("models.vit.recomputed", keeping)
    backbone.grad_checkpointing = "none"
    expected = gradients(backbone, autocast)
    for result in results.values():
        assert len(result) == len(expected)
        for got, want in zip(result, expected, strict=True):
            assert torch.equal(got, want)


def keeping(function, x, enabled=True):
    return recomputed(function, x, enabled=False)


def kept_numbers(backbone):
    """How many numbers the backbone keeps for the backward pass, parameters left out; each storage once."""
    owned = {param.untyped_storage().data_ptr() for param in backbone.parameters()}
    kept = {}

    def note(packed):
        if isinstance(packed, torch.Tensor) and packed.untyped_storage().data_ptr() not in owned:
            kept[packed.untyped_storage().data_ptr()] = packed  # held, so that no other takes its address
        return packed

    hooks = torch.autograd.graph.saved_tensors_hooks
    with pytest.MonkeyPatch.context() as patch, hooks(note, lambda packed: packed):
        # Hooks inside of the outer ones hide from them what they keep.
        inner = lambda pack, unpack: hooks(lambda tensor: note(pack(tensor)), unpack)  # noqa: E731
        patch.setattr(torch.autograd.graph, "saved_tensors_hooks", inner)
        backbone(torch.randn(1, 3, 4, 16, 24))
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())


def kept_per_block(**options):
    """What one more block keeps, in units of its input."""
    few, many = (kept_numbers(small(depth=depth, embed_dim=64, **options)) for depth in (2, 6))
    return (many - few) / 4 / (12 * 64)


def test_what_each_kind_of_checkpointing_keeps(monkeypatch):
    """A few numbers per token (means, deviations, log-sum-exp) come on top."""
    # Input 1, queries keys and values 3, attention 1, its projection and residual 1, hidden layer 4.
    assert kept_per_block() == pytest.approx(10, abs=0.2)
    assert kept_per_block(grad_checkpointing="selective") == pytest.approx(6, abs=0.2)
    assert kept_per_block(grad_checkpointing="full") < 1.2
    monkeypatch.setattr("models.vit.recomputed", keeping)
    assert kept_per_block() == pytest.approx(16, abs=0.2)  # both norms' outputs 2, and the activation's 4


def test_recomputed_replaces_its_output_and_keeps_what_else_there_is():
    x, norm, layer = torch.randn(3, 5, requires_grad=True), nn.LayerNorm(5), nn.Linear(5, 2)
    calls: list[int] = []

    def counted(value):
        calls.append(len(calls))
        return norm(value)

    with recomputed(counted, x) as normed:
        out = layer(normed).exp()  # exp keeps its own result
    assert calls == [0]
    out.sum().backward()
    assert calls == [0, 1]
    got = [x.grad, norm.weight.grad, layer.weight.grad]
    x2, norm2, layer2 = x.detach().clone().requires_grad_(), copy.deepcopy(norm), copy.deepcopy(layer)
    for module in (norm2, layer2):
        module.zero_grad()
    layer2(norm2(x2)).exp().sum().backward()
    for one, other in zip(got, [x2.grad, norm2.weight.grad, layer2.weight.grad], strict=True):
        assert torch.equal(one, other)


def test_nothing_is_computed_twice_without_gradients():
    calls: list[torch.Tensor] = []

    def counted(x):
        calls.append(x)
        return x.exp()

    with torch.no_grad(), recomputed(counted, torch.randn(3)) as y:
        assert y.shape == (3,) and len(calls) == 1


def test_second_derivatives_pass_through():
    x, layer = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), nn.Linear(4, 4).double()

    def function(x):
        with recomputed(nn.functional.gelu, x) as active:
            return layer(active)

    assert torch.autograd.gradgradcheck(function, x)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_blocks_agree_with_those_that_are_not():
    plain = small(depth=1, class_token=True)
    randomise(plain)
    compiled = small(depth=1, class_token=True, compile=True, grad_checkpointing="selective")
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    for got, want in zip(gradients(compiled), gradients(plain), strict=True):
        torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


def test_all_blocks_run_compiled_whatever_their_stochastic_depth():
    """One graph for all: of several that differ in a number torch.compile makes eight, and runs others as they are."""
    torch.compiler.reset()  # graphs of other tests count too
    backbone, ran = small(depth=12, drop_path_rate=0.3, grad_checkpointing="selective"), []

    def backend(graph, inputs):
        def counted(*args):
            ran.append(graph)
            return graph(*args)

        return counted

    for block in backbone.blocks:
        block.compile(backend=backend)
    graphs = set()
    for batch in (3, 2, 1, 4, 3):  # of tasks with other micro-batches, and a last one of an evaluation
        for training in (True, False):
            ran.clear()
            with torch.set_grad_enabled(training):
                tokens = backbone.train(training)(torch.randn(batch, 3, 4, 16, 24))
            if training:
                tokens.sum().backward()
            assert len(ran) == 12, "a block is one graph, or runs as it is"
            graphs |= set(map(id, ran))
    assert len(graphs) <= 8


def test_what_compilation_lacks_is_told_when_the_model_is_built(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler, and there is no g\+\+: .*or switch compile off"):
        small(compile=True)
    monkeypatch.undo()
    monkeypatch.setattr(compilation.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(compilation.shutil, "which", lambda name: name)
    with pytest.raises(ValueError, match=r"has no Python\.h"):
        small(compile=True)
