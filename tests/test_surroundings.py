"""Whatever surrounds a call: the MLPs, the modules and the functions do what the same model in torch's words does.

By kind: export and tracing, modes, autocast, the context of the backward, which gradients are wanted, transforms inside
torch.compile, sizes that depend on data, kinds of tensors, what is written to before the backward, hooks, exceptions.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.nn.modules import module as nn_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gelu_ext
from gelu_ext._operations import OPERATIONS
from gelu_ext.memory import saved_bytes
from gelu_ext.patch import patch

C, H, D = 6, 16, 5

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")


class Eager(nn.Module):
    """The MLPs in torch's words, with the parameters of ours."""

    def __init__(self, kind: str, act: nn.Module | None = None) -> None:
        super().__init__()
        self.kind, self.act = kind, act or nn.GELU()
        self.fc1 = nn.Linear(C, 2 * H if kind == "packed" else H)
        self.up = nn.Linear(C, H) if kind == "two" else None
        self.fc2 = nn.Linear(H, D)

    def forward(self, x):
        h = self.fc1(x)
        if self.kind == "packed":
            a, b = h.chunk(2, -1)
            return self.fc2(a * self.act(b))
        h = self.act(h)
        return self.fc2(h * self.up(x)) if self.kind == "two" else self.fc2(h)


class Called(nn.Module):
    """The same through the function of an MLP."""

    tile_rows: int | None = None

    def __init__(self, eager: Eager, recompute: bool) -> None:
        super().__init__()
        self.kind, self.recompute = eager.kind, recompute
        self.fc1, self.up, self.fc2 = eager.fc1, eager.up, eager.fc2

    def forward(self, x):
        ends = self.fc2.weight, self.fc2.bias
        first = x, self.fc1.weight, self.fc1.bias
        options = {"recompute": self.recompute, "tile_rows": self.tile_rows}
        if self.kind == "two":
            return gelu_ext.gelu_mul_mlp(*first, self.up.weight, self.up.bias, *ends, **options)
        function = gelu_ext.mlp if self.kind == "plain" else gelu_ext.geglu_mlp
        return function(*first, *ends, **options)


class InTiles(Called):
    """And a few rows at a time."""

    tile_rows = 2


def as_module(eager: Eager, recompute: bool) -> nn.Module:
    kind = gelu_ext.MLP if eager.kind == "plain" else gelu_ext.GEGLUMLP
    module = kind(C, H, D, recompute=recompute)
    module.load_state_dict({name: t for name, t in eager.state_dict().items() if not name.startswith("up")})
    return module


def as_patched(eager: Eager, recompute: bool) -> nn.Module:
    model = nn.Sequential(eager)
    report = patch(model, recompute=recompute)
    assert len(report.fused) == 1 and not report.left_alone, report
    return model


FORMS = {
    f"{kind} {form.__name__} {'recompute' if recompute else 'keep'}": (kind, form, recompute)
    for kind in ("plain", "packed", "two")
    for form in (Called, InTiles, as_module, as_patched)
    for recompute in (True, False)
    if not (kind == "two" and form is as_module)
}


@pytest.fixture(params=FORMS)
def pair(request) -> tuple[nn.Module, nn.Module]:
    """(ours, the same in torch's words, with parameters of its own)"""
    torch.manual_seed(0)
    kind, form, recompute = FORMS[request.param]
    eager = Eager(kind)
    return form(copy.deepcopy(eager), recompute), eager


def results(model: nn.Module, x: Tensor, context=contextlib.nullcontext) -> list[Tensor]:
    """The output and every gradient, the input's last."""
    x = x.clone().requires_grad_()
    out = model(x)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    with context():
        grads = torch.autograd.grad(out, [*model.parameters(), x], grad_out)
    return [out.detach(), *sorted(grads[:-1], key=lambda g: (g.dim(), g.shape)), grads[-1]]


def weighted(out: Tensor) -> Tensor:
    """A number whose gradient by ``out`` is random, and the same for outputs of one shape."""
    return (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)).sum()


