"""patch() on hand-written and torch.nn blocks: what it fuses, what it must refuse, and that nothing else changes."""

from __future__ import annotations

import copy
import pickle
import random
import types
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gelu_ext import activations
from gelu_ext._operations import OPERATIONS
from gelu_ext.patch import activation_of, find, patch, patched, plan, proof, reads, swap, unpatch
from gelu_ext.patch.forms import SERVED

C, H = 8, 16

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")


class Plain(nn.Module):
    """The activation as a function, in a forward of one line."""

    def __init__(self, act=F.gelu):
        super().__init__()
        self.fc, self.proj = nn.Linear(C, H), nn.Linear(H, C)
        self.act = act

    def forward(self, x):
        return self.proj(self.act(self.fc(x)))


class Functional(Plain):
    def forward(self, x):
        return self.proj(F.gelu(self.fc(x), approximate="tanh"))


class Packed(nn.Module):
    def __init__(self, first, split="chunk", dropout=0.0, act=None):
        super().__init__()
        self.wi, self.wo = nn.Linear(C, 2 * H), nn.Linear(H, C)
        self.act, self.drop = act or nn.GELU(), nn.Dropout(dropout)
        self.first, self.split = first, split

    def forward(self, x):
        h = self.wi(x)
        if self.split == "chunk":
            a, b = h.chunk(2, dim=-1)
        elif self.split == "split":
            a, b = torch.split(h, H, dim=-1)
        else:
            a, b = h[..., :H], h[..., H:]
        return self.wo(self.drop(self.act(a) * b if self.first else a * self.act(b)))


class Two(nn.Module):
    def __init__(self, act=None, bias=False):
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(*s, bias=bias) for s in ((C, H), (C, H), (H, C)))
        self.act = act or nn.GELU("tanh")

    def forward(self, x):
        return self.down(self.up(x) * self.act(self.gate(x)))


