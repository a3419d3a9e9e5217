"""Sizes, alignments and strides that have broken comparable projects, each with the place where that is on record.

Forward and backward. A few rows and columns at a time are in test_forward.py and test_gradients.py.
"""

from __future__ import annotations

import math
import mmap

import pytest
import torch
from reference import (
    EXACT_CALLS,
    LAYOUTS,
    TRUTHS,
    Bound,
    Call,
    assert_within,
    at_offset,
    check,
    check_with_every_bias,
    every_dtype,
    every_exact_call,
    every_half,
    in_buffer,
    leaf,
    randn,
    same_bits,
    telling_calls,
)
from torch import Tensor

import gelu_ext

every_exact_call_with_a_bias = pytest.mark.parametrize("call", [call for call in EXACT_CALLS if call.has_bias], ids=str)


# --- sizes ------------------------------------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("shape", [(0, 128), (2, 3, 0), (0, 0)], ids=str)
@telling_calls
def test_an_empty_input_and_the_next_call(call, shape, dtype, device):
    """No rows: sglang #23609, where the error outlived the call. Rows of no columns: flashinfer PR #265."""
    check_with_every_bias(call, randn(shape, dtype, device))
    check_with_every_bias(call, randn((4, 128), dtype, device))


def _needs_memory(gib: float) -> None:
    torch.cuda.empty_cache()  # what torch keeps is free as well
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} are free")


