"""The operations for any activation: the same bits as GELU's own functions, and act_mul with biases."""

from __future__ import annotations

import pytest
import torch
from reference import ACTIVATIONS, every_activation, every_dtype, every_form, leaf, randn, same_bits, slope, value
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp, vmap

import gelu_ext
from gelu_ext._activations import GELUS, OTHERS
from gelu_ext._operations import OPERATIONS


def all_grads(out, *tensors):
    return torch.autograd.grad(out, [t for t in tensors if t is not None], randn(out.shape, out.dtype, seed=9))


@every_dtype
@every_form
def test_gelus_functions_are_these_with_gelu(form, dtype, device):
    x, bias, linear = (randn(s, dtype, device, seed=i) for i, s in enumerate([(3, 10), (10,), (3, 10)]))
    pairs = [
        (gelu_ext.bias_gelu(x, bias, approximate=form), gelu_ext.bias_act(x, bias, activation=GELUS[form])),
        (gelu_ext.geglu(x, bias, approximate=form), gelu_ext.glu(x, bias, activation=GELUS[form])),
        (gelu_ext.gelu_mul(x, linear, approximate=form), gelu_ext.act_mul(x, linear, activation=GELUS[form])),
    ]
    for ours, general in pairs:
        assert same_bits(ours, general)


@every_dtype
@every_activation
@pytest.mark.parametrize("which", ["both", "activated", "linear"])
def test_the_biases_of_two_tensors_are_those_of_a_packed_one(which, activation, dtype, device):
    """To the bit, forward and backward, where glu has the same numbers side by side."""
    kind = torch.float32 if dtype is torch.bfloat16 else dtype  # a float32 bias beside 16 bits too
    a, b = (randn((7, 33), dtype, device, seed=i) for i in (1, 2))
    zero = torch.full((33,), -0.0, dtype=kind, device=device)
    ba = leaf(randn((33,), kind, device, seed=3)) if which != "linear" else None
    bl = leaf(randn((33,), kind, device, seed=4)) if which != "activated" else None
    a, b = leaf(a), leaf(b)
    out = gelu_ext.act_mul(a, b, ba, bl, activation=activation)
    packed = leaf(torch.cat([a.detach(), b.detach()], -1))
    bias = leaf(torch.cat([zero if t is None else t.detach() for t in (ba, bl)]))
    expected = gelu_ext.glu(packed, bias, activation=activation, activated="first")
    assert same_bits(out, expected)
    grads, (grad_packed, grad_bias) = all_grads(out, a, b, ba, bl), all_grads(expected, packed, bias)
    for got, part in zip(grads, grad_packed.chunk(2, -1), strict=False):
        assert same_bits(got, part.contiguous())
    halves = [half for half, t in zip(grad_bias.chunk(2), (ba, bl), strict=True) if t is not None]
    assert all(same_bits(got, half.contiguous()) for got, half in zip(grads[2:], halves, strict=True))
    for t in (a, b, *filter(lambda t: t is not None, (ba, bl))):  # one gradient alone
        again = gelu_ext.act_mul(a, b, ba, bl, activation=activation)
        index = [id(u) for u in (a, b, ba, bl) if u is not None].index(id(t))
        assert same_bits(*torch.autograd.grad(again, t, randn(out.shape, dtype, device, seed=9)), grads[index])


@every_activation
def test_act_mul_with_biases_can_be_differentiated_in_every_way(activation):
    tensors = tuple(leaf(randn(s, torch.float64, seed=i)) for i, s in enumerate([(3, 4), (3, 4), (4,), (4,)]))

    def function(*tensors):
        return gelu_ext.act_mul(*tensors, activation=activation)

    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tensors)
    tangents = tuple(randn(t.shape, torch.float64, seed=7) for t in tensors)
    plain = tuple(t.detach() for t in tensors)
    epsilon = 1e-6
    moved = function(*(t + epsilon * d for t, d in zip(plain, tangents, strict=True)))
    torch.testing.assert_close(
        jvp(function, plain, tangents)[1], (moved - function(*plain)) / epsilon, rtol=1e-4, atol=1e-4
    )
    torch.compiler.reset()  # or it stops compiling after a few activations
    batched = vmap(function, (0, 0, None, None))(plain[0][None], plain[1][None], *plain[2:])
    torch.testing.assert_close(batched[0], function(*plain))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(*tensors), function(*tensors))
    assert all(
        same_bits(a, b)
        for a, b in zip(all_grads(compiled(*tensors), *tensors), all_grads(function(*tensors), *tensors), strict=True)
    )