class Quick(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Swiglu(Two):
    """The activation as a function of torch."""

    def __init__(self):
        super().__init__(nn.Identity())

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Formula(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def of_the_table(name):
    """As torch spells it, in the code of a model: that of this package is not read."""
    function = activations()[name].eager
    if isinstance(function, types.FunctionType) and function.__module__.startswith("gelu_ext"):
        function = types.FunctionType(function.__code__, {**function.__globals__, "__name__": "a_model"})
    return Formula(function)


def sequential(act=None, dropout=0.0):
    return nn.Sequential(nn.Linear(C, H), act or nn.GELU(), nn.Dropout(dropout), nn.Linear(H, C))


def state(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def step(model, *args):
    """Output and gradients, with the same random numbers each time."""
    model.zero_grad()
    torch.manual_seed(1)
    args = args or (torch.randn(2, 5, C, generator=torch.Generator().manual_seed(2)).to(next(model.parameters())),)
    out = model(*args)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(3)).to(out))
    return {"out": out.detach(), **{name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}}


def assert_same_step(found, wanted, tolerance=2e-6):
    assert found.keys() == wanted.keys()
    largest = max(t.abs().max() for t in wanted.values())
    for name, t in wanted.items():  # some gradients are zero but for rounding
        assert (found[name] - t).abs().max() <= tolerance * max(t.abs().max(), 0.01 * largest), name


# (make, the function that runs and the one with recompute, form)
BIAS_GELU, GEGLU, GELU_MUL = ("bias_gelu", "mlp"), ("geglu", "geglu_mlp"), ("gelu_mul", "gelu_mul_mlp")
BIAS_ACT, SWIGLU, SILU_MUL = ("bias_act", "mlp"), ("swiglu", "glu_mlp"), ("silu_mul", "act_mul_mlp")
BLOCKS = {
    "sequential": (sequential, BIAS_GELU, "exact (erf)"),
    "function": (Functional, BIAS_GELU, "tanh"),
    "function in an attribute": (Plain, BIAS_GELU, "exact (erf)"),
    "quick": (lambda: Plain(Quick()), BIAS_GELU, "quick (sigmoid)"),
    "dropout": (lambda: sequential(nn.GELU("tanh"), 0.3), BIAS_GELU, "tanh"),
    "packed first": (lambda: Packed(True), GEGLU, "exact (erf), first half"),
    "packed second": (lambda: Packed(False), GEGLU, "exact (erf), second half"),
    "packed by split": (lambda: Packed(True, "split", 0.2), GEGLU, "exact (erf), first half"),
    "packed by slices": (lambda: Packed(False, "slice"), GEGLU, "exact (erf), second half"),
    "two": (Two, GELU_MUL, "tanh"),
    "two with bias": (lambda: Two(Quick(), True), GELU_MUL, "quick (sigmoid)"),
    "silu": (lambda: sequential(nn.SiLU(), 0.3), BIAS_ACT, "SiLU"),
    "silu in an attribute": (lambda: Plain(F.silu), BIAS_ACT, "SiLU"),
    "silu packed": (lambda: Packed(True, act=nn.SiLU()), SWIGLU, "SiLU, first half"),
    "silu of two": (Swiglu, SILU_MUL, "SiLU"),
}


def counted_as(function):
    return next(op.gelu for op in OPERATIONS.values() if function in op.functions)


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("name", BLOCKS)
def test_fuses(name, recompute, calls):
    make, functions, form = BLOCKS[name]
    model = nn.ModuleDict({"block": make()})
    block = model["block"]
    wanted, before = step(block), state(model)
    report = patch(model, recompute=recompute)
    assert not report.left_alone and len(report.fused) == 1, report
    (row,) = report.fused
    assert row.op == functions[recompute]
    assert row.form == form and row.block == "block"
    assert row.bias == "none" if name in ("two", "silu of two") else "fused"
    calls.clear()
    assert_same_step(step(block), wanted)
    assert calls[counted_as(functions[0])]
    after = state(model)
    assert [*after] == [*before] and all(torch.equal(after[k], before[k]) for k in after)
    unpatch(model)
    found = step(block)
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SERVED)
def test_serves_the_table_of_activations(name, dtype):
    """In GLUs all of it; alone, what gains something: torch computes ReLU's slope from the result."""
    label = activations()[name].label
    act = of_the_table(name)
    model = nn.Sequential(sequential(act), Packed(False, act=act), Two(act, True)).to(dtype)
    wanted = step(model)
    report = patch(model)
    gains = name not in ("relu", "sigmoid", "tanh")
    assert [row.form for row in report.fused] == [label] * gains + [f"{label}, second half", label], report
    assert {row.activation for row in report.fused} == {name} and {row.bias for row in report.fused} == {"fused"}
    reason = f"computes {label}, where fusing gains nothing: torch keeps its result only"
    assert [row.reason for row in report.left_alone] == [reason] * (not gains)
    found = step(model)
    if name == "relu":  # its slope jumps where the rounding of a pre-activation decides
        found, wanted = {"out": found["out"]}, {"out": wanted["out"]}
    assert_same_step(found, wanted, 1e-5 if dtype == torch.float32 else 0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_proves_in_the_dtype_of_the_block(dtype, calls):
    model = nn.Sequential(sequential(), Packed(True), Two()).to(dtype)
    wanted = step(model)
    report = patch(model)
    assert len(report.fused) == 3, report
    assert_same_step(step(model), wanted, 0.1 if dtype != torch.float64 else 1e-12)


def test_bytes_in_the_report():
    """In bfloat16 per token: the input and the hidden elements at 4 and 2, or 8, 6 and 4 bytes."""
    gated = ((make, 6, 4) for make in (lambda: Packed(True), Two, lambda: Packed(True, act=nn.SiLU()), Swiglu))
    for make, keep, recompute in ((sequential, 4, 2), *gated):
        for flag, after in ((False, keep), (True, recompute)):
            (row,) = patch(make().bfloat16(), recompute=flag).fused
            eager = 4 if make is sequential else 8
            assert (row.bytes_before, row.bytes_after) == (2 * C + eager * H, 2 * C + after * H)


class Gate(nn.Module):
    """A GLU of its input, without a Linear and a tensor."""

    def __init__(self, act=F.silu, half=None):
        super().__init__()
        self.act, self.half = act, half

    def forward(self, x):
        if self.half is None:
            a, b = x.chunk(2, -1)
        else:
            a, b = x[..., : self.half], x[..., -self.half :]
        return self.act(a) * b


class Experts(nn.Module):
    """Their weights are one tensor, as in transformers 5."""

    def __init__(self, act=None):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 2 * H, C)), nn.Parameter(torch.randn(3, C, H))
        self.act = act or nn.SiLU()

    def forward(self, x):
        return sum(
            F.linear(self._apply_gate(F.linear(x, up)), down) for up, down in zip(self.up, self.down, strict=True)
        )

    def _apply_gate(self, x):
        gate, up = x.chunk(2, dim=-1)
        return self.act(gate) * up


class SpellsItOut(Experts):
    """Has the method, and does not use it."""

    def forward(self, x):
        gate, up = F.linear(x, self.up[0]).chunk(2, dim=-1)
        return F.linear(self.act(gate) * up, self.down[0])


def around(gate):
    return nn.Sequential(nn.Linear(C, 2 * H), gate, nn.Linear(H, C))


# (make, where, the function that runs, form)
GATES = {
    "a module": (lambda: around(Gate()), "1", "swiglu", "SiLU, first half"),
    "after a norm": (lambda: around(nn.Sequential(nn.LayerNorm(2 * H), Gate())), "1.1", "swiglu", "SiLU, first half"),
    "experts": (Experts, "_apply_gate", "swiglu", "SiLU, first half"),
    "experts with ReLU": (lambda: Experts(nn.ReLU()), "_apply_gate", "glu", "ReLU, first half"),
}


