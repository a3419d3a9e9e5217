"""Tensors that are more or less than tensors, modes that watch, what takes programs apart: all see the operators."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from reference import Call, leaf, randn, same_bits, telling_calls
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import gelu_ext

ONE_OF_EACH = [Call("bias_gelu", "none"), Call("geglu", "tanh", "second"), Call("gelu_mul", "sigmoid")]
one_of_each = pytest.mark.parametrize("call", ONE_OF_EACH, ids=str)


def operands(call: Call, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
    x = randn((3, call.width(4)), dtype, device)
    return leaf(x), leaf(call.other(x, dtype))


def forward_backward(call, x: Tensor, other: Tensor) -> tuple[Tensor, ...]:
    out = call(x, other)
    return out, *torch.autograd.grad(out.sin().sum(), (x, other))


# --- tensors without data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fake", "meta"])
@telling_calls
def test_tensors_without_data(call, kind):
    for dtype in (torch.float32, torch.bfloat16):
        real = operands(call, dtype)
        results = forward_backward(call, *real)
        if kind == "fake":
            mode = FakeTensorMode()
            inputs = [mode.from_tensor(t) for t in real]
            with mode:
                without = forward_backward(call, *inputs)
        else:
            inputs = [leaf(t.detach().to("meta")) for t in real]
            without = forward_backward(call, *inputs)
        for a, b in zip(without, results, strict=True):
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            assert a.device.type == ("meta" if kind == "meta" else b.device.type)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_fake_and_meta_tensors_raise_the_same_sentence(device):
    sentence = "bias_gelu: expected bias of shape [4], got [3]"
    with FakeTensorMode():
        x, bias = torch.empty(2, 4, device=device), torch.empty(3, device=device)
        with pytest.raises(ValueError, match=re.escape(sentence)):
            gelu_ext.bias_gelu(x, bias)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.eye(4).to_sparse(),
        lambda: torch.eye(4).to_sparse_csr(),
    ],
    ids=["sparse", "csr"],
)
@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse invariant")
def test_what_is_no_dense_tensor_is_refused(make):
    with pytest.raises((TypeError, NotImplementedError), match=r"bias_(gelu|act)"):
        gelu_ext.bias_gelu(make())


# --- modes ------------------------------------------------------------------------------------------------------------


class Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@telling_calls
def test_a_dispatch_mode_sees_the_operators(call):
    expected = forward_backward(call, *operands(call))
    with Log() as log:
        got = forward_backward(call, *operands(call))
    ours = [name for name in log.names if name.startswith("gelu_ext")]
    assert ours == [f"gelu_ext::{call.operator}", f"gelu_ext::{call.operator}_backward"]
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@one_of_each
def test_flops_of_the_matrices_are_counted_as_without(call):
    x, other = operands(call)
    with FlopCounterMode(display=False) as flops:
        h = call(x, other)
        (h @ h.t()).sum().backward()
    n, m = h.shape
    assert flops.get_total_flops() == 3 * 2 * n * n * m


@one_of_each
def test_a_function_mode_sees_the_functions(call):
    seen = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x, other = operands(call)
    with Watch():
        out = call(x, other)
    assert getattr(gelu_ext, call.op) in seen and same_bits(out, call(x, other))
    with torch.device("meta"):  # a function mode too
        assert same_bits(call(x, other), out)


# --- subclasses -------------------------------------------------------------------------------------------------------


class Named(Tensor):
    """A subclass by __torch_function__ as torch has it: what comes out is of the subclass."""


class Logging(Tensor):
    """Takes every call itself."""

    calls: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls.append((func, kwargs))
        return super().__torch_function__(func, types, args, kwargs or {})


@telling_calls
def test_subclasses_by_torch_function(call):
    x, other = (t.detach() for t in operands(call))
    expected = call(x, other)
    for a, b in [(x.as_subclass(Named), other), (x, other.as_subclass(Named))]:
        out = call(a, b)
        assert type(out) is Named and same_bits(out.as_subclass(Tensor), expected)
    assert type(F.gelu(x.as_subclass(Named))) is Named
    Logging.calls.clear()
    call(x.as_subclass(Logging), other)
    assert Logging.calls == [(getattr(gelu_ext, call.op), call.options)]
    tracked = leaf(x).as_subclass(Named)
    (got,) = torch.autograd.grad(call(tracked, other).sin().sum(), tracked)
    plain = leaf(x)
    assert same_bits(got.as_subclass(Tensor), torch.autograd.grad(call(plain, other).sin().sum(), plain)[0])


class Wrapper(Tensor):
    """A wrapper by __torch_dispatch__: holds a tensor, and sees what reaches the dispatcher."""

    calls: list = []  # noqa: RUF012

    @staticmethod
    def __new__(cls, inner):
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        cls.calls.append(func.name())
        unwrapped = tree_map_only(cls, lambda t: t.inner, (args, kwargs or {}))
        return tree_map_only(Tensor, cls, func(*unwrapped[0], **unwrapped[1]))


@telling_calls
def test_subclasses_by_torch_dispatch(call):
    x, other = operands(call)
    Wrapper.calls.clear()
    got = forward_backward(call, *(Wrapper(t.detach()).requires_grad_() for t in (x, other)))
    assert f"gelu_ext::{call.operator}" in Wrapper.calls and f"gelu_ext::{call.operator}_backward" in Wrapper.calls
    for a, b in zip(got, forward_backward(call, x, other), strict=True):
        assert type(a) is Wrapper and same_bits(a.inner, b)
    with torch.no_grad():
        assert type(call(Wrapper(x.detach()), Wrapper(other.detach()))) is Wrapper


@one_of_each
def test_parameters(call):
    x, other = (nn.Parameter(t.detach()) for t in operands(call))
    call(x, other).sin().sum().backward()
    expected = forward_backward(call, *operands(call))[1:]
    assert same_bits(x.grad, expected[0]) and same_bits(other.grad, expected[1])


# --- what takes programs apart ----------------------------------------------------------------------------------------


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = gelu_ext.BiasGELU(8, approximate="tanh")
        self.second = gelu_ext.GEGLU(8, activated="first")
        nn.init.normal_(self.first.bias)

    def forward(self, x):
        h = self.second(self.first(x))
        return gelu_ext.gelu_mul(h, h.cos(), approximate="sigmoid")


def test_symbolic_traces_of_modules():
    model, x = Small(), randn((3, 8), torch.float32)
    traced = torch.fx.symbolic_trace(model)
    targets = [n.target for n in traced.graph.nodes if n.op == "call_function"]
    assert {gelu_ext.bias_gelu, gelu_ext.geglu, gelu_ext.gelu_mul} <= set(targets)
    for copied in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert same_bits(copied(x), model(x))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@one_of_each
def test_make_fx_of_a_backward(call, mode):
    x, other = operands(call, torch.float64)
    graph = make_fx(lambda *a: forward_backward(call, *a), tracing_mode=mode)(x, other)
    names = [n.target.name() for n in graph.graph.nodes if n.op == "call_function" and hasattr(n.target, "name")]
    assert {f"gelu_ext::{call.operator}", f"gelu_ext::{call.operator}_backward"} < set(names)
    if mode == "symbolic":  # also for another batch
        x = leaf(randn((5, x.shape[1]), torch.float64))
        other = leaf(call.other(x, torch.float64))
    for a, b in zip(graph(x.detach(), other.detach()), forward_backward(call, x, other), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_of_modules(make):
    model, x = Small(), randn((3, 8), torch.float32)
    copied = make(model)
    assert same_bits(copied(x), model(x)) and copied.first.bias is not model.first.bias


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace_without_gradients():
    model, x = Small(), randn((3, 8), torch.float32)
    with torch.no_grad():
        traced = torch.jit.trace(model, x)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    x = leaf(randn((5, 8), torch.float32, seed=3))
    for one in (traced, loaded):
        assert same_bits(one(x), model(x))
        assert same_bits(*(torch.autograd.grad(f(x).sin().sum(), x)[0] for f in (one, model)))
