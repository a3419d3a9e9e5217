"""Every bad argument is refused before any work, with one sentence that names it, and nothing has changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from reference import Call, randn, same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gelu_ext
from gelu_ext import _native
from gelu_ext._activations import GELUS

FLOATS = "float64, float32, float16 or bfloat16"
ACTIVATIONS = ", ".join(f"'{name}'" for name in _native.activations())
FORMS = ", ".join(f"'{form}'" for form in GELUS)
NOT_FLOATS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool]
NOT_FLOATS += [torch.complex32, torch.complex64, torch.complex128, torch.float8_e4m3fn]
NAMES = {torch.float8_e4m3fn: "Float8_e4m3fn"}


@dataclass
class Bad:
    """A call that must fail: `arguments()` makes fresh ones."""

    op: str
    what: str
    arguments: Callable[[], tuple]
    error: type[Exception]
    words: str
    options: dict[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.op}-{self.what.replace(' ', '_')}"

    def __call__(self, *arguments: object) -> Tensor:
        return getattr(gelu_ext, self.op)(*arguments, **(self.options or {}))


def t(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    if device == "meta" or not dtype.is_floating_point or dtype.itemsize == 1:
        return torch.zeros(shape, dtype=dtype, device=device)
    return randn(shape, dtype, device)


def of_every_op() -> list[Bad]:
    """What all three refuse in the same words: the first argument is x or activated, the second bias or linear."""
    bad = []
    for op, x, y, second in (
        ("bias_gelu", "x", "bias", lambda: t(8)),
        ("geglu", "x", "bias", lambda: t(8)),
        ("gelu_mul", "activated", "linear", lambda: t(4, 8)),
    ):

        def add(what, arguments, error, words, op=op, **options):
            bad.append(Bad(op, what, arguments, error, f"{op}: expected {words}", options))

        add("None as " + x, lambda s=second: (None, s()), TypeError, f"{x} to be a Tensor, got NoneType")
        add("list as " + x, lambda s=second: ([1.0, 2.0], s()), TypeError, f"{x} to be a Tensor, got list")
        add("number as " + x, lambda s=second: (1.5, s()), TypeError, f"{x} to be a Tensor, got float")
        add("list as " + y, lambda: (t(4, 8), [0.0] * 8), TypeError, f"{y} to be a Tensor, got list")
        add("number as " + y, lambda: (t(4, 8), 2), TypeError, f"{y} to be a Tensor, got int")
        for form in ("Tanh", "erf", "", "none ", "relu", "nöne"):
            add(
                f"form {form!r}",
                lambda s=second: (t(4, 8), s()),
                ValueError,
                f"approximate to be one of {FORMS}, got '{form}'",
                approximate=form,
            )
        for form, kind in ((None, "NoneType"), (True, "bool"), (1, "int"), (b"none", "bytes")):
            add(
                f"form {form!r}",
                lambda s=second: (t(4, 8), s()),
                TypeError,
                f"approximate to be a string, got {kind}",
                approximate=form,
            )
        for dtype in NOT_FLOATS:
            name = NAMES.get(dtype, str(dtype).removeprefix("torch."))
            add(
                f"{name} as {x}",
                lambda s=second, dtype=dtype: (t(4, 8, dtype=dtype), s()),
                TypeError,
                f"{x} of dtype {FLOATS}, got {name}",
            )
        add(
            f"int64 as {y}",
            lambda s=second: (t(4, 8), s().long()),
            TypeError,
            f"{y} of dtype {FLOATS}, got int64",
        )
        add(
            f"sparse {x}",
            lambda s=second: (t(4, 8).to_sparse(), s()),
            TypeError,
            f"{x} to be a dense tensor, got layout Sparse",
        )
        add(
            f"sparse {y}",
            lambda s=second: (t(4, 8), s().to_sparse()),
            TypeError,
            f"{y} to be a dense tensor, got layout Sparse",
        )
        add(
            f"nested {x}",
            lambda s=second: (torch.nested.nested_tensor([t(2, 8), t(3, 8)]), s()),
            TypeError,
            f"{x} to be a dense tensor, got a nested one",
        )
        add(
            f"{y} on another device",
            lambda s=second: (t(4, 8), s().to("meta")),
            RuntimeError,
            f"{y} on device cpu, got meta",
        )
        add(
            f"{x} on another device",
            lambda s=second: (t(4, 8, device="meta"), s()),
            RuntimeError,
            f"{y} on device meta, got cpu",
        )
    return bad


def of_a_bias() -> list[Bad]:
    bad = []
    for op in ("bias_gelu", "geglu"):
        for shape in ((7,), (9,), (1,), (0,), (4,), (16,), (1, 8), (4, 8), (8, 1), ()):
            words = f"{op}: expected bias of shape [8], got {list(shape)}"
            bad.append(Bad(op, f"bias of {list(shape)}", lambda s=shape: (t(4, 8), t(*s)), ValueError, words))
        for x_dtype, bias_dtype in (
            (torch.float16, torch.bfloat16),
            (torch.bfloat16, torch.float16),
            (torch.float32, torch.float16),
            (torch.float32, torch.bfloat16),
            (torch.float32, torch.float64),
            (torch.float16, torch.float64),
            (torch.float64, torch.float16),
        ):
            names = [str(dtype).removeprefix("torch.") for dtype in (x_dtype, bias_dtype)]
            wanted = names[0] if x_dtype == torch.float32 else f"{names[0]}, or float32"
            bad.append(
                Bad(
                    op,
                    f"{names[1]} bias of {names[0]}",
                    lambda a=x_dtype, b=bias_dtype: (t(4, 8, dtype=a), t(8, dtype=b)),
                    TypeError,
                    f"{op}: expected bias of the dtype of x, {wanted}, got {names[1]}",
                )
            )
    words = "bias_gelu: expected x (with a bias) of at least 1 dimension, got a scalar"
    bad.append(Bad("bias_gelu", "bias of a scalar", lambda: (t(), t(1)), ValueError, words))
    words = "bias_gelu: expected bias of shape [0], got [1]"
    bad.append(Bad("bias_gelu", "bias of width 0", lambda: (t(4, 0), t(1)), ValueError, words))
    return bad


def of_geglu() -> list[Bad]:
    bad = []
    for width in (1, 3, 7, 1235):
        words = f"geglu: expected x of even width (two halves), got width {width}"
        bad.append(Bad("geglu", f"width {width}", lambda w=width: (t(4, w),), ValueError, words))
        bad.append(Bad("geglu", f"width {width} with a bias", lambda w=width: (t(2, w), t(w)), ValueError, words))
    words = "geglu: expected x of even width (two halves), got width 3"
    bad.append(Bad("geglu", "odd width of no rows", lambda: (t(0, 3),), ValueError, words))
    words = "geglu: expected x of at least 1 dimension, got a scalar"
    bad.append(Bad("geglu", "a scalar", lambda: (t(),), ValueError, words))
    words = "geglu: expected bias of shape [8], got [4]"
    bad.append(Bad("geglu", "bias of one half", lambda: (t(4, 8), t(4)), ValueError, words))
    for half in ("First", "gate", "", "both"):
        words = f"geglu: expected activated to be 'first' or 'second', got '{half}'"
        bad.append(Bad("geglu", f"half {half!r}", lambda: (t(4, 8), t(8)), ValueError, words, {"activated": half}))
    for half, kind in ((None, "NoneType"), (0, "int")):
        words = f"geglu: expected activated to be a string, got {kind}"
        bad.append(Bad("geglu", f"half {half!r}", lambda: (t(4, 8), t(8)), TypeError, words, {"activated": half}))
    return bad


def of_gelu_mul() -> list[Bad]:
    bad = []
    for a, b in (
        ((4, 8), (4, 7)),
        ((4, 8), (8,)),
        ((4, 8), (1, 8)),
        ((4, 8), (4, 1)),
        ((4, 8), ()),
        ((), (1,)),
        ((0,), (1,)),
    ):
        words = f"gelu_mul: expected linear of the shape of activated, {list(a)}, got {list(b)}"
        bad.append(Bad("gelu_mul", f"{list(a)} and {list(b)}", lambda a=a, b=b: (t(*a), t(*b)), ValueError, words))
    for a, b in (
        (torch.float32, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float16, torch.bfloat16),
    ):
        names = [str(dtype).removeprefix("torch.") for dtype in (a, b)]
        words = f"gelu_mul: expected linear of the dtype of activated, {names[0]}, got {names[1]}"
        arguments = lambda a=a, b=b: (t(4, 8, dtype=a), t(4, 8, dtype=b))  # noqa: E731
        bad.append(Bad("gelu_mul", f"{names[0]} and {names[1]}", arguments, TypeError, words))
    words = "gelu_mul: expected linear to be a Tensor, got NoneType"
    bad.append(Bad("gelu_mul", "None as linear", lambda: (t(4, 8), None), TypeError, words))
    return bad


def of_clamped_swiglu() -> list[Bad]:
    bad = []

    def add(what, error, words, arguments=lambda: (t(4, 8), t(8)), **options):
        bad.append(Bad("clamped_swiglu", what, arguments, error, f"clamped_swiglu: expected {words}", options))

    for name in ("alpha", "limit"):
        for number, got in ((0.0, "0"), (-1.5, "-1.5"), (float("nan"), "nan"), (float("inf"), "inf"), (0, "0")):
            words = f"{name} to be a finite number above 0, got {got}"
            add(f"{name} of {number!r}", ValueError, words, **{name: number})
    for number, got in ((float("nan"), "nan"), (float("-inf"), "-inf")):
        add(f"offset of {got}", ValueError, f"offset to be a finite number, got {got}", offset=number)
    for name in ("alpha", "limit", "offset"):
        for number, kind in ((None, "NoneType"), ("7", "str"), ([7.0], "list")):
            add(f"{name} of {number!r}", TypeError, f"{name} to be a number, got {kind}", **{name: number})
    for layout in ("second", "Interleaved", ""):
        words = f"layout to be 'interleaved' or 'first', got '{layout}'"
        add(f"layout {layout!r}", ValueError, words, layout=layout)
    add("layout None", TypeError, "layout to be a string, got NoneType", layout=None)
    add("odd width", ValueError, "x of even width (two halves), got width 7", lambda: (t(4, 7),))
    add("a scalar", ValueError, "x of at least 1 dimension, got a scalar", lambda: (t(),))
    add("bias of one half", ValueError, "bias of shape [8], got [4]", lambda: (t(4, 8), t(4)))
    add("int64 as x", TypeError, f"x of dtype {FLOATS}, got int64", lambda: (t(4, 8, dtype=torch.int64),))
    words = "bias of the dtype of x, bfloat16, or float32, got float16"
    add("other bias", TypeError, words, lambda: (t(4, 8, dtype=torch.bfloat16), t(8, dtype=torch.float16)))
    add("list as x", TypeError, "x to be a Tensor, got list", lambda: ([1.0, 2.0],))
    return bad


def of_silus_functions() -> list[Bad]:
    """They say what geglu and gelu_mul say, under their own names."""
    of_both = [bad for bad in (*of_every_op(), *of_geglu(), *of_gelu_mul()) if "approximate" not in (bad.options or {})]
    names = {"geglu": "swiglu", "gelu_mul": "silu_mul"}
    silus = [bad for bad in of_both if bad.op in names]
    return [replace(bad, op=names[bad.op], words=bad.words.replace(bad.op, names[bad.op])) for bad in silus[::5]]


ALL_BAD = [*of_every_op(), *of_a_bias(), *of_geglu(), *of_gelu_mul(), *of_clamped_swiglu(), *of_silus_functions()]


class Recorder(TorchDispatchMode):
    """Every operator that runs: an allocation is one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def snapshot(tensors: list[Tensor]) -> list[Tensor]:
    return [x.detach().clone() for x in tensors if x.layout == torch.strided and not x.is_nested and x.is_cpu]