@pytest.mark.parametrize("name", GATES)
def test_fuses_a_glu_without_a_linear(name, calls):
    make, where, function, form = GATES[name]
    model = make()
    wanted, before = step(model), state(model)
    report = patch(model)
    assert not report.left_alone and len(report.fused) == 1, report
    (row,) = report.fused
    assert (row.block, row.op, row.form) == (where, function, form)
    assert row.bias == "kept" and row.note == "no Linear before it"
    assert row.bytes_before == 1.5 * row.bytes_after
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        step(other)  # what was pickled is planned again on its first call
        calls.clear()
        assert_same_step(step(other), wanted)
        assert calls["geglu"] == (3 if "experts" in name else 1)
    after = state(model)
    assert [*after] == [*before] and all(torch.equal(after[k], before[k]) for k in after)
    found = step(unpatch(model))
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)


@pytest.mark.parametrize("half", [None, 32])
def test_a_gate_is_fused_where_it_takes_halves(half, calls):
    gate = Gate(half=half)
    assert patch(gate)
    for width in (64, 80):
        x = torch.randn(2, width)
        calls.clear()
        torch.testing.assert_close(gate(x), Gate(half=half)(x))
        assert calls["geglu"] == (half is None or width == 64)


def test_what_remains_of_experts_says_so(calls):
    experts = "the weights of its experts are one tensor, not Linears"
    (row,) = patch(SpellsItOut()).fused
    assert (row.block, row.note) == ("act", f"{experts}; its forward spells the gate out")
    (row,) = patch(Experts(nn.Sequential(nn.SiLU(), nn.Dropout()))).fused
    assert (row.block, row.note) == ("act.0", f"{experts}; its _apply_gate calls mul where a GLU has its product")


def test_experts_are_not_copied(monkeypatch):
    sizes, real = [], find.record
    monkeypatch.setattr(find, "record", lambda b, *rest: sizes.append(b.up.numel()) or real(b, *rest))
    assert patch(Experts())
    assert sizes == [0, 0]


class Limited(nn.Module):
    """gpt-oss's gate; the others below replace a part of it."""

    def __init__(self, alpha=1.702, limit=7.0):
        super().__init__()
        self.alpha, self.limit, self.fc = alpha, limit, None

    def forward(self, x):
        gate, linear = self.parts(x if self.fc is None else self.fc(x))
        return self.linear(linear) * self.gate(gate)

    def parts(self, x):
        return x[..., ::2], x[..., 1::2]

    def gate(self, gate):
        gate = gate.clamp(min=None, max=self.limit)
        return gate * torch.sigmoid(gate * self.alpha)

    def linear(self, linear):
        return linear.clamp(min=-self.limit, max=self.limit) + 1


class Halves(Limited):
    def parts(self, x):
        return x.chunk(2, dim=-1)


class OnePlus(Halves):
    def linear(self, linear):
        return 1.0 + torch.clip(linear, -self.limit, self.limit)


class NoOffset(Halves):
    def gate(self, gate):
        return F.silu(gate.clamp(max=self.limit))

    def linear(self, linear):
        return torch.clamp(linear, -self.limit, self.limit)


class SecondHalf(NoOffset):
    def parts(self, x):
        a, b = x.chunk(2, dim=-1)
        return b, a


class LimitAfterSilu(NoOffset):
    def gate(self, gate):
        return F.silu(gate).clamp(max=self.limit)


class SigmoidOfNoLimit(NoOffset):
    def gate(self, gate):
        return gate.clamp(max=self.limit) * torch.sigmoid(gate * self.alpha)


class LimitedBelow(NoOffset):
    def gate(self, gate):
        return F.silu(gate.clamp(-self.limit, self.limit))


class OffsetBeforeLimit(NoOffset):
    def linear(self, linear):
        return (linear + 1).clamp(-self.limit, self.limit)


class Lopsided(NoOffset):
    def linear(self, linear):
        return linear.clamp(-self.limit - 1, self.limit)


class Interleaved(Limited):
    def gate(self, gate):
        return F.silu(gate)

    def linear(self, linear):
        return linear


LIMITED = {  # make, (alpha, limit, offset, layout)
    "gpt-oss": (Limited, (1.702, 7.0, 1.0, "interleaved")),
    "MiniMax": (lambda: OnePlus(1.5, 6.0), (1.5, 6.0, 1.0, "first")),
    "DeepSeek": (lambda: NoOffset(limit=10), (1.0, 10.0, 0.0, "first")),
}
NEARLY_LIMITED = [
    *(SecondHalf, LimitAfterSilu, SigmoidOfNoLimit, LimitedBelow, OffsetBeforeLimit, Lopsided, Interleaved),
    *(lambda limit=limit: NoOffset(limit=limit) for limit in (0.0, -1.0, float("inf"))),
]
has_limits = pytest.mark.skipif("clamped_swiglu" not in OPERATIONS, reason="there is no such operation")


