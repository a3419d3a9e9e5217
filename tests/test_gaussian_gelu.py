"""gaussian_gelu: z Phi((z - mu) / sigma), as exact as GELU in the tails, and GELU to the bit for mu 0 and sigma 1."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from reference import (
    DTYPES,
    LAYOUTS,
    SLOPE_BAR,
    VALUE_BAR,
    every_dtype,
    leaf,
    randn,
    same_bits,
    ulp,
    ulp_error,
)
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap
from torch.library import opcheck

import gelu_ext


def parameters(cols: int, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """A mean and a deviation of each column, of x's dtype."""
    mu = randn((cols,), torch.float64, seed=11)
    sigma = randn((cols,), torch.float64, seed=12).abs() + 0.2
    return mu.to(device, dtype), sigma.to(device, dtype)


def truth(z: Tensor, mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, slope, and the derivatives by mu and sigma, in float64."""
    z, mu, sigma = (t.detach().cpu().double() for t in (z, mu, sigma))
    y = (z - mu) / sigma
    phi, density = 0.5 * torch.erfc(-y * math.sqrt(0.5)), torch.exp(-0.5 * y * y) / math.sqrt(2 * math.pi)
    by_mu = -z / sigma * density
    return z * phi, phi - by_mu, by_mu, by_mu * y


def function(x: Tensor, mu: Tensor, sigma: Tensor, bias: Tensor | None = None) -> Tensor:
    return gelu_ext.gaussian_gelu(x, mu, sigma, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_value_and_slope_are_as_exact_as_gelus(dtype, instruction_set):
    """Over the bulk and both tails, of any mean and deviation, also where z is near 0 and y is not."""
    y = torch.linspace(-13, 13, 4001, dtype=torch.float64)
    mu, sigma = parameters(24, dtype)
    x = (y[:, None] * sigma.double() + mu.double()).to(dtype)
    x = leaf(torch.cat([x, (1e-3 * randn((64, 24), torch.float64)).to(dtype)]))
    value, slope, by_mu, _ = truth(x, mu, sigma)
    out = gelu_ext.gaussian_gelu(x, mu, sigma)
    # What is subnormal in the dtype has fewer digits, and y's own rounding counts y^2 times in 16 bits.
    allowed = VALUE_BAR[dtype] + {torch.float16: 0.1, torch.bfloat16: 0.02, torch.float32: 1.0}[dtype]
    assert ulp_error(out, value).max() <= allowed
    grad_out = randn(out.shape, dtype, seed=2)
    (grad_x,) = torch.autograd.grad(out, x, grad_out)
    g = grad_out.double()
    # The slope is a sum, in which a far mean and a small deviation make its terms as large as they like.
    slope, terms = g * slope, g.abs() * ((slope + by_mu).abs() + by_mu.abs())
    allowed = 0.5 * ulp(slope, dtype) * (dtype.itemsize == 2) + SLOPE_BAR[torch.float32] * ulp(terms, torch.float32)
    assert ((grad_x.double() - slope).abs() <= allowed + 4e-5 * terms * (dtype.itemsize == 2)).all()


def test_float64(device):
    mu, sigma = (t.to(device) for t in parameters(24, torch.float64))
    x = leaf(randn((300, 24), torch.float64, device) * 4)
    value, slope, by_mu, by_sigma = truth(x, mu, sigma)
    mu, sigma = leaf(mu), leaf(sigma)
    out = gelu_ext.gaussian_gelu(x, mu, sigma)
    torch.testing.assert_close(out.cpu(), value, rtol=1e-12, atol=1e-300)
    grad_out = randn(out.shape, torch.float64, device, seed=2)
    g = grad_out.cpu()
    expected = (g * slope, (g * by_mu).sum(0), (g * by_sigma).sum(0))
    for got, want in zip(torch.autograd.grad(out, (x, mu, sigma), grad_out), expected, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-11, atol=1e-13)


@every_dtype
def test_standard_parameters_give_gelu_to_the_bit(dtype, device):
    """Value and slope, also at zeros, infinities and in both tails. (A bias's gradient is another order of a sum.)"""
    special = [0.0, -0.0, 1e-30, -1e-30, math.inf, -math.inf, 14.9, -14.9, -15.0, 40.0, -40.0, 5e4, -5e4]
    rows = [randn((257, 13), dtype), 3 * randn((40, 13), dtype), torch.tensor([special] * 2).to(dtype)]
    x = torch.cat(rows).to(device)
    for kind in (None, dtype, torch.float32):
        bias = None if kind is None else leaf(randn((13,), kind, device, seed=1))
        x = leaf(x)
        grad_out = randn(x.shape, dtype, device, seed=2)
        outs = gelu_ext.gaussian_gelu(x, 0.0, 1, bias), gelu_ext.bias_gelu(x, bias)
        results = [(out, *torch.autograd.grad(out, x, grad_out)) for out in outs]
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_standard_parameters_give_gelu_on_every_instruction_set(instruction_set):
    for dtype in DTYPES:
        x, grad_out = leaf(4 * randn((33, 91), dtype)), randn((33, 91), dtype, seed=2)
        results = [(out, *torch.autograd.grad(out, x, grad_out)) for out in (function(x, 0, 1), gelu_ext.bias_gelu(x))]
        assert all(same_bits(a, b) for a, b in zip(*results, strict=True)), dtype


@every_dtype
@pytest.mark.parametrize("rows, cols", [(1, 1), (7, 33), (300, 130), (70, 4100)])
def test_the_gradients_of_the_parameters(rows, cols, dtype, device):
    x, bias = leaf(randn((rows, cols), dtype, device)), leaf(randn((cols,), dtype, device, seed=1))
    mu, sigma = (leaf(t) for t in parameters(cols, dtype, device))
    out = gelu_ext.gaussian_gelu(x, mu, sigma, bias)
    grad_out = randn(out.shape, dtype, device, seed=2)
    grads = torch.autograd.grad(out, (x, mu, sigma, bias), grad_out)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    z = x.detach().to(wide) + bias.detach().to(wide)
    _, slope, by_mu, by_sigma = truth(z, mu, sigma)
    g = grad_out.double().cpu()
    for got, terms in zip(grads[1:], (g * by_mu, g * by_sigma, g * slope), strict=True):
        assert got.dtype == dtype
        allowed = (0.501 if dtype.itemsize == 2 else 1.5) * ulp(terms.sum(0), dtype) + 2e-5 * terms.abs().sum(0)
        assert ((got.double().cpu() - terms.sum(0)).abs() <= allowed).all()
    for i, t in enumerate((x, mu, sigma, bias)):  # one alone
        again = gelu_ext.gaussian_gelu(x, mu, sigma, bias)
        assert same_bits(torch.autograd.grad(again, t, grad_out)[0], grads[i])


@every_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dtype, device):
    x = LAYOUTS[layout](randn((2, 3, 5, 26), dtype, device))
    mu, sigma = parameters(26, dtype, device)
    grad_out = randn(x.shape, dtype, device, seed=2)
    results = []
    for t in (x, x.contiguous()):
        tensors = leaf(t), leaf(mu), leaf(sigma)
        out = gelu_ext.gaussian_gelu(*tensors)
        results.append((out, *torch.autograd.grad(out, tensors, grad_out)))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


def test_numbers_scalars_and_vectors_are_the_same(device):
    x = leaf(randn((6, 5), torch.float32, device))
    full = [torch.full((5,), number, device=device) for number in (0.25, 1.5)]
    expected = gelu_ext.gaussian_gelu(x, *full)
    for shape in ((), (1,), (5,)):
        mu, sigma = (leaf(torch.full(shape, number, device=device)) for number in (0.25, 1.5))
        out = gelu_ext.gaussian_gelu(x, mu, sigma)
        assert same_bits(out, expected)
        grads = torch.autograd.grad(out.sum(), (mu, sigma))
        assert [grad.shape for grad in grads] == [shape, shape]
    assert same_bits(gelu_ext.gaussian_gelu(x, 0.25, 1.5), expected)
    half = x.detach().bfloat16()
    assert same_bits(gelu_ext.gaussian_gelu(half, 0.25, 1.5), gelu_ext.gaussian_gelu(half, *full))  # float32 beside it


def test_infinities_and_nan(device):
    x = torch.tensor([[math.inf, -math.inf, math.nan, 1e38, -1e38, 0.0]], device=device)
    for mu, sigma in ((0.5, 2.0), (-3.0, 1e-3), (1e3, 10.0)):
        leaves = leaf(x), *(leaf(torch.full((6,), number, device=device)) for number in (mu, sigma))
        out = gelu_ext.gaussian_gelu(*leaves)
        assert out[0, 0] == math.inf and out[0, 1] == 0 and out[0, 2].isnan() and out[0, 3] == 1e38 and out[0, 4] == 0
        grad_out = randn(out.shape, torch.float32, device, seed=2)
        grad_x, grad_mu, grad_sigma = torch.autograd.grad(out, leaves, grad_out)
        kept = torch.tensor([1.0, 0.0, 1.0, 0.0], device=device)
        assert torch.equal(grad_x[0, [0, 1, 3, 4]], kept * grad_out[0, [0, 1, 3, 4]]) and grad_x[0, 2].isnan()
        for gradient in (grad_mu, grad_sigma):
            assert (gradient[[0, 1, 3, 4]] == 0).all() and gradient[2].isnan() and gradient[5].isfinite()


def test_every_derivative():
    x, bias = leaf(randn((3, 4), torch.float64)), leaf(randn((4,), torch.float64, seed=1))
    mu, sigma = (leaf(t) for t in parameters(4, torch.float64))
    assert gradcheck(function, (x, mu, sigma, bias), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, (x, mu, sigma, bias))
    assert gradcheck(function, (x, leaf(mu[0]), leaf(sigma[:1])), check_forward_ad=True)


def test_no_nan_in_the_derivatives_of_the_composite():
    """Where transforms take over: far out, and for the second derivative too."""
    x = leaf(torch.tensor([[1e30, -1e30, 40.0, -40.0, 3.0, math.inf, -math.inf]], dtype=torch.float32))
    mu, sigma = leaf(torch.tensor([0.5])), leaf(torch.tensor([0.7]))
    out = gelu_ext.gaussian_gelu(x, mu, sigma)
    first = torch.autograd.grad(out, (x, mu, sigma), randn(out.shape, torch.float32, seed=2), create_graph=True)
    assert all(t.isfinite().all() for t in first)
    second = torch.autograd.grad(sum(t.sum() for t in first), (x, mu, sigma))
    assert all(t.isfinite().all() for t in second)


def test_transforms_and_compiled():
    x, (mu, sigma) = randn((5, 3, 8), torch.float64), parameters(8, torch.float64)
    torch.testing.assert_close(vmap(function, (0, None, None))(x, mu, sigma), function(x, mu, sigma))
    leaves = leaf(x), leaf(mu), leaf(sigma)
    expected = torch.autograd.grad(function(*leaves).sin().sum(), leaves)
    got = grad(lambda *t: function(*t).sin().sum(), (0, 1, 2))(x, mu, sigma)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    out = compiled(*leaves)
    assert same_bits(out, function(*leaves))
    for a, b in zip(torch.autograd.grad(out.sin().sum(), leaves), expected, strict=True):
        assert same_bits(a, b)
    assert function(*(t.to("meta") for t in (x, mu, sigma))).shape == x.shape
    traced = torch.jit.trace(function, (x, mu, sigma), check_trace=False)
    assert same_bits(traced(x, mu, sigma), function(x, mu, sigma))


def test_opcheck():
    x, bias, (mu, sigma) = (
        randn((3, 4), torch.float64),
        randn((4,), torch.float64, seed=1),
        parameters(4, torch.float64),
    )
    for arguments in ((x, mu, sigma, bias), (x, mu, sigma, None), (x[0], mu, sigma, bias)):
        tracked = [leaf(t) for t in arguments]
        opcheck(torch.ops.gelu_ext.gaussian_gelu.default, tuple(tracked))
        needs = [True, True, False, arguments[3] is not None]
        opcheck(
            torch.ops.gelu_ext.gaussian_gelu_backward.default,
            (randn(arguments[0].shape, torch.float64, seed=2), *arguments, needs),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_it_keeps_its_input_and_the_vectors_alone():
    x, (mu, sigma) = leaf(randn((64, 256), torch.bfloat16)), parameters(256, torch.float32)
    kept = gelu_ext.memory.saved_bytes(lambda: gelu_ext.gaussian_gelu(x, leaf(mu), leaf(sigma)))
    assert kept <= x.nbytes + mu.nbytes + sigma.nbytes


FLOATS = "float64, float32, float16 or bfloat16"
BAD = [
    ((0.0, 0.0), ValueError, "sigma above 0, got 0"),
    ((0.0, -1.5), ValueError, "sigma above 0, got -1.5"),
    ((0.0, math.nan), ValueError, "sigma above 0, got nan"),
    ((torch.zeros(4), torch.tensor([1.0, 2.0, -3.0, 1.0])), ValueError, "sigma above 0, got -3"),
    ((torch.zeros(3), 1.0), ValueError, "mu of shape [4], got [3]"),
    ((0.0, torch.ones(2, 4)), ValueError, "sigma of shape [4], got [2, 4]"),
    ((torch.zeros(4, dtype=torch.float64), 1.0), TypeError, "mu of the dtype of x, float32, got float64"),
    ((0.0, torch.ones(4, dtype=torch.int64)), TypeError, f"sigma of dtype {FLOATS}, got int64"),
    ((None, 1.0), TypeError, "mu to be a number or a Tensor, got NoneType"),
    ((0.0, "1"), TypeError, "sigma to be a number or a Tensor, got str"),
    ((True, 1.0), TypeError, "mu to be a number or a Tensor, got bool"),
    ((torch.zeros(4, device="meta"), 1.0), RuntimeError, "mu on device cpu, got meta"),
]


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("arguments, error, words", BAD, ids=[words for _, _, words in BAD])
def test_bad_parameters_are_refused_in_a_sentence(arguments, error, words, tracked):
    x = leaf(randn((3, 4), torch.float32), tracked)
    with pytest.raises(error) as caught:
        gelu_ext.gaussian_gelu(x, *arguments)
    assert str(caught.value) == f"gaussian_gelu: expected {words}"
    with pytest.raises(ValueError) as caught:
        gelu_ext.gaussian_gelu(x, 0.0, 1.0, torch.zeros(3))
    assert str(caught.value) == "gaussian_gelu: expected bias of shape [4], got [3]"
    with pytest.raises(TypeError) as caught:
        gelu_ext.gaussian_gelu([1.0], 0.0, 1.0)
    assert str(caught.value) == "gaussian_gelu: expected x to be a Tensor, got list"


# --- the module -------------------------------------------------------------------------------------------------------


def test_a_new_module_is_gelu():
    for count in (1, 8):
        module = gelu_ext.GaussianGELU(count)
        x = leaf(randn((5, 8), torch.float32))
        assert same_bits(module(x), gelu_ext.bias_gelu(x))
        assert repr(module) == f"GaussianGELU(num_parameters={count})"
        assert list(module.state_dict()) == ["mu", "log_sigma"]
        assert same_bits(pickle.loads(pickle.dumps(module))(x), copy.deepcopy(module)(x))
        called = functional_call(module, {"mu": torch.ones(count), "log_sigma": torch.zeros(count)}, (x,))
        assert same_bits(called, gelu_ext.gaussian_gelu(x, torch.ones(count), 1.0))
    for wrong in (0, -1, 1.0, True, None):
        with pytest.raises(ValueError) as caught:
            gelu_ext.GaussianGELU(wrong)
        assert str(caught.value) == f"GaussianGELU: expected num_parameters to be an int above 0, got {wrong!r}"


@pytest.mark.parametrize("count", [1, 32])
def test_training_moves_mean_and_deviation(count, one_thread_one_seed):
    model = nn.Sequential(nn.Linear(4, 32), gelu_ext.GaussianGELU(count), nn.Linear(32, 1))
    x = torch.randn(256, 4)
    target = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (model(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all((parameter.abs() > 1e-3).any() for parameter in (model[1].mu, model[1].log_sigma))


def test_a_module_of_16_bits():
    module = gelu_ext.GaussianGELU(8).bfloat16()
    x = leaf(randn((5, 8), torch.bfloat16))
    assert same_bits(module(x), gelu_ext.bias_gelu(x))
    module(x).sum().backward()
    assert module.mu.grad.dtype == torch.bfloat16 and module.log_sigma.grad.isfinite().all()
