"""torch's own tests of operators, with torch's own samples of gelu, and its promise to be deterministic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference import DTYPES, FORMS, assert_within, leaf, randn, same_bits, slope, telling_calls, value
from torch.library import opcheck

import gelu_ext
from gelu_ext._activations import GELUS


def strided_samples(call, dtype):
    """(x, other): contiguous, transposed, of every second column, of a wider buffer; one, two and three dimensions."""
    width = call.width(4)
    x = randn((3, width), dtype)
    yield x, call.other(x, dtype)
    yield randn((width, 3), dtype).t(), call.other(x, dtype)
    yield randn((3, 2 * width), dtype)[:, ::2], call.other(x, dtype)
    yield randn((2, 3, width + 3), dtype)[..., 1 : width + 1], call.other(randn((2, 3, width), dtype), dtype)
    yield randn((width,), dtype), call.other(randn((width,), dtype), dtype)
    if call.has_bias:
        yield x, None
        yield x, randn((2 * width,), dtype)[::2]
        yield x.bfloat16(), call.other(x, torch.float32)


@telling_calls
def test_opcheck(call):
    forward = getattr(torch.ops.gelu_ext, call.operator).default
    backward = getattr(torch.ops.gelu_ext, f"{call.operator}_backward").default
    # all of opcheck traces each sample; its dynamic and autograd tests are about the operator more than the strides
    for i, (x, other) in enumerate(strided_samples(call, torch.float64)):
        tests = ("test_schema", "test_faketensor", "test_autograd_registration")
        tests += ("test_aot_dispatch_dynamic",) * (i < 2 and call.activation == "none")
        opcheck(forward, call.arguments(leaf(x), leaf(other)), test_utils=tests)
        arguments = call.arguments(x, other)
        grad_out = forward(*arguments)
        has_other = other is not None
        for needs in [(True, has_other), (False, has_other), (True, False)]:
            opcheck(backward, (grad_out, *arguments, call.needs(*needs)), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("form", [form for form in FORMS if form in ("none", "tanh")])
def test_torchs_samples_of_gelu(form, device):
    pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    (info,) = (op for op in op_db if op.name == "nn.functional.gelu")
    seen = 0
    for dtype in DTYPES:
        for sample in info.sample_inputs(device, dtype, requires_grad=True):
            if sample.kwargs.get("approximate", "none") != form:
                continue
            seen += 1
            x = leaf(sample.input)
            out = gelu_ext.bias_gelu(x, None, approximate=form)
            assert out.shape == F.gelu(x).shape and out.dtype == dtype
            eps = 8 * torch.finfo(dtype).eps
            torch.testing.assert_close(out.double().cpu(), value(GELUS[form], x), rtol=eps, atol=eps * 1e-3)
            grad_out = randn(out.shape, dtype, device, seed=2)
            (got,) = torch.autograd.grad(out, x, grad_out)
            truth = grad_out.cpu().double() * slope(GELUS[form], x)
            torch.testing.assert_close(got.double().cpu(), truth, rtol=eps, atol=eps)
    assert seen >= len(DTYPES)
    for error in info.error_inputs(device):
        sample = error.sample_input
        with pytest.raises((ValueError, TypeError, RuntimeError), match="bias_gelu: expected"):
            gelu_ext.bias_gelu(sample.input, None, **sample.kwargs)


@pytest.fixture
def deterministic():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@telling_calls
def test_deterministic_algorithms(call, device, deterministic):
    x = randn((300, call.width(40)), torch.float32, device)
    other = call.other(x, torch.float32)
    results = []
    for _ in range(3):
        leaves = leaf(x), leaf(other)
        out = call(*leaves)
        grad_out = randn(out.shape, out.dtype, device, seed=2)
        results.append((out, *torch.autograd.grad(out, leaves, grad_out)))
    assert_within(results[0][0], call.forward_bound(x, other))
    assert all(same_bits(a, b) for again in results[1:] for a, b in zip(again, results[0], strict=True))
