"""A patched block does what its forward would do, whatever changes afterwards; patch() itself changes nothing else.

By kind: who watches or replaces from elsewhere, what a forward reads beside its tensors, what it does beside computing,
methods that outlive the patch, models that patch() cannot understand, memory, and what other tools see.
"""

from __future__ import annotations

import contextlib
import copy
import enum
import functools
import gc
import io
import math
import os
import pickle
import random
import types
import weakref
from typing import ClassVar
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from families import declare_torchvision_operators
from torch import nn
from torch.utils.checkpoint import checkpoint

import gelu_ext
from gelu_ext.memory import saved_bytes
from gelu_ext.patch import patch, patched, proof, swap, unpatch

C, H = 8, 16
_library = declare_torchvision_operators()  # declared as long as it lives

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")


class Block(nn.Module):
    def __init__(self, act=None):
        super().__init__()
        self.fc, self.act, self.proj = nn.Linear(C, H), nn.GELU() if act is None else act, nn.Linear(H, C)

    def forward(self, x):
        return self.proj(self.act(self.fc(x)))


def patched_copy(model: nn.Module, **options) -> nn.Module:
    model = copy.deepcopy(model)
    assert patch(nn.ModuleList([model]), **options).fused
    return model


def is_fused(module: nn.Module, calls) -> bool:
    calls.clear()
    module(torch.randn(3, C))
    return sum(calls.values()) > 0


# --- what a forward reads beside its tensors --------------------------------------------------------------------------

FLAGS = {"double": False}
SETTINGS = types.SimpleNamespace(double=False, inner=types.SimpleNamespace(factor=1.0))


class Mode(enum.Enum):
    SINGLE = 1
    DOUBLE = 2


def is_doubled() -> bool:
    return FLAGS["double"]


def scale(y):
    return y


class Reads(Block):
    """Every way to a setting. Each is changed by a line below."""

    of_class = False

    def __init__(self):
        super().__init__()
        self.own = self._private = False
        self.config, self.listed, self.mapped = types.SimpleNamespace(double=False), [False], {"double": False}
        self.mode, self.act.double = Mode.SINGLE, False

    @property
    def by_property(self):
        return FLAGS["double"]


def reader(expression: str, module_scope=None):
    scope = {"torch": torch, "os": os, **(module_scope or globals())}
    source = (
        f"def forward(self, x):\n    y = self.proj(self.act(self.fc(x)))\n    return 2 * y if {expression} else y\n"
    )
    exec(source, scope)
    return type("ReadsOne", (Reads,), {"forward": scope["forward"], "__module__": __name__}), scope


