"""Inputs that have broken comparable projects. The number in a test's name is the case's place in that collection.

Each runs forward and backward, packed and with two tensors, in every dtype where the dtype does not matter to the case.
What only a GPU can show takes the fixture `cuda`. After the cases: the special values.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from reference import (
    CALLS,
    DTYPES,
    EXACT_CALLS,
    FORM_NAMES,
    HALVES,
    LAYOUTS,
    Bound,
    Call,
    assert_within,
    at_offset,
    check,
    in_buffer,
    leaf,
    randn,
    same_bits,
    slope,
    value,
)
from torch import Tensor, nn

import gelu_ext


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_call = pytest.mark.parametrize("call", CALLS, ids=str)
every_exact_call = pytest.mark.parametrize("call", EXACT_CALLS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=_name)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=_name)
every_form = pytest.mark.parametrize("form", FORM_NAMES)


def check_with_every_bias(call: Call, x: Tensor, grad_out: Tensor | None = None) -> None:
    for bias in call.biases(x.dtype):
        check(call, x, call.other(x, bias), grad_out)


def check_width(call: Call, width: int, dtype: torch.dtype, device: str, rows: int = 3) -> None:
    """`width` of the output: the halves of a packed tensor are that wide."""
    x = randn((rows, call.width(width)), dtype, device)
    check(call, x, call.other(x, call.biases(dtype)[-1]))


# ------------------------------------------------------------------------------------------------------- 1 to 8: sizes


@every_dtype
@every_call
def test_01_no_rows(call, dtype, device):
    check_with_every_bias(call, randn((0, 2 * 64), dtype, device))
    check_with_every_bias(call, randn((4, 2 * 64), dtype, device))  # and the next call is right


@every_dtype
@every_call
def test_02_last_dimension_of_zero(call, dtype, device):
    for shape in ((4, 0), (2, 3, 0), (0, 0)):
        check_with_every_bias(call, randn(shape, dtype, device))


@every_dtype
@every_call
def test_03_backward_of_an_empty_vector(call, dtype, device):
    x = leaf(randn((0,), dtype, device))
    call(x, call.other(x, dtype)).sum().backward()
    assert x.grad.shape == (0,)


def _needs_memory(gib: float) -> None:
    free = torch.cuda.mem_get_info()[0] / 2**30
    if free < gib:
        pytest.skip(f"needs {gib} GiB of GPU memory, {free:.0f} are free")


def _sampled_rows(rows: int, stride: int) -> list[int]:
    """The ends, and where an offset crosses 2^31 and 2^32 elements and bytes."""
    crossings = {limit // stride + step for limit in (2**30, 2**31, 2**32) for step in (-1, 0, 1)}
    return sorted(row for row in {0, 1, rows // 2, rows - 2, rows - 1} | crossings if 0 <= row < rows)


def _check_large(call: Call, x: Tensor, linear: Tensor | None = None) -> None:
    """Sampled rows of a large problem have the bits of the same rows alone. `x` and `linear` have two dimensions."""
    out_cols = x.shape[-1] // 2 if call.op == "geglu" else x.shape[-1]
    grad_out = torch.empty((x.shape[0], out_cols), dtype=x.dtype, device=x.device).normal_()
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
    "04": ((149910, 28672), torch.float16),
    "06": ((524416, 4096), torch.bfloat16),
    "07": ((2**21, 1023), torch.bfloat16),
    "08": ((1_000_000, 4096), torch.bfloat16),
}


@pytest.mark.parametrize("case", LARGE)
@every_exact_call
def test_04_06_07_08_more_elements_than_an_int32_counts(call, case, cuda):
    shape, dtype = LARGE[case]
    if call.op == "geglu":
        shape = (shape[0], shape[1] // 2 * 2)
    tensors = 5 if call.op == "gelu_mul" else 4
    _needs_memory(tensors * math.prod(shape) * dtype.itemsize / 2**30 + 4)
    x = torch.empty(shape, dtype=dtype, device=cuda).normal_()
    assert x.numel() > 2**31 - 2**22
    linear = torch.empty(shape, dtype=dtype, device=cuda).normal_() if call.op == "gelu_mul" else None
    _check_large(call, x, linear)


def test_06_bias_gradient_of_more_elements_than_an_int32_counts(cuda):
    _needs_memory(24)
    rows, cols = 524416, 4096
    x = torch.empty((rows, cols), dtype=torch.bfloat16, device=cuda).normal_()
    grad_out = torch.empty_like(x).normal_()
    bias = torch.zeros(cols, device=cuda, requires_grad=True)
    gelu_ext.bias_gelu(x, bias).backward(grad_out)
    total, scale = torch.zeros(cols, dtype=torch.float64), torch.zeros(cols, dtype=torch.float64)
    for begin in range(0, rows, 2**15):
        part = slice(begin, begin + 2**15)
        z = x[part].double()
        terms = grad_out[part].double() * (
            0.5 * torch.erfc(-z * math.sqrt(0.5)) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        )
        total += terms.sum(0).cpu()
        scale += terms.abs().sum(0).cpu()
    assert_within(bias.grad, Bound(total, 2e-5 * scale))


@pytest.mark.parametrize("case", ["05", "large"])
@every_exact_call
def test_05_rows_of_a_wide_buffer_on_the_gpu(call, case, cuda):
    rows, stride = {"05": (61681, 34816), "large": (80_000, 65_536)}[case]
    _needs_memory(2 * rows * stride / 2**30 + 12)
    buffer = torch.empty((rows, stride), dtype=torch.bfloat16, device=cuda).normal_()
    assert buffer.numel() > 2**31 - 2**22
    _check_large(call, buffer[:, :1024], buffer[:, 2048:3072] if call.op == "gelu_mul" else None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=_name)
@every_exact_call
def test_05_rows_far_apart(call, dtype):
    """Offsets beyond 2^31 elements, in memory that is reserved and hardly touched."""
    rows, stride, cols = 6, 2**29 + 3, 64
    pages = mmap.mmap(
        -1, rows * stride * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    )
    buffer = torch.frombuffer(pages, dtype=dtype).view(rows, stride)
    far = {name: buffer[:, begin : begin + cols] for name, begin in (("x", 5), ("linear", 100), ("grad", 300))}
    for seed, view in enumerate(far.values()):
        view.copy_(randn((rows, cols), dtype, seed=seed))
    assert far["x"].stride(0) * (rows - 1) > 2**31
    grad_out = far["grad"][:, : cols // 2] if call.op == "geglu" else far["grad"]
    if call.op == "gelu_mul":
        check(call, far["x"], far["linear"], grad_out)
    else:
        check_with_every_bias(call, far["x"], grad_out)


# ------------------------------------------------------------------------------------- 9 to 19: widths and alignment


@every_dtype
@pytest.mark.parametrize("width", [3420, 1710])
@every_exact_call
def test_09_halves_that_begin_misaligned(call, width, dtype, device):
    check_width(call, width, dtype, device)


@every_dtype
@every_exact_call
def test_10_width_1234(call, dtype, device):
    check_width(call, 1234, dtype, device)


@every_dtype
@every_exact_call
def test_11_packed_width_24(call, dtype, device):
    check_width(call, 12, dtype, device, rows=7)


@every_dtype
@every_exact_call
def test_12_width_46(call, dtype, device):
    check_width(call, 46, dtype, device, rows=7)
    check_width(call, 23, dtype, device, rows=7)


@every_dtype
@every_exact_call
def test_13_a_slice_that_begins_at_an_odd_element(call, dtype, device):
    whole = randn((1026,), dtype, device)
    x = whole[1:1025]
    assert x.storage_offset() == 1
    check_with_every_bias(call, x)


@pytest.mark.parametrize("offset", [1, 2, 3])
@every_dtype
@every_exact_call
def test_14_storage_offset(call, offset, dtype, device):
    x = at_offset(randn((4, 32), dtype, device), offset)
    check_with_every_bias(call, x)


@every_dtype
@pytest.mark.parametrize("width", [5, 6, 7, 9, 4097])
@every_exact_call
def test_15_every_row_but_the_first_is_misaligned(call, width, dtype, device):
    check_width(call, width, dtype, device, rows=5)


@pytest.mark.parametrize("begin", [1, 2, 3, 5])
@every_dtype
@pytest.mark.parametrize("call", [call for call in EXACT_CALLS if call.has_bias], ids=str)
def test_16_bias_is_a_slice_of_a_larger_buffer(call, begin, dtype, device):
    x = randn((4, 32), dtype, device)
    for kind in call.biases(dtype)[1:]:
        buffer = torch.full((48,), math.nan, dtype=kind, device=device)
        bias = buffer[begin : begin + 32].copy_(call.other(x, kind))
        check(call, x, bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=_name)
@pytest.mark.parametrize("width", [8200, 16392])
@every_exact_call
def test_17_hidden_beyond_8192(call, width, dtype, device):
    check_width(call, width, dtype, device, rows=2)


@every_dtype
@pytest.mark.parametrize("width", [3072, 4096])
@every_exact_call
def test_18_widths_of_common_models(call, width, dtype, device):
    check_width(call, width, dtype, device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=_name)
@pytest.mark.parametrize("width", [46336, 64000, 65537])
@every_exact_call
def test_19_very_wide(call, width, dtype, device):
    check_width(call, width, dtype, device, rows=2)


# -------------------------------------------------------------------------------------------------- 20 to 24: strides


@every_dtype
@every_call
def test_20_a_part_split_from_a_fused_projection(call, dtype, device):
    fused = randn((2, 5, 3 * 16 + 48 + 6), dtype, device)
    _, x, _ = fused.split([48, 48, 6], -1)
    assert not x.is_contiguous()
    check_with_every_bias(call, x)


@pytest.mark.parametrize("shape", [(2, 500, 128), (3, 2048, 1200)], ids=str)
@every_exact_call
def test_21_not_contiguous(call, shape, device):
    small = math.prod(shape) < 10**6
    base = torch.empty((shape[0], shape[2], shape[1]), dtype=torch.float32 if small else torch.bfloat16)
    base = base.normal_(generator=torch.Generator().manual_seed(0)).to(device)
    for x in (base.transpose(1, 2), base.transpose(0, 1).contiguous().permute(1, 2, 0)):
        assert x.shape == shape and not x.is_contiguous()
        other = call.other(x, call.biases(x.dtype)[-1])
        assert same_bits(call(x, other), call(x.contiguous(), other))
    if small:
        check(call, x, other)


def _arrives(call: Call, x: Tensor, consumer: Callable[[Tensor], Tensor], stride: tuple[int, ...]) -> None:
    """The gradient that comes from `consumer` has these strides, and is understood."""
    other = call.other(x, x.dtype)
    x_leaf, other_leaf, arrived = leaf(x), leaf(other), []
    out = call(x_leaf, other_leaf)
    out.register_hook(arrived.append)
    consumer(out).backward()
    assert arrived[0].stride() == stride
    for got, bound in zip((x_leaf.grad, other_leaf.grad), call.backward_bounds(arrived[0], x, other), strict=True):
        assert_within(got, bound)


@every_dtype
@every_call
def test_22_gradient_of_strides_zero_from_sum(call, dtype, device):
    _arrives(call, randn((5, call.width(7)), dtype, device), lambda out: out.sum() * -1.375, (0, 0))


@every_dtype
@every_call
def test_23_gradient_is_a_narrow_view_from_cat(call, dtype, device):
    w, left = randn((5, 12), dtype, device, seed=3), randn((5, 5), dtype, device, seed=4)
    x = randn((5, call.width(7)), dtype, device)
    _arrives(call, x, lambda out: (torch.cat([left, out], -1) * w).sum(), (12, 1))


@every_dtype
@every_call
def test_24_gradient_not_contiguous_in_four_dimensions(call, dtype, device):
    w = randn((2, 32, 4, 16), dtype, device, seed=3)
    x = randn((2, 4, 32, call.width(16)), dtype, device)
    _arrives(call, x, lambda out: (out.transpose(1, 2) * w).sum(), (2048, 16, 64, 1))


@pytest.mark.parametrize("permutation", [(0, 2, 1, 3), (2, 0, 3, 1), (3, 2, 1, 0)], ids=str)
@every_exact_call
def test_24_gradient_of_shape_2_32_4_128_in_any_order(call, permutation, device):
    x = randn((2, 32, 4, call.width(128)), torch.bfloat16, device)
    shape = [(2, 32, 4, 128)[i] for i in permutation]
    back = [permutation.index(i) for i in range(4)]
    grad_out = randn(tuple(shape), torch.bfloat16, device, seed=2).permute(back)
    assert grad_out.shape == (2, 32, 4, 128) and not grad_out.is_contiguous()
    check(call, x, call.other(x, torch.bfloat16), grad_out)


# ----------------------------------------------------------------------------------------------- 25 to 37: values of x


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


@every_dtype
@every_form
def test_25_plus_infinity(form, dtype, device):
    _check_values(form, [math.inf, 1.0, 2.0], dtype, device)
    x = leaf(torch.full((100,), math.inf, dtype=dtype, device=device))
    out = gelu_ext.bias_gelu(x, approximate=form)
    (grad_x,) = torch.autograd.grad(out, x, torch.full_like(x, 0.375))
    assert (out == math.inf).all() and (grad_x == 0.375).all()


@every_dtype
@every_form
def test_26_near_the_largest_number(form, dtype, device):
    largest = torch.finfo(dtype).max
    numbers = _fits([largest, 3e38, 1e38, 6.5e4, 1e4], dtype)
    _check_values(form, numbers, dtype, device)
    x = torch.tensor(numbers, dtype=dtype, device=device)
    assert same_bits(gelu_ext.bias_gelu(x, approximate=form), x), "gelu(x) is x for a large x"


@every_dtype
@every_form
def test_27_huge_of_either_sign(form, dtype, device):
    _check_values(form, _fits([2e19, -2e19, 3e38, -3e38, 1e10, -1e10, 6e4, -6e4], dtype), dtype, device)


@every_dtype
@every_form
def test_28_from_10_to_16(form, dtype, device):
    _check_values(form, [10.5 + i / 4 for i in range(21)] + [-10.5 - i / 4 for i in range(21)], dtype, device)


@every_dtype
@every_call
def test_29_gates_of_11_15_and_40(call, dtype, device):
    for gate in (11.0, 15.0, 40.0):
        linear = randn((3, 2112), dtype, device, seed=1)
        gates = torch.full((3, 2112), gate, dtype=dtype, device=device)
        if call.op == "gelu_mul":
            out, *_ = check(call, gates, linear)
            assert same_bits(out, Call("geglu", call.form, "first")(torch.cat([gates, linear], -1)))
        elif call.op == "geglu":
            packed = torch.cat([gates, linear] if call.activated == "first" else [linear, gates], -1)
            check(call, packed, None)
        else:
            check(call, gates, None)


@every_dtype
@every_form
def test_30_minus_13_24(form, dtype, device):
    _check_values(form, [-13.24, -13.0, -13.5, -14.0], dtype, device)


@every_dtype
@every_form
def test_31_19_8_and_21_657723(form, dtype, device):
    _check_values(form, [19.8, 21.657723, -19.8, -21.657723], dtype, device)


@every_dtype
@every_form
def test_32_gradient_at_200_and_256(form, dtype, device):
    _check_values(form, [200.0, 256.0, -200.0, -256.0], dtype, device)


@every_dtype
@every_form
def test_33_the_negative_tail(form, dtype, device):
    numbers = [-4, -5, -5.375, -5.5, -6, -8, -10, -13.5]
    _check_values(form, numbers, dtype, device)
    x = torch.tensor(numbers, dtype=dtype, device=device)
    out = gelu_ext.bias_gelu(x, approximate=form).cpu()
    smallest = max(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps, 1e-37)
    assert (out[value(form, x) < -smallest] < 0).all(), "zero before its time"


@every_dtype
@every_form
def test_34_sign_of_the_gradient_near_minus_3_7(form, dtype, device):
    numbers = [-3.5 - i / 32 for i in range(13)]
    _check_values(form, numbers, dtype, device)
    x = leaf(torch.tensor(numbers, dtype=dtype, device=device))
    (grad_x,) = torch.autograd.grad(gelu_ext.bias_gelu(x, approximate=form), x, torch.full_like(x, 0.75))
    assert (grad_x < 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=_name)
@every_form
def test_35_a_tiny_x_gives_half_of_it(form, dtype, device):
    numbers = [1e-30, -1e-30, 1e-38, -1e-38, 2e-37, -2e-37]
    _check_values(form, numbers, dtype, device)
    x = torch.tensor([2e-37, -3e-35, 1e-30, -1e-20], dtype=dtype, device=device)
    assert same_bits(gelu_ext.bias_gelu(x, approximate=form), x / 2)
    bits = torch.tensor([0xB4AB - 2**16], dtype=torch.int16).view(torch.bfloat16).to(dtype).to(device)
    assert abs(bits.item() + 3.185e-7) < 1e-10
    _check_values(form, [bits.item()], dtype, device)
    if dtype is torch.bfloat16:
        assert same_bits(gelu_ext.bias_gelu(bits, approximate=form), bits / 2)


@every_dtype
def test_36_exact_and_tanh_differ_most_at_2_7(dtype, device):
    for form in ("none", "tanh"):
        _check_values(form, [2.7, -2.7], dtype, device)
    x = torch.tensor([-2.7], dtype=dtype, device=device)
    exact, tanh = (gelu_ext.bias_gelu(x, approximate=form).double().item() for form in ("none", "tanh"))
    assert 3e-4 < abs(exact - tanh) < 6e-4
    true_exact, true_tanh = (value(form, x).item() for form in ("none", "tanh"))
    assert abs(exact - true_exact) < abs(exact - true_tanh), "the exact form is the exact one"


@every_dtype
def test_37_exact_and_sigmoid_differ_most_at_minus_2_27(dtype, device):
    for form in ("none", "sigmoid"):
        _check_values(form, [-2.27, 2.27], dtype, device)
    x = torch.tensor([-2.27], dtype=dtype, device=device)
    exact, quick = (gelu_ext.bias_gelu(x, approximate=form).double().item() for form in ("none", "sigmoid"))
    assert abs(abs(exact - quick) - 2.0e-2) < 1e-3


# ----------------------------------------------------------------------------------- 38 and 50: slow elsewhere, 39, 40


@pytest.mark.parametrize("x", [-5.0, -13.0, -40.0, 0.0, -1e-40], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=_name)
@every_call
def test_38_50_the_same_input_everywhere(call, dtype, x, device):
    """All negative, deep in the tail, zero, subnormal. What they cost: bench/bench.py --values random,-13,0,-1e-40"""
    check_with_every_bias(call, torch.full((64, call.width(96)), x, device=device).to(dtype))


def test_39_a_float16_product_overflows_where_the_true_product_does(device):
    a = torch.tensor([256.0, 256.0, 256.0, 257.5, 300.0, 65504.0, 65504.0, 40.0], device=device).half()
    b = torch.tensor([255.875, 256.0, 255.9, 257.25, -300.0, 1.0, 1.001, 1638.0], device=device).half()
    expected = (a.double() * b.double()).half()  # gelu(x) is x here
    assert expected.isinf().tolist() == [False, True, False, True, True, False, True, True]
    for form in FORM_NAMES:
        assert same_bits(gelu_ext.gelu_mul(a, b, approximate=form), expected)
        assert same_bits(gelu_ext.geglu(torch.stack([b, a], -1), approximate=form).squeeze(-1), expected)
        x = leaf(a)
        (grad_x,) = torch.autograd.grad(gelu_ext.gelu_mul(x, b, approximate=form), x, a)
        assert same_bits(grad_x, expected)
    assert gelu_ext.gelu_mul(*(torch.tensor([257.375]).half() for _ in range(2))).isinf(), "66242"


@every_half
@pytest.mark.parametrize("call", [call for call in EXACT_CALLS if call.has_bias], ids=str)
def test_40_bias_gradient_of_thousands_of_rows_of_ones(call, dtype, device):
    x = torch.ones((9000, call.width(2)), dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    grad_out = (0.5 + torch.rand((9000, 2), generator=generator)).to(device=device, dtype=dtype)
    for bias in call.biases(dtype)[1:]:
        _, _, grad_bias = check(call, x, torch.zeros(x.shape[-1], dtype=bias, device=device), grad_out)
        assert grad_bias.min() > 7000, "a running sum in 16 bits sticks at 256 or 2048"


# -------------------------------------------------------------------------------------------- 41 to 49: torch around it


class Block(nn.Module):
    def __init__(self, call: Call, device: str) -> None:
        super().__init__()
        self.call = call
        self.fc = nn.Linear(16, call.width(24), bias=False, device=device)
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, call.width(24), device=device)) if call.has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.call(h, self.bias if self.call.has_bias else h.detach().flip(-1))


@every_half
@every_call
def test_41_float32_parameters_under_autocast(call, dtype, device):
    block = Block(call, device)
    x = randn((5, 16), torch.float32, device)
    with torch.autocast(device, dtype):
        h = block.fc(x)
        out = block(x)
    assert h.dtype == dtype and out.dtype == dtype, "it runs in its input's dtype, as F.gelu does"
    other = block.bias if call.has_bias else h.detach().flip(-1)
    assert_within(out, call.forward_bound(h, other))
    out.backward(randn(out.shape, dtype, device, seed=2))
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in block.parameters())


@every_call
def test_42_backward_under_bfloat16_autocast_does_not_run_in_float16(call, device):
    block = Block(call, device)
    x = randn((5, 16), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        out = block(x)
    grad_out = randn(out.shape, torch.bfloat16, device, seed=2) * 1e6
    out.backward(grad_out)
    grads = [p.grad for p in block.parameters()]
    assert all(grad.isfinite().all() for grad in grads) and max(grad.abs().max() for grad in grads) > 65504
    if call.has_bias:
        h = F.linear(x.bfloat16(), block.fc.weight.bfloat16())
        assert_within(block.bias.grad, call.backward_bounds(grad_out, h, block.bias)[1])


@pytest.mark.parametrize(
    "producer", [torch.exp, lambda x: torch.softmax(x, -1), torch.sigmoid], ids=["exp", "softmax", "sigmoid"]
)
@every_call
def test_43_a_producer_that_saves_its_output(call, producer, device):
    x = randn((4, call.width(6)), torch.float64, device) / 2
    x_leaf = leaf(x)
    y = producer(x_leaf)
    other, grad_out = call.other(y.detach(), torch.float64), randn((4, 6), torch.float64, device, seed=2)
    kept = y.detach().clone()
    call(y, other).backward(grad_out)
    assert same_bits(y, kept)
    true_grad_y = call.backward_bounds(grad_out, kept, other)[0].truth.to(device)
    x_again = leaf(x)
    producer(x_again).backward(true_grad_y)
    torch.testing.assert_close(x_leaf.grad, x_again.grad, rtol=1e-11, atol=1e-13)


@every_dtype
@every_call
def test_44_second_backward_over_a_retained_graph(call, dtype, device):
    x, grad_out = randn((4, call.width(9)), dtype, device), randn((4, 9), dtype, device, seed=2)
    leaves = leaf(x), leaf(call.other(x, dtype))
    out = call(*leaves)
    out.backward(grad_out, retain_graph=True)
    first = [t.grad.clone() for t in leaves]
    for t in leaves:
        t.grad = None
    out.backward(grad_out)
    assert all(same_bits(t.grad, grad) for t, grad in zip(leaves, first, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        out.backward(grad_out)


@every_exact_call
def test_45_a_tensor_on_a_device_that_is_not_the_current_one(call, cuda):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    assert torch.cuda.current_device() == 0
    check_with_every_bias(call, randn((33, call.width(65)), torch.bfloat16, "cuda:1"))
    assert torch.cuda.current_device() == 0


@every_call
def test_46_float16_on_the_cpu(call):
    check_with_every_bias(call, randn((5, call.width(33)), torch.float16, "cpu"))


@pytest.mark.parametrize(
    "op",
    [gelu_ext.bias_gelu, gelu_ext.geglu, lambda x, **kw: gelu_ext.gelu_mul(x, x, **kw)],
    ids=["bias_gelu", "geglu", "gelu_mul"],
)
def test_47_what_must_raise(op, device):
    """The words are in test_errors.py."""
    for dtype in (torch.int64, torch.int32, torch.bool, torch.complex64):
        with pytest.raises(TypeError, match="float64, float32, float16 or bfloat16, got"):
            op(torch.zeros((2, 4), dtype=dtype, device=device))
    with pytest.raises(ValueError, match="got 'Tanh'"):
        op(torch.zeros((2, 4), device=device), approximate="Tanh")
    with pytest.raises(ValueError, match="even width"):
        gelu_ext.geglu(torch.zeros((2, 5), device=device))


@every_dtype
@pytest.mark.parametrize("activated", ["first", "second"])
@every_form
def test_48_packed_bias_belongs_to_both_halves_and_may_be_none(form, activated, dtype, device):
    call = Call("geglu", form, activated)
    x = torch.zeros((3, 10), dtype=dtype, device=device)
    bias = torch.tensor([1.0, -2.0, 3.0, -0.5, 0.25, 2.0, 1.5, -1.0, 0.75, 4.0], dtype=dtype, device=device)
    out, *_ = check(call, x, bias)
    assert same_bits(out, call(bias.expand(3, 10), None))
    check(call, randn((3, 10), dtype, device), None)


@every_dtype
@pytest.mark.parametrize("shape", [(16,), (2, 3, 4, 16), (2, 1, 3, 1, 16)], ids=str)
@every_call
def test_49_one_dimension_and_four(call, shape, dtype, device):
    check_with_every_bias(call, randn(shape, dtype, device))


@every_dtype
@every_call
def test_50_many_rows_of_zeros(call, dtype, device):
    x = randn((64, call.width(40)), dtype, device)
    x[3:] = 0
    out, *_ = check(call, x, None if call.has_bias else call.other(x, dtype))
    assert (out[3:] == 0).all()


# ------------------------------------------------------------------------------------------- the properties of a GPU


@every_call
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


@every_call
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


# ------------------------------------------------------------------------------------------------ the special values

NAN = math.nan
SPECIAL = [  # x, value, slope
    (NAN, NAN, NAN),
    (math.inf, math.inf, 1.0),
    (-math.inf, -0.0, 0.0),
    (0.0, 0.0, 0.5),
    (-0.0, -0.0, 0.5),
    (-1e4, -0.0, 0.0),
    (1e4, 1e4, 1.0),
    (-500.0, -0.0, 0.0),
]


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
@every_form
def test_a_finite_input_never_gives_nan(form, dtype, device):
    x = leaf(_magnitudes(dtype).to(device))
    linear = leaf(torch.full_like(x, 0.5))
    grad_out = torch.full_like(x, -0.75)
    outs = gelu_ext.bias_gelu(x, approximate=form), gelu_ext.gelu_mul(x, linear, approximate=form)
    grads = [grad for out in outs for grad in torch.autograd.grad(out, (x, linear), grad_out, allow_unused=True)]
    assert all(t.isfinite().all() for t in (*outs, *grads) if t is not None)
    large = leaf(torch.full_like(x, torch.finfo(dtype).max))  # a product may overflow, and not be NaN
    out = gelu_ext.gelu_mul(x, large, approximate=form)
    grads = torch.autograd.grad(out, (x, large), grad_out)
    assert not any(t.isnan().any() for t in (out, *grads))


@every_dtype
@every_form
def test_a_finite_input_never_gives_nan_where_the_backward_is_differentiable(form, dtype, device):
    """There the gradient comes from torch's own operations; it is the same gradient."""
    x = leaf(_magnitudes(dtype).to(device))
    grad_out = torch.full_like(x, -0.75)
    (fused,) = torch.autograd.grad(gelu_ext.bias_gelu(x, approximate=form), x, grad_out)
    (composite,) = torch.autograd.grad(gelu_ext.bias_gelu(x, approximate=form), x, grad_out, create_graph=True)
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
    x = torch.tensor([*_far(dtype), -math.inf], dtype=dtype, device=device)
    large = torch.full_like(x, torch.finfo(dtype).max)
    assert same_bits(gelu_ext.bias_gelu(x, approximate=form), torch.zeros_like(x).neg())
    assert (gelu_ext.gelu_mul(x, large, approximate=form) == 0).all()
    assert (gelu_ext.geglu(torch.stack([large, x], -1), approximate=form) == 0).all()
    x_leaf, linear = leaf(x), leaf(large)
    grads = torch.autograd.grad(gelu_ext.gelu_mul(x_leaf, linear, approximate=form), (x_leaf, linear), large / 4)
    assert (grads[1] == 0).all()
    (grad_x,) = torch.autograd.grad(gelu_ext.bias_gelu(x_leaf, approximate=form), x_leaf, large)
    assert (grad_x == 0).all()


