"""Every input of the 16-bit types, and a dense sample of float32, lies within the bars on every instruction set.

Slopes are seen through the backward: gradients are random powers of two, so that the product with the slope is exact.
"""

from __future__ import annotations

import functools

import pytest
import torch
from conftest import INSTRUCTION_SETS
from reference import (
    HALVES,
    SLOPE_BAR,
    SLOPE_NEAR_ROOT,
    VALUE_BAR,
    error,
    every_activation,
    every_half,
    slope,
    ulp,
    ulp_error,
    value,
)
from torch import Tensor

import gelu_ext
from gelu_ext import _native

# A goal for the float32 value beyond its bar, in ulp, and which miss it by up to 1.
VALUE_GOAL = 2.0
MISS_THE_GOAL = {"gelu", "tanh", "mish", "elu"}


@functools.cache
def all_inputs(dtype: torch.dtype) -> Tensor:
    return torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)


@functools.cache
def float32_sample() -> Tensor:
    """A float32 in 4093 of all, and closer together where GELU is neither 0 nor x."""
    everywhere = torch.arange(-(2**31), 2**31, 4093)
    low, high = (torch.tensor(x).view(torch.int32).item() for x in (2.0**-6, 16.0))
    positive = torch.arange(low, high, 211)
    negative = torch.arange(low + 101, high, 211) - 2**31
    return torch.cat([everywhere, positive, negative]).to(torch.int32).view(torch.float32)


def powers_of_two(like: Tensor) -> Tensor:
    """Random signs, 2^0 to 2^-3: not above 1, or what a float32 subnormal has lost would be magnified."""
    generator = torch.Generator().manual_seed(0)
    exponent = torch.randint(-3, 1, like.shape, generator=generator)
    sign = 1 - 2 * torch.randint(0, 2, like.shape, generator=generator)
    return (sign * 2.0**exponent).to(like)


