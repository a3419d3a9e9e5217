"""Recomputation and offloading: checkpoint in both modes, policies that see the operators, saved-tensor hooks."""

from __future__ import annotations

import functools

import pytest
import torch
from reference import leaf, randn, same_bits, telling_calls
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import gelu_ext


def operands(call):
    x = randn((6, call.width(8)), torch.float32)
    return leaf(x), leaf(call.other(x, torch.float32))


def run(call, x, other, around=lambda f, *a: f(*a)):
    out = around(lambda x, other: call(x * 1.5, other * 0.5).sin(), x, other)
    grad_out = randn(out.shape, out.dtype, seed=2)
    return out, *torch.autograd.grad(out, (x, other), grad_out)


def assert_same(got, expected):
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@telling_calls
def test_without_reentrance(call):
    x, other = operands(call)
    assert_same(run(call, x, other, functools.partial(checkpoint, use_reentrant=False)), run(call, x, other))


@telling_calls
def test_with_reentrance(call):
    x, other = operands(call)
    out = checkpoint(lambda x, other: call(x * 1.5, other * 0.5).sin(), x, other, use_reentrant=True)
    out.backward(randn(out.shape, out.dtype, seed=2))
    assert_same((out, x.grad, other.grad), run(call, *map(leaf, (x, other))))


@pytest.mark.parametrize("policy", [CheckpointPolicy.MUST_SAVE, CheckpointPolicy.MUST_RECOMPUTE], ids=str)
@telling_calls
def test_a_policy_sees_the_operators(call, policy):
    op = getattr(torch.ops.gelu_ext, call.operator).default
    seen = []

    def choose(context, func, *args, **kwargs):
        if func is not op:
            return CheckpointPolicy.PREFER_RECOMPUTE
        seen.append(context.is_recompute)
        return policy

    contexts = functools.partial(create_selective_checkpoint_contexts, choose)
    x, other = operands(call)
    around = functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)
    assert_same(run(call, x, other, around), run(call, x, other))
    assert seen[0] is False and seen.count(False) == 1, "the policy must be asked for the fused operator"


@telling_calls
def test_saves_its_inputs_and_nothing_else(call):
    """The matrices themselves; of a bias a copy, see test_surroundings.py."""
    x, other = operands(call)
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (packed.append(t), t)[1], lambda t: t):
        out = call(x, other)
    assert packed[0].data_ptr() == x.data_ptr()
    assert len(packed) == 2 and torch.equal(packed[1], other)
    assert (packed[1].data_ptr() == other.data_ptr()) == (other.dim() > 1)
    assert out.requires_grad


@telling_calls
def test_tensors_that_hooks_replace(call):
    x, other = operands(call)
    expected = run(call, x, other)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), torch.from_numpy):
        assert_same(run(call, x, other), expected)
    with torch.autograd.graph.save_on_cpu():
        assert_same(run(call, x, other), expected)


@telling_calls
def test_an_input_written_to_after_the_call_is_an_error(call):
    x, other = operands(call)
    h = x * 1.0
    out = call(h, other)
    h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_checkpoint_of_a_module_with_a_frozen_bias():
    module = gelu_ext.BiasGELU(8, approximate="tanh").requires_grad_(False)
    x = leaf(randn((4, 8), torch.float32))
    (got,) = torch.autograd.grad(checkpoint(module, x, use_reentrant=False).sin().sum(), x)
    assert same_bits(got, torch.autograd.grad(module(x).sin().sum(), x)[0])
