"""Whole graphs: torch.compile, torch.export and AOTInductor keep the operators as single nodes, and the same values."""

from __future__ import annotations

import io
import re

import pytest
import torch
from reference import Call, assert_within, leaf, randn, same_bits, telling_calls
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

import gelu_ext

ONE_OF_EACH = [Call("bias_gelu", "none"), Call("geglu", "tanh", "first"), Call("gelu_mul", "sigmoid")]
one_of_each = pytest.mark.parametrize("call", ONE_OF_EACH, ids=str)

BAD = {
    "bias shape": lambda x: gelu_ext.bias_gelu(x, x[0, :3]),
    "bias dtype": lambda x: gelu_ext.bias_gelu(x, x[0].to(torch.float16)),
    "form": lambda x: gelu_ext.bias_gelu(x, approximate="Tanh"),
    "half": lambda x: gelu_ext.geglu(x, activated="third"),
    "odd width": lambda x: gelu_ext.geglu(x[:, :5]),
    "shapes that differ": lambda x: gelu_ext.gelu_mul(x, x[:, :3]),
    "integers": lambda x: gelu_ext.gelu_mul(x.int(), x.int()),
}


@pytest.fixture(autouse=True)
def forget_compiled_code():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(call: Call, compiled, rows: int, dtype: torch.dtype, other_dtype: torch.dtype | None) -> None:
    x = randn((rows, call.width(8)), dtype, seed=rows)
    other = call.other(x, other_dtype)
    x_leaf, other_leaf = leaf(x), leaf(other)
    out = compiled(x_leaf, other_leaf)
    assert_within(out, call.forward_bound(x, other), f"{call} compiled")
    grad_out = randn(out.shape, dtype, seed=2)
    leaves = [t for t in (x_leaf, other_leaf) if t is not None]
    grads = torch.autograd.grad(out, leaves, grad_out)
    for got, bound, wrt in zip(grads, call.backward_bounds(grad_out, x, other), leaves, strict=False):
        assert_within(got, bound, f"{call} compiled, gradient")
        assert got.dtype == wrt.dtype
    with torch.no_grad():
        assert same_bits(compiled(x, other), out.detach())


@telling_calls
def test_forward_and_backward(call):
    for other_dtype in call.biases(torch.bfloat16):
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, other: call(x, other), fullgraph=True, backend="aot_eager")
        check_compiled(call, compiled, 5, torch.bfloat16, other_dtype)
    x, other = leaf(randn((5, call.width(8)), torch.float64)), randn((call.width(8),), torch.float64)
    if call.has_bias:  # either operand alone
        for operands in [(x, other), (x.detach(), leaf(other))]:
            wanted = [t for t in operands if t.requires_grad]
            got, expected = (torch.autograd.grad(f(*operands).sin().sum(), wanted) for f in (compiled, call))
            assert same_bits(*got, *expected)


@one_of_each
def test_a_new_batch_size_compiles_nothing(call):
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, other: call(x, other), fullgraph=True, backend=counter)
    x = randn((3, call.width(8)), torch.float32)
    other = call.other(x, torch.float32)
    x, other = leaf(x), leaf(other)
    torch._dynamo.mark_dynamic(x, 0)
    if not call.has_bias:
        torch._dynamo.mark_dynamic(other, 0)
    compiled(x, other).sum().backward()
    for rows in (5, 2, 64):
        x = randn((rows, call.width(8)), torch.float32)
        other = call.other(x, torch.float32)
        x_leaf, other_leaf = leaf(x), leaf(other)
        out = compiled(x_leaf, other_leaf)
        assert_within(out, call.forward_bound(x, other))
        got = torch.autograd.grad(out.sin().sum(), (x_leaf, other_leaf))
        expected = torch.autograd.grad(call(x_leaf, other_leaf).sin().sum(), (x_leaf, other_leaf))
        assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
    assert counter.frame_count == 1
    automatic = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, other: call(x, other), fullgraph=True, backend=automatic)
    for rows in (3, 5, 2, 64):
        check_compiled(call, compiled, rows, torch.float32, torch.float32)
    assert automatic.frame_count <= 4, "at most one static and one dynamic graph, each with and without gradients"