CHANGES = {
    "self.own": lambda m: setattr(m, "own", True),
    "self._private": lambda m: setattr(m, "_private", True),
    "self.of_class": lambda m: mock.patch.object(type(m), "of_class", True),
    "self.config.double": lambda m: setattr(m.config, "double", True),
    "(lambda: self)().own": lambda m: setattr(m, "own", True),
    "self.listed[0]": lambda m: m.listed.__setitem__(0, True),
    "self.mapped['double']": lambda m: m.mapped.update(double=True),
    "self.mapped.get('double')": lambda m: m.mapped.update(double=True),
    "self.mode is Mode.DOUBLE": lambda m: setattr(m, "mode", Mode.DOUBLE),
    "self.mode.value == 2": lambda m: setattr(m, "mode", Mode.DOUBLE),
    "self.act.double": lambda m: setattr(m.act, "double", True),
    "self.by_property": lambda m: mock.patch.dict(FLAGS, double=True),
    "getattr(self, 'own')": lambda m: setattr(m, "own", True),
    "vars(self)['own']": lambda m: setattr(m, "own", True),
    "type(self).of_class": lambda m: mock.patch.object(type(m), "of_class", True),
    "hasattr(self, 'new')": lambda m: setattr(m, "new", 1),
    "FLAGS['double']": lambda m: mock.patch.dict(FLAGS, double=True),
    "SETTINGS.double": lambda m: mock.patch.object(SETTINGS, "double", True),
    "SETTINGS.inner.factor > 1": lambda m: mock.patch.object(SETTINGS.inner, "factor", 2.0),
    "is_doubled()": lambda m: mock.patch.dict(FLAGS, double=True),
    "os.environ.get('GELU_EXT_TEST_DOUBLE')": lambda m: mock.patch.dict(os.environ, GELU_EXT_TEST_DOUBLE="1"),
    "self.fc.training and not self.training": lambda m: (m.eval(), m.fc.train())[0] and None,
    "x.dtype == torch.float64": lambda m: m.double() and None,
    "self.fc.weight.dtype == torch.float64": lambda m: m.double() and None,
    "not x.requires_grad": lambda m: None,
    "not torch.is_grad_enabled()": lambda m: torch.no_grad(),
    "torch.is_autocast_enabled('cpu')": lambda m: torch.autocast("cpu", dtype=torch.bfloat16),
    "torch.get_default_dtype() == torch.float64": lambda m: mock.patch(
        "torch.get_default_dtype", lambda: torch.float64
    ),
    "x.dim() == 4": lambda m: None,
    "x.shape[0] > 5": lambda m: None,
    "not self.fc.weight.requires_grad": lambda m: m.requires_grad_(False) and None,
    "len(self._modules) > 3": lambda m: m.add_module("more", nn.Identity()),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("expression", CHANGES)
def test_a_setting_that_changes_is_obeyed(expression, recompute):
    kind, _ = reader(expression)
    eager = kind().train()
    ours = patched_copy(eager, recompute=recompute)
    x = torch.randn(7, 3, 2, C)
    torch.testing.assert_close(ours(x.clone().requires_grad_()), eager(x.clone().requires_grad_()))
    with contextlib.ExitStack() as stack:
        for model in (eager, ours):
            context = CHANGES[expression](model)
            if hasattr(context, "__enter__"):
                stack.enter_context(context)
        y = x.to(next(eager.parameters()).dtype)
        torch.testing.assert_close(ours(y), eager(y))


def test_a_global_variable_of_another_module_is_obeyed():
    scope = dict(globals(), __name__="some_other_module", double=False)
    kind, scope = reader("double", scope)
    eager = kind()
    ours = patched_copy(eager)
    scope["double"] = True
    x = torch.randn(3, C)
    torch.testing.assert_close(ours(x), eager(x))


def test_a_variable_of_an_outer_function_is_obeyed():
    double = False

    class Outer(Block):
        def forward(self, x):
            y = super().forward(x)
            return 2 * y if double else y

    eager = Outer()
    ours = patched_copy(eager)
    double = True
    x = torch.randn(3, C)
    torch.testing.assert_close(ours(x), eager(x))


def test_a_setting_of_the_class_of_an_activation_is_obeyed():
    class WithSetting(nn.Module):
        sharpness = 1.702

        def forward(self, x):
            return x * torch.sigmoid(self.sharpness * x)

    eager = Block(WithSetting())
    ours = patched_copy(eager)
    with mock.patch.object(WithSetting, "sharpness", 3.0):
        x = torch.randn(3, C)
        torch.testing.assert_close(ours(x), eager(x))


def shadow(model: nn.Module, path: str) -> None:
    """Puts another module into the ``__dict__`` of its parent, where an attribute is looked for first."""
    parent, _, name = path.rpartition(".")
    other = copy.deepcopy(model.get_submodule(path))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(3.0)
    model.get_submodule(parent).__dict__[name] = other


ODD_PARTS = {
    "a bias of one number": lambda m: setattr(m.fc, "bias", nn.Parameter(torch.ones(1))),
    "a bias that is a number": lambda m: setattr(m.fc, "bias", nn.Parameter(torch.tensor(2.0))),
    "a bias for each row": lambda m: setattr(m.fc, "bias", nn.Parameter(torch.randn(3, m.fc.out_features))),
    "a second bias of one number": lambda m: setattr(m.proj, "bias", nn.Parameter(torch.ones(1))),
    "a second layer of one output": lambda m: setattr(m, "proj", nn.Linear(m.proj.in_features, 1)),
    "another first layer in __dict__": lambda m: shadow(m, "fc"),
    "another second layer in __dict__": lambda m: shadow(m, "proj"),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("change", ODD_PARTS)
def test_what_torch_takes_from_a_changed_block_is_taken(change, recompute):
    eager = Block()
    ours = patched_copy(eager, recompute=recompute)
    for model in (eager, ours):
        torch.manual_seed(0)
        ODD_PARTS[change](model)
    x = torch.randn(3, C, requires_grad=True)
    out, expected = ours(x), eager(x)
    torch.testing.assert_close(out, expected)
    grad_out = torch.randn(out.shape)
    torch.testing.assert_close(torch.autograd.grad(out, x, grad_out), torch.autograd.grad(expected, x, grad_out))


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_what_torch_refuses_is_refused_in_its_words(recompute):
    eager = Block()
    ours = patched_copy(eager, recompute=recompute)
    for change in (lambda m: m, lambda m: setattr(m.fc, "bias", nn.Parameter(torch.randn(C + 1)))):
        x, said = torch.randn(3, C + 1), []
        for model in (eager, ours):
            change(model)
            with pytest.raises(RuntimeError) as refusal:
                model(x)
            said.append(str(refusal.value))
        assert said[0] == said[1]


def graph_of(model, x) -> list[str]:
    """The operations that torch.compile sees."""
    names: list[str] = []
    torch._dynamo.reset()

    def backend(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True)(x)
    return names


KEPT_WHOLE = ["self.own", "self._private", "self.of_class", "self.config.double", "self.listed[0]", "FLAGS['double']"]
KEPT_WHOLE += ["SETTINGS.inner.factor > 1", "self.mode is Mode.DOUBLE", "is_doubled()", "self.act.double"]
KEPT_WHOLE += ["x.dtype == torch.float64", "self.fc.training and not self.training", "self.by_property"]


@pytest.mark.parametrize("expression", KEPT_WHOLE)
def test_settings_that_stay_cost_no_fusion_compiled_or_not(expression, calls):
    """What is only compared must not keep a block from being fused whole."""
    model = reader(expression)[0]()
    report = patch(model)
    assert [row.bias for row in report.fused] == ["fused"], report
    assert is_fused(model, calls)
    assert any("gelu_ext" in name for name in graph_of(model, torch.randn(3, C)))


class KeepsFunction(nn.Module):
    """As Hugging Face's activations keep theirs: a function of torch, a partial of one, a method of their own."""

    def __init__(self, kind):
        super().__init__()
        self.act = {"torch's": F.gelu, "partial": functools.partial(F.gelu, approximate="tanh")}.get(kind, self.own)

    def own(self, x):
        return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))

    def forward(self, x):
        return self.act(x)


