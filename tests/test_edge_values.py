"""Values of x that have broken comparable projects, each with the place where that is on record; the special values.

They stand in every layout and at every place of a vector. All 16-bit numbers, contiguous, are in test_exhaustive.py.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from reference import (
    FORMS,
    TELLING_CALLS,
    Bound,
    Call,
    assert_within,
    at_offset,
    check,
    check_with_every_bias,
    every_activation,
    every_call,
    every_dtype,
    every_form,
    in_buffer,
    leaf,
    randn,
    same_bits,
    slope,
    slope_error,
    telling_calls,
    ulp,
    value,
)
from torch import Tensor

import gelu_ext
from gelu_ext._activations import GELUS


def _everywhere(numbers: list[float], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """The same numbers at every place of a vector, in a remainder, and in several layouts, as 2-D tensors."""
    x = torch.tensor(numbers, dtype=torch.float64).to(dtype).to(device)
    repeated = x.repeat(67).view(67, -1)
    return {
        "alone": x.view(1, -1),
        "contiguous": repeated,
        "transposed": repeated.t().contiguous().t(),
        "every_second_column": in_buffer(repeated, 0, 0, step=2),
        "split": in_buffer(repeated, 3, 2),
        "odd_offset": at_offset(repeated, 1),
    }


def _check_values(form: str, numbers: list[float], dtype: torch.dtype, device: str) -> None:
    """Values and slopes of the form at these numbers, alike wherever they stand, through bias_gelu and gelu_mul."""
    call, gated = Call("bias_gelu", form), Call("gelu_mul", form)
    found = {}
    for layout, x in _everywhere(numbers, dtype, device).items():
        halves = torch.where(torch.arange(x.shape[1], device=device) % 2 == 0, 0.5, -0.25).to(dtype).expand(x.shape)
        out, grad_x, _ = check(call, x, None, halves)
        gated_out, gated_x, gated_linear = check(gated, x, halves, halves.flip(0))
        found[layout] = [t[0] for t in (out, grad_x, gated_out, gated_x, gated_linear)]
        for t in (out, grad_x, gated_out, gated_x, gated_linear):
            assert same_bits(t, t[:1].expand(t.shape)), f"{layout}: a row differs from the first"
        for name, a, b in zip(
            ("value", "slope", "product", "grad_x", "grad_linear"), found[layout], found["alone"], strict=True
        ):
            assert same_bits(a, b), f"{name} depends on the layout ({layout})"


def _fits(numbers: list[float], dtype: torch.dtype) -> list[float]:
    return [x for x in numbers if abs(x) <= torch.finfo(dtype).max]


NUMBERS = {
    "huge": [2e19, -2e19, 3e38, -3e38, 1e10, -1e10, 6e4, -6e4],
    "from_10_to_16": [sign * (10.5 + i / 4) for sign in (1, -1) for i in range(21)],  # pytorch #186278
    "gates": [11.0, 15.0, 40.0],  # llm-scaler PR #484
    "near_minus_13": [-13.24, -13.0, -13.5, -14.0],  # executorch #22323
    "near_20": [19.8, 21.657723, -19.8, -21.657723],  # AiDotNet PR #594
    "of_a_gradient": [200.0, 256.0, -200.0, -256.0],  # fairseq #2235
    "the_negative_tail": [-4, -5, -5.375, -5.5, -6, -8, -10, -13.5],  # pytorch #187806, tt-metal #35290
    "near_minus_3.7": [-3.5 - i / 32 for i in range(13)],  # tt-metal PR #39303, a slope of the wrong sign
    "tiny": [1e-30, -1e-30, 1e-38, -1e-38, 2e-37, -2e-37, -171 * 2.0**-29],  # tt-metal #35290, #56616
    "where_tanh_differs_most": [2.7, -2.7],  # from the exact form: mlx-embeddings #81
    "where_sigmoid_differs_most": [-2.27, 2.27],
}


@every_dtype
@pytest.mark.parametrize("numbers", NUMBERS)
@every_form
def test_numbers_that_came_out_wrong_elsewhere(form, numbers, dtype, device):
    """The bounds are far narrower than what a form differs from another, a slope from zero or a tail from none."""
    _check_values(form, _fits(NUMBERS[numbers], dtype), dtype, device)


@every_dtype
@every_form
def test_a_large_x_is_its_own_value(form, dtype, device):
    numbers = _fits([torch.finfo(dtype).max, 3e38, 1e38, 6.5e4, 1e4], dtype)
    _check_values(form, numbers, dtype, device)
    x = torch.tensor(numbers, dtype=dtype, device=device)
    assert same_bits(gelu_ext.bias_gelu(x, approximate=form), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@every_form
def test_a_tiny_x_gives_half_of_it(form, dtype, device):
    """tt-metal #35290, #56616: the last number is a bfloat16."""
    numbers = [2e-37, -3e-35, 1e-30, -1e-20] + [-171 * 2.0**-29] * (dtype is torch.bfloat16)
    x = torch.tensor(numbers, dtype=dtype, device=device)
    assert same_bits(gelu_ext.bias_gelu(x, approximate=form), x / 2)