def _sampled_rows(rows: int, stride: int) -> list[int]:
    """The ends, and where an offset crosses 2^31 and 2^32 elements and bytes."""
    crossings = {limit // stride + step for limit in (2**30, 2**31, 2**32) for step in (-1, 0, 1)}
    return sorted(row for row in {0, 1, rows // 2, rows - 2, rows - 1} | crossings if 0 <= row < rows)


def _check_large(call: Call, x: Tensor, linear: Tensor | None = None) -> None:
    """Sampled rows of a large problem have the bits of the same rows alone. `x` and `linear` have two dimensions."""
    grad_out = torch.empty((x.shape[0], x.shape[-1] // call.width(1)), dtype=x.dtype, device=x.device).normal_()
    x_leaf, linear_leaf = leaf(x), leaf(linear)
    out = call(x_leaf, linear_leaf)
    grads = torch.autograd.grad(out, [t for t in (x_leaf, linear_leaf) if t is not None], grad_out)
    for row in _sampled_rows(x.shape[0], x.stride(0)):
        one = slice(row, row + 1)
        few = leaf(x[one].clone()), leaf(None if linear is None else linear[one].clone())
        expected = call(*few)
        assert same_bits(out[one], expected), f"output of row {row}"
        wanted = torch.autograd.grad(expected, [t for t in few if t is not None], grad_out[one].clone())
        for grad, single in zip(grads, wanted, strict=True):
            assert same_bits(grad[one], single), f"gradient of row {row}"


LARGE = {
    "vllm #42860": ((149910, 28672), torch.float16),
    "vllm PR #42201": ((524416, 4096), torch.bfloat16),
    "unsloth PR #3614": ((2**21, 1023), torch.bfloat16),
    "Liger #803": ((1_000_000, 4096), torch.bfloat16),
}


@pytest.mark.parametrize("source", LARGE)
@every_exact_call
def test_more_elements_than_an_int32_counts(call, source, cuda):
    shape, dtype = LARGE[source]
    shape = (shape[0], shape[1] // 2 * 2)
    tensors = 5 if call.operator == "act_mul" else 4
    _needs_memory(tensors * math.prod(shape) * dtype.itemsize / 2**30 + 4)
    x = torch.empty(shape, dtype=dtype, device=cuda).normal_()
    assert x.numel() > 2**31 - 2**22
    linear = torch.empty(shape, dtype=dtype, device=cuda).normal_() if call.operator == "act_mul" else None
    _check_large(call, x, linear)


def test_bias_gradient_of_more_elements_than_an_int32_counts(cuda):
    """vllm PR #42201."""
    _needs_memory(24)
    rows, cols = 524416, 4096
    x = torch.empty((rows, cols), dtype=torch.bfloat16, device=cuda).normal_()
    grad_out = torch.empty_like(x).normal_()
    bias = torch.zeros(cols, device=cuda, requires_grad=True)
    gelu_ext.bias_gelu(x, bias).backward(grad_out)
    total, scale = torch.zeros(cols, dtype=torch.float64), torch.zeros(cols, dtype=torch.float64)
    for begin in range(0, rows, 2**15):
        part = slice(begin, begin + 2**15)
        terms = grad_out[part].double() * TRUTHS["gelu"].slope(x[part].double())
        total += terms.sum(0).cpu()
        scale += terms.abs().sum(0).cpu()
    assert_within(bias.grad, Bound(total, 2e-5 * scale))


@pytest.mark.parametrize("shape", [(61681, 34816), (80_000, 65_536)], ids=["vllm #53390", "larger"])
@every_exact_call
def test_rows_of_a_wide_buffer_on_the_gpu(call, shape, cuda):
    _needs_memory(2 * math.prod(shape) / 2**30 + 12)
    buffer = torch.empty(shape, dtype=torch.bfloat16, device=cuda).normal_()
    assert buffer.numel() > 2**31 - 2**22
    _check_large(call, buffer[:, :1024], buffer[:, 2048:3072] if call.operator == "act_mul" else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@every_exact_call
def test_rows_far_apart(call, dtype):
    """vllm #53390 on the CPU: offsets beyond 2^31 elements, in memory that is reserved and hardly touched."""
    rows, stride, cols = 6, 2**29 + 3, 64
    pages = mmap.mmap(
        -1, rows * stride * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    )
    buffer = torch.frombuffer(pages, dtype=dtype).view(rows, stride)
    far = {name: buffer[:, begin : begin + cols] for name, begin in (("x", 5), ("linear", 100), ("grad", 300))}
    for seed, view in enumerate(far.values()):
        view.copy_(randn((rows, cols), dtype, seed=seed))
    assert far["x"].stride(0) * (rows - 1) > 2**31
    grad_out = far["grad"][:, : cols // call.width(1)]
    if call.operator == "act_mul":
        check(call, far["x"], far["linear"], grad_out)
    else:
        check_with_every_bias(call, far["x"], grad_out)


@every_half
@every_exact_call_with_a_bias
def test_bias_gradient_of_thousands_of_rows_of_ones(call, dtype, device):
    """A running sum in bfloat16 sticks at 256, in float16 at 2048."""
    x = torch.ones((9000, call.width(2)), dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    grad_out = (0.5 + torch.rand((9000, 2), generator=generator)).to(device=device, dtype=dtype)
    for bias in call.biases(dtype)[1:]:
        _, _, grad_bias = check(call, x, torch.zeros(x.shape[-1], dtype=bias, device=device), grad_out)
        assert grad_bias.min() > 7000


# --- widths and alignment ---------------------------------------------------------------------------------------------


def check_width(call: Call, width: int, dtype: torch.dtype, device: str, rows: int) -> None:
    """`width` of the output: the halves of a packed tensor are that wide."""
    x = randn((rows, call.width(width)), dtype, device)
    check(call, x, call.other(x, call.biases(dtype)[-1]))


@every_dtype
@pytest.mark.parametrize("width", [5, 6, 7, 9, 12, 23, 46, 4097])
@every_exact_call
def test_rows_or_halves_that_begin_misaligned(call, width, dtype, device):
    """12: TensorRT-LLM PR #19056. 23 and 46: vllm #41257. The others: tokenspeed PR #683."""
    check_width(call, width, dtype, device, rows=7)


@every_dtype
@pytest.mark.parametrize("width", [3072, 4096, 8200, 16392, 46336, 64000, 65537])
@every_exact_call
def test_wide_rows(call, width, dtype, device):
    """3072 and 4096: apex PR #1088. Beyond 8192: sglang #32065. The widest: unsloth #7."""
    check_width(call, width, dtype, device, rows=2)


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("shape", [(1024,), (4, 32)], ids=str)
@every_dtype
@every_exact_call
def test_an_input_that_begins_misaligned(call, shape, offset, dtype, device):
    """In rows that would suit a vector: qkan #26, TensorRT-LLM PR #17987."""
    check_with_every_bias(call, at_offset(randn(shape, dtype, device), offset))


@pytest.mark.parametrize("begin", [1, 2, 3, 5])
@every_dtype
@every_exact_call_with_a_bias
def test_a_bias_that_is_a_slice_of_a_larger_buffer(call, begin, dtype, device):
    """pytorch PR #194497."""
    x = randn((4, 32), dtype, device)
    for kind in call.biases(dtype)[1:]:
        check(call, x, in_buffer(call.other(x, kind), begin, 3))


# --- strides ----------------------------------------------------------------------------------------------------------


@every_dtype
@telling_calls
def test_a_part_split_from_a_fused_projection(call, dtype, device):
    """vllm PR #3324."""
    _, x, _ = randn((2, 5, 3 * 16 + 48 + 6), dtype, device).split([48, 48, 6], -1)
    assert not x.is_contiguous()
    check_with_every_bias(call, x)


@pytest.mark.parametrize("shape", [(2, 500, 128), (3, 2048, 1200)], ids=str)
@every_exact_call
def test_a_permuted_input(call, shape, device):
    """fla #759."""
    small = math.prod(shape) < 10**6
    base = torch.empty((shape[0], shape[2], shape[1]), dtype=torch.float32 if small else torch.bfloat16)
    base = base.normal_(generator=torch.Generator().manual_seed(0)).to(device)
    for x in (base.transpose(1, 2), base.transpose(0, 1).contiguous().permute(1, 2, 0)):
        assert x.shape == shape and not x.is_contiguous()
        other = call.other(x, call.biases(x.dtype)[-1])
        assert same_bits(call(x, other), call(x.contiguous(), other))
    if small:
        check(call, x, other)


@pytest.mark.parametrize("permutation", [(0, 2, 1, 3), (2, 0, 3, 1), (3, 2, 1, 0)], ids=str)
@every_exact_call
def test_a_permuted_gradient(call, permutation, device):
    """flash-attention #355. In every dtype: test_gradients.py::test_layouts_of_the_gradient."""
    x = randn((2, 32, 4, call.width(128)), torch.bfloat16, device)
    shape = tuple((2, 32, 4, 128)[i] for i in permutation)
    grad_out = randn(shape, torch.bfloat16, device, seed=2).permute([permutation.index(i) for i in range(4)])
    assert grad_out.shape == (2, 32, 4, 128) and not grad_out.is_contiguous()
    check(call, x, call.other(x, torch.bfloat16), grad_out)


def test_every_layout_of_the_list_keeps_what_it_says():
    t = randn((2, 3, 5, 26), torch.float32)
    for name, layout in LAYOUTS.items():
        assert layout(t).shape == t.shape
        assert "expanded" in name or torch.equal(layout(t), t)
        assert layout(t).is_contiguous() == (name in ("contiguous",) or layout(t).stride() == t.stride())
