"""All attention backends against the formula, forward and backward."""

import pytest
import torch

from models.attention import ATTENTION_BACKENDS, Attention, eager_attention

TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}


def run(backend, dtype, tokens, head_dim):
    generator = torch.Generator().manual_seed(tokens)
    shape = (2, tokens, 3, 2, head_dim)  # query, key and value as one projection lays them out
    packed = torch.randn(shape, dtype=dtype, generator=generator).requires_grad_()
    out = backend(*packed.unbind(dim=2))
    weights = torch.randn(out.shape, dtype=dtype, generator=generator)
    (gradient,) = torch.autograd.grad((out * weights).sum(), packed)
    return out, gradient


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 80])
@pytest.mark.parametrize("tokens", [1, 17, 65])
@pytest.mark.parametrize("name", sorted(ATTENTION_BACKENDS))
def test_backends_agree_with_the_reference(name, tokens, head_dim, dtype):
    expected = run(eager_attention, dtype, tokens, head_dim)
    for got, want in zip(run(ATTENTION_BACKENDS[name], dtype, tokens, head_dim), expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_reference_is_the_formula():
    query, key, value = torch.randn(3, 1, 5, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = eager_attention(query, key, value)
    for i in range(5):
        scores = torch.stack([query[0, i, 0] @ key[0, j, 0] / 2 for j in range(5)])  # sqrt(4) = 2
        weights = scores.exp() / scores.exp().sum()
        torch.testing.assert_close(out[0, i, 0], sum(weights[j] * value[0, j, 0] for j in range(5)))


def test_unknown_backend_names_the_nearest():
    with pytest.raises(ValueError, match=r"'eger'.*nearest valid one is 'eager'"):
        Attention(16, 2, backend="eger")