@functools.cache
def truth(activation: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = float32_sample() if dtype is torch.float32 else all_inputs(dtype)
    return value(activation, x), slope(activation, x)


def assert_within_bars(got: Tensor, expected: Tensor, x: Tensor, bar: float, near_root: float = 0.0) -> None:
    """`near_root`: the absolute bar of a slope there, beyond the rounding to 16 bits."""
    units = ulp_error(got, expected)
    if near_root:
        if got.dtype is torch.float32:
            small, rounding = expected.abs() <= 0.05, 0.0
        else:
            small, rounding = (expected.abs() <= 2.0**-10) & (x.detach().cpu() > -4), 0.5 * ulp(expected, got.dtype)
        units[small] = ((error(got, expected) - rounding).clamp(min=0.0) * (bar / near_root))[small]
    worst = int(units.argmax())
    assert units[worst] <= bar, (
        f"{units[worst]:.4f} ulp (bar {bar}) at x = {x.flatten()[worst].item()!r}, {(units > bar).sum()} are over it: "
        f"got {got.flatten()[worst].item()!r}, expected {expected.flatten()[worst].item()!r}"
    )


def check_values_and_slopes(activation: str, x: Tensor, expected_value: Tensor, expected_slope: Tensor) -> None:
    """By way of bias_act, and by way of the gated operations, which compute value and slope together."""
    value_bar, slope_bar = VALUE_BAR[x.dtype], SLOPE_BAR[x.dtype]
    near_root = 0.0 if x.dtype is torch.bfloat16 else SLOPE_NEAR_ROOT
    g, linear = powers_of_two(x), powers_of_two(x.flip(0))
    overflown = expected_value.to(x.device).abs() >= 2.0**120  # a square, before it is multiplied by less than 1
    g, linear = (torch.where(overflown, torch.ones_like(t), t) for t in (g, linear))
    exact_g, exact_linear = g.cpu().double(), linear.cpu().double()
    x = x.detach().requires_grad_()

    out = gelu_ext.bias_act(x, activation=activation)
    assert_within_bars(out, expected_value, x, value_bar)
    (grad_x,) = torch.autograd.grad(out, x, g)
    assert_within_bars(grad_x, exact_g * expected_slope, x, slope_bar, near_root)

    linear.requires_grad_()
    out = gelu_ext.act_mul(x, linear, activation=activation)
    assert_within_bars(out, exact_linear * expected_value, x, value_bar)
    grad_x, grad_linear = torch.autograd.grad(out, (x, linear), g)
    assert_within_bars(grad_x, exact_g * exact_linear * expected_slope, x, slope_bar, near_root)
    assert_within_bars(grad_linear, exact_g * expected_value, x, value_bar)

    packed = torch.stack([linear.detach(), x.detach()], -1).flatten()  # the halves of rows of two
    rows = packed.view(-1, 2).requires_grad_()
    out = gelu_ext.glu(rows, activation=activation)
    assert_within_bars(out.flatten(), exact_linear * expected_value, x, value_bar)


@every_half
@every_activation
def test_every_16_bit_input(activation, dtype, instruction_set):
    check_values_and_slopes(activation, all_inputs(dtype), *truth(activation, dtype))


@every_half
@every_activation
def test_every_16_bit_input_on_the_gpu(activation, dtype, cuda):
    check_values_and_slopes(activation, all_inputs(dtype).to(cuda), *truth(activation, dtype))


@every_activation
def test_dense_float32_sample(activation, instruction_set):
    check_values_and_slopes(activation, float32_sample(), *truth(activation, torch.float32))


@every_activation
def test_dense_float32_sample_on_the_gpu(activation, cuda):
    check_values_and_slopes(activation, float32_sample().to(cuda), *truth(activation, torch.float32))


@every_activation
def test_goal_of_the_float32_value(activation, instruction_set, request):
    if activation in MISS_THE_GOAL or instruction_set == "baseline":  # which has no fused multiply-add
        request.applymarker(pytest.mark.xfail(reason="a goal, missed by up to 1 ulp", strict=False))
    x = float32_sample()
    assert_within_bars(gelu_ext.bias_act(x, activation=activation), truth(activation, torch.float32)[0], x, VALUE_GOAL)


@every_half
@every_activation
def test_a_16_bit_result_is_nearly_always_the_nearest(activation, dtype, instruction_set):
    """Four in a thousand may be the other neighbour, where the truth lies in the middle: most are x/2 of a tiny x."""
    x = all_inputs(dtype)
    x = x[x.isfinite()]
    nearest = value(activation, x).float().to(dtype)
    differ = (gelu_ext.bias_act(x, activation=activation) != nearest).double().mean()
    assert differ <= 4e-3, f"{differ:.2%} are not the nearest"


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@every_activation
def test_no_finite_input_gives_nan(activation, dtype, instruction_set):
    x = float32_sample() if dtype is torch.float32 else all_inputs(dtype)
    x = x[x.isfinite()]
    a, linear = x.clone().requires_grad_(), torch.full_like(x, -0.75).requires_grad_()
    outs = [gelu_ext.bias_act(a, activation=activation), gelu_ext.act_mul(a, linear, activation=activation)]
    grads = [
        grad for out in outs for grad in torch.autograd.grad(out, (a, linear), powers_of_two(x), allow_unused=True)
    ]
    fits = value(activation, x).abs() <= torch.finfo(x.dtype).max  # all but squares do
    for t in (*outs, *grads):
        assert t is None or (t[fits].isfinite().all() and not t.isnan().any())


def test_the_instruction_sets_are_tested():
    assert _native.instruction_sets().split(",") == INSTRUCTION_SETS and INSTRUCTION_SETS[-1] == "baseline"


@pytest.mark.sweep
@every_activation
def test_every_float32_from_a_64th_to_16(activation, instruction_set):
    """Both signs, a few million at a time."""
    low, high = (torch.tensor(x).view(torch.int32).item() for x in (2.0**-6, 16.0))
    for begin in range(low, high, 2**22):
        bits = torch.arange(begin, min(begin + 2**22, high), dtype=torch.int64)
        x = torch.cat([bits, bits - 2**31]).to(torch.int32).view(torch.float32)
        check_values_and_slopes(activation, x, value(activation, x), slope(activation, x))