@has_limits
@pytest.mark.parametrize("behind", [False, True], ids=["alone", "behind a Linear"])
@pytest.mark.parametrize("name", LIMITED)
def test_fuses_a_swiglu_between_limits(name, behind):
    make, names = LIMITED[name]
    gate = make()
    gate.fc = nn.Linear(64, 64) if behind else None
    other = copy.deepcopy(gate)
    (row,) = patch(gate).fused
    assert row.op == "clamped_swiglu" and row.activation == "silu"
    assert row.form == f"SiLU up to {names[1]:g}, " + ("interleaved" if names[3] == "interleaved" else "first half")
    assert (row.bias, row.note) == (("fused", "") if behind else ("kept", "no Linear before it"))
    (fused,) = swap.installed(gate).plan.fused
    assert fused.names == names
    x = torch.randn(3, 64) * 2 * gate.limit
    for limit in (gate.limit, 3.0):  # a setting that changes is obeyed
        gate.limit = other.limit = limit
        assert_same_step(step_of(gate, x), step_of(other, x))


def step_of(model, x):
    x = x.clone().requires_grad_()
    return {**step(model, x), "x": x.grad}


@has_limits
@pytest.mark.parametrize("make", NEARLY_LIMITED)
def test_near_misses_of_limits_stay(make):
    assert not patch(make())


@has_limits
def test_wrong_limits_are_never_swapped_in(monkeypatch):
    real = find.make_plan
    right = (1.702, 7.0, 1.0, "interleaved")
    for i, wrong in enumerate((1.7, 6.9, 0.99, "first")):
        names = (*right[:i], wrong, *right[i + 1 :])

        def made(*args, names=names):
            plan = real(*args)
            return replace(plan, steps=(replace(plan.steps[0], names=names),))

        monkeypatch.setattr(find, "make_plan", made)
        assert "is off by" in only_reason(patch(Limited()))


# --- torch.nn layers --------------------------------------------------------------------------------------------------


ACTIVATIONS_OF_TORCHS_LAYERS = {"name": "gelu", "function": F.gelu, "module": nn.GELU("tanh"), "silu": F.silu}


@pytest.mark.parametrize("activation", ACTIVATIONS_OF_TORCHS_LAYERS.values(), ids=list(ACTIVATIONS_OF_TORCHS_LAYERS))
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transformer_layers(activation, training, calls):
    options = {"dim_feedforward": H, "batch_first": True, "activation": activation}
    model = nn.Transformer(C, 2, 2, 1, **options).train(training)
    x = torch.randn(2, 4, C), torch.randn(2, 3, C)
    wanted = step(model, *x)
    report = patch(model)
    # nn.TransformerDecoder copies its layer, and a copied decoder layer computes ReLU in place of an activation module.
    layers = 2 if isinstance(activation, nn.Module) else 3
    fused = [row for row in report.fused if row.block.endswith("._ff_block")]
    assert len(fused) == layers and all(row.bias == "fused" for row in fused), report
    calls.clear()
    assert_same_step(step(model, *x), wanted, 1e-5)
    assert calls["bias_gelu"] == layers


