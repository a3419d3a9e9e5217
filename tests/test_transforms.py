"""Every derivative that torch can ask for is right: of second order, in forward mode, under torch.func and torch.ops.

gradcheck passes for designs that are silently wrong here, so everything is compared by value: with finite differences
in float64, or with the derivative of the form itself.
"""

from __future__ import annotations

import math

import pytest
import torch
from reference import (
    TRUTHS,
    Bound,
    Call,
    assert_within,
    every_activation,
    every_call,
    every_form,
    leaf,
    randn,
    same_bits,
    slope,
    telling_calls,
    value,
)
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import gelu_ext
from gelu_ext._activations import GELUS

F64 = torch.float64


def inputs(call: Call, rows: int = 3, cols: int = 4, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    x = randn((rows, call.width(cols)), dtype)
    return x, call.other(x, dtype)


def plain(call: Call, x: Tensor, other: Tensor | None) -> Tensor:
    """The call in float64, by the formulas of the tests: torch can differentiate it in every way."""
    gelu = TRUTHS[call.name].value
    if call.operator == "act_mul":
        return gelu(x) * other
    z = x if other is None else x + other
    if call.operator == "bias_act":
        return gelu(z)
    if call.operator == "clamped_swiglu":
        gate, linear = (z[..., ::2], z[..., 1::2]) if call.activated == "interleaved" else z.chunk(2, -1)
        return gelu(gate.clamp(max=call.LIMIT)) * (linear.clamp(-call.LIMIT, call.LIMIT) + call.OFFSET)
    a, b = z.chunk(2, -1)
    return gelu(a) * b if call.activated == "first" else a * gelu(b)


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-11)


def weighted(call: Call, function=None):
    """A scalar function of (x, other) in which every output counts differently."""

    def scalar(x: Tensor, other: Tensor | None) -> Tensor:
        out = call(x, other) if function is None else function(call, x, other)
        return (out * torch.linspace(-1, 2, out.shape[-1], dtype=out.dtype)).sin().sum()

    return scalar


# --- of the second order ----------------------------------------------------------------------------------------------


@every_call
def test_double_backward(call):
    x, other = inputs(call)
    assert gradgradcheck(call, (leaf(x), leaf(other)))
    assert gradgradcheck(lambda x: call(x, other), (leaf(x),))
    assert gradgradcheck(lambda other: call(x, other), (leaf(other),))
    if call.has_bias:
        assert gradgradcheck(call, (leaf(x),))


@every_call
def test_gradients_in_forward_mode_and_in_batches(call):
    x, other = leaf(inputs(call)[0]), leaf(inputs(call)[1])
    everything = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert gradcheck(call, (x, other), **everything)
    assert gradgradcheck(call, (x, other), check_fwd_over_rev=True, check_batched_grad=True)


@every_call
def test_a_differentiable_backward_gives_the_gradient_of_the_fused_one(call):
    x, other = map(leaf, inputs(call))
    out = call(x, other)
    grad_out = randn(out.shape, F64, seed=5)
    fused = torch.autograd.grad(out, (x, other), grad_out, retain_graph=True)
    again = torch.autograd.grad(out, (x, other), grad_out, retain_graph=True)
    differentiable = torch.autograd.grad(out, (x, other), grad_out, create_graph=True)
    for a, b, c in zip(fused, again, differentiable, strict=True):
        assert same_bits(a, b)
        assert_close(c, a)
    if call == Call("bias_act", "identity"):  # whose gradient is grad_out
        return
    assert all(g.requires_grad for g in differentiable)
    # and the graph of the gradient can be walked twice too
    h = [
        torch.autograd.grad([g.sin().sum() for g in differentiable], (x, other), retain_graph=retain)
        for retain in (True, False)
    ]
    assert all(same_bits(a, b) for a, b in zip(*h, strict=True))