@one_of_each
def test_a_graph_has_one_node_for_each_direction(call):
    graphs = []

    def keep(module, inputs):
        graphs.append([n.target for n in module.graph.nodes if isinstance(n.target, torch._ops.OpOverload)])
        return module

    compiled = torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    x = randn((4, call.width(8)), torch.float32)
    leaves = leaf(x), leaf(call.other(x, torch.float32))
    out = compiled(*leaves)
    out.backward(randn(out.shape, out.dtype, seed=2))
    ours = [[t.name() for t in graph if t.namespace == "gelu_ext"] for graph in graphs]
    assert ours == [[f"gelu_ext::{call.operator}"], [f"gelu_ext::{call.operator}_backward"]]


class Stack(nn.Module):
    """All three functions among torch's own."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 16, bias=False)
        self.act = gelu_ext.BiasGELU(16)
        self.gate = gelu_ext.GEGLU(16, approximate="tanh")
        for bias in (self.act.bias, self.gate.bias):
            nn.init.normal_(bias)

    def forward(self, x):
        h = self.gate(self.act(self.linear(x)))
        return gelu_ext.gelu_mul(h, h.cos(), approximate="sigmoid") * 2


def stack() -> Stack:
    torch.manual_seed(0)
    return Stack().double()


def test_inductor_trains_a_model():
    eager = stack()
    compiled = torch.compile(eager, fullgraph=True, dynamic=True)
    for rows in (3, 7):
        x = randn((rows, 8), torch.float64, seed=rows)
        results = []
        for model in (eager, compiled):
            out = model(x)
            results.append((out, *torch.autograd.grad(out.sin().sum(), list(eager.parameters()))))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("what", BAD)
def test_bad_input_raises_the_same_sentence(what, dynamic):
    x = randn((4, 8), torch.float32)
    with pytest.raises((ValueError, TypeError)) as eager:
        BAD[what](x)
    compiled = torch.compile(BAD[what], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    # as torch wraps it while tracing, or as it is where only the run can know; in the name of the registered operator
    function, _, words = str(eager.value).partition(": ")
    operator = {"bias_gelu": "bias_act", "geglu": "glu", "gelu_mul": "act_mul"}[function]
    with pytest.raises(Exception, match=f"({function}|{operator}): {re.escape(words)}"):
        compiled(x)


def test_compiled_transforms():
    x, bias = randn((5, 4), torch.float64), randn((4,), torch.float64, seed=1)

    def per_sample(x):
        return vmap(grad(lambda row: gelu_ext.bias_gelu(row, bias).sin().sum()))(x)

    def tangent(x):
        return jvp(lambda x: gelu_ext.geglu(x, bias, approximate="tanh"), (x,), (x.cos(),))[1]

    for function in (per_sample, tangent):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), function(x), rtol=1e-12, atol=1e-12)


def test_double_backward_of_a_compiled_graph_is_an_error_and_not_wrong():
    x = leaf(randn((3, 4), torch.float64))
    out = torch.compile(gelu_ext.bias_gelu, fullgraph=True, backend="aot_eager")(x)
    (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        torch.autograd.grad(g.sum(), x)


# --- export -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported():
    model = stack()
    rows = torch.export.Dim("rows", min=2)
    return model, torch.export.export(model, (randn((3, 8), torch.float64),), dynamic_shapes={"x": {0: rows}})


def operators(program) -> list[str]:
    nodes = (n.target for n in program.graph.nodes if n.op == "call_function")
    return [t.name() for t in nodes if getattr(t, "namespace", "") == "gelu_ext"]


def test_export_with_a_dynamic_batch(exported):
    model, program = exported
    names = ["gelu_ext::bias_act", "gelu_ext::glu", "gelu_ext::act_mul"]
    assert operators(program) == names == operators(program.run_decompositions({}))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file)
    for rows in (2, 3, 11):
        x = randn((rows, 8), torch.float64, seed=rows)
        for one in (program, program.run_decompositions(), loaded):
            assert same_bits(one.module()(x), model(x))
    # what was exported can be trained
    parameters = list((module := program.module()).parameters())
    got = torch.autograd.grad(module(x).sin().sum(), parameters)
    expected = torch.autograd.grad(model(x).sin().sum(), list(model.parameters()))
    assert len(got) == 3 and all(same_bits(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.slow
def test_ahead_of_time_compiled_package(exported, tmp_path):
    model, program = exported
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "stack.pt2"))
    package = torch._inductor.aoti_load_package(path)
    for rows in (2, 3, 11):
        x = randn((rows, 8), torch.float64, seed=rows)
        with torch.no_grad():
            torch.testing.assert_close(package(x), model(x), rtol=1e-12, atol=1e-12)