@pytest.mark.filterwarnings("ignore:ComplexHalf support", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("tracked", [False, True], ids=["no_grad", "requires_grad"])
@pytest.mark.parametrize("bad", ALL_BAD, ids=str)
def test_a_bad_call_is_refused_in_its_words_and_changes_nothing(bad, tracked):
    arguments = bad.arguments()
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    if tracked:
        for x in tensors:
            if x.dtype.is_floating_point or x.dtype.is_complex:
                x.requires_grad_()
    before = snapshot(tensors)
    with Recorder() as recorder, torch.set_grad_enabled(tracked), pytest.raises(bad.error) as caught:
        bad(*arguments)
    assert str(caught.value) == bad.words
    assert type(caught.value) is bad.error
    assert not recorder.seen, "a refused call has run an operator"
    for now, then in zip(snapshot(tensors), before, strict=True):
        assert torch.equal(now.view(torch.uint8) if now.dim() else now, then.view(torch.uint8) if then.dim() else then)
    assert all(x.grad is None and x._version == 0 for x in tensors if x.is_leaf)


def test_the_cases_are_told_apart():
    assert len({str(bad) for bad in ALL_BAD}) == len(ALL_BAD)


@pytest.mark.parametrize("op", ["bias_gelu", "geglu", "gelu_mul"])
def test_options_are_keyword_only_and_unknown_ones_are_refused(op):
    x = t(4, 8)
    with pytest.raises(TypeError, match="positional argument"):
        getattr(gelu_ext, op)(x, x, "tanh")
    with pytest.raises(TypeError, match="unexpected keyword argument 'approximation'"):
        getattr(gelu_ext, op)(x, x, approximation="tanh")


@pytest.mark.skipif(not _native.with_cuda, reason="needs a build with CUDA kernels")
def test_cuda_kernels_refuse_dropout():
    """The public functions never ask them to: there F.dropout follows."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # which an emulated build computes by them
    x, philox = t(4, 8).to(device), torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(RuntimeError, match=r"bias_act: expected dropout_p to be 0 for the CUDA kernels, got 0.3"):
        torch.ops.gelu_ext.bias_act(x, None, "gelu", 0.3, philox)


# --- the operators behind the functions -------------------------------------------------------------------------------


def backward_of(op: str, grad_out: Tensor, x: Tensor, other: Tensor) -> Any:
    call = Call(op, "gelu", "second" if op == "glu" else "")
    operator = getattr(torch.ops.gelu_ext, f"{op}_backward")
    return operator(grad_out, *call.arguments(x, other), call.needs(True, True))


@pytest.mark.parametrize("op", ["bias_act", "glu", "act_mul"])
def test_a_bad_gradient_is_refused(op):
    """Autograd itself makes sure of these; the registered operators can be called by anyone."""
    x, other = t(4, 8), t(4, 8) if op == "act_mul" else t(8)
    shape = (4, 4) if op == "glu" else (4, 8)
    for bad_shape in ((4, 5), (5, *shape[1:]), (2, *shape), (shape[1],), ()):
        with pytest.raises(ValueError) as caught:
            backward_of(op, t(*bad_shape), x, other)
        words = f"{op}: expected grad_out of shape {list(shape)}, got {list(bad_shape)}"
        assert str(caught.value).splitlines()[0] == words
    for dtype, error, words in (
        (torch.float64, TypeError, "of dtype float32, got float64"),
        (torch.bfloat16, TypeError, "of dtype float32, got bfloat16"),
        (torch.int64, TypeError, f"of dtype {FLOATS}, got int64"),
    ):
        with pytest.raises(error) as caught:
            backward_of(op, t(*shape, dtype=dtype), x, other)
        assert str(caught.value).splitlines()[0] == f"{op}: expected grad_out {words}"


@pytest.mark.parametrize("op", ["bias_act", "glu", "act_mul"])
def test_the_registered_operators_check_for_themselves(op):
    x = t(4, 8)
    other = x if op == "act_mul" else None
    call = Call(op, "Tanh", "second" if op == "glu" else "")
    with pytest.raises(ValueError) as caught:
        getattr(torch.ops.gelu_ext, op)(*call.arguments(x, other))
    assert str(caught.value).splitlines()[0] == f"{op}: expected activation to be one of {ACTIVATIONS}, got 'Tanh'"
    with pytest.raises(TypeError) as caught:
        getattr(torch.ops.gelu_ext, op)(*replace(call, activation="gelu").arguments(x.int(), other))
    name = "activated" if op == "act_mul" else "x"
    assert str(caught.value).splitlines()[0] == f"{op}: expected {name} of dtype {FLOATS}, got int32"


def test_tensors_on_different_gpus_or_devices_are_refused(cuda):
    x = t(4, 8).to(cuda)
    for op, other, name in (
        (gelu_ext.bias_gelu, t(8), "bias"),
        (gelu_ext.geglu, t(8), "bias"),
        (gelu_ext.gelu_mul, t(4, 8), "linear"),
    ):
        with pytest.raises(RuntimeError) as caught:
            op(x, other)
        assert str(caught.value) == f"{op.__name__}: expected {name} on device cuda:0, got cpu"


def test_a_failed_call_leaves_the_next_one_right(device):
    x = t(4, 8).to(device)
    expected = gelu_ext.bias_gelu(x)
    for _ in range(3):
        with pytest.raises(ValueError):
            gelu_ext.bias_gelu(x, x)
        assert same_bits(gelu_ext.bias_gelu(x), expected)


@pytest.mark.parametrize("form", ["erf", None, ["a"], {}, b"none"], ids=repr)
def test_every_layer_refuses_an_unknown_form(form):
    x, w1, w2 = t(4, 8), t(8, 8), t(8, 8)
    for name, call in (
        ("mlp", lambda: gelu_ext.mlp(x, w1, None, w2, None, approximate=form)),
        ("geglu_mlp", lambda: gelu_ext.geglu_mlp(x, w1, None, w2[:, :4], None, approximate=form)),
        ("gelu_mul_mlp", lambda: gelu_ext.gelu_mul_mlp(x, w1, None, w1, None, w2, None, approximate=form)),
        ("GELU", lambda: gelu_ext.GELU(form)),
        ("BiasGELU", lambda: gelu_ext.BiasGELU(8, approximate=form)),
        ("GEGLU", lambda: gelu_ext.GEGLU(8, approximate=form)),
        ("MLP", lambda: gelu_ext.MLP(8, 8, approximate=form)),
        ("GEGLUMLP", lambda: gelu_ext.GEGLUMLP(8, 8, approximate=form)),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == f"{name}: expected approximate to be one of {FORMS}, got {form!r}"


@pytest.mark.parametrize("activation", ["erf", None, ["gelu"], {}, b"gelu"], ids=repr)
def test_every_layer_refuses_an_unknown_activation(activation):
    x, w1, w2 = t(4, 8), t(8, 8), t(8, 8)
    options = {"activation": activation}
    for name, call in (
        ("mlp", lambda: gelu_ext.mlp(x, w1, None, w2, None, **options)),
        ("glu_mlp", lambda: gelu_ext.glu_mlp(x, w1, None, w2[:, :4], None, **options)),
        ("act_mul_mlp", lambda: gelu_ext.act_mul_mlp(x, w1, None, w1, None, w2, None, **options)),
        ("BiasAct", lambda: gelu_ext.BiasAct(8, **options)),
        ("GLU", lambda: gelu_ext.GLU(8, **options)),
        ("MLP", lambda: gelu_ext.MLP(8, 8, **options)),
        ("GLUMLP", lambda: gelu_ext.GLUMLP(8, 8, **options)),
    ):
        if activation is None and name in ("mlp", "MLP"):
            continue  # GELU
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == f"{name}: expected activation to be one of {ACTIVATIONS}, got {activation!r}"


def test_an_mlp_refuses_an_activation_beside_a_form():
    x, w = t(4, 8), t(8, 8)
    options = {"activation": "silu", "approximate": "tanh"}
    calls = {
        "mlp": lambda: gelu_ext.mlp(x, w, None, w, None, **options),
        "MLP": lambda: gelu_ext.MLP(8, 8, **options),
    }
    for name, call in calls.items():
        with pytest.raises(ValueError) as caught:
            call()
        words = "expected activation or approximate, got activation='silu' and approximate='tanh'"
        assert str(caught.value) == f"{name}: {words}"


@pytest.mark.parametrize("half", ["third", None, 1, ["first"]], ids=repr)
def test_every_layer_refuses_an_unknown_half(half):
    x, w = t(4, 8), t(8, 8)
    for name, call in (
        ("geglu_mlp", lambda: gelu_ext.geglu_mlp(x, w, None, w[:, :4], None, activated=half)),
        ("GEGLU", lambda: gelu_ext.GEGLU(8, activated=half)),
        ("GEGLUMLP", lambda: gelu_ext.GEGLUMLP(8, 8, activated=half)),
        ("glu_mlp", lambda: gelu_ext.glu_mlp(x, w, None, w[:, :4], None, activation="silu", activated=half)),
        ("GLU", lambda: gelu_ext.GLU(8, activation="silu", activated=half)),
        ("GLUMLP", lambda: gelu_ext.GLUMLP(8, 8, activation="silu", activated=half)),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value) == f"{name}: expected activated to be 'first' or 'second', got {half!r}"


@pytest.mark.parametrize("flag", ["yes", None, 1], ids=repr)
def test_every_mlp_refuses_a_recompute_that_is_no_bool(flag):
    x, w = t(4, 8), t(8, 8)
    for name, call in (
        ("mlp", lambda: gelu_ext.mlp(x, w, None, w, None, recompute=flag)),
        ("geglu_mlp", lambda: gelu_ext.geglu_mlp(x, w, None, w[:, :4], None, recompute=flag)),
        ("gelu_mul_mlp", lambda: gelu_ext.gelu_mul_mlp(x, w, None, w, None, w, None, recompute=flag)),
        ("MLP", lambda: gelu_ext.MLP(8, 8, recompute=flag)),
        ("GEGLUMLP", lambda: gelu_ext.GEGLUMLP(8, 8, recompute=flag)),
        ("glu_mlp", lambda: gelu_ext.glu_mlp(x, w, None, w, None, activation="silu", recompute=flag)),
        ("act_mul_mlp", lambda: gelu_ext.act_mul_mlp(x, w, None, w, None, w, None, activation="silu", recompute=flag)),
        ("GLUMLP", lambda: gelu_ext.GLUMLP(8, 8, activation="silu", recompute=flag)),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == f"{name}: expected recompute to be a bool, got {flag!r}"