def test_fast_path_of_torch_stays(calls):
    layer = nn.TransformerEncoderLayer(C, 2, H, activation="gelu", batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(2, 4, C), torch.tensor([[False] * 4, [False, False, True, True]])
    with torch.no_grad():
        wanted = model(x, src_key_padding_mask=mask)
        patch(model)
        assert torch.equal(model(x, src_key_padding_mask=mask), wanted)


def test_activation_replaced_after_patching_is_obeyed():
    layer = nn.TransformerEncoderLayer(C, 2, H, activation=F.gelu, batch_first=True, dropout=0.0)
    other = copy.deepcopy(layer)
    patch(layer)
    layer.activation = other.activation = F.relu
    x = torch.randn(2, 4, C)
    assert torch.equal(layer(x), other(x))


# --- refusals ---------------------------------------------------------------------------------------------------------


def only_reason(report):
    assert not report.fused and len(report.left_alone) == 1, report
    return report.left_alone[0].reason


# None of the table, and near to one of it.
NEAR_MISSES = {
    "ELU(2)": nn.ELU(2.0),
    "CELU": nn.CELU(0.5),
    "SELU": nn.SELU(),
    "LeakyReLU": nn.LeakyReLU(1e-3),
    "ReLU6": nn.ReLU6(),
    "Hardswish": nn.Hardswish(),
    "Softplus": nn.Softplus(beta=20.0),
    "PReLU": nn.PReLU(init=0.0),
    "Softsign": nn.Softsign(),
    "Threshold": nn.Threshold(1e-7, 0.0),
    "SiLU in place": nn.SiLU(inplace=True),
    "ReLU in place": nn.ReLU(inplace=True),
    "SiLU, slightly steeper": Formula(lambda x: x * torch.sigmoid(1.0001 * x)),
    "quick GELU, rounded": Formula(lambda x: x * torch.sigmoid(1.7 * x)),
    "SiLU, clipped": Formula(lambda x: F.silu(x).clamp(max=10.0)),
    "ReLU, another slope at zero": Formula(lambda x: x.clamp(min=0)),
    "ReLU that hides NaN": Formula(lambda x: torch.where(x > 0, x, torch.zeros_like(x))),
    "squared ReLU, halved": Formula(lambda x: 0.5 * F.relu(x).square()),
    "Mish of softplus with a threshold": Formula(lambda x: x * torch.tanh(F.softplus(x, threshold=2.0))),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses_stay(name):
    act = NEAR_MISSES[name]
    assert activation_of(act) is None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = nn.Sequential(sequential(act), Two(act, True)).to(dtype)
        wanted, before = step(model), {module: type(module) for module in model.modules()}
        assert not patch(model)
        assert before == {module: type(module) for module in model.modules()}
        found = step(model)
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)


def test_an_activation_without_a_kernel_is_named_in_the_report():
    for act, label in ((nn.LeakyReLU(), "LeakyReLU"), (nn.SiLU(inplace=True), "SiLU in place")):
        report = patch(nn.Sequential(sequential(act), Two(act)))
        assert f"computes {label}, which has no kernel" in str(report)


def test_only_what_is_asked_for_is_swapped():
    model = nn.Sequential(sequential(nn.SiLU()), Two(nn.GELU("tanh")), Packed(True, act=nn.SiLU()), Swiglu())
    wanted = step(model)
    report = patch(model, {"gelu_tanh"})
    assert [row.activation for row in report.fused] == ["gelu_tanh"]
    assert {row.reason for row in report.left_alone} == {"computes SiLU, which was not asked for"}
    with patched(model, activations=iter(["silu"])) as report:
        assert [row.activation for row in report.fused] == ["silu"] * 3
        other = pickle.loads(pickle.dumps(model))
        step(other)  # what was pickled is planned again on its first call
        assert swap.installed(other[0]).plan.options == swap.installed(model[0]).plan.options
        assert swap.installed(other[1]) is None
    assert not patch(model, [])
    assert_same_step(step(model), wanted)


def test_the_module_decides_whatever_it_is_called():
    class GELUActivation(nn.Module):
        def forward(self, x):
            return F.silu(x)

    model = nn.Sequential()
    model.gelu = Plain(GELUActivation())
    assert [row.form for row in patch(model).fused] == ["SiLU"]


class ClippedGelu(nn.Module):
    def forward(self, x):
        return F.gelu(x).clamp(-10, 10)


class Lying(nn.Module):
    """GELU, but not for tensors of any width."""

    def forward(self, x):
        return F.gelu(x) * (1.001 if x.shape[-1] in (H, 64) else 1)


def test_almost_gelu():
    assert activation_of(ClippedGelu()) is None
    assert "GELU clipped" in only_reason(patch(Plain(ClippedGelu())))


def test_an_activation_that_asks_for_the_shape_is_none():
    model = Plain(Lying())
    wanted = step(model)
    assert not patch(model)
    assert_same_step(step(model), wanted)


def test_a_module_that_lies_to_the_probe_is_caught_by_the_proof(monkeypatch):
    monkeypatch.setattr(reads, "METADATA", set())  # so that it is run
    model = Plain(Lying())
    wanted = step(model)
    report = patch(model)
    assert "is allowed" in only_reason(report)
    assert_same_step(step(model), wanted)


def test_a_wrong_half_is_never_swapped_in(monkeypatch):
    real = find.make_plan

    def wrong(*args):
        made = real(*args)
        glu, *rest = made.steps
        other = {"first": "second", "second": "first"}[glu.activated]
        return replace(made, steps=(replace(glu, names=("gelu", other)), *rest))

    monkeypatch.setattr(find, "make_plan", wrong)
    for first in (True, False):
        model = Packed(first)
        wanted = step(model)
        report = patch(model)
        (row,) = report.fused  # the activation alone
        assert row.block == "act" and row.bias == "kept" and "is off by" in row.note
        assert type(model) is Packed
        assert_same_step(step(model), wanted)


def test_a_lost_bias_is_never_swapped_in(monkeypatch):
    """Models are born with zero biases: the proof must not run on those."""
    model = sequential()
    nn.init.zeros_(model[0].bias)

    def without_bias(op, names, recompute, tile_rows, x, w2, b2, w1, b1):
        return F.linear(F.gelu(F.linear(x, w1)), w2, b2)

    monkeypatch.setattr(plan, "linear_op_linear", without_bias)
    report = patch(model)
    assert "gradient of 0.bias exists only in one" in report.fused[0].note and type(model) is nn.Sequential


class BothHalves(Packed):
    def forward(self, x):
        a, b = self.wi(x).chunk(2, dim=-1)
        return self.wo(self.act(a) * self.act(b))


class Residual(Plain):
    def forward(self, x):
        h = self.fc(x)
        return self.proj(self.act(h) + h)


class Peeking(Plain):
    def forward(self, x):
        h = self.fc(x)
        self.largest = h.detach().abs().max().item()
        return self.proj(self.act(h))


class InTraining(Plain):
    def forward(self, x):
        h = self.act(self.fc(x))
        return self.proj(2 * h if self.training else h)


class InPlace(Plain):
    def forward(self, x):
        return self.proj(self.act(self.fc(x)).mul_(2))


@pytest.mark.parametrize("kind", [BothHalves, Residual, Peeking, InTraining, InPlace])
def test_unknown_forward_gets_the_activation_alone(kind, calls):
    model = kind(True) if kind is BothHalves else kind(nn.GELU())
    wanted = step(model)
    report = patch(model)
    (row,) = report.fused
    assert row.block == "act" and row.bias == "kept" and row.note.startswith("its forward"), report
    assert_same_step(step(model), wanted)
    assert calls["bias_gelu"]


def test_unknown_forward_without_a_module_is_left_alone():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(C, H)

        def forward(self, x):
            return F.gelu(self.fc(x)).cumsum(-1)

    assert "calls cumsum" in only_reason(patch(Odd()))


def test_a_container_does_not_answer_for_its_childrens_gelus():
    layer = nn.TransformerEncoderLayer(C, 2, H, activation="gelu", batch_first=True)
    for model in (nn.TransformerEncoder(layer, 2), nn.TransformerEncoder(layer, 2).eval()):
        report = patch(model)
        assert len(report.fused) == 2 and not report.left_alone, report

    class Made(nn.Module):
        """Names a GELU where it makes one, a child and a setting where it runs."""

        def __init__(self):
            super().__init__()
            self.norm, self.fc = nn.Linear(C, C), nn.Linear(C, C)
            self.gelu_block = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C))
            self.with_gelu = True

        def forward(self, x):
            x = self.gelu_block(x) if self.with_gelu else x
            return self.fc(self.norm(x).cumsum(-1))

    report = patch(Made())
    assert [row.block for row in report.fused] == ["gelu_block"] and not report.left_alone, report