@telling_calls
def test_double_backward_where_one_operand_is_computed_from_the_other(call):
    """Each operand must get its own part only, or what it shares with the other is counted twice."""
    start = inputs(call)[0]

    def through(function, x):
        h = x * 1.5
        return function(h, h.cos() if call.operator == "act_mul" else h.sum(0))

    assert gradgradcheck(lambda x: through(call, x), (leaf(start),))
    x = leaf(start)
    for create_graph in (False, True):
        (got,) = torch.autograd.grad(through(call, x).sin().sum(), x, create_graph=create_graph)
        (truth,) = torch.autograd.grad(through(lambda *a: plain(call, *a), x).sin().sum(), x)
        assert_close(got, truth)


@every_form
def test_double_backward_of_one_tensor_as_both_operands(form):
    x = leaf(randn((3, 4), F64))
    assert gradgradcheck(lambda x: gelu_ext.gelu_mul(x, x, approximate=form), (x,))
    h = x * 1
    (got,) = torch.autograd.grad(gelu_ext.gelu_mul(h, h, approximate=form).sum(), x, create_graph=True)
    assert_close(got.detach(), value(GELUS[form], x) + x.detach() * slope(GELUS[form], x))


@every_call
def test_hessians(call):
    x, other = inputs(call, 2, 3)
    truth = torch.autograd.functional.hessian(weighted(call, plain), (x, other))
    for vectorize in (False, True):
        got = torch.autograd.functional.hessian(weighted(call), (x, other), vectorize=vectorize)
        for row, true_row in zip(got, truth, strict=True):
            for block, true_block in zip(row, true_row, strict=True):
                assert_close(block, true_block)
    assert_close(hessian(weighted(call))(x, other), truth[0][0])
    v = randn(x.shape, F64, seed=7)
    hvp = torch.autograd.functional.hvp(lambda x: weighted(call)(x, other), x, v)[1]
    assert_close(hvp, torch.einsum("ijkl,kl->ij", truth[0][0], v))
    assert_close(jvp(grad(lambda x: weighted(call)(x, other)), (x,), (v,))[1], hvp)


# --- of one function call ---------------------------------------------------------------------------------------------


@telling_calls
def test_forward_mode(call):
    x, other = inputs(call)
    dx, d_other = randn(x.shape, F64, seed=3), randn(other.shape, F64, seed=4)
    for tangents in [(dx, d_other), (dx, torch.zeros_like(other)), (torch.zeros_like(x), d_other)]:
        truth = jvp(lambda x, other: plain(call, x, other), (x, other), tangents)
        out, tangent = jvp(call, (x, other), tangents)
        assert_close(out, truth[0])
        assert_close(tangent, truth[1])
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*pair) for pair in zip((x, other), tangents, strict=True)]
            assert_close(forward_ad.unpack_dual(call(*duals)).tangent, truth[1])
            of_x = forward_ad.unpack_dual(call(duals[0], other)).tangent
        assert_close(of_x, jvp(lambda x: plain(call, x, other), (x,), tangents[:1])[1])
    assert_close(jacfwd(call)(x, other), jacrev(call)(x, other))


@telling_calls
def test_grad_and_vjp(call):
    x, other = inputs(call)
    truth = torch.autograd.grad(weighted(call, plain)(*(leaves := (leaf(x), leaf(other)))), leaves)
    for got, true in zip(grad(weighted(call), argnums=(0, 1))(x, other), truth, strict=True):
        assert_close(got, true)
    out, pull = vjp(call, x, other)
    grad_out = randn(out.shape, F64, seed=5)
    truth = torch.autograd.grad(plain(call, *leaves), leaves, grad_out)
    for got, true in zip(pull(grad_out), truth, strict=True):
        assert_close(got, true)