@pytest.mark.parametrize("kind", ["torch's", "partial", "own"])
def test_a_function_that_an_activation_keeps(kind, calls):
    model = Block(KeepsFunction(kind))
    assert [row.bias for row in patch(model).fused] == ["fused"]
    assert is_fused(model, calls)
    x = torch.randn(3, C)
    if torch.__version__ >= (2, 13) or kind != "partial":  # which torch 2.11 compiles as the block's own forward
        assert any("gelu_ext" in name for name in graph_of(model, x))
    for other in (torch.relu, functools.partial(F.gelu, approximate="none" if kind == "partial" else "tanh")):
        model.act.act = other
        torch.testing.assert_close(model(x), unpatch(copy.deepcopy(model))(x), rtol=0, atol=0)


# --- what a forward does beside computing -----------------------------------------------------------------------------

LOG: list[int] = []


class Counts(Block):
    def forward(self, x):
        LOG.append(1)
        return super().forward(x)


class CountsInItself(Block):
    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        log = self.log
        log.append(1)
        return super().forward(x)


class CountsInBuffer(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps.add_(1)
        return super().forward(x)


class Prints(Block):
    def forward(self, x):
        print("called")
        return super().forward(x)


class Checkpoints(Block):
    def inner(self, x):
        return self.proj(self.act(self.fc(x)))

    def forward(self, x):
        return checkpoint(self.inner, x, use_reentrant=False)


class Records(Block):
    def forward(self, x):
        with torch.profiler.record_function("my_mlp"):
            return super().forward(x)


class Offloads(Block):
    def forward(self, x):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: LOG.append(1) or t, lambda t: t):
            return super().forward(x)


class Skips(Block):
    def forward(self, x):
        return x if self.training and random.random() < 0.5 else super().forward(x)


class SkipsByTorch(Block):
    def forward(self, x):
        return x if self.training and torch.rand(()) < 0.5 else super().forward(x)


class SkipsByNumpy(Block):
    def forward(self, x):
        import numpy

        return x if self.training and numpy.random.uniform() < 0.5 else super().forward(x)


class WithoutGradient(Block):
    forward = torch.no_grad()(Block.forward)


class InFloat32(Block):
    forward = torch.autocast("cpu", enabled=False)(Block.forward)


BESIDE = [Counts, CountsInItself, CountsInBuffer, Prints, Checkpoints, Records, Offloads, Skips, SkipsByTorch]
BESIDE += [SkipsByNumpy, WithoutGradient, InFloat32]


