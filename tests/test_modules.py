"""BiasAct and GLU, BiasGELU and GEGLU are the functions with a parameter."""

from __future__ import annotations

import copy
import functools
import itertools

import pytest
import torch
from reference import ACTIVATIONS, FORMS, HALVES, every_activation, every_form, every_half, randn, same_bits
from torch import nn

import gelu_ext
from gelu_ext import GEGLU, GLU, BiasAct, BiasGELU


def of_silu(module):
    return functools.wraps(module, updated=())(functools.partial(module, activation="silu"))


# Each with an activation of its own, and the function that it is.
MODULES = {
    BiasGELU: gelu_ext.bias_gelu,
    GEGLU: gelu_ext.geglu,
    of_silu(BiasAct): functools.partial(gelu_ext.bias_act, activation="silu"),
    of_silu(GLU): functools.partial(gelu_ext.glu, activation="silu"),
}
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)


@every_module
def test_the_bias_is_the_only_parameter_and_starts_at_zero(module):
    layer = module(12)
    ((name, bias),) = layer.named_parameters()
    assert name == "bias" and isinstance(bias, nn.Parameter) and bias.requires_grad
    assert bias.dtype == torch.float32 and same_bits(bias, torch.zeros(12))
    assert list(layer.state_dict()) == ["bias"] and not list(layer.buffers())


@every_module
def test_without_features_there_is_no_bias(module):
    layer = module()
    assert layer.bias is None and not list(layer.parameters()) and not layer.state_dict()
    x = randn((3, 8), torch.float32)
    assert same_bits(layer(x), MODULES[module](x))


@every_form
def test_bias_gelu_module_is_the_function(form, device):
    layer = BiasGELU(9, approximate=form).to(device)
    layer.bias.data = randn((9,), torch.float32, device, seed=1)
    x, grad_out = randn((2, 4, 9), torch.float32, device), randn((2, 4, 9), torch.float32, device, seed=2)
    out = layer(x)
    assert same_bits(out, gelu_ext.bias_gelu(x, layer.bias, approximate=form))
    out.backward(grad_out)
    bias = layer.bias.detach().clone().requires_grad_()
    gelu_ext.bias_gelu(x, bias, approximate=form).backward(grad_out)
    assert same_bits(layer.bias.grad, bias.grad)


@pytest.mark.parametrize("activated", ["first", "second"])
@every_form
def test_geglu_module_is_the_function(form, activated, device):
    layer = GEGLU(10, approximate=form, activated=activated).to(device)
    layer.bias.data = randn((10,), torch.float32, device, seed=1)
    x, grad_out = randn((2, 4, 10), torch.float32, device), randn((2, 4, 5), torch.float32, device, seed=2)
    out = layer(x)
    assert same_bits(out, gelu_ext.geglu(x, layer.bias, approximate=form, activated=activated))
    out.backward(grad_out)
    bias = layer.bias.detach().clone().requires_grad_()
    gelu_ext.geglu(x, bias, approximate=form, activated=activated).backward(grad_out)
    assert same_bits(layer.bias.grad, bias.grad)


@every_activation
def test_modules_of_any_activation_are_the_functions(activation, device):
    x, bias = randn((2, 4, 10), torch.float32, device), randn((10,), torch.float32, device, seed=1)
    for layer, function, options in (
        (BiasAct(10, activation=activation), gelu_ext.bias_act, {}),
        (GLU(10, activation=activation), gelu_ext.glu, {}),
        (GLU(10, activation=activation, activated="first"), gelu_ext.glu, {"activated": "first"}),
    ):
        layer.to(device).bias.data = bias.clone()
        own = bias.clone().requires_grad_()
        outs = layer(x), function(x, own, activation=activation, **options)
        assert same_bits(*outs)
        grad_out = randn(outs[0].shape, torch.float32, device, seed=2)
        for out in outs:
            out.backward(grad_out)
        assert same_bits(layer.bias.grad, own.grad)
    transposed = randn((3, 4, 5), torch.float32, device).transpose(0, 1)
    assert BiasAct(activation=activation)(transposed).stride() == transposed.stride(), "alone it keeps the order"