@telling_calls
def test_vmap_over_either_operand(call):
    x, other = inputs(call)
    xs = torch.stack([x, -x, x + 1])
    others = torch.stack([other, other - 1, 2 * other])
    assert_close(vmap(call, (0, None))(xs, other), plain(call, xs, other))
    assert_close(vmap(call, (1, None))(xs.movedim(0, 1), other), plain(call, xs, other))
    assert_close(vmap(call, (None, 0))(x, others), torch.stack([plain(call, x, o) for o in others]))
    pairs = torch.stack([plain(call, a, o) for a, o in zip(xs, others, strict=True)])
    assert_close(vmap(call)(xs, others), pairs)
    # a gradient for each sample, and vmap below an ordinary graph
    per_sample = vmap(grad(weighted(call)))(xs, others)
    assert_close(per_sample, vmap(grad(weighted(call, plain)))(xs, others))
    tracked = leaf(xs)
    (got,) = torch.autograd.grad(vmap(call)(tracked, others).sin().sum(), tracked)
    (truth,) = torch.autograd.grad(pairs_of(call, tracked, others).sin().sum(), tracked)
    assert_close(got, truth)


def pairs_of(call: Call, xs: Tensor, others: Tensor) -> Tensor:
    return torch.stack([plain(call, a, o) for a, o in zip(xs, others, strict=True)])


@telling_calls
def test_batched_gradients(call):
    x, other = map(leaf, inputs(call))
    out = call(x, other)
    grads_out = randn((5, *out.shape), F64, seed=5)
    batched = torch.autograd.grad(out, (x, other), grads_out, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(out, (x, other), g, retain_graph=True) for g in grads_out]
    for got, expected in zip(batched, zip(*one_by_one, strict=True), strict=True):
        assert_close(got, torch.stack(expected))


def test_ensembles_of_modules():
    modules = [gelu_ext.GEGLU(8, dtype=F64) for _ in range(3)]
    biases = randn((3, 8), F64)
    x = randn((5, 8), F64, seed=2)
    got = vmap(lambda bias: functional_call(modules[0], {"bias": bias}, (x,)))(biases)
    assert_close(got, torch.stack([plain(Call("geglu", "none", "second"), x, bias) for bias in biases]))


def test_a_tensor_that_outlived_its_transform():
    kept = []
    x = randn((3, 4), F64)
    grad(lambda x: (kept.append(x), x.sum())[1])(x)
    bias = leaf(randn((4,), F64, seed=1))
    out = gelu_ext.bias_gelu(kept[0], bias)
    assert_close(out, value("gelu", x + bias))
    assert_close(torch.autograd.grad(out.sum(), bias)[0], slope("gelu", x + bias).sum(0))


# --- special points ---------------------------------------------------------------------------------------------------

