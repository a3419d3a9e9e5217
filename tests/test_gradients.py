"""Gradients are right, for every kind of gradient that autograd hands in, and a backward changes nothing else.

No gradient here is all ones: swapped halves or a forgotten grad_out would pass.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from reference import (
    DTYPES,
    LAYOUTS,
    TELLING_CALLS,
    Call,
    assert_within,
    at_offset,
    check,
    every_call,
    every_dtype,
    every_form,
    in_buffer,
    leaf,
    randn,
    same_bits,
    slope,
    telling_calls,
)
from torch import Tensor

import gelu_ext

every_biased = pytest.mark.parametrize("call", [call for call in TELLING_CALLS if call.has_bias], ids=str)


def gradients(call: Call, x: Tensor, other: Tensor | None, grad_out: Tensor) -> tuple[Tensor, ...]:
    x_leaf, other_leaf = leaf(x), leaf(other)
    return torch.autograd.grad(call(x_leaf, other_leaf), [t for t in (x_leaf, other_leaf) if t is not None], grad_out)


# --- against differences ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 6), (5,), (2, 1, 4), (1, 3)], ids=str)
@telling_calls
def test_gradcheck(call, shape, device):
    x = randn((*shape[:-1], call.width(shape[-1])), torch.float64, device)
    for bias in [None, torch.float64] if call.has_bias else [torch.float64]:
        inputs = [t for t in (leaf(x), leaf(call.other(x, bias))) if t is not None]
        assert torch.autograd.gradcheck(call, inputs)


@every_call
def test_gradcheck_with_either_operand_frozen(call, device):
    x = randn((3, call.width(5)), torch.float64, device)
    other = call.other(x, torch.float64)
    assert torch.autograd.gradcheck(lambda x: call(x, other), (leaf(x),))
    assert torch.autograd.gradcheck(lambda other: call(x, other), (leaf(other),))


@pytest.mark.parametrize(
    "producer", [torch.exp, torch.sigmoid, lambda x: torch.softmax(x, -1)], ids=["exp", "sigmoid", "softmax"]
)
@telling_calls
def test_gradcheck_behind_a_producer_that_saves_its_output(call, producer, device):
    x = randn((3, call.width(4)), torch.float64, device) / 2
    other = call.other(x, torch.float64)
    assert torch.autograd.gradcheck(lambda x, other: call(producer(x), other), (leaf(x), leaf(other)))
    if not call.has_bias:
        assert torch.autograd.gradcheck(lambda x, other: call(x, producer(other)), (leaf(x), leaf(other)))


# --- against the truth ------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize(
    "shape", [(0,), (1,), (7,), (0, 8), (4, 0), (2, 0, 8), (3, 17), (2, 3, 31), (2, 1, 3, 2, 15)], ids=str
)
@telling_calls
def test_shapes(call, shape, dtype, device):
    x = randn((*shape[:-1], call.width(shape[-1])), dtype, device)
    for bias in call.biases(dtype):
        check(call, x, call.other(x, bias))


@every_dtype
@pytest.mark.parametrize("call", [call for call in TELLING_CALLS if call.width(1) == 1], ids=str)
def test_a_scalar(call, dtype, device):
    x = randn((), dtype, device)
    check(call, x, call.other(x, None))


@every_dtype
@pytest.mark.parametrize("width", [1, 2, 3, 5, 12, 17, 24, 46, 1234, 1710, 2112, 3420, 3421])
@telling_calls
def test_widths(call, width, dtype, device):
    x = randn((3, call.width(width)), dtype, device)
    check(call, x, call.other(x, call.biases(dtype)[-1]))


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@telling_calls
def test_layouts_of_the_input(call, layout, dtype, device):
    x = LAYOUTS[layout](randn((2, 3, 5, 26), dtype, device))
    grad_out = randn((2, 3, 5, 26 // call.width(1)), dtype, device, seed=2)
    for bias in call.biases(dtype):
        other = call.other(x, bias)
        _, grad_x, grad_other = check(call, x, other, grad_out)
        dense = gradients(call, x.contiguous(), other, grad_out)
        assert same_bits(grad_x, dense[0]), "the layout decides the result"
        assert grad_other is None or same_bits(grad_other, dense[1])


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@telling_calls
def test_layouts_of_the_gradient(call, layout, dtype, device):
    x = randn((2, 3, 5, call.width(13)), dtype, device)
    other = call.other(x, dtype)
    grad_out = LAYOUTS[layout](randn((2, 3, 5, 13), dtype, device, seed=2))
    _, *grads = check(call, x, other, grad_out)
    for grad, dense in zip(grads, gradients(call, x, other, grad_out.contiguous()), strict=True):
        assert same_bits(grad, dense), "the layout decides the result"


@every_dtype
@pytest.mark.parametrize("offset", range(1, 8))
@telling_calls
def test_storage_offsets(call, offset, dtype, device):
    x, grad_out = randn((3, call.width(37)), dtype, device), randn((3, 37), dtype, device, seed=2)
    other = call.other(x, dtype)
    _, *grads = check(call, at_offset(x, offset), at_offset(other, offset // 2), at_offset(grad_out, 7 - offset))
    for grad, dense in zip(grads, gradients(call, x, other, grad_out), strict=True):
        assert same_bits(grad, dense)


@pytest.mark.parametrize("layout", ["every_second", "expanded", "slice"])
@every_biased
def test_layouts_of_the_bias(call, layout, device):
    x = randn((5, call.width(19)), torch.float32, device)
    bias = call.other(x, torch.float32)
    bias = {
        "every_second": in_buffer(bias, 0, 0, 2),
        "expanded": bias[:1].expand(bias.shape),
        "slice": in_buffer(bias, 3, 2),
    }[layout]
    grad_out = randn((5, 19), torch.float32, device, seed=2)
    grads = check(call, x, bias, grad_out)
    assert same_bits(grads[2], gradients(call, x, bias.contiguous(), grad_out)[1])


# --- gradients as autograd makes them ---------------------------------------------------------------------------------


def summed(out: Tensor, w: Tensor) -> Tensor:
    return out.sum() * w[0, 0, 0]


def sum_of_columns(out: Tensor, w: Tensor) -> Tensor:
    return (out.sum(-1) * w[..., 0]).sum()


def sum_of_rows(out: Tensor, w: Tensor) -> Tensor:
    return (out.sum((0, 1)) * w[0, 0]).sum()


def expanded(out: Tensor, w: Tensor) -> Tensor:
    return (out.sum(1, keepdim=True) * w[:, :1]).sum()


def transposed(out: Tensor, w: Tensor) -> Tensor:
    return (out.transpose(0, 2) * w.transpose(0, 2).contiguous()).sum()


def concatenated_rows(out: Tensor, w: Tensor) -> Tensor:
    return (torch.cat([2 * w, out, w], 0) * torch.cat([w, w.flip(0), w], 0)).sum()


def concatenated_columns(out: Tensor, w: Tensor) -> Tensor:
    return (torch.cat([out, w], -1) * torch.cat([w.flip(-1), w], -1)).sum()


# what follows the operation, and the strides in which its gradient arrives for an output of [3, 4, 10]
CONSUMERS = {
    summed: (0, 0, 0),
    sum_of_columns: (4, 1, 0),
    sum_of_rows: (0, 0, 1),
    expanded: (10, 0, 1),
    transposed: (1, 3, 12),
    concatenated_rows: (40, 10, 1),  # in the middle of a longer tensor
    concatenated_columns: (80, 20, 1),
}


@every_dtype
@pytest.mark.parametrize("consumer", CONSUMERS, ids=lambda consumer: consumer.__name__)
@telling_calls
def test_gradients_that_arrive_through_other_operations(call, consumer, dtype, device):
    x = randn((3, 4, call.width(10)), dtype, device)
    other, w = call.other(x, dtype), randn((3, 4, 10), dtype, device, seed=3)
    x_leaf, other_leaf = leaf(x), leaf(other)
    arrived: list[Tensor] = []
    out = call(x_leaf, other_leaf)
    out.register_hook(arrived.append)
    consumer(out, w).backward()
    (grad_out,) = arrived
    assert grad_out.stride() == CONSUMERS[consumer], "the test means to send these strides"
    for got, bound in zip((x_leaf.grad, other_leaf.grad), call.backward_bounds(grad_out, x, other), strict=True):
        assert_within(got, bound, f"{call} behind {consumer.__name__}")
    dense = gradients(call, x, other, grad_out.contiguous())
    assert same_bits(x_leaf.grad, dense[0]) and same_bits(other_leaf.grad, dense[1])


# --- a backward is pure -----------------------------------------------------------------------------------------------


@every_dtype
@telling_calls
def test_two_backward_passes_over_one_graph_are_equal_and_change_nothing(call, dtype, device):
    x = randn((9, call.width(21)), dtype, device).clamp(-2, 2)  # no subnormal results: doubling is exact
    other, grad_out = call.other(x, dtype).clamp(-1, 1), randn((9, 21), dtype, device, seed=2)
    x_leaf, other_leaf = leaf(x), leaf(other)
    before = [t.clone() for t in (x, other, grad_out)]
    out = call(x_leaf, other_leaf)
    out_before = out.detach().clone()
    first = torch.autograd.grad(out, (x_leaf, other_leaf), grad_out, retain_graph=True)
    second = torch.autograd.grad(out, (x_leaf, other_leaf), grad_out, retain_graph=True)
    doubled = torch.autograd.grad(out, (x_leaf, other_leaf), 2 * grad_out)
    for a, b, c in zip(first, second, doubled, strict=True):
        assert same_bits(a, b) and a.data_ptr() != b.data_ptr()
        if dtype is not torch.float16:  # whose small gradients are subnormal
            assert same_bits(2 * a, c)
    assert same_bits(out, out_before)
    for now, then in zip((x, other, grad_out), before, strict=True):
        assert same_bits(now, then)


@every_dtype
@pytest.mark.parametrize("producer", [torch.exp, torch.sigmoid, torch.tanh], ids=lambda f: f.__name__)
@telling_calls
def test_what_a_producer_saved_is_still_there(call, producer, dtype, device):
    """Its backward reads its output, which is this operation's input."""
    x = randn((6, call.width(9)), dtype, device) / 2
    grad_out = randn((6, 9), dtype, device, seed=2)
    x_leaf = leaf(x)
    y = producer(x_leaf)
    saved = y.detach().clone()
    other = call.other(y.detach(), dtype)
    (grad_x,) = torch.autograd.grad(call(y, other), x_leaf, grad_out)
    assert same_bits(y, saved)
    y_leaf = leaf(saved)
    (grad_y,) = torch.autograd.grad(call(y_leaf, other), y_leaf, grad_out)
    x_leaf = leaf(x)
    assert same_bits(grad_x, torch.autograd.grad(producer(x_leaf), x_leaf, grad_y)[0])