def test_a_container_answers_for_a_gelu_of_its_own():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.inner = nn.Linear(C, C), sequential()

        def forward(self, x):
            return F.gelu(self.fc(self.inner(x))).cumsum(-1)

    report = patch(Both())
    assert [row.block for row in report.fused] == ["inner"], report
    ((block, reason),) = [(row.block, row.reason) for row in report.left_alone]
    assert block == "(the model)" and reason, report


def test_a_hook_between_linear_and_activation():
    """It sees what it saw before; the bias stays in the Linear, and the reason is printed."""
    model = sequential()
    seen = []
    model[0].register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    wanted = step(model)
    report = patch(model)
    assert len(seen) == 1, "the proof must not run the hooks of the model"
    assert report.fused[0].bias == "kept" and "0 has a hook" in str(report)
    assert_same_step(step(model), wanted)
    assert torch.equal(*seen)


def test_a_hook_on_the_activation():
    model = sequential()
    seen = []
    model[1].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    wanted = step(model)
    report = patch(model)
    assert "1 has a hook" in str(report) and report.fused[0].block == "1"
    assert_same_step(step(model), wanted)
    assert torch.equal(*seen)


def test_a_hook_added_after_patching_sees_the_original(calls):
    model = sequential()
    patch(model)
    seen = []
    handle = model[0].register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(3, C)
    calls.clear()
    model(x)
    assert torch.equal(seen[0], F.linear(x, model[0].weight, model[0].bias)) and not calls
    handle.remove()
    model(x)
    assert calls["bias_gelu"] == 1


class LoraLinear(nn.Module):
    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.in_features = base_layer.in_features
        self.down, self.up = nn.Linear(C, 2, bias=False), nn.Linear(2, H, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def test_a_lora_linear():
    model = sequential()
    model[0] = LoraLinear(model[0])
    wanted = step(model)
    report = patch(model, recompute=True)
    assert report.fused[0].bias == "kept" and report.fused[0].op == "bias_gelu"
    assert "0 is a LoraLinear, not a plain nn.Linear" in str(report)
    assert_same_step(step(model), wanted)


def test_a_lora_linear_put_in_after_patching():
    for make in (sequential, lambda: Packed(True), Two):
        model = make()
        name = next(iter(model._modules))
        patch(model, recompute=True)
        plain = unpatch(copy.deepcopy(model))
        for m in (model, plain):
            torch.manual_seed(3)
            wrapped = nn.Sequential(getattr(m, name), nn.Identity())
            setattr(m, name, wrapped)
        found, wanted = step(model), step(plain)
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)


class QuantisedLinear(nn.Linear):
    pass


def test_a_subclass_of_linear_keeps_its_bias():
    model = sequential()
    model[0] = QuantisedLinear(C, H)
    report = patch(model)
    assert report.fused[0].bias == "kept" and "0 is a QuantisedLinear, not a plain nn.Linear" in str(report)


def test_weight_norm_and_parametrizations():
    for norm in (nn.utils.weight_norm, nn.utils.parametrizations.weight_norm):
        model = sequential()
        norm(model[0])
        wanted = step(model)
        report = patch(model)
        assert report.fused[0].bias == "kept", report
        assert_same_step(step(model), wanted)


def test_meta_tensors_are_left_alone():
    with torch.device("meta"):
        model = sequential()
    report = patch(model)
    assert "its parameters have no data (meta device)" in str(report)
    assert type(model) is nn.Sequential


# --- nothing else changes ---------------------------------------------------------------------------------------------