FAR = [math.inf, 3e38, 1e30, 2e19, 1e4, 100.0, 15.0, 14.5, 11.75, 0.0, 1e-30]
POINTS = [*FAR, *(-x for x in FAR), -5.5, -13.24, 0.75, math.nan]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_activation
def test_no_nan_where_the_fused_function_has_none(activation, dtype):
    x = torch.tensor(POINTS, dtype=dtype)
    call = Call("bias_act", activation)
    eps = torch.finfo(dtype).eps
    v, s = value(activation, x), slope(activation, x)
    v_bound = Bound(v, 200 * eps * v.abs().nan_to_num(posinf=0) + 1e-37)
    s_bound = Bound(s, 200 * eps * s.abs().nan_to_num(posinf=0).clamp(min=1))

    def check(values: Tensor, slopes: Tensor) -> None:
        assert_within(values, v_bound, "value")
        assert_within(slopes, s_bound, "slope")

    tracked = leaf(x)
    out = call(tracked)
    (first,) = torch.autograd.grad(out.sum(), tracked, create_graph=True)
    check(out, first)
    if first.requires_grad:  # a constant slope does not
        (second,) = torch.autograd.grad(first.sum(), tracked)
        far = second[x.abs() >= 1e4]
        assert second[~x.isnan()].isfinite().all()
        assert far.tolist() == [2.0 * (z > 0) if activation == "relu2" else 0 for z in x[x.abs() >= 1e4].tolist()]
    check(*jvp(call, (x,), (torch.ones_like(x),)))
    check(vmap(call)(x), vmap(grad(call))(x))
    third = jvp(grad(grad(call)), (torch.tensor(-math.inf, dtype=dtype),), (torch.tensor(1.0, dtype=dtype),))
    assert [t.item() for t in third] == [0, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every_call
def test_16_bit_transforms_compute_in_float32(call, dtype):
    x, other = inputs(call, 64, 33, dtype)
    for bias in [None, dtype, torch.float32] if call.has_bias else [dtype]:
        other = call.other(x, bias)
        got = vmap(lambda x, other=other: call(x, other))(x) if call.has_bias else vmap(call)(x, other)
        assert got.dtype == dtype
        bound = call.forward_bound(x, other)
        tiny = 1e-36  # what a logistic function in float32 may flush to zero
        assert_within(got, bound._replace(tolerance=bound.tolerance + tiny), f"{call}, bias {bias}")
        leaves = [t for t in (leaf(x), leaf(other)) if t is not None]
        out = call(*leaves)
        grad_out = randn(out.shape, dtype, seed=2)
        grads = torch.autograd.grad(out, leaves, grad_out, create_graph=True)
        assert [g.dtype for g in grads] == [t.dtype for t in leaves]
        for got, bound in zip(grads, call.backward_bounds(grad_out, x, other), strict=False):
            slack = 2e-3 * torch.finfo(dtype).eps * (bound.truth.abs() + 1)  # float32, but not the kernels' bars
            assert_within(got, bound._replace(tolerance=bound.tolerance + slack), f"{call}, bias {bias}")


# --- torch.ops, used directly -----------------------------------------------------------------------------------------


def operator(call: Call):
    return lambda x, other: getattr(torch.ops.gelu_ext, call.operator)(*call.arguments(x, other))


@telling_calls
def test_vmap_of_a_registered_operator_is_no_loop_over_samples(call):
    """As torch would do for an operator without a rule of its own."""
    ops = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            ops.append(func.name())
            return func(*args, **(kwargs or {}))

    x, other = inputs(call)
    xs, others = torch.stack([x] * 50), torch.stack([other] * 50)
    with Watch():
        got = vmap(operator(call))(xs, others)
    assert len(ops) < 50
    assert_close(got[-1], plain(call, x, other))


@telling_calls
def test_the_registered_operators_are_as_differentiable(call):
    x, other = inputs(call)
    op = operator(call)
    assert gradcheck(op, (leaf(x), leaf(other)), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(op, (leaf(x), leaf(other)))
    tangents = randn(x.shape, F64, seed=3), randn(other.shape, F64, seed=4)
    for got, truth in zip(
        jvp(op, (x, other), tangents), jvp(lambda *a: plain(call, *a), (x, other), tangents), strict=True
    ):
        assert_close(got, truth)
    assert_close(vmap(op)(x[None], other[None])[0], plain(call, x, other))
    if not call.has_bias:
        per_row = vmap(grad(lambda x, function: function(x, other[0]).sin().sum()), (0, None))
        assert_close(per_row(x, op), per_row(x, lambda *a: plain(call, *a)))
    with torch.no_grad():
        assert not op(leaf(x), other).requires_grad


@telling_calls
def test_the_registered_backward_operators_can_be_differentiated(call):
    x, other = inputs(call)
    operator = getattr(torch.ops.gelu_ext, f"{call.operator}_backward")

    def backward(grad_out, x, other, needs_x, needs_other):
        return operator(grad_out, *call.arguments(x, other), call.needs(needs_x, needs_other))[:2]

    grad_out = randn(call(x, other).shape, F64, seed=5)
    assert gradcheck(lambda *a: backward(*a, True, True), tuple(map(leaf, (grad_out, x, other))))
    assert gradcheck(lambda g: backward(g, x, other, True, True), (leaf(grad_out),))
    only_x = backward(leaf(grad_out), x, other, True, False)
    assert only_x[0].requires_grad and only_x[1].shape == (0,)
    for a, b in zip(only_x, backward(grad_out, x, other, True, False), strict=True):
        assert_close(a.detach(), b)
    with pytest.raises(
        RuntimeError, match=rf"gelu_ext\.{call.operator}_backward: expected a call outside of functorch tran"
    ):
        grad(lambda g: backward(g, x, other, True, True)[0].sum())(grad_out)