def assert_agree(found, wanted, **tolerance):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def operators(graph_module: torch.fx.GraphModule) -> list[str]:
    modules = [m for m in graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    return [str(node.target) for m in modules for node in m.graph.nodes if node.op == "call_function"]


# --- graphs that leave torch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("enabled", [True, False], ids=["grad", "no_grad"])
def test_an_exported_graph_keeps_its_gradients_and_the_operator(pair, strict, enabled):
    """pytorch/executorch#22069: a strict export turned an autograd.Function into its forward alone."""
    ours, eager = pair
    x = torch.randn(3, C)
    torch._dynamo.reset()
    with torch.set_grad_enabled(enabled):
        exported = torch.export.export(ours, (x,), strict=strict)
    assert any("gelu_ext" in name for name in operators(exported.graph_module))
    assert_agree(results(exported.module(), x), results(eager, x))


def test_a_trace_computes_on_other_input_and_can_be_trained(pair, tmp_path):
    ours, eager = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(ours, torch.randn(3, C))
        traced.save(tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
    x = torch.randn(7, C)
    for graph in (traced, loaded):
        assert "gelu_ext::" in str(graph.inlined_graph)
        assert_agree(results(graph, x), results(eager, x))


def test_decomposed_it_is_torchs_own_gelu(pair):
    """What torch.onnx.export does."""
    ours, eager = pair
    x = torch.randn(3, C)
    exported = torch.export.export(ours, (x,))
    decomposed = exported.run_decompositions(gelu_ext.decompositions())
    names = operators(decomposed.graph_module)
    assert any("gelu" in name for name in names) and not any("gelu_ext" in name for name in names)
    torch.testing.assert_close(decomposed.module()(x), eager(x))
    kept = operators(exported.run_decompositions().graph_module)  # torch's default leaves ours, and says that it does
    assert any("gelu_ext" in name for name in kept)


@pytest.mark.parametrize(
    "given, surrounding, opset",
    [
        ("module", contextlib.nullcontext, 18),
        ("module", torch.inference_mode, 20),
        ("program", contextlib.nullcontext, 20),
        ("decomposed program", torch.inference_mode, 20),
    ],
)
def test_onnx_by_the_exporter_of_today(pair, given, surrounding, opset, tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    ours, eager = pair
    x = torch.randn(3, C)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), surrounding():
        warnings.simplefilter("ignore")
        exported = ours.eval() if given == "module" else torch.export.export(ours.eval(), (x,))
        exported = exported.run_decompositions() if given == "decomposed program" else exported
        args = (x,) if given == "module" else ()
        program = torch.onnx.export(exported, args, dynamo=True, opset_version=opset, verbose=False)
    if opset >= 20:
        assert "Gelu" in {node.op_type for node in program.model_proto.graph.node}
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), eager(x).detach(), atol=1e-5, rtol=1e-5)


def test_the_compiler_finds_no_decomposition():
    """It would prefer one to the kernels, and where the variable CI is set it refuses an operator that has one."""
    ours = [getattr(torch.ops.gelu_ext, name).default for name in OPERATIONS]
    assert ours and not torch._decomp.get_decompositions(ours)


def test_symbolic_traces_of_every_function():
    """torch.fx sees the public functions, called as their signatures say."""

    def every_function(x, y, b, w1, w2):
        act = {"activation": "gelu_tanh"}
        return (
            gelu_ext.bias_gelu(x, b, approximate="tanh"),
            gelu_ext.geglu(x, b, activated="first"),
            gelu_ext.gelu_mul(x, y),
            gelu_ext.bias_act(x, b, **act),
            gelu_ext.glu(x, b, **act),
            gelu_ext.act_mul(x, y, b, None, **act),
            gelu_ext.act_mul(x, y, b, b, **act),
            gelu_ext.clamped_swiglu(x, b, limit=1.0, layout="first"),
            gelu_ext.gaussian_gelu(x, b, 2.0),
        )

    x, y, b = torch.randn(3, H), torch.randn(3, H), torch.randn(H)
    traced = torch.fx.symbolic_trace(every_function)
    for a, expected in zip(traced(x, y, b, None, None), every_function(x, y, b, None, None), strict=True):
        assert torch.equal(a, expected)


# --- modes ------------------------------------------------------------------------------------------------------------


class SeesEverything(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [lambda: torch.device("cpu"), lambda: torch.device("meta"), SeesEverything])
def test_a_mode_changes_neither_bits_nor_what_is_kept(pair, mode):
    """pytorch#92701: a default device is a mode over every function."""
    ours, _ = pair
    x = torch.randn(32, C)
    bits, kept = results(ours, x), saved_bytes(ours, x, exclude=[x])
    with mode():
        found = ours(x)
        inside = saved_bytes(ours, x, exclude=[x])
    assert inside == kept
    assert torch.equal(found, bits[0])


