"""Every instruction set that this processor has computes the same function, at every size and alignment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import INSTRUCTION_SETS
from reference import (
    Call,
    assert_within,
    check,
    every_activation,
    every_call,
    every_dtype,
    leaf,
    randn,
    same_bits,
    telling_calls,
    value,
)

import gelu_ext
from gelu_ext import _native

LARGEST = 1100  # beyond two blocks of the row loops, and every remainder of a vector


def some_other(call: Call, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return call.other(x, dtype)


@every_dtype
def test_every_size_at_every_offset(dtype, instruction_set):
    """bias_gelu gives an element the same bits wherever it stands: at any place of a vector, a block or a remainder."""
    call = Call("bias_gelu", "none")
    buffer = randn((LARGEST + 8,), dtype)
    whole = check(call, buffer, None)[0]
    for size in range(1, LARGEST + 1):
        for offset in range(8):
            part = slice(offset, offset + size)
            assert torch.equal(call(buffer[part]), whole[part]), f"size {size}, offset {offset}"


@every_dtype
def test_every_size_forward_and_backward(dtype, instruction_set):
    """gelu_mul, whose gradients are elementwise too; the offset of each operand differs."""
    call = Call("gelu_mul", "tanh")
    x, linear, g = (randn((LARGEST + 8,), dtype, seed=seed) for seed in range(3))
    aligned = {}
    for offset in range(8):
        shifted = [t[o : o + LARGEST].clone() for t, o in zip((x, linear, g), (offset, offset // 2, 0), strict=True)]
        out, grad_x, grad_linear = check(call, shifted[0], shifted[1], shifted[2])
        aligned[offset] = out, grad_x, grad_linear
    backward = _native.act_mul_backward
    for size in range(1, LARGEST + 1):
        offset = size % 8
        x_, linear_, g_ = x[offset:][:size], linear[offset // 2 :][:size], g[:size]
        got = call(x_, linear_), *backward(g_, *call.arguments(x_, linear_), call.needs(True, True))[:2]
        for name, a, b in zip(("output", "grad_x", "grad_linear"), got, aligned[offset], strict=True):
            assert torch.equal(a, b[:size]), f"{name} at size {size}, offset {offset}"


@every_dtype
def test_every_width_of_packed_rows(dtype, instruction_set):
    """geglu with a bias: the second half of each row, and each row but the first, begin anywhere."""
    call = Call("geglu", "sigmoid", "second")
    for width in [*range(1, 70), *range(250, 264), *range(508, 518), *range(1020, 1030)]:
        x = randn((3, 2 * width), dtype, seed=width)
        bias, g = call.other(x, dtype), randn((3, width), dtype, seed=width + 1)
        x_leaf, bias_leaf = leaf(x), leaf(bias)
        out = call(x_leaf, bias_leaf)
        assert_within(out, call.forward_bound(x, bias), f"width {width}")
        grads = torch.autograd.grad(out, (x_leaf, bias_leaf), g)
        for grad, bound in zip(grads, call.backward_bounds(g, x, bias), strict=True):
            assert_within(grad, bound, f"gradient at width {width}")


@every_dtype
@every_call
def test_every_call(call, dtype, instruction_set):
    x = randn((37, call.width(79)), dtype)
    for bias in call.biases(dtype):
        check(call, x, call.other(x, bias))


@every_dtype
@telling_calls
def test_an_element_does_not_depend_on_its_neighbours(call, dtype, instruction_set):
    """NaN and infinities in other elements of a vector change nothing."""
    x, g = randn((4, call.width(45)), dtype), randn((4, 45), dtype, seed=2)
    other = call.other(x, dtype)
    clean = check(call, x, other, g)
    spoilt, clean_rows = x.clone(), [0, 2]
    spoilt[1] = torch.inf
    spoilt[3] = torch.nan
    x_leaf = leaf(spoilt)
    out = call(x_leaf, other)
    (grad_x,) = torch.autograd.grad(out, x_leaf, g)
    assert same_bits(out[clean_rows], clean[0][clean_rows])
    assert same_bits(grad_x[clean_rows], clean[1][clean_rows])
    column = x.clone()
    column[:, call.columns(5, 45)[0]] = torch.nan
    out = call(column, other)
    kept = [c for c in range(45) if c != 5]
    assert same_bits(out[:, kept], clean[0][:, kept]) and out[:, 5].isnan().all()


def test_the_best_available_is_the_default_and_a_name_chooses_another():
    before = _native.instruction_set()
    for name in INSTRUCTION_SETS:
        assert _native.set_instruction_set(name) is True
        assert _native.instruction_set() == name
    assert _native.set_instruction_set("avx1024") is False
    assert _native.instruction_set() == INSTRUCTION_SETS[-1], "a refused name changes nothing"
    assert _native.set_instruction_set(before)


def in_a_new_process(wanted: str | None) -> subprocess.CompletedProcess:
    script = (
        "import torch, gelu_ext\n"
        "from gelu_ext import _native\n"
        "try:\n"
        "    gelu_ext.bias_gelu(torch.linspace(-3, 3, 100))\n"
        "    print(_native.instruction_set())\n"
        "except RuntimeError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {name: text for name, text in os.environ.items() if name != "GELU_EXT_CPU_ISA"}
    if wanted is not None:
        environment["GELU_EXT_CPU_ISA"] = wanted
    root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("wanted", [None, *INSTRUCTION_SETS[1:]])
def test_the_environment_chooses(wanted):
    done = in_a_new_process(wanted)
    assert (done.returncode, done.stdout.strip()) == (0, wanted or INSTRUCTION_SETS[0]), done.stderr


def test_an_unknown_name_in_the_environment_is_refused_in_a_sentence():
    done = in_a_new_process("avx1024")
    names = ",".join(INSTRUCTION_SETS)
    assert done.stdout.strip() == f"RuntimeError GELU_EXT_CPU_ISA: expected one of {names}, got 'avx1024'", done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_any_nan_of_a_float32_bias_stays_one(dtype, instruction_set):
    """Rounding to 16 bits must not carry a NaN's lowest bits into its sign."""
    bits = [0x7FFFFFFF, 0x7F800001, -1, 0x7FC00000, 0x7F80FFFF, -0x7FFFFF]
    bias = torch.zeros(200)
    bias[7:190:3] = torch.tensor(bits * 11, dtype=torch.int32).view(torch.float32)[: len(range(7, 190, 3))]
    for width in (200, 129, 64):
        x, b = torch.zeros(3, width, dtype=dtype), bias[:width].clone()
        assert torch.equal(gelu_ext.bias_gelu(x, b).isnan(), b.isnan().expand(3, width))


@every_activation
def test_subnormal_results_are_the_same_everywhere(activation, instruction_set):
    """Alone, among numbers of any size, and as a remainder: each of these takes another way through the conversions."""
    x = torch.cat([torch.arange(-110, -16, 0.5), torch.arange(-16, -4, 0.03125)]).to(torch.bfloat16)
    alone = torch.cat([gelu_ext.bias_act(one[None], None, activation=activation) for one in x])
    assert torch.equal(gelu_ext.bias_act(x, None, activation=activation), alone)
    mixed = torch.stack([x, torch.randn(len(x)).to(torch.bfloat16)], 1).flatten()
    assert torch.equal(gelu_ext.bias_act(mixed, None, activation=activation)[::2], alone)
    has_some = [((t != 0) & (t.abs() < 2.0**-126)).any() for t in (alone, value(activation, x))]
    assert has_some[0] == has_some[1], "of relu, tanh and others there are none"
