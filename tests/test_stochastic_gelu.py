"""stochastic_gelu: its mean over draws is GELU, its gradient the mask's, its draws the generator's."""

from __future__ import annotations

import math

import pytest
import torch
from reference import DTYPES, every_dtype, leaf, randn, same_bits, value

import gelu_ext


def draws_of(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_mean_over_many_draws_is_gelu():
    """Within five deviations of the mean at each of 100 points."""
    z, count = torch.linspace(-4, 4, 100, dtype=torch.float64), 100_000
    out = gelu_ext.stochastic_gelu(z.expand(count, 100), generator=draws_of(0))
    assert ((out == 0) | (out == z)).all()
    p = 0.5 * torch.erfc(-z * math.sqrt(0.5))
    deviation = z.abs() * (p * (1 - p) / count).sqrt()
    assert ((out.mean(0) - value("gelu", z)).abs() <= 5 * deviation + 1e-12).all()


@every_dtype
def test_an_element_is_kept_or_zero_and_so_is_its_gradient(dtype):
    x, bias = leaf(randn((40, 33), dtype)), leaf(randn((33,), dtype, seed=1))
    out = gelu_ext.stochastic_gelu(x, bias, generator=draws_of(1))
    z = gelu_ext.bias_act(x, bias, activation="identity").detach()
    kept = out.detach() != 0
    assert same_bits(out[kept], z[kept]) and 0.2 < kept.double().mean() < 0.8
    grad_out = randn(out.shape, dtype, seed=2)
    grad_x, grad_bias = torch.autograd.grad(out, (x, bias), grad_out)
    assert same_bits(grad_x, torch.where(kept, grad_out, 0.0))
    expected = (grad_out.double() * kept).sum(0)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(grad_bias.double(), expected, rtol=eps, atol=1e-5 if dtype != torch.float64 else 1e-13)


@every_dtype
def test_evaluation_is_gelu_to_the_bit(dtype):
    x, bias = randn((7, 9), dtype), randn((9,), dtype, seed=1)
    assert same_bits(gelu_ext.stochastic_gelu(x, bias, training=False), gelu_ext.bias_gelu(x, bias))


def test_the_draws_are_the_generators():
    x = randn((64, 64), torch.float32)
    first = gelu_ext.stochastic_gelu(x, generator=draws_of(3))
    assert same_bits(first, gelu_ext.stochastic_gelu(x, generator=draws_of(3)))
    assert not torch.equal(first, gelu_ext.stochastic_gelu(x, generator=draws_of(4)))
    torch.manual_seed(5)
    a = gelu_ext.stochastic_gelu(x)
    with torch.random.fork_rng(devices=[]):
        gelu_ext.stochastic_gelu(x)
    b = gelu_ext.stochastic_gelu(x)
    torch.manual_seed(5)
    assert same_bits(a, gelu_ext.stochastic_gelu(x)) and same_bits(b, gelu_ext.stochastic_gelu(x))
    x = leaf(x)
    torch.manual_seed(6)
    (plain,) = torch.autograd.grad(gelu_ext.stochastic_gelu(x).sum(), x)
    torch.manual_seed(6)
    again = torch.utils.checkpoint.checkpoint(gelu_ext.stochastic_gelu, x, use_reentrant=False)
    assert same_bits(torch.autograd.grad(again.sum(), x)[0], plain)


def test_infinities_and_nan():
    for dtype in DTYPES:
        x = torch.tensor([math.inf, -math.inf, math.nan, 0.0, 60.0, -60.0], dtype=dtype)
        out = gelu_ext.stochastic_gelu(x)
        assert out[0] == math.inf and out[1] == 0 and out[2].isnan() and out[3:].tolist() == [0, 60, 0]


def test_bad_input_is_refused_in_a_sentence():
    x = randn((3, 4), torch.float32)
    for error, words, arguments, options in (
        (TypeError, "x to be a Tensor, got list", ([1.0],), {}),
        (ValueError, "bias of shape [4], got [3]", (x, torch.zeros(3)), {}),
        (ValueError, "bias of shape [4], got [3]", (x, torch.zeros(3)), {"training": False}),
        (TypeError, "training to be a bool, got 1", (x,), {"training": 1}),
        (TypeError, "generator to be a torch.Generator, got int", (x,), {"generator": 3}),
        (RuntimeError, "generator on device meta, got cpu", (x.to("meta"),), {"generator": draws_of(0)}),
    ):
        with pytest.raises(error) as caught:
            gelu_ext.stochastic_gelu(*arguments, **options)
        assert str(caught.value) == f"stochastic_gelu: expected {words}"