def test_biases_of_both_tensors_under_a_mode():
    """gelu_mul has no biases: under a mode the two of act_mul went missing."""
    a, b, p, q = (torch.randn(*shape) for shape in ((3, H), (3, H), (H,), (H,)))
    expected = gelu_ext.act_mul(a, b, p, q, activation="gelu")
    with SeesEverything() as mode:
        assert torch.equal(gelu_ext.act_mul(a, b, p, q, activation="gelu"), expected)
    assert "act_mul" in mode.names


class Twice(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.differ, self.seen = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace == "gelu_ext":
            self.seen += 1
            first = torch.utils._pytree.tree_map_only(Tensor, torch.clone, out)
            again = func(*args, **(kwargs or {}))
            leaves = torch.utils._pytree.tree_leaves
            if not all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(again), strict=True)):
                self.differ.append(func.name())
            return first
        return out


def test_an_operator_run_twice_gives_the_same_and_writes_nothing(pair):
    ours, _ = pair
    x = torch.randn(3, C)
    with Twice() as mode:
        results(ours, x)
    assert mode.seen >= 2 and not mode.differ
    with SchemaCheckMode():
        results(ours, x)


# --- autocast, and the context of the backward ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_gradients_wanted_or_not_the_bits_are_the_same(pair, dtype, model_dtype):
    """unsloth-zoo#1001, trl#7077: scored under no_grad and trained with gradients."""
    ours, _ = pair
    ours = ours.to(model_dtype)
    x = torch.randn(64, C, dtype=model_dtype)
    with torch.autocast("cpu", dtype=dtype):
        trained = ours(x)
        with torch.no_grad():
            scored = ours(x)
        with torch.inference_mode():
            served = ours(x).clone()
        inside = [checkpoint(ours, x.clone().requires_grad_(), use_reentrant=reentrant) for reentrant in (True, False)]
    assert trained.dtype == dtype
    for other in (scored, served, *inside):
        assert torch.equal(other, trained)


def test_functions_under_autocast_take_a_bias_of_the_models_dtype():
    """torch.autocast("cuda") means float16; the model may be in bfloat16."""
    x, b = torch.randn(3, H), torch.randn(H).bfloat16()
    y = torch.randn(3, H).bfloat16()
    for tracked in (False, True):
        b, y = b.detach().requires_grad_(tracked), y.detach().requires_grad_(tracked)
        with torch.autocast("cpu", dtype=torch.float16):
            half = F.linear(x, torch.eye(H))
            outs = [
                gelu_ext.bias_gelu(half, b),
                gelu_ext.geglu(half, b),
                gelu_ext.gelu_mul(half, y),
                gelu_ext.act_mul(half, y, b, b, activation="gelu"),
            ]
        assert {out.dtype for out in outs} == {torch.float16}
        if tracked:
            grads = torch.autograd.grad(sum(out.float().sum() for out in outs), (b, y))
            assert [g.dtype for g in grads] == [torch.bfloat16] * 2
    with pytest.raises(TypeError, match="expected bias of the dtype of x, float16"):
        gelu_ext.bias_gelu(half, b.detach())  # without autocast


@pytest.mark.parametrize(
    "context",
    [
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
        SeesEverything,
        lambda: torch.autograd.set_multithreading_enabled(False),
    ],
    ids=["autocast", "default device", "mode", "single thread"],
)
def test_the_backward_ignores_the_context_that_it_runs_in(pair, context):
    ours, _ = pair
    x = torch.randn(4, C)
    for a, b in zip(results(ours, x, context), results(ours, x), strict=True):
        assert torch.equal(a, b)


def test_a_differentiable_backward_under_autocast(pair):
    ours, eager = pair
    found = []
    for model in (ours, eager):
        x = torch.randn(4, C, generator=torch.Generator().manual_seed(3)).requires_grad_()
        out = weighted(model(x))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model is ours):
            (slope,) = torch.autograd.grad(out, x, create_graph=True)
        found += [slope, torch.autograd.grad(slope.square().sum(), x)[0]]
    assert_agree(found[:2], found[2:], rtol=1e-4, atol=1e-5)