@every_dtype
@pytest.mark.parametrize("call", [call for call in TELLING_CALLS if call.operator == "glu"], ids=str)
def test_a_gate_that_is_one_number(call, dtype, device):
    """llm-scaler PR #484."""
    linear = randn((3, 2112), dtype, device)
    for gate in (11.0, 15.0, 40.0):
        halves = [torch.full_like(linear, gate), linear]
        check(call, torch.cat(halves if call.activated == "first" else halves[::-1], -1), None)


@every_dtype
@pytest.mark.parametrize("x", [-5.0, -13.0, -40.0, 0.0, -1e-40], ids=str)
@telling_calls
def test_the_same_number_everywhere(call, x, dtype, device):
    """Slow elsewhere: negative, pytorch #48388; zero, vllm PR #34562. `bench/bench.py --values` says what it costs."""
    check_with_every_bias(call, torch.full((64, call.width(96)), x, device=device).to(dtype))


def test_a_float16_product_overflows_where_the_true_product_does(device):
    """transformers #5651."""
    a = torch.tensor([256.0, 256.0, 256.0, 257.5, 300.0, 65504.0, 65504.0, 40.0], device=device).half()
    b = torch.tensor([255.875, 256.0, 255.9, 257.25, -300.0, 1.0, 1.001, 1638.0], device=device).half()
    expected = (a.double() * b.double()).half()  # gelu(x) is x here
    assert expected.isinf().tolist() == [False, True, False, True, True, False, True, True]
    for form in FORMS:
        assert same_bits(gelu_ext.gelu_mul(a, b, approximate=form), expected)
        assert same_bits(gelu_ext.geglu(torch.stack([b, a], -1), approximate=form).squeeze(-1), expected)
        x = leaf(a)
        (grad_x,) = torch.autograd.grad(gelu_ext.gelu_mul(x, b, approximate=form), x, a)
        assert same_bits(grad_x, expected)
    assert gelu_ext.gelu_mul(*(torch.tensor([257.375]).half() for _ in range(2))).isinf(), "66242"


# --- the special values -----------------------------------------------------------------------------------------------

NAN = math.nan
SPECIAL = [  # x, value, slope
    (NAN, NAN, NAN),
    (math.inf, math.inf, 1.0),  # pytorch #185770
    (-math.inf, -0.0, 0.0),
    (0.0, 0.0, 0.5),
    (-0.0, -0.0, 0.5),
    (-1e4, -0.0, 0.0),
    (1e4, 1e4, 1.0),
    (-500.0, -0.0, 0.0),
]


OF_EVERY_ACTIVATION = [NAN, math.inf, -math.inf, 0.0, -0.0, -1e4, 1e4]


def _assert_special(got: Tensor, expected: Tensor, signs_of_zero: bool, what: str) -> None:
    got, expected = got.detach().cpu(), expected.expand(got.shape)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True, msg=what)
    if signs_of_zero:
        assert torch.equal(got.signbit() & ~got.isnan(), expected.signbit() & ~expected.isnan()), f"{what}: sign"