def traces(model, x):
    """Everything that two calls leave behind."""
    numpy = pytest.importorskip("numpy")
    LOG.clear()
    random.seed(0), torch.manual_seed(0), numpy.random.seed(0)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), torch.profiler.profile() as profile:
        outs = [model(x) for _ in range(8)]
    return {
        "outs": outs,
        "requires_grad": [out.requires_grad for out in outs],
        "log": len(LOG),
        "own log": len(getattr(model, "log", ())),
        "steps": getattr(model, "steps", torch.zeros(())).item(),
        "printed": printed.getvalue(),
        "profile": any(event.key == "my_mlp" for event in profile.key_averages()),
        "kept": saved_bytes(model, x, exclude=[x]) if isinstance(model, Checkpoints) else 0,
    }


@pytest.mark.parametrize("kind", BESIDE)
def test_what_a_forward_does_beside_computing_is_done(kind, calls):
    numpy = pytest.importorskip("numpy")
    eager = kind().train()
    before = random.getstate(), numpy.random.get_state()[2], torch.get_rng_state(), len(LOG)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        ours = patched_copy(eager)
    after = random.getstate(), numpy.random.get_state()[2], torch.get_rng_state(), len(LOG)
    assert before[0] == after[0] and before[1] == after[1] and torch.equal(before[2], after[2])
    assert before[3] == after[3] and not printed.getvalue(), "patch() ran what it should have read"
    x = torch.randn(5, C, requires_grad=True)
    found, wanted = traces(ours, x), traces(eager, x)
    for name, value in wanted.items():
        if name == "outs":
            torch.testing.assert_close(found[name], value)
        else:
            assert found[name] == value, name
    assert sum(calls.values()) > 0 or kind in (Skips, SkipsByTorch, SkipsByNumpy), "its activation is fused alone"


# --- who replaces from elsewhere --------------------------------------------------------------------------------------


def test_a_replaced_forward_of_the_class_is_obeyed(monkeypatch):
    class Own(Block):
        pass

    ours = nn.Sequential(Own())
    patch(ours)
    x = torch.randn(3, C)
    monkeypatch.setattr(Own, "forward", lambda self, x: self.proj(torch.relu(self.fc(x))), raising=False)
    torch.testing.assert_close(ours(x), ours[0].proj(torch.relu(ours[0].fc(x))))
    calls = []
    monkeypatch.setattr(Own, "forward", lambda self, x: calls.append(1) or Block.forward(self, x))
    later = nn.Sequential(Own())
    patch(later)
    later(x)
    assert calls == [1]


TARGETS = ["F.gelu", "F.silu", "nn.GELU.forward", "nn.SiLU.forward", "F.silu of nn.SiLU"]


@pytest.mark.parametrize("target", [*TARGETS, "nn.Linear.forward", "helper", "own method"])
def test_a_function_replaced_anywhere_is_obeyed(target, monkeypatch):
    class Uses(Block):
        def forward(self, x):
            h = self.fc(x)
            h = F.gelu(h) if target == "F.gelu" else F.silu(h) if target == "F.silu" else self.act(h)
            return scale(self.last(h))

        def last(self, h):
            return self.proj(h)

    eager = Uses(nn.SiLU() if "SiLU" in target else None)
    ours = patched_copy(eager)
    x = torch.randn(3, C)
    torch.testing.assert_close(ours(x), eager(x))
    if target.startswith("F."):
        monkeypatch.setattr(F, target[2:6], lambda t, **options: t.relu())
    elif target == "helper":
        monkeypatch.setitem(globals(), "scale", lambda y: 3 * y)
    elif target == "own method":
        monkeypatch.setattr(Uses, "last", lambda self, h: 2 * self.proj(h))
    else:
        owner = getattr(nn, target.split(".")[1])
        original = owner.forward
        monkeypatch.setattr(owner, "forward", lambda self, t: 2 * original(self, t))
    torch.testing.assert_close(ours(x), eager(x))


def test_a_replaced_forward_of_a_child_is_obeyed():
    eager = Block()
    for name in ("fc", "act", "proj"):
        ours = patched_copy(eager)
        child = getattr(ours, name)
        forward = type(child).forward
        child.forward = lambda t, child=child, forward=forward: 2 * forward(child, t)
        x = torch.randn(3, C)
        torch.testing.assert_close(ours(x), unpatch(ours)(x))


SHARPNESS = 1.702


def quick(x):
    return x * torch.sigmoid(SHARPNESS * x)