def test_gradients_in_batches(pair):
    """pytorch#138422: is_grads_batched, and jacobian(vectorize=True) on top of it."""
    ours, eager = (model.double() for model in pair)
    x = torch.randn(3, C, dtype=torch.float64, requires_grad=True)
    jacobians = [torch.autograd.functional.jacobian(model, x, vectorize=True) for model in (ours, eager)]
    torch.testing.assert_close(*jacobians)
    out = ours(x)
    wanted = [x, *ours.parameters()]
    directions = torch.randn(4, *out.shape, dtype=out.dtype)
    batched = torch.autograd.grad(out, wanted, directions, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(out, wanted, direction, retain_graph=True) for direction in directions]
    for i, found in enumerate(batched):
        torch.testing.assert_close(found, torch.stack([grads[i] for grads in single]))


class Count(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func.name().split("::")[1].split(".")[0] in ("mm", "addmm", "bmm")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", ["x", "fc1.weight", "fc2.weight", "fc2.bias", "fc1.bias"])
def test_only_the_gradients_that_are_asked_for_are_computed(pair, wanted):
    """pytorch#174017: Jacobians, gradient penalties and zero-bubble pipelines ask for some of them."""
    if isinstance(pair[0], InTiles):
        pytest.skip("has its products tile by tile, and the first one again")
    counts = []
    for model in pair:
        x = torch.randn(3, C, requires_grad=True)
        tensor = x if wanted == "x" else next(p for name, p in model.named_parameters() if name.endswith(wanted))
        out = model(x).sum()
        with Count() as count:
            torch.autograd.grad(out, tensor)
        counts.append(count.products)
    assert counts[0] == counts[1]


def test_compiled_autograd_traces_the_backward(pair):
    ours, eager = pair
    x = torch.randn(3, C)
    torch._dynamo.reset()
    found = []
    for model in (ours, eager):
        model.zero_grad()
        out = model(x)
        grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        if model is ours:
            with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True)):
                out.backward(grad_out)
        else:
            out.backward(grad_out)
        found.append(sorted((p.grad for p in model.parameters()), key=lambda g: (g.dim(), g.shape)))
    assert_agree(*found)


# --- torch.compile ----------------------------------------------------------------------------------------------------


def test_transforms_inside_compile(pair):
    """pytorch#174067, #129845."""
    ours, eager = (model.double() for model in pair)
    x = torch.randn(3, C, dtype=torch.float64)
    functions = {
        "jvp": lambda model: lambda x: jvp(model, (x,), (x.cos(),))[1],
        "grad": lambda model: grad(lambda x: model(x).square().sum()),
        "vmap": lambda model: vmap(model),
        "jacrev": lambda model: jacrev(model),
        "vmap of grad": lambda model: vmap(grad(lambda x: model(x).square().sum())),
    }
    for make in functions.values():
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(make(ours), backend="eager")(x), make(eager)(x))