@every_dtype
@every_form
def test_the_table_of_special_values(form, dtype, device):
    numbers, values, slopes = (torch.tensor(column, dtype=dtype) for column in zip(*SPECIAL, strict=True))
    for name, layout in _everywhere(numbers.tolist(), dtype, device).items():
        x, linear = leaf(layout), leaf(layout.new_full(layout.shape, 0.25))
        out = gelu_ext.bias_gelu(x, approximate=form)
        grad_out = torch.full_like(out, -0.5)
        (grad_x,) = torch.autograd.grad(out, x, grad_out)
        product = gelu_ext.gelu_mul(x, linear, approximate=form)
        grad_activated, grad_linear = torch.autograd.grad(product, (x, linear), grad_out)
        _assert_special(out, values, True, f"value, {name}")
        _assert_special(product, 0.25 * values, True, f"product, {name}")
        _assert_special(grad_x, -0.5 * slopes, False, f"gradient, {name}")
        _assert_special(grad_activated, -0.125 * slopes, False, f"gradient of activated, {name}")
        _assert_special(grad_linear, -0.5 * values, True, f"gradient of linear, {name}")


@every_dtype
@every_activation
def test_special_values_of_every_activation(activation, dtype, device):
    """NaN stays one, the infinities give the limits, a zero keeps its sign where the activation does."""
    x = torch.tensor(OF_EVERY_ACTIVATION, dtype=dtype, device=device)
    expected, slopes = value(activation, x), slope(activation, x)
    x_leaf, linear = leaf(x.repeat(67)), leaf(torch.full((67 * len(x),), 0.25, dtype=dtype, device=device))
    out = gelu_ext.bias_act(x_leaf, activation=activation)
    product = gelu_ext.act_mul(x_leaf, linear, activation=activation)
    _assert_special(out[: len(x)], expected.to(dtype), True, "value")
    for t, factor in ((out, 1.0), (product, 0.25)):
        assert same_bits(t, t[: len(x)].repeat(67))
        (grad_x,) = torch.autograd.grad(t, x_leaf, torch.full_like(t, -0.5))
        finite = slopes.nan_to_num(posinf=0)
        bound = Bound(-0.5 * factor * slopes, slope_error(finite, dtype) + 0.51 * ulp(finite, dtype))
        assert_within(grad_x[: len(x)], bound, "slope")
    product = gelu_ext.act_mul(x_leaf, linear, activation=activation)
    (grad_linear,) = torch.autograd.grad(product, linear, torch.full_like(out, -0.5))
    _assert_special(grad_linear[: len(x)], (-0.5 * expected).to(dtype), True, "gradient of linear")


def _magnitudes(dtype: torch.dtype) -> Tensor:
    """Every power of two of the dtype, with odd significands, of both signs."""
    info = torch.finfo(dtype)
    low = math.log2(info.smallest_normal)
    powers = 2.0 ** torch.arange(low, math.log2(info.max) - 0.5, 1 if dtype is not torch.float64 else 7).double()
    x = torch.cat([powers * m for m in (1.0, 1.375, 1.9)])
    x = x[x <= info.max]
    ends = torch.tensor([info.max, -info.max, info.smallest_normal, -info.smallest_normal], dtype=torch.float64)
    return torch.cat([x, -x, ends]).to(dtype)


@every_dtype
@every_activation
def test_a_finite_input_never_gives_nan(activation, dtype, device):
    x = leaf(_magnitudes(dtype).to(device))
    grad_out = torch.full_like(x, -0.75)
    for factor in (0.5, torch.finfo(dtype).max):  # with which a product may overflow, and not be NaN
        linear = leaf(torch.full_like(x, factor))
        outs = [f(activation=activation) for f in (partial(gelu_ext.bias_act, x), partial(gelu_ext.act_mul, x, linear))]
        grads = torch.autograd.grad(outs[0], x, grad_out) + torch.autograd.grad(outs[1], (x, linear), grad_out)
        finite = factor < 1 and activation != "relu2"  # whose square overflows
        assert all(t.isfinite().all() if finite else not t.isnan().any() for t in (*outs, *grads))