@every_dtype
@telling_calls
def test_a_frozen_operand_gets_no_gradient_and_changes_no_other(call, dtype, device):
    x, grad_out = randn((9, call.width(21)), dtype, device), randn((9, 21), dtype, device, seed=2)
    for bias in [kind for kind in call.biases(dtype) if kind is not None]:
        other = call.other(x, bias)
        grad_x, grad_other = gradients(call, x, other, grad_out)
        for needs_x, needs_other in ((True, False), (False, True)):
            x_leaf, other_leaf = leaf(x, needs_x), leaf(other, needs_other)
            call(x_leaf, other_leaf).backward(grad_out)
            assert same_bits(x_leaf.grad, grad_x) if needs_x else x_leaf.grad is None
            assert same_bits(other_leaf.grad, grad_other) if needs_other else other_leaf.grad is None


@every_dtype
@telling_calls
def test_a_gradient_is_asked_for_one_input_at_a_time(call, dtype, device):
    """torch.autograd.grad towards one of two inputs: needs_input_grad is True of both and one result is dropped."""
    x, grad_out = randn((5, call.width(11)), dtype, device), randn((5, 11), dtype, device, seed=2)
    other = call.other(x, dtype)
    both = gradients(call, x, other, grad_out)
    leaves = leaf(x), leaf(other)
    for wanted, expected in zip(leaves, both, strict=True):
        assert same_bits(torch.autograd.grad(call(*leaves), wanted, grad_out)[0], expected)


