"""clamped_swiglu: gpt-oss's own formula, in either layout to the bit, with any alpha, limit and offset."""

from __future__ import annotations

import pytest
import torch
from reference import ClampedCall, every_dtype, leaf, randn, same_bits, ulp_error
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import gelu_ext

LAYOUTS = ["interleaved", "first"]
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
NUMBERS = [(1.702, 7.0, 1.0), (1.0, 10.0, 0.0), (0.01, 2.5, -0.5), (30.0, 1.0, 3.0), (1e-4, 100.0, 1.0)]
every_number = pytest.mark.parametrize("alpha, limit, offset", NUMBERS)


def parts(z: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    return (z[..., ::2], z[..., 1::2]) if layout == "interleaved" else z.chunk(2, -1)


def truth(x: Tensor, bias: Tensor | None, alpha: float, limit: float, offset: float, layout: str) -> Tensor:
    """In float64, as gpt-oss writes it; x + bias is a float32 unless it is a float64."""
    z = x if bias is None else x + bias
    gate, linear = parts(z.double(), layout)
    gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (linear + offset)


@every_layout
@every_number
def test_value_and_gradients_in_float64(alpha, limit, offset, layout, device):
    x, bias = leaf(limit * randn((5, 46), torch.float64, device)), leaf(randn((46,), torch.float64, device, seed=1))
    out = gelu_ext.clamped_swiglu(x, bias, alpha=alpha, limit=limit, offset=offset, layout=layout)
    expected = truth(x, bias, alpha, limit, offset, layout)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    grad_out = randn(out.shape, torch.float64, device, seed=2)
    for got, want in zip(*(torch.autograd.grad(y, (x, bias), grad_out) for y in (out, expected)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("alpha", [1.702, 1.0, 0.1, 7.3, 29.99])
def test_float32_is_as_exact_in_the_tail_for_any_alpha(alpha, device):
    """A product of alpha and the gate that is rounded would be 50 units in the last place off there."""
    gate = torch.linspace(-80 / alpha, 0, 20001, dtype=torch.float32)
    x = torch.stack((gate, torch.zeros_like(gate)), -1).to(device)
    out = gelu_ext.clamped_swiglu(x, alpha=alpha, offset=1.0)
    z = gate.double()
    assert ulp_error(out[:, 0], z * torch.sigmoid(alpha * z)).max() <= 4


@every_dtype
@pytest.mark.parametrize("bias", [False, True])
def test_the_layouts_have_the_same_bits(bias, dtype, device):
    """Forward and backward, also the sums for the bias."""
    for rows, cols in ((3, 1), (7, 33), (300, 264), (2, 4099)):
        x, b = randn((rows, 2 * cols), dtype, device), randn((2 * cols,), dtype, device, seed=1) if bias else None
        apart = [None if t is None else torch.cat(parts(t, "interleaved"), -1) for t in (x, b)]
        grad_out = randn((rows, cols), dtype, device, seed=2)
        results = []
        for tensors, layout in (((x, b), "interleaved"), (apart, "first")):
            tensors = [None if t is None else leaf(t) for t in tensors]
            out = gelu_ext.clamped_swiglu(*tensors, limit=3.0, layout=layout)
            grads = torch.autograd.grad(out, [t for t in tensors if t is not None], grad_out)
            results.append((out, *(torch.cat(parts(g, layout), -1) for g in grads)))
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@every_layout
@every_dtype
def test_beyond_a_limit_the_value_stays_and_the_gradient_is_zero(dtype, layout, device):
    """At the limit itself it is the gradient, as of torch.clamp."""
    limit = 7.0
    gate = torch.tensor([limit, 7.5, 1e4, torch.inf, 1.0, 1.0, 1.0, 1.0, 1.0, -torch.inf])
    linear = torch.tensor([1.0, 1.0, 1.0, 1.0, limit, -limit, 7.5, -7.5, torch.inf, -torch.inf])
    both = torch.stack((gate, linear), -1).flatten() if layout == "interleaved" else torch.cat((gate, linear))
    x = leaf(both[None].to(device, dtype))
    out = gelu_ext.clamped_swiglu(x, layout=layout)
    gates, linears = (gate.double().clamp(max=limit), linear.double().clamp(-limit, limit))
    expected = torch.nan_to_num(gates * torch.sigmoid(1.702 * gates), nan=-0.0) * (linears + 1)
    torch.testing.assert_close(out[0].double().cpu(), expected, rtol=4e-3 if dtype.itemsize == 2 else 1e-6, atol=0)
    grad_out = torch.rand_like(out) + 0.5
    (grad,) = torch.autograd.grad(out, x, grad_out)
    grad_gate, grad_linear = (part[0].cpu() for part in parts(grad, layout))
    assert (grad_gate == 0).tolist() == [False, True, True, True, False, False, False, False, False, True]
    assert (grad_linear == 0).tolist() == [False, False, False, False, False, False, True, True, True, True]


@every_layout
@every_number
def test_every_derivative(alpha, limit, offset, layout):
    def function(x: Tensor, bias: Tensor) -> Tensor:
        return gelu_ext.clamped_swiglu(x, bias, alpha=alpha, limit=limit, offset=offset, layout=layout)

    tensors = leaf(limit * randn((3, 8), torch.float64, seed=5)), leaf(randn((8,), torch.float64, seed=6))
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tensors)


@every_layout
def test_it_keeps_its_input_and_the_bias_alone(layout):
    x, bias = leaf(randn((64, 256), torch.bfloat16)), leaf(randn((256,), torch.bfloat16))
    kept = gelu_ext.memory.saved_bytes(lambda: gelu_ext.clamped_swiglu(x, bias, layout=layout))
    assert kept <= x.nbytes + bias.nbytes
    eager = gelu_ext.memory.saved_bytes(lambda: truth(x, bias, 1.702, 7.0, 1.0, layout))
    assert eager > 3 * kept


@every_layout
def test_the_numbers_are_part_of_a_compiled_graph(layout):
    x = leaf(randn((6, 20), torch.float32))
    compiled = torch.compile(
        lambda x, alpha: gelu_ext.clamped_swiglu(x, alpha=alpha, layout=layout), fullgraph=True, backend="aot_eager"
    )
    for alpha in (1.702, 1.0, 0.5):
        assert same_bits(compiled(x, alpha), gelu_ext.clamped_swiglu(x, alpha=alpha, layout=layout))


def test_defaults_are_those_of_gpt_oss():
    x = randn((4, 10), torch.float32)
    assert same_bits(gelu_ext.clamped_swiglu(x), ClampedCall("interleaved")(x))