def test_sizes_that_depend_on_data():
    """pytorch#155590, vllm#35751: the rows that a router chose."""
    x, y, b = torch.randn(4, H), torch.randn(3, H), torch.randn(H)
    mask, keep = torch.tensor([True, False, True, True]), torch.arange(H) % 2 == 0
    small, wide = torch.randn(3, H // 2), torch.randn(2 * H)
    module = gelu_ext.MLP(H, 2 * H)
    calls = {
        "bias_gelu": lambda: gelu_ext.bias_gelu(x[mask], b),
        "its bias": lambda: gelu_ext.bias_gelu(small, b[keep]),
        "geglu": lambda: gelu_ext.geglu(x[mask], b),
        "first of gelu_mul": lambda: gelu_ext.gelu_mul(x[mask], y),
        "second of gelu_mul": lambda: gelu_ext.gelu_mul(y, x[mask]),
        "both of act_mul": lambda: gelu_ext.act_mul(x[mask], x[mask] * 2, b, b, activation="gelu_tanh"),
        "biases of act_mul": lambda: gelu_ext.act_mul(small, small, b[keep], b[keep], activation="gelu"),
        "packed bias": lambda: gelu_ext.glu(small.repeat(1, 2), wide[wide < 9][:H], activation="silu"),
        "GELU of a slice": lambda: gelu_ext.GELU()(x[mask][:, :4]),
        "GELU of a transpose": lambda: gelu_ext.GELU("tanh")(x[mask].view(-1, 2, H // 2).transpose(1, 2)),
        "MLP": lambda: module(x[mask]),
    }
    if torch.__version__ < (2, 13):  # its compiler cannot ask whether such a tensor is contiguous
        calls = {name: call for name, call in calls.items() if "GELU of" not in name}
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        for name, call in calls.items():
            torch._dynamo.reset()
            compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(), call(), msg=lambda text, name=name: f"{name}: {text}")


# --- kinds of tensors -------------------------------------------------------------------------------------------------


def jagged(*shape: int) -> Tensor:
    rows = [torch.randn(n, *shape) for n in (2, 3)]
    return torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_jagged_tensors_everywhere(pair):
    """pytorch#94701, #140736."""
    ours, eager = pair
    x = jagged(C)
    found, wanted = ours(x), eager(x)
    torch.testing.assert_close(found.values(), wanted.values())
    gradients = [torch.autograd.grad(weighted(out.values()), x)[0].values() for out in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_torchs_gelu_takes_and_no_kernel_does():
    strided = torch.nested.nested_tensor([torch.randn(2, H), torch.randn(3, H)])
    quantised = torch.quantize_per_tensor(torch.randn(4, H), 0.05, 0, torch.qint8)
    mkldnn = torch.randn(4, H).to_mkldnn()
    for x, plain in (
        (strided, lambda t: torch.cat(t.unbind())),
        (jagged(H), lambda t: t.values()),
        (quantised, lambda t: t.dequantize()),
        (mkldnn, lambda t: t.to_dense()),
    ):
        module = nn.GELU()
        assert patch(module)
        for function in (gelu_ext.GELU(), gelu_ext.bias_gelu, module):
            torch.testing.assert_close(plain(function(x)), plain(F.gelu(x)))
    b = torch.randn(H)
    x = jagged(H)
    torch.testing.assert_close(gelu_ext.bias_gelu(x, b).values(), F.gelu(x + b).values())
    torch.testing.assert_close(gelu_ext.gelu_mul(x, x * 2).values(), (F.gelu(x) * (x * 2)).values())
    a, c = x.chunk(2, -1)
    torch.testing.assert_close(gelu_ext.geglu(x).values(), (a * F.gelu(c)).values())


def test_features_of_inference_mode_under_something_trainable():
    """dinov2#472, pytorch#161164: F.gelu(x + b) keeps neither x nor b."""
    with torch.inference_mode():
        x, gate = torch.randn(3, H), torch.randn(3, H)
    b, y = torch.randn(H, requires_grad=True), torch.randn(3, H, requires_grad=True)
    for out, wanted in (
        (gelu_ext.bias_gelu(x, b), F.gelu(x + b)),
        (gelu_ext.gelu_mul(gate, y), F.gelu(gate) * y),
        (gelu_ext.act_mul(gate, y, b, b, activation="gelu"), F.gelu(gate + b) * (y + b)),
    ):
        torch.testing.assert_close(out, wanted)
        both = [
            torch.autograd.grad(weighted(o), (b, y), allow_unused=True, materialize_grads=True) for o in (out, wanted)
        ]
        assert_agree(*both)


def test_an_mlp_of_inference_tensors_says_what_torch_says(pair):
    with torch.inference_mode():
        x = torch.randn(3, C)
    for model in pair:
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            model(x)
        with torch.no_grad():
            model(x)


@pytest.mark.parametrize(
    "bias",
    [
        lambda: torch.randn(2 * C)[::2],
        lambda: torch.randn(1).expand(C),
        lambda: torch.randn(C, dtype=torch.complex64).conj().imag,  # negative by a bit of the tensor
        lambda: torch._efficientzerotensor(C),
        lambda: nn.Parameter(torch.randn(C)),
    ],
    ids=["strided", "expanded", "negative", "zero", "parameter"],
)
def test_every_kind_of_bias_may_change_before_the_backward(bias):
    x, grad_out = torch.randn(5, C, requires_grad=True), torch.randn(5, C)
    bias = bias()
    expected = torch.autograd.grad(F.gelu(x + bias.detach().clone()), x, grad_out)
    out = gelu_ext.bias_gelu(x, bias)
    if not bias._is_zerotensor():
        bias.detach()[:1] += 1
    torch.testing.assert_close(torch.autograd.grad(out, x, grad_out), expected)


@pytest.mark.parametrize("needs_x", [True, False])
@pytest.mark.parametrize(
    "frozen", [("fc1", "up", "fc2"), ("fc2",), ("weight",), ("bias",), ("fc1", "up")], ids="+".join
)
def test_a_frozen_weight_is_not_kept_for_nothing(pair, frozen, needs_x):
    """What is trained beside frozen weights (adapters, a head, prompts) keeps no more than torch's own functions do."""
    kept, gradients = [], []
    for model in pair:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
        x = torch.randn(32, C, generator=torch.Generator().manual_seed(3), requires_grad=needs_x)
        wanted = [t for t in (x, *model.parameters()) if t.requires_grad]
        if not wanted:
            pytest.skip("nothing is trained")
        kept.append(saved_bytes(model, x, exclude=[*model.parameters()]))
        grads = torch.autograd.grad(weighted(model(x)), wanted)
        gradients.append(sorted(grads, key=lambda g: (g.dim(), g.shape)))
    ours, eager = kept
    assert ours <= eager + 4 * 2 * H  # a copy of the biases
    assert_agree(*gradients)


@pytest.mark.parametrize("frozen", [("fc1", "up"), ("fc1", "up", "fc2"), ("fc1", "up", "fc2.weight")], ids="+".join)
def test_frozen_weights_take_a_tensor_of_inference_mode(pair, frozen):
    gradients = []
    for model in pair:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not any(part in name for part in frozen))
        with torch.inference_mode():
            x = torch.randn(5, C, generator=torch.Generator().manual_seed(3))
        out = model(x)
        wanted = [t for t in model.parameters() if t.requires_grad]
        gradients.append([out.detach(), *(torch.autograd.grad(weighted(out), wanted) if wanted else ())])
    assert_agree(*gradients)


def test_a_step_of_the_optimizer_between_forward_and_backward(pair):
    """Biases are small, so a copy is kept; of a matrix torch says that it was written to, as eagerly."""
    ours, eager = pair
    found = []
    for model in (ours, eager):
        x = torch.randn(4, C, generator=torch.Generator().manual_seed(5)).requires_grad_()
        out = model(x)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("bias"):
                    p.add_(1)
        found.append(torch.autograd.grad(weighted(out), x)[0])
    torch.testing.assert_close(*found)
    for model in (ours, eager):
        out = model(torch.randn(4, C, requires_grad=True))
        with torch.no_grad():
            next(p for name, p in model.named_parameters() if name.endswith("fc2.weight")).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


def test_a_bias_written_to_still_has_its_second_derivative():
    found = []
    for call in (gelu_ext.bias_gelu, lambda x, b: F.gelu(x + b)):
        x = torch.randn(3, H, dtype=torch.float64, generator=torch.Generator().manual_seed(6)).requires_grad_()
        b = torch.ones(H, dtype=torch.float64, requires_grad=True)
        out = call(x, b)
        with torch.no_grad():
            b.add_(1)
        (slope,) = torch.autograd.grad(weighted(out), x, create_graph=True)
        found.append(torch.autograd.grad(weighted(slope), (x, b)))
    assert_agree(*found)


# --- hooks on all modules, replaced forwards, exceptions --------------------------------------------------------------


@pytest.mark.parametrize("watch", ["forward", "pre", "class"])
def test_who_watches_every_linear_is_obeyed(pair, watch, monkeypatch):
    """pytorch#149502: a hook on all modules changes what the Linears see."""
    ours, eager = pair
    if isinstance(ours, Called):
        pytest.skip("calls no module")
    x = torch.randn(3, C)
    if watch == "forward":
        handle = nn_module.register_module_forward_hook(lambda m, a, out: out * 2 if isinstance(m, nn.Linear) else None)
    elif watch == "pre":
        handle = nn_module.register_module_forward_pre_hook(
            lambda m, a: (a[0] + 1,) if isinstance(m, nn.Linear) else None
        )
    else:
        monkeypatch.setattr(nn.Linear, "forward", lambda self, x: F.linear(x, self.weight * 2, self.bias))
        handle = None
    try:
        torch.testing.assert_close(ours(x), eager(x))
    finally:
        if handle:
            handle.remove()


def test_out_of_memory_keeps_its_type():
    """Callers catch torch.OutOfMemoryError; the allocator raises it as a C++ exception of that kind."""
    huge = torch.zeros(1).expand(1 << 59)
    for function in (gelu_ext.bias_gelu, gelu_ext.geglu):
        try:
            F.gelu(huge)
        except RuntimeError as error:
            kind = type(error)
        with pytest.raises(kind) as caught:
            function(huge)
        assert type(caught.value) is kind


def test_stateless_calls_with_other_parameters(pair):
    ours, eager = pair
    x = torch.randn(3, C)
    others = {name: p.detach() * 2 for name, p in ours.named_parameters()}
    theirs = {name: p.detach() * 2 for name, p in eager.named_parameters()}
    torch.testing.assert_close(functional_call(ours, others, (x,)), functional_call(eager, theirs, (x,)))
