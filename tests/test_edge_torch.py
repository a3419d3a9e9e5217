"""What torch does around a call: autocast, graphs that are freed, other devices and streams, captured graphs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from reference import (
    Call,
    assert_within,
    check_with_every_bias,
    every_exact_call,
    leaf,
    randn,
    same_bits,
    telling_calls,
)
from torch import Tensor

import gelu_ext


@telling_calls
def test_a_backward_under_bfloat16_autocast_does_not_run_in_float16(call, device):
    """pytorch #87979."""
    x, weight = randn((5, 16), torch.float32, device), leaf(randn((call.width(24), 16), torch.float32, device) / 10)
    with torch.autocast(device, torch.bfloat16):
        h = F.linear(x, weight)
        other = leaf(call.other(h, torch.float32))
        out = call(h, other)
    grad_out = randn(out.shape, torch.bfloat16, device, seed=2) * 1e6
    grads = torch.autograd.grad(out, (h, other, weight), grad_out)
    for grad, bound in zip(grads, call.backward_bounds(grad_out, h, other), strict=False):
        assert_within(grad, bound)
    assert all(grad.isfinite().all() and grad.abs().max() > 65504 for grad in grads)


@telling_calls
def test_a_backward_over_a_freed_graph_is_an_error(call, device):
    """axolotl PR #3892: garbage, in a second backward."""
    x, grad_out = randn((4, call.width(9)), torch.float32, device), randn((4, 9), torch.float32, device, seed=2)
    out = call(leaf(x), leaf(call.other(x, torch.float32)))
    out.backward(grad_out, retain_graph=True)
    out.backward(grad_out)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.backward(grad_out)


# --- what only a GPU can show -----------------------------------------------------------------------------------------


@every_exact_call
def test_a_bad_call_is_refused_on_the_gpu_too(call, cuda):
    """Each with its words on the CPU in test_errors.py."""

    def run(call: Call, x: Tensor) -> Tensor:
        return call(x, None if call.has_bias else x)

    for dtype in (torch.int64, torch.int32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="float64, float32, float16 or bfloat16, got"):
            run(call, torch.zeros((2, 4), dtype=dtype, device=cuda))
    with pytest.raises(ValueError, match="got 'Tanh'"):
        run(replace(call, activation="Tanh"), torch.zeros((2, 4), device=cuda))
    with pytest.raises(ValueError, match="even width"):
        gelu_ext.geglu(torch.zeros((2, 5), device=cuda))


@every_exact_call
def test_a_tensor_on_a_device_that_is_not_the_current_one(call, cuda):
    """pytorch #54077."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    assert torch.cuda.current_device() == 0
    check_with_every_bias(call, randn((33, call.width(65)), torch.bfloat16, "cuda:1"))
    assert torch.cuda.current_device() == 0


@telling_calls
def test_on_a_side_stream(call, cuda):
    """The kernels run on the current stream: behind a long producer, and before a consumer, of that stream alone."""
    x = randn((256, call.width(512)), torch.float32, cuda)
    other = call.other(x, torch.float32)
    expected = call(x, other)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        late = torch.empty_like(x)
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        x_leaf, other_leaf = leaf(late), leaf(other)
        out = call(x_leaf, other_leaf)
        grads = torch.autograd.grad(out, (x_leaf, other_leaf), torch.full_like(out, 0.75))
    torch.cuda.current_stream().wait_stream(side)
    assert same_bits(out, expected)
    x_leaf, other_leaf = leaf(x), leaf(other)
    again = torch.autograd.grad(call(x_leaf, other_leaf), (x_leaf, other_leaf), torch.full_like(out, 0.75))
    assert all(same_bits(a, b) for a, b in zip(grads, again, strict=True))


@telling_calls
def test_in_a_captured_graph(call, cuda):
    x, grad_out = randn((300, call.width(129)), torch.bfloat16, cuda), randn((300, 129), torch.bfloat16, cuda, seed=2)
    leaves = leaf(x), leaf(call.other(x, torch.bfloat16))

    def step() -> tuple[Tensor, ...]:
        out = call(*leaves)
        return out, *torch.autograd.grad(out, leaves, grad_out)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for seed in (7, 8):
        with torch.no_grad():
            leaves[0].copy_(randn(x.shape, x.dtype, cuda, seed=seed))
        graph.replay()
        torch.cuda.synchronize()
        assert all(same_bits(a, b) for a, b in zip(results, step(), strict=True))