class Varied(Block):
    """What is changed below stands in it: containers that are empty yet, tensors, functions, another module."""

    def __init__(self):
        super().__init__()
        self.adapters, self.norm, self.mask, self.scale = nn.ModuleList(), nn.LayerNorm(C), None, 1.0
        self.register_buffer("kept", torch.ones(1))

    def forward(self, x):
        y = self.norm(super().forward(x)) if self.norm is not None else super().forward(x)
        for adapter in self.adapters:
            y = y + adapter(y)
        if isinstance(self.norm, nn.Identity) or self.kept is None or isinstance(self.scale, torch.Tensor):
            y = 2 * y
        return y


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.adapters.append(nn.Identity()),
        lambda m: setattr(m, "norm", nn.Identity()),
        lambda m: setattr(m, "norm", None),
        lambda m: setattr(m, "kept", None),
        lambda m: setattr(m, "scale", torch.ones(C)),
        lambda m: setattr(m, "scale", nn.Parameter(torch.ones(()))),
        lambda m: mock.patch.object(Block, "forward", lambda self, x: 3 * self.proj(self.fc(x).relu())),
        lambda m: mock.patch.object(F, "linear", lambda x, w, b=None: x @ w.t() * 2),
        lambda m: mock.patch.object(nn.Module, "_call_impl", lambda self, *args: 2 * self.forward(*args)),
        lambda m: mock.patch.object(nn.GELU, "__call__", lambda self, x: x, create=True),
    ],
)
def test_a_part_that_changes_its_kind_is_obeyed(change):
    eager = Varied()
    ours = patched_copy(eager)
    x = torch.randn(3, C)
    torch.testing.assert_close(ours(x), eager(x))
    with contextlib.ExitStack() as stack:
        for model in (eager, ours):
            context = change(model)
            if hasattr(context, "__enter__"):
                stack.enter_context(context)
        torch.testing.assert_close(ours(x), eager(x))


def test_what_a_kept_function_reads_is_obeyed(monkeypatch):
    eager = Block(quick)
    ours = patched_copy(eager)
    monkeypatch.setitem(globals(), "SHARPNESS", 3.0)
    x = torch.randn(3, C)
    torch.testing.assert_close(ours(x), eager(x))


class WithTensor(nn.Module):
    def __init__(self):
        super().__init__()
        self.alpha = torch.tensor(1.702)

    def forward(self, x):
        return x * torch.sigmoid(self.alpha * x)


class ForNumbers(nn.Module):
    def forward(self, x):
        return torch.nan_to_num(F.gelu(x))


class Clamped(nn.Module):
    def forward(self, x):
        return F.gelu(x).clamp(-65504, 65504)


@pytest.mark.parametrize("act", [WithTensor, ForNumbers, Clamped])
def test_what_is_an_activation_for_some_numbers_only_is_none(act):
    eager = Block(act())
    ours = copy.deepcopy(eager)
    patch(ours)
    if isinstance(eager.act, WithTensor):
        for model in (eager, ours):
            model.act.alpha.fill_(3.0)
    for x in (torch.randn(3, C), torch.full((1, C), float("inf")), torch.full((1, C), 1e9)):
        torch.testing.assert_close(ours(x), eager(x), equal_nan=True)


@pytest.mark.parametrize("shape", [(3, C), (2, 3, C), (2, 3, 32, C)])
@pytest.mark.parametrize("how", ["dim=2", "dim=-1", "slices", "last slices"])
def test_halves_along_a_numbered_dimension(shape, how):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(C, 2 * H)

        def forward(self, x):
            h = self.fc(x)
            if "dim" in how:
                a, b = h.chunk(2, dim=2) if how == "dim=2" else h.chunk(2, dim=-1)
            else:
                a, b = (h[:, :, :H], h[:, :, H:]) if how == "slices" else (h[..., :H], h[..., H:])
            return a * F.gelu(b)

    eager = Gated()
    ours = copy.deepcopy(eager)
    patch(ours)
    x = torch.randn(shape)
    try:
        wanted = eager(x)
    except (IndexError, RuntimeError) as error:
        with pytest.raises(type(error)):
            ours(x)
    else:
        torch.testing.assert_close(ours(x), wanted)


def test_an_activation_alone_keeps_any_order_of_memory():
    act = nn.GELU()
    patch(act)
    x = torch.randn(2, 3, 4, 5)
    import itertools

    for order in itertools.permutations(range(4)):
        y = x.permute(order)
        assert act(y).stride() == F.gelu(y).stride()