@every_dtype
@every_activation
def test_a_finite_input_never_gives_nan_where_the_backward_is_differentiable(activation, dtype, device):
    """There the gradient comes from torch's own operations; it is the same gradient. fairseq #2235."""
    x = leaf(_magnitudes(dtype).to(device))
    grad_out = torch.full_like(x, -0.75)
    (fused,) = torch.autograd.grad(gelu_ext.bias_act(x, activation=activation), x, grad_out)
    out = gelu_ext.bias_act(x, activation=activation)
    (composite,) = torch.autograd.grad(out, x, grad_out, create_graph=True)
    assert not composite.isnan().any(), f"NaN at {x[composite.isnan()].tolist()[:4]}"
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        composite.detach(), fused, rtol=4 * eps, atol=max(4 * eps, 1e-6) if eps > 1e-10 else 1e-13
    )


def _far(dtype: torch.dtype) -> list[float]:
    # so far that the true product with the largest number is zero too
    return [x for x in (-1e3, -1e4, -6e4, -1e10, -2e19, -3e38, -torch.finfo(dtype).max) if -x <= torch.finfo(dtype).max]


@every_dtype
@every_form
def test_no_residue_of_a_clamp_below_zero(form, dtype, device):
    """A clamp of x leaves a constant beyond it, which a product with a large number would bring to light."""
    x = torch.tensor([*_far(dtype), -math.inf] * 16, dtype=dtype, device=device)
    large = torch.full_like(x, torch.finfo(dtype).max)
    assert same_bits(gelu_ext.bias_gelu(x, approximate=form), torch.zeros_like(x).neg())
    assert (gelu_ext.gelu_mul(x, large, approximate=form) == 0).all()
    assert (gelu_ext.geglu(torch.stack([large, x], -1), approximate=form) == 0).all()
    x_leaf, linear = leaf(x), leaf(large)
    grads = torch.autograd.grad(gelu_ext.gelu_mul(x_leaf, linear, approximate=form), (x_leaf, linear), large / 4)
    assert (grads[1] == 0).all()
    (grad_x,) = torch.autograd.grad(gelu_ext.bias_gelu(x_leaf, approximate=form), x_leaf, large)
    assert (grad_x == 0).all()


@every_form
def test_the_tail_ends_in_correctly_rounded_subnormals(form):
    """Not in zeros, and not in a constant. On the CPU: a GPU may flush them."""
    x = -torch.linspace(10.0, 15.0 if form == "none" else 70.0, 5000)
    out = gelu_ext.bias_gelu(x, approximate=form)
    truth = value(GELUS[form], x)
    subnormal = (truth.abs() < torch.finfo(torch.float32).tiny) & (truth != 0)
    assert subnormal.sum() > 20
    assert ((out.double() - truth).abs()[subnormal] <= 2 * 2.0**-149).all()
    assert (out[truth.abs() < 2.0**-151] == 0).all()


@every_dtype
@every_call
def test_infinities_and_nan_stay_in_their_elements(call, dtype, device):
    x, grad_out = randn((5, call.width(33)), dtype, device), randn((5, 33), dtype, device, seed=2)
    other = call.other(x, dtype)
    clean = call(x, other)
    for bad in (NAN, math.inf, -math.inf):
        spoilt, columns = x.clone(), call.columns(3, 33)
        spoilt[2, columns[0]] = bad
        out = call(spoilt, other)
        kept = torch.ones_like(out, dtype=torch.bool)
        kept[2, 3] = False
        assert same_bits(out[kept], clean[kept])
        x_leaf = leaf(spoilt)
        (grad_x,) = torch.autograd.grad(call(x_leaf, other), x_leaf, grad_out)
        rest = torch.ones_like(grad_x, dtype=torch.bool)
        rest[2, columns] = False
        assert grad_x[rest].isfinite().all()


@every_form
def test_slope_and_value_of_bias_gelu_meet_at_zero(form, device):
    """Continuous through zero from both sides, where the two branches meet."""
    x = torch.tensor([-1e-7, -1e-12, -0.0, 0.0, 1e-12, 1e-7], dtype=torch.float32, device=device)
    x_leaf = leaf(x)
    out = gelu_ext.bias_gelu(x_leaf, approximate=form)
    (grad_x,) = torch.autograd.grad(out, x_leaf, torch.full_like(x, 0.5))
    torch.testing.assert_close(grad_x.cpu().double(), 0.5 * slope(GELUS[form], x), rtol=1e-7, atol=0)
    torch.testing.assert_close(out.detach().cpu().double(), value(GELUS[form], x), rtol=1e-6, atol=0)