@pytest.mark.parametrize("op", [name for name, op in OPERATIONS.items() if "activation" in op.names])
def test_an_unknown_activation_is_refused_with_the_list(op):
    x = randn((3, 4), torch.float32)
    call = getattr(gelu_ext, op)
    operands = (x, x) if op == "act_mul" else (x,)
    known = ", ".join(f"'{name}'" for name in ACTIVATIONS)
    for wrong in ("Gelu", "none", "", "hardswish"):
        with pytest.raises(ValueError) as caught:
            call(*operands, activation=wrong)
        assert str(caught.value) == f"{op}: expected activation to be one of {known}, got '{wrong}'"
    for wrong, kind in ((None, "NoneType"), (3, "int"), (["gelu"], "list")):
        with pytest.raises(TypeError) as caught:
            call(*operands, activation=wrong)
        assert str(caught.value) == f"{op}: expected activation to be a string, got {kind}"
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'activation'"):
        call(*operands)


@pytest.mark.parametrize("name", ["activated_bias", "linear_bias"])
def test_a_bad_bias_of_act_mul_is_refused_by_name(name):
    x = randn((3, 4), torch.float32)
    for bias, error, words in (
        (randn((3,), torch.float32), ValueError, f"expected {name} of shape [4], got [3]"),
        (randn((4,), torch.float64), TypeError, f"expected {name} of the dtype of activated, float32, got float64"),
        ([1.0] * 4, TypeError, f"expected {name} to be a Tensor, got list"),
    ):
        with pytest.raises(error) as caught:
            gelu_ext.act_mul(x, x, activation="gelu", **{name: bias})
        assert str(caught.value) == f"act_mul: {words}"


def test_the_table_of_activations_prints_formula_and_source():
    table = gelu_ext.activations()
    assert list(table) == ACTIVATIONS
    lines = str(table).splitlines()
    assert len(lines) == len(table)
    for line, (name, row) in zip(lines, table.items(), strict=True):
        assert line.startswith(name) and row.formula in line and row.source in line and row.name == name


@every_activation
def test_torchs_own_spelling_is_the_same_function(activation):
    """What benchmarks compare with. Loose: torch's own forms lose digits in the tail."""
    row = gelu_ext.activations()[activation]
    x = randn((1000,), torch.float64)
    torch.testing.assert_close(row.eager(x), row.composite(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(row.composite(x), gelu_ext.bias_act(x, activation=activation), rtol=1e-12, atol=1e-14)


@every_activation
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_composite_is_right_down_to_where_the_tail_vanishes(activation, dtype):
    """Its limits are where the tail has vanished: smaller ones would cut it off. Its slope does not cancel there."""
    x = torch.linspace(-800, 20, 8201, dtype=dtype)
    smallest = 1000 * torch.finfo(dtype).tiny  # a gate underflows while the product does not yet
    relative = 1e-4 if dtype == torch.float32 else 1e-10
    x.requires_grad_()
    out = gelu_ext.activations()[activation].composite(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    for found, truth in ((out.detach(), value(activation, x)), (grad, slope(activation, x))):
        found, is_normal = found.double(), truth.abs() > smallest
        assert is_normal.sum() >= 200
        torch.testing.assert_close(found[is_normal], truth[is_normal], rtol=relative, atol=0)
        assert (found[~is_normal].abs() <= smallest).all()


def test_no_two_activations_have_one_label():
    labels = [row.label for row in gelu_ext.activations().values()] + list(OTHERS)
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("op", ["bias_gelu", "geglu", "gelu_mul"])
def test_the_operators_of_the_first_release_are_still_there(op):
    """For graphs that were exported with them: they are the general ones."""
    x, second = randn((3, 4), torch.float32), randn((3, 4) if op == "gelu_mul" else (4,), torch.float32, seed=1)
    names = ("tanh", "first") if op == "geglu" else ("tanh",)
    options = {"approximate": "tanh"} | ({"activated": "first"} if op == "geglu" else {})
    assert same_bits(getattr(torch.ops.gelu_ext, op)(x, second, *names), getattr(gelu_ext, op)(x, second, **options))
    a, b = leaf(x), leaf(second)
    grads = all_grads(getattr(torch.ops.gelu_ext, op)(a, b, *names), a, b)
    assert all(map(same_bits, grads, all_grads(getattr(gelu_ext, op)(a, b, **options), a, b)))