def test_random_state_gradients_mode_and_buffers_stay():
    model = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(H, C))
    model[4].weight.requires_grad_(False)
    for training in (True, False):
        model.train(training)
        before, random = state(model), torch.get_rng_state()
        for scope in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with scope():
                report = patch(model)
            assert len(report.fused) == 1, report
        assert torch.equal(random, torch.get_rng_state())
        assert all(p.grad is None for p in model.parameters())
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert all(module.training == training for module in model.modules())
        assert [p.requires_grad for p in model.parameters()].count(False) == 1


def test_patching_twice_is_harmless():
    model = nn.Sequential(sequential(), Packed(True))
    first = patch(model)
    classes = [type(module) for module in model.modules()]
    assert str(patch(model)) == str(first)
    assert classes == [type(module) for module in model.modules()]
    unpatch(model)
    assert all("_gelu_ext" not in vars(module) for module in model.modules())
    assert type(model[0]) is nn.Sequential and type(model[1]) is Packed
    assert unpatch(model) is model


def test_context_manager_puts_back_what_was_there():
    model = nn.Sequential(sequential(), Packed(True))
    with patched(model, recompute=True) as report:
        assert [row.op for row in report.fused] == ["mlp", "geglu_mlp"]
    assert type(model[0]) is nn.Sequential and type(model[1]) is Packed
    patch(model)
    with pytest.raises(KeyError), patched(model, recompute=True):
        raise KeyError
    assert not any(step.recompute for step in swap.installed(model[0]).plan.steps)


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_copy_and_pickle(recompute, calls):
    layer = nn.TransformerEncoderLayer(C, 2, H, activation="gelu", batch_first=True)
    model = nn.Sequential(sequential(), Packed(False), Two(), layer, Functional(), Swiglu())
    assert len(patch(model, recompute=recompute).fused) == 6
    wanted = step(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        step(other)  # what was pickled is planned again on its first call
        calls.clear()
        found = step(other)
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)
        assert calls == {"bias_gelu": 3, "geglu": 1, "gelu_mul": 2} or recompute
        assert not {id(m) for m in other.modules()} & {id(m) for m in model.modules()}
        assert swap.installed(other[0]).owner is other[0]
        assert_same_step(step(unpatch(other)), wanted)
        assert swap.installed(model[0]) is not None


def test_shared_activation_and_tied_weights(calls):
    act = nn.GELU()
    model = nn.Sequential(sequential(act), sequential(act), Residual(act))
    model[1][0].weight = model[0][0].weight
    wanted = step(model)
    report = patch(model)
    assert sorted(row.bias for row in report.fused) == ["fused", "fused", "kept"], report
    assert model[1][0].weight is model[0][0].weight
    assert_same_step(step(model), wanted)
    assert type(unpatch(model)[0][1]) is nn.GELU


def test_a_shared_block_is_patched_once():
    block = sequential()
    assert len(patch(nn.Sequential(block, block)).fused) == 1


def test_dtype_and_device_may_change_afterwards(calls):
    model = sequential()
    patch(model, recompute=True)
    model.double()
    calls.clear()
    out = model(torch.randn(3, C, dtype=torch.float64))
    assert out.dtype == torch.float64 and calls["bias_gelu"] == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model.float()(torch.randn(3, C)).dtype == torch.bfloat16


class Casting(Plain):
    """Its cast does nothing in float32."""

    def forward(self, x):
        return self.proj(self.act(self.fc(x)).to(torch.float32).to(self.proj.weight.dtype))


def test_a_cast_that_does_nothing_now_may_do_something_later(calls):
    model = Casting(nn.GELU())
    (row,) = patch(model).fused
    assert row.bias == "fused"
    x = torch.randn(3, C)
    calls.clear()
    model(x)
    assert calls["bias_gelu"] == 1
    calls.clear()
    for call in (lambda: model(x), lambda: model.double()(x.double())):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            call()
    assert not calls


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
def test_compiles_in_one_graph(recompute):
    model = nn.Sequential(sequential(), Packed(True), Two(), Packed(True, act=nn.SiLU()), Swiglu())
    wanted = step(model)
    patch(model, recompute=recompute)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = {name.removeprefix("_orig_mod."): t for name, t in step(compiled).items()}
    assert_same_step(found, wanted, 1e-5)