# --- methods that outlive the patch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["unpatch", "patch", "unpatch and patch"])
def test_a_kept_method_goes_on_to_work(then):
    model = nn.ModuleList([Block()])
    x = torch.randn(3, C)
    wanted = model[0](x)
    patch(model)
    kept = model[0].forward
    model[0].forward = lambda x: kept(x)  # as accelerate and nnsight do
    if "unpatch" in then:
        unpatch(model)
    if "patch" in then.split():
        report = patch(model)
        assert "replaced its forward" in report.fused[0].note
    torch.testing.assert_close(model[0](x), wanted)
    model[0].forward = kept
    torch.testing.assert_close(model[0](x), wanted)
    torch.testing.assert_close(kept(x), wanted)


def test_a_kept_method_of_a_block_that_is_gone_says_so():
    block = Block()
    patch(block)
    kept = block.forward
    del block
    with pytest.raises(RuntimeError, match="patch: expected the module whose forward was patched to be alive"):
        kept(torch.randn(3, C))


def test_a_method_can_be_asked_what_it_is():
    import inspect

    block = Block()
    before = inspect.signature(block.forward)
    patch(block)
    assert inspect.signature(block.forward) == before
    assert inspect.ismethod(block.forward) and block.forward.__name__ == "forward"
    script = torch.jit.script(block)
    x = torch.randn(3, C)
    torch.testing.assert_close(script(x), block(x))


# --- copies of blocks -------------------------------------------------------------------------------------------------


def replicas(model: nn.Module, factor: float) -> nn.Module:
    """As torch.nn.parallel.replicate makes them."""
    modules = list(model.modules())
    made = [module._replicate_for_data_parallel() for module in modules]
    for replica, module in zip(made, modules, strict=True):
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else made[modules.index(child)]
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(replica, name, parameter.detach() * factor)
    return made[0]


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize(
    "make", [lambda: nn.Sequential(Block(), Block()), lambda: nn.Sequential(Block(nn.GELU("tanh")))]
)
def test_replicas_run_fused_with_their_own_weights(make, recompute, calls):
    model = make()
    x = torch.randn(3, C)
    wanted = replicas(model, 0.5)(x)
    patch(model, recompute=recompute)
    replica = replicas(model, 0.5)
    calls.clear()
    torch.testing.assert_close(replica(x), wanted)
    assert sum(calls.values()) == len(model)


class CopiesItself(Block):
    def __deepcopy__(self, memo):
        new = type(self).__new__(type(self))
        new.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        return new


@pytest.mark.parametrize("kind", [Block, CopiesItself])
def test_deep_copies_and_pickles_have_plans_of_their_own(kind, calls):
    block = kind()
    patch(block)
    other = copy.deepcopy(block)
    with torch.no_grad():
        other.fc.weight.mul_(3)
    x = torch.randn(3, C)
    torch.testing.assert_close(other(x), kind.forward(other, x))
    assert is_fused(other, calls) and swap.installed(other).owner is other
    assert swap.installed(block).owner is block
    again = pickle.loads(pickle.dumps(other))
    torch.testing.assert_close(again(x), other(x))
    assert is_fused(again, calls) and swap.installed(again).owner is again


# --- models that patch() cannot understand ----------------------------------------------------------------------------


class Registered(Block):
    made: ClassVar[list[type]] = []

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        Registered.made.append(cls)


class CannotBeCopied(Block):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


class Raises(Block):
    def forward(self, x):
        raise ValueError("not today")


class StarOnly(Block):
    def forward(*args):
        self, x = args
        return Block.forward(self, x)


class KeywordOnly(Block):
    def forward(self, *, x):
        return Block.forward(self, x)


class Loops(Block):
    def forward(self, x):
        return self.forward(x)


class OddAttribute(Block):
    @property
    def act_function(self):
        raise RuntimeError("not yet")


