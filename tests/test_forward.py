"""The forward of every operation, form and dtype is right for every shape, layout, alignment and kind of bias."""

from __future__ import annotations

import math

import pytest
import torch
from reference import (
    FORMS,
    LAYOUTS,
    TELLING_CALLS,
    TRUTHS,
    Call,
    at_offset,
    check_forward,
    every_activation,
    every_dtype,
    every_exact_call,
    every_form,
    every_half,
    in_buffer,
    randn,
    same_bits,
    slope,
    telling_calls,
    value,
)
from torch import Tensor

import gelu_ext
from gelu_ext import _native

SHAPES = [(0,), (1,), (7,), (0, 8), (4, 0), (2, 0, 8), (1, 1), (5, 16), (3, 17), (2, 3, 31), (2, 1, 3, 33)]
SHAPES += [(2, 1, 3, 2, 15), (1, 513), (511, 1), (64, 64)]
WIDTHS = [1, 2, 3, 5, 7, 12, 17, 24, 46, 1234, 1710, 2112, 3072, 3420, 3421, 4096]


@pytest.mark.parametrize("activation", _native.activations())
def test_every_activation_has_a_row_and_a_truth(activation):
    assert activation in gelu_ext.activations(), f"{activation!r} has no row in gelu_ext/_activations.py"
    assert activation in TRUTHS, f"{activation!r} has no truth: add its line to TRUTHS in tests/reference.py"


def test_no_row_and_no_truth_is_left_over():
    """In the order of csrc/activations.h."""
    assert list(gelu_ext.activations()) == list(TRUTHS) == _native.activations()


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@telling_calls
def test_shapes(call, shape, dtype, device):
    x = randn((*shape[:-1], call.width(shape[-1])), dtype, device)
    for bias in call.biases(dtype):
        assert check_forward(call, x, call.other(x, bias)).shape == shape


@every_dtype
@pytest.mark.parametrize("call", [call for call in TELLING_CALLS if call.width(1) == 1], ids=str)
def test_a_scalar(call, dtype, device):
    x = randn((), dtype, device)
    assert check_forward(call, x, call.other(x, None)).shape == ()


@every_dtype
@pytest.mark.parametrize("width", WIDTHS)
@telling_calls
def test_widths(call, width, dtype, device):
    x = randn((3, call.width(width)), dtype, device)
    check_forward(call, x, call.other(x, call.biases(dtype)[-1]))


@every_dtype
@pytest.mark.parametrize("width", [46336, 65537])
@every_exact_call
def test_widest(call, width, dtype, device):
    x = randn((2, call.width(width)), dtype, device)
    check_forward(call, x, call.other(x, call.biases(dtype)[-1]))


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@telling_calls
def test_layouts(call, layout, dtype, device):
    x = LAYOUTS[layout](randn((2, 3, 5, 26), dtype, device))
    for bias in call.biases(dtype):
        other = call.other(x, bias)
        out = check_forward(call, x, other)
        assert same_bits(out, call(x.contiguous(), other)), "the layout decides the result"


@every_dtype
@pytest.mark.parametrize("offset", range(8))
@telling_calls
def test_storage_offsets(call, offset, dtype, device):
    x = randn((3, 74), dtype, device)
    for bias in call.biases(dtype):
        other = call.other(x, bias)
        expected = call(x, other)
        out = check_forward(call, at_offset(x, offset), None if other is None else at_offset(other, 7 - offset))
        assert same_bits(out, expected)


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@every_form
def test_two_tensors_of_different_layouts(form, layout, dtype, device):
    call = Call("gelu_mul", form)
    x, linear = randn((2, 3, 5, 13), dtype, device), randn((2, 3, 5, 13), dtype, device, seed=1)
    assert same_bits(check_forward(call, x, LAYOUTS[layout](linear)), call(x, LAYOUTS[layout](linear).contiguous()))
    check_forward(call, LAYOUTS["every_second_row"](x), LAYOUTS[layout](linear))