@every_dtype
def test_one_tensor_as_both_operands(dtype, device):
    x, grad_out = randn((5, 11), dtype, device), randn((5, 11), dtype, device, seed=2)
    x_leaf = leaf(x)
    (grad,) = torch.autograd.grad(gelu_ext.gelu_mul(x_leaf, x_leaf), x_leaf, grad_out)
    first, second = gradients(Call("gelu_mul", "none"), x, x.clone(), grad_out)
    assert same_bits(grad, first + second)


@every_dtype
@every_form
def test_packed_and_two_tensor_gradients_agree_to_the_bit(form, dtype, device):
    x, grad_out = randn((7, 26), dtype, device), randn((7, 13), dtype, device, seed=2)
    a, b = (half.contiguous() for half in x.chunk(2, -1))
    for activated in ("first", "second"):
        (packed,) = gradients(Call("geglu", form, activated), x, None, grad_out)
        pair = gradients(Call("gelu_mul", form), *((a, b) if activated == "first" else (b, a)), grad_out)
        assert same_bits(packed, torch.cat(pair if activated == "first" else pair[::-1], -1))


# --- the bias's gradient ----------------------------------------------------------------------------------------------


BIAS_CALLS = [Call("bias_gelu", "none"), Call("geglu", "tanh", "second"), Call("geglu", "none", "first")]


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 255, 257, 2049, 8192])
@every_dtype
@pytest.mark.parametrize("call", BIAS_CALLS, ids=str)
def test_bias_gradient_is_exact_and_repeatable(call, dtype, rows, device, threads):
    for width in [3] if rows > 1000 else [5, 70] if rows > 17 else [1, 5, 70, 1030]:
        x = randn((rows, call.width(width)), dtype, device)
        grad_out = randn((rows, width), dtype, device, seed=2)
        for bias in call.biases(dtype)[1:]:
            other = call.other(x, bias)
            torch.set_num_threads(2)
            _, grad_x, grad_bias = check(call, x, other, grad_out)
            assert grad_bias.dtype == bias
            for count in (2, 1):
                torch.set_num_threads(count)
                again = gradients(call, x, other, grad_out)
                assert same_bits(again[0], grad_x) and same_bits(again[1], grad_bias), f"differs on {count} threads"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("call", BIAS_CALLS[:2], ids=str)