ODD = {
    "scripted child": lambda: nn.Sequential(
        torch.jit.script(nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C)))
    ),
    "scripted activation": lambda: Block(torch.jit.script(nn.GELU())),
    "traced activation": lambda: Block(torch.jit.trace(nn.GELU(), torch.randn(2, H))),
    "compiled activation": lambda: Block(torch.compile(nn.GELU(), backend="eager")),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(H), nn.GELU(), nn.Linear(H, C)),
    "no copy": CannotBeCopied,
    "raises": Raises,
    "star": StarOnly,
    "keyword": KeywordOnly,
    "loops": Loops,
    "odd attribute": OddAttribute,
    "registered": Registered,
    "graph": lambda: torch.fx.symbolic_trace(Block()),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_block_gets_a_line_and_the_others_are_fused(kind):
    model = nn.ModuleList([Block(), ODD[kind](), Block()])
    report = patch(model)
    assert len(report.fused) >= 2, report
    x = torch.randn(3, C)
    for block in (model[0], model[2]):
        assert swap.installed(block)
    for call in (lambda: model[1](x), lambda: unpatch(model)[1](x)):
        try:
            out = call()
        except (ValueError, TypeError, RecursionError):
            assert kind in ("raises", "keyword", "loops")
        else:
            assert out.shape == (3, C)
    assert not Registered.made


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError])
def test_an_interrupted_patch_leaves_the_model_as_it_was(error, monkeypatch):
    model = nn.Sequential(*(Block() for _ in range(4)))
    model[1].extra = 1.0  # another plan, so another proof
    patch(model[0], recompute=True)
    plans = [swap.installed(block) and swap.installed(block).plan for block in model]
    real, left = proof._compare, [1]

    def interrupted(*args):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return real(*args)

    monkeypatch.setattr(proof, "_compare", interrupted)
    left[0] = 0
    with pytest.raises(error):
        patch(model)
    assert [swap.installed(block) and swap.installed(block).plan for block in model] == plans


def test_a_model_changed_inside_patched_is_left_changed():
    model = nn.Sequential(Block())
    patch(model)
    with patched(model, recompute=True):
        model[0].forward = lambda x: x * 2
        del model[0].act
    x = torch.randn(3, C)
    assert torch.equal(model(x), x * 2)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_patch_on_another_default_device(device):
    model = nn.Sequential(Block())
    wanted = str(patch(model))
    with torch.device(device):
        assert str(patch(model)) == wanted


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_registered_on_another_default_device(device):
    activations = pytest.importorskip("transformers.activations")
    with torch.device(device):
        undo = gelu_ext.register_with_transformers()
    try:
        act = activations.ACT2FN["gelu"]
        assert isinstance(act, gelu_ext.GELU) and isinstance(act, nn.GELU)
    finally:
        undo()
    assert not isinstance(activations.ACT2FN["gelu"], gelu_ext.GELU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_patch_under_another_default_dtype(dtype):
    model = nn.Sequential(Block())
    wanted = str(patch(model))
    torch.set_default_dtype(dtype)
    try:
        assert str(patch(model)) == wanted
    finally:
        torch.set_default_dtype(torch.float32)


# --- patch() touches nothing but what it patches ----------------------------------------------------------------------


def test_no_code_of_the_models_is_run():
    ran = []

    class Probe(nn.Module):
        def forward(self, x):
            ran.append("probe")
            return x

    class Named(Block):
        def __init__(self):
            super().__init__()
            self.factory_reset = lambda t=None: ran.append("factory_reset")
            self.on_contact = lambda t: ran.append("on_contact") or t
            self.probe = Probe()

        def forward(self, x):
            return self.probe(super().forward(x))

    model = nn.Sequential(Named(), nn.Sequential(nn.Linear(C, H), Probe(), nn.Linear(H, C)))
    patch(model)
    assert set(ran) <= {"probe"} and len(ran) <= 16  # the probe is called in copies of a block that is fused
    ran.clear()
    patch(nn.Sequential(nn.Linear(C, H), Probe(), nn.Linear(H, C)))
    assert not ran


def test_gradients_versions_and_storages_stay():
    model = nn.Sequential(Block(), Block())
    model(torch.randn(3, C)).sum().backward()
    before = [(p._version, p.data_ptr(), p.requires_grad, p.grad.clone()) for p in model.parameters()]
    nn.init.zeros_(model[0].fc.bias)
    version = model[0].fc.bias._version
    patch(model)
    assert model[0].fc.bias._version == version and not model[0].fc.bias.any()
    for p, (_, pointer, requires, slope) in zip(model.parameters(), before, strict=True):
        assert (p.data_ptr(), p.requires_grad) == (pointer, requires) and torch.equal(p.grad, slope)


# --- memory -----------------------------------------------------------------------------------------------------------


def alive() -> int:
    gc.collect()
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


class NewGelu(nn.Module):
    """Hugging Face's: its product keeps its own result."""

    def forward(self, x):
        return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


@pytest.mark.parametrize("act", [nn.GELU, NewGelu])
@pytest.mark.parametrize("verify", [True, False])
def test_nothing_stays_after_patch(act, verify):
    model = nn.Sequential(Block(act()), Block(act()))
    patch(model, verify=verify)  # what is cached once
    unpatch(model)
    before = alive()
    patch(model, verify=verify)
    unpatch(model)
    assert alive() <= before  # less, where the garbage of another test went


def test_a_patched_model_is_freed_with_its_last_reference():
    model = nn.Sequential(Block(), Block())
    patch(model)
    watched = [weakref.ref(p) for p in model.parameters()]
    gc.disable()
    try:
        del model
        assert not any(ref() is not None for ref in watched)
    finally:
        gc.enable()


def test_replaced_linears_are_freed_and_not_pickled():
    model = nn.Sequential(Block())
    plain = len(pickle.dumps(model))
    patch(model)
    old = weakref.ref(model[0].fc.weight)
    model[0].fc = nn.Linear(C, H)
    model(torch.randn(3, C))
    gc.collect()
    assert old() is None
    assert len(pickle.dumps(model)) < 1.5 * plain


def test_equal_blocks_are_proved_once_and_each_with_its_own_weights(monkeypatch):
    proved, again = [], []
    real, cheap = proof._compare, gelu_ext.patch.__globals__["prove_again"]
    monkeypatch.setattr(proof, "_compare", lambda *args: proved.append(1) or real(*args))
    monkeypatch.setitem(
        gelu_ext.patch.__globals__, "prove_again", lambda block, *args: again.append(block) or cheap(block, *args)
    )
    model = nn.Sequential(*(Block() for _ in range(5)))
    assert len(patch(model).fused) == 5
    assert len(proved) == 1 and again == list(model)[1:]
    with torch.no_grad():
        model[3].fc.weight.fill_(float("nan"))
    report = patch(model)
    assert [row.block for row in report.fused if row.bias == "fused"] == ["0", "1", "2", "4"], report


# --- what other tools see ---------------------------------------------------------------------------------------------


def test_types_names_and_slices_are_the_models_own():
    model = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C))
    text, names = repr(model), [name for name, _ in model.named_modules()]
    patch(model)
    assert type(model) is nn.Sequential and type(model[1]) is nn.GELU
    assert repr(model) == text and [name for name, _ in model.named_modules()] == names
    head = model[:2]
    assert type(head) is nn.Sequential and swap.installed(head) is None
    x = torch.randn(3, C)
    torch.testing.assert_close(head(x), F.gelu(model[0](x)))