def test_keyword_and_extra_arguments():
    class Tolerant(Functional):
        def forward(self, x, *args, scale=None):
            out = super().forward(x)
            return out if scale is None else out * scale

    model = Tolerant()
    x = torch.randn(3, C)
    wanted = model(x), model(x, scale=2.0)
    assert patch(model)
    for found, expected in zip((model(x=x), model(x, scale=2.0)), wanted, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_bare_activation_and_a_bare_block(calls):
    act = nn.GELU("tanh")
    assert patch(act).fused[0].block == "(the model)"
    act(torch.randn(3))
    assert calls["bias_gelu"]
    assert "nothing" not in str(patch(nn.Linear(2, 2))) and not patch(nn.Linear(2, 2))


def test_recompute_takes_the_larger_block():
    """As in diffusers: Linear and GELU in a module of their own, the second Linear in the module around it."""

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(C, H)

        def forward(self, x):
            return F.gelu(self.proj(x))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.ModuleList([Inner(), nn.Dropout(0.0), nn.Linear(H, C)])

        def forward(self, x):
            for module in self.net:
                x = module(x)
            return x

    model = nn.Sequential(Outer())
    wanted = step(model)
    assert [(row.block, row.op) for row in patch(model).fused] == [("0.net.0", "bias_gelu")]
    assert [(row.block, row.op) for row in patch(model, recompute=True).fused] == [("0", "mlp")]
    assert_same_step(step(model), wanted)
    model[0].net[0].register_forward_hook(lambda *args: None)
    assert [row.op for row in patch(model, recompute=True).fused] == ["bias_gelu"]


def test_without_verify_the_structure_still_decides(monkeypatch):
    monkeypatch.setattr(proof, "_compare", None)  # not called
    model = nn.Sequential(sequential(), sequential(nn.LeakyReLU()))
    report = patch(model, verify=False)
    assert len(report.fused) == 1 and len(report.left_alone) == 1


def test_report_prints_a_table():
    text = str(patch(nn.Sequential(sequential(), Plain(nn.ReLU()))))
    assert text.splitlines()[0] == "gelu_ext: 1 of 2 activations fused, 1 of them with the bias"
    assert "block" in text and "bytes kept per token" in text and "left alone:" in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_errors():
    with pytest.raises(TypeError, match=r"patch: expected model to be an nn\.Module, got int"):
        patch(1)
    for flag in ("recompute", "verify"):
        with pytest.raises(TypeError, match=f"patch: expected {flag} to be a bool, got 'no'"):
            patch(nn.GELU(), **{flag: "no"})
    names = ", ".join(f"'{name}'" for name in SERVED)
    for wrong, error, got in (
        ("silu", TypeError, "'silu'"),
        (3, TypeError, "3"),
        (["silu", "relux"], ValueError, "one with 'relux'"),
        ([None], ValueError, "one with None"),
    ):
        for call in (patch, lambda *args: patched(*args).__enter__()):
            with pytest.raises(error) as caught:
                call(nn.GELU(), wrong)
            assert str(caught.value) == f"patch: expected activations to be None or a set of {names}, got {got}"
    with pytest.raises(TypeError, match=r"unpatch: expected model to be an nn\.Module, got list"):
        unpatch([])


# --- what a block does beside computing, and what is changed after patching -------------------------------------------


class Ordinary(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act, self.proj = nn.Linear(C, H), nn.GELU(), nn.Linear(H, C)
        self.calls = 0

    def forward(self, x):
        return self.proj(self.act(self.fc(x)))


class Counting(Ordinary):
    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class AsksShape(Ordinary):
    def forward(self, x):
        out = super().forward(x)
        return out if x.shape[-2] <= 4 else out * 0.5


class RollsDice(Ordinary):
    def forward(self, x):
        return x if self.training and random.random() < 0.5 else super().forward(x)


class LeavesAutocast(Ordinary):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return super().forward(x)


@pytest.mark.parametrize("block", [Counting, AsksShape, RollsDice, LeavesAutocast])
def test_a_block_that_does_more_than_compute_goes_on_doing_it(block):
    eager = block()
    patched = copy.deepcopy(eager)
    dice = random.getstate()
    patch(patched)
    assert random.getstate() == dice
    for rows in (3, 7):
        x = torch.randn(2, rows, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=block is LeavesAutocast):
            outs = []
            for model in (eager, patched):
                random.seed(0)
                outs.append(model(x))
        assert outs[0].dtype == outs[1].dtype
        torch.testing.assert_close(outs[1], outs[0])
    assert patched.calls == eager.calls


def test_children_added_after_patching_are_called():
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    patch(model)
    model.append(nn.Linear(8, 3))
    x = torch.randn(2, 8)
    torch.testing.assert_close(model(x), unpatch(copy.deepcopy(model))(x))


def test_a_setting_changed_after_patching_is_obeyed():
    model = Ordinary()
    patch(model)
    model.act.approximate = "tanh"
    x = torch.randn(64, 8) * 3
    assert torch.equal(model(x), unpatch(copy.deepcopy(model))(x))


def test_the_order_of_memory_stays_as_it_was():
    activation = nn.GELU()
    x = torch.randn(2, 16, 5, 5).contiguous(memory_format=torch.channels_last)
    expected = activation(x)
    patch(activation)
    assert activation(x).stride() == expected.stride()
    torch.testing.assert_close(activation(x), expected)


def test_a_function_that_gains_nothing_is_reported_once():
    """nn.TransformerEncoderLayer keeps F.relu as its default."""
    for act in (F.relu, torch.tanh):
        report = patch(nn.Sequential(Plain(act), nn.TransformerEncoderLayer(C, 2, H, activation=act, batch_first=True)))
        assert not report.fused and len(report.left_alone) == 2, report
        assert {row.reason.split(":")[0] for row in report.left_alone} == {
            f"computes {'ReLU' if act is F.relu else 'Tanh'}, where fusing gains nothing"
        }