def test_bias_gradient_of_a_million_rows(call, dtype, device, threads):
    x, grad_out = randn((10**6, call.width(1)), dtype, device), randn((10**6, 1), dtype, device, seed=2)
    other = call.other(x, torch.float32)
    bound = call.backward_bounds(grad_out, x, other)[1]
    found = []
    for count in (2, 1, 2):
        torch.set_num_threads(count)
        found.append(gradients(call, x, other, grad_out)[1])
        assert_within(found[-1], bound)
        assert same_bits(found[-1], found[0])


@every_dtype
def test_bias_gradient_of_one_long_row_and_of_many_columns(dtype, device, threads):
    """More columns than one tile of the reduction, and few rows."""
    call = Call("bias_gelu", "none")
    for shape in ((1, 65537), (3, 9000), (40, 4100)):
        x, grad_out = randn(shape, dtype, device), randn(shape, dtype, device, seed=2)
        other = call.other(x, dtype)
        _, _, grad_bias = check(call, x, other, grad_out)
        torch.set_num_threads(1)
        assert same_bits(gradients(call, x, other, grad_out)[1], grad_bias)


@pytest.mark.parametrize("bias_dtype", ["own", "float32"])
@every_dtype
def test_bias_gradient_of_many_rows_of_ones_does_not_stick(dtype, bias_dtype, device):
    """A running sum in bfloat16 stops at 256, in float16 at 2048: the next one is lost in rounding."""
    rows = 8192
    x = torch.ones((rows, 6), dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    grad_out = (0.75 + 0.5 * torch.rand((rows, 6), generator=generator)).to(device=device, dtype=dtype)
    bias = torch.zeros(6, dtype=dtype if bias_dtype == "own" else torch.float32, device=device)
    _, _, grad_bias = check(Call("bias_gelu", "none"), x, bias, grad_out)
    truth = grad_out.cpu().double().sum(0) * slope("gelu", torch.tensor(1.0))
    assert truth.min() > 8192, "far beyond where a 16-bit sum sticks"
    rtol = {torch.float64: 1e-14, torch.float32: 2e-6}.get(bias.dtype, torch.finfo(bias.dtype).eps / 2 + 2e-6)
    torch.testing.assert_close(grad_bias.cpu().double(), truth, rtol=rtol, atol=0)


@every_biased
def test_no_rows_give_a_zero_bias_gradient(call, device):
    for dtype, shape in itertools.product(DTYPES, [(0, 8), (2, 0, 8), (0, 3, 8)]):
        x_leaf = leaf(randn(shape, dtype, device))
        bias = leaf(randn((8,), dtype, device, seed=1))
        out = call(x_leaf, bias)
        out.backward(randn(out.shape, dtype, device, seed=2))
        assert x_leaf.grad.shape == shape and same_bits(bias.grad, torch.zeros_like(bias))