@pytest.mark.parametrize(
    "make", [Block, lambda: nn.Sequential(nn.Linear(C, H), nn.GELU("tanh"), nn.Dropout(0.5), nn.Linear(H, C))]
)
@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_a_symbolic_trace_has_the_models_bits_in_either_mode(make, recompute):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([make(), make()])

        def forward(self, x):
            for block in self.blocks:
                x = x + block(x)
            return x

    model = Net()
    patch(model, recompute=recompute)
    graph = torch.fx.symbolic_trace(model)
    assert sum("bias_act" in str(node.target) for node in graph.graph.nodes) == 2
    x = torch.randn(3, C)
    for training in (False, True):
        outs = []
        for module in (model, graph):
            module.train(training)
            torch.manual_seed(1)
            outs.append(module(x))
        assert torch.equal(*outs)
    outs[1].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_features_by_the_names_of_the_modules():
    """torchvision and timm look for the nodes of modules, and remove the others."""
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    model = nn.Sequential(Block(), Block())
    x = torch.randn(3, C)
    wanted = [model[0].fc(x), model[1].act(model[1].fc(model[0](x))), model(x)]
    patch(model)
    features = extraction.create_feature_extractor(
        model, ["0.fc", "1.act", extraction.get_graph_node_names(model)[1][-1]]
    )
    found = list(features(x).values())
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(found[-1], model(x))


def test_equal_blocks_are_compiled_once():
    from torch._dynamo.testing import CompileCounter

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.net = nn.LayerNorm(C), nn.ModuleList([nn.Linear(C, H), nn.GELU(), nn.Linear(H, C)])
            self.mlp = Block()

        def forward(self, x):
            for module in self.net:
                x = module(x)
            return self.mlp(self.norm(x))

    for together in (True, False):
        torch._dynamo.reset()
        layers = nn.ModuleList([Layer() for _ in range(4)])
        for part in [layers] if together else layers:
            patch(part)
        counter = CompileCounter()
        for layer in layers:
            layer.compile(fullgraph=True, backend=counter)
            layer(torch.randn(3, C))
        assert counter.frame_count == 1