@pytest.mark.parametrize("shared", [0, 13, 6])
def test_two_tensors_may_be_views_of_one(shared, device):
    both = randn((4, 26), torch.float32, device)
    check_forward(Call("gelu_mul", "none"), both[:, :13], both[:, shared : shared + 13])


BIASES = {
    "every_second": lambda b: in_buffer(b, 0, 0, step=2),
    "slice_of_a_wider": lambda b: in_buffer(b, 3, 2),
    "expanded": lambda b: b[:1].expand(b.shape),
    "column_of_a_matrix": lambda b: torch.stack([b, b * math.nan], 1)[:, 0],
}


@every_dtype
@pytest.mark.parametrize("layout", BIASES)
@pytest.mark.parametrize("call", [call for call in TELLING_CALLS if call.has_bias], ids=str)
def test_layouts_of_the_bias(call, layout, dtype, device):
    x = randn((5, 38), dtype, device)
    for kind in call.biases(dtype)[1:]:
        bias = BIASES[layout](call.other(x, kind))
        assert same_bits(check_forward(call, x, bias), call(x, bias.contiguous()))


@every_dtype
@every_form
def test_packed_and_two_tensor_geglu_agree_to_the_bit(form, dtype, device):
    x = randn((3, 5, 62), dtype, device)
    a, b = x.chunk(2, -1)
    second = gelu_ext.geglu(x, approximate=form)
    assert same_bits(second, gelu_ext.gelu_mul(b, a, approximate=form))
    assert same_bits(second, gelu_ext.geglu(x, approximate=form, activated="second"))
    first = gelu_ext.geglu(x, approximate=form, activated="first")
    assert same_bits(first, gelu_ext.gelu_mul(a, b, approximate=form))
    assert not torch.equal(first, second), "the halves are not symmetric"


@every_dtype
@pytest.mark.parametrize("activated", ["first", "second"])
@every_form
def test_packed_bias_covers_both_halves(form, activated, dtype, device):
    x, bias = randn((4, 10), torch.float32, device), randn((10,), torch.float32, device, seed=1)
    x, bias = (x * 8).round().to(dtype) / 8, (bias * 8).round().to(dtype) / 8  # x + bias is exact in every dtype
    expected = gelu_ext.geglu(x + bias, approximate=form, activated=activated)
    assert same_bits(gelu_ext.geglu(x, bias, approximate=form, activated=activated), expected)


def test_exact_is_the_default_and_second_is_the_default():
    x, bias = randn((3, 8), torch.float32), randn((8,), torch.float32, seed=1)
    assert same_bits(gelu_ext.bias_gelu(x, bias), gelu_ext.bias_gelu(x, bias, approximate="none"))
    assert same_bits(gelu_ext.geglu(x, bias), gelu_ext.geglu(x, bias, approximate="none", activated="second"))
    assert same_bits(gelu_ext.gelu_mul(x, x), gelu_ext.gelu_mul(x, x, approximate="none"))
    outs = [gelu_ext.bias_gelu(x, bias, approximate=form) for form in FORMS]
    assert len({tuple(out.flatten().tolist()) for out in outs}) == len(FORMS), "two forms are one"


@every_half
def test_the_sum_with_the_bias_is_not_rounded_on_the_way(dtype, device):
    # 1024 + b is a float16 or bfloat16 only for some b: with the rest lost, gelu(x + b) would be 1024 or 1040.
    x, bias = torch.full((2, 4), -1024.0, dtype=dtype, device=device), torch.tensor([1024.3, 1024.2, 1025.1, 1026.7])
    out = gelu_ext.bias_gelu(x, bias.to(device)).cpu()
    assert same_bits(out, value("gelu", bias - 1024.0).to(dtype).expand(2, 4))
    small = torch.full((1, 2), 1.0, dtype=dtype, device=device)
    third_of_ulp = torch.full((2,), torch.finfo(dtype).eps / 3, dtype=dtype, device=device)
    rounded_early = value("gelu", (small + third_of_ulp).float())
    truth = value("gelu", small.float() + third_of_ulp.float())
    out = gelu_ext.bias_gelu(small, third_of_ulp).cpu()
    assert same_bits(out, truth.to(dtype)) and not torch.equal(truth, rounded_early)