def test_minus_ten_thousand_times_the_largest_number_is_zero(device):
    for form in FORM_NAMES:
        x = torch.full((100,), -1e4, device=device)
        assert (gelu_ext.gelu_mul(x, torch.full_like(x, 3e38), approximate=form) == 0).all()
        assert (gelu_ext.bias_gelu(torch.full_like(x, -math.inf), approximate=form) == 0).all()


@every_form
def test_the_tail_ends_in_correctly_rounded_subnormals(form):
    """Not in zeros, and not in a constant. On the CPU: a GPU may flush them."""
    x = -torch.linspace(10.0, 15.0 if form == "none" else 70.0, 5000)
    out = gelu_ext.bias_gelu(x, approximate=form)
    truth = value(form, x)
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
        spoilt = x.clone()
        spoilt[2, 3] = bad
        out = call(spoilt, other)
        kept = torch.ones_like(out, dtype=torch.bool)
        kept[2, 3] = False
        assert same_bits(out[kept], clean[kept])
        x_leaf = leaf(spoilt)
        (grad_x,) = torch.autograd.grad(call(x_leaf, other), x_leaf, grad_out)
        columns = [3, 3 + 33] if call.op == "geglu" else [3]
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
    torch.testing.assert_close(grad_x.cpu().double(), 0.5 * slope(form, x), rtol=1e-7, atol=0)
    torch.testing.assert_close(out.detach().cpu().double(), value(form, x), rtol=1e-6, atol=0)


def test_every_layout_of_the_list_keeps_what_it_says():
    t = randn((2, 3, 5, 26), torch.float32)
    for name, layout in LAYOUTS.items():
        assert layout(t).shape == t.shape
        assert "expanded" in name or torch.equal(layout(t), t)
        assert layout(t).is_contiguous() == (name in ("contiguous",) or layout(t).stride() == t.stride())