def test_the_defaults_are_those_of_the_functions():
    assert BiasGELU(4).approximate == "none"
    assert (GEGLU(4).approximate, GEGLU(4).activated) == ("none", "second")


def test_options_are_keyword_only():
    for module in (BiasGELU, GEGLU, BiasAct, GLU):
        with pytest.raises(TypeError, match="positional argument"):
            module(8, "tanh")


def test_repr_says_what_it_was_made_with():
    assert repr(BiasGELU(8)) == "BiasGELU(features=8, approximate='none')"
    assert repr(BiasGELU(approximate="tanh")) == "BiasGELU(features=None, approximate='tanh')"
    expected = "GEGLU(features=16, approximate='sigmoid', activated='first')"
    assert repr(GEGLU(16, approximate="sigmoid", activated="first")) == expected
    assert repr(BiasAct(8, activation="silu")) == "BiasAct(features=8, activation='silu')"
    assert repr(GLU(activation="silu")) == "GLU(features=None, activation='silu', activated='second')"


@pytest.mark.parametrize("dtype", [torch.float64, *HALVES], ids=str)
@every_module
def test_device_and_dtype_of_the_bias(module, dtype, device):
    layer = module(6, device=device, dtype=dtype)
    assert layer.bias.dtype == dtype and layer.bias.device.type == device
    x = randn((3, 6), dtype, device)
    assert layer(x).dtype == dtype
    assert module(6, device="meta").bias.is_meta


@every_half
@every_module
def test_a_float32_bias_serves_a_16_bit_input(module, dtype, device):
    layer = module(6, device=device)
    x = randn((3, 6), dtype, device)
    out = layer(x)
    out.backward(randn(out.shape, dtype, device, seed=2))
    assert out.dtype == dtype and layer.bias.grad.dtype == torch.float32


@every_module
def test_state_dict_goes_to_another_and_copies_are_apart(module):
    first, second = module(6), module(6)
    first.bias.data = randn((6,), torch.float32, seed=1)
    second.load_state_dict(first.state_dict())
    assert same_bits(first.bias, second.bias)
    copied = copy.deepcopy(first)
    copied.bias.data.zero_()
    assert same_bits(first.bias, second.bias) and copied.extra_repr() == first.extra_repr()


@every_module
def test_a_bad_option_is_refused_at_the_call_in_the_functions_words(module):
    op = getattr(MODULES[module], "func", MODULES[module]).__name__
    layer = module(8)
    option = "approximate" if hasattr(layer, "approximate") else "activation"
    setattr(layer, option, "Tanh")
    with pytest.raises(ValueError, match=f"^{op}: expected {option} to be one of .*, got 'Tanh'$"):
        layer(randn((2, 8), torch.float32))
    with pytest.raises(ValueError, match=rf"^{op}: expected bias of shape \[10\], got \[8\]$"):
        module(8)(randn((2, 10), torch.float32))


def test_a_linear_layer_without_bias_and_the_module_make_one_with_bias(device):
    linear = nn.Linear(7, 12, device=device)
    linear.bias.data = randn((12,), torch.float32, device, seed=1)
    bare = nn.Linear(7, 12, bias=False, device=device)
    bare.weight = linear.weight
    x = randn((5, 7), torch.float32, device)
    for form, activated in itertools.product(FORMS, ("first", "second")):
        layer = GEGLU(12, approximate=form, activated=activated).to(device)
        layer.bias = linear.bias
        expected = gelu_ext.geglu(linear(x), approximate=form, activated=activated)
        torch.testing.assert_close(nn.Sequential(bare, layer)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("module", [BiasGELU, GEGLU, BiasAct, GLU])
@pytest.mark.parametrize("name", ["erf", ["tanh"], None], ids=repr)
def test_an_unknown_name_is_refused_at_construction(module, name):
    option, known = ("approximate", FORMS) if module in (BiasGELU, GEGLU) else ("activation", ACTIVATIONS)
    with pytest.raises(ValueError) as caught:
        module(8, **{option: name})
    names = ", ".join(f"'{known_name}'" for known_name in known)
    assert str(caught.value) == f"{module.__name__}: expected {option} to be one of {names}, got {name!r}"