@telling_calls
def test_every_path_to_the_forward_gives_the_same_bits(call, device):
    x = randn((3, 4, 30), torch.bfloat16, device)
    other = call.other(x, torch.float32 if call.has_bias else torch.bfloat16)
    with torch.no_grad():
        expected = call(x, other)
    with torch.inference_mode():
        assert same_bits(call(x, other), expected)
    for x_needs, other_needs in ((True, False), (False, True), (True, True)):
        out = call(x.clone().requires_grad_(x_needs), other.clone().requires_grad_(other_needs))
        assert out.requires_grad and same_bits(out, expected)


def _logspace(low: float, high: float, n: int) -> Tensor:
    return torch.logspace(math.log10(low), math.log10(high), n, dtype=torch.float64)


def _float64_sample() -> Tensor:
    tail = -torch.linspace(0.01, 37.0, 700, dtype=torch.float64)
    bulk = torch.linspace(-8.0, 8.0, 601, dtype=torch.float64)
    special = torch.tensor([19.8, 21.657723, -13.24, -5.5, -0.7517915246935645, -0.75, 2.7, -2.7], dtype=torch.float64)
    return torch.cat([tail, bulk, _logspace(1e-300, 1e300, 61), -_logspace(1e-300, 1e-3, 61), special])


def _mpmath_truth(activation: str, x: Tensor) -> list[tuple]:
    """[(value, slope)] in 40 digits."""
    mp = pytest.importorskip("mpmath").mp.clone()
    mp.dps = 40
    exact = TRUTHS[activation].exact
    return [exact(mp, mp.mpf(z)) for z in x.tolist()]


@every_activation
def test_float64_is_as_exact_as_float64_allows(activation, device):
    """Relative errors: 1e-14 (1e-12 in the far tail, and what the rounding of a subnormal factor costs there), of the
    slope 1e-13 (1e-15 absolute near its root)."""
    x = _float64_sample().to(device).requires_grad_()
    out = gelu_ext.bias_act(x, activation=activation)
    grad_out = torch.where(torch.arange(x.numel(), device=device) % 3 == 0, -0.5, 2.0).double()
    (grad_x,) = torch.autograd.grad(out, x, grad_out)
    slopes = (grad_x / grad_out).tolist()  # exact: powers of two
    for z, v, s, (true_value, true_slope) in zip(
        x.tolist(), out.tolist(), slopes, _mpmath_truth(activation, x), strict=True
    ):
        bar = 1e-14 if z > -4 else 1e-12
        if true_value > torch.finfo(torch.float64).max:  # a square
            assert v == math.inf
            continue
        assert abs(v - true_value) <= bar * abs(true_value) + max(abs(z), 1) * 5e-324, (
            f"value at {z}: {v}, expected {true_value}"
        )
        slope_bar = 1e-13 * abs(true_slope) if abs(true_slope) > 0.05 else 1e-15
        assert abs(s - true_slope) <= slope_bar, f"slope at {z}: {s}, expected {true_slope}"


@every_activation
def test_the_truth_itself_is_true(activation):
    """The float64 truth of reference.py agrees with 40 digits, far closer than any bar asks for."""
    x = _float64_sample()
    values, slopes = value(activation, x).tolist(), slope(activation, x).tolist()
    for z, v, s, (true_value, true_slope) in zip(x.tolist(), values, slopes, _mpmath_truth(activation, x), strict=True):
        if true_value > torch.finfo(torch.float64).max:
            assert v == math.inf
            continue
        assert abs(v - true_value) <= 4e-13 * abs(true_value) + 1e-300, f"value at {z}"
        assert abs(s - true_slope) <= 4e-13 * abs(true_slope) + 1e-16, f"slope at {z}"
