"""The truth that tests compare to, in float64, and how far from it a result may lie.

The truth of an activation is its erfc or logistic function in float64, never `F.gelu`, which is wrong in the tail. To
add an activation, add its line to TRUTHS. A `Call` is one way to call the library; it knows its own truth, forward and
backward, and the bound that follows from the bars: how many units in the last place (ulp) a value or a slope may be
off.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

import gelu_ext
from gelu_ext import _native
from gelu_ext._activations import GELUS
from gelu_ext._operations import OPERATIONS

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALVES = [torch.float16, torch.bfloat16]

# In ulp of the result. A float32 slope below 0.05 is near its root and has an absolute bar instead.
VALUE_BAR = {torch.bfloat16: 0.505, torch.float16: 0.52, torch.float32: 4.0}
SLOPE_BAR = {torch.bfloat16: 0.51, torch.float16: 0.55, torch.float32: 5.0}
SLOPE_NEAR_ROOT = 3e-8  # absolute: of a float32, and, beyond its rounding, of a float16 below 2^-10

# The same before the result is rounded. The bars of the 16-bit types are those of the 16-bit inputs; x + bias is a
# float32, where the errors of the arithmetic are as large but meet the middle between two results more often.
VALUE_ERROR = {torch.bfloat16: 0.01, torch.float16: 0.05, torch.float32: VALUE_BAR[torch.float32]}
SLOPE_ERROR = {torch.bfloat16: 0.01, torch.float16: 0.05, torch.float32: SLOPE_BAR[torch.float32]}

# --- the activations --------------------------------------------------------------------------------------------------


class Truth(NamedTuple):
    """In float64, for every x, infinities and NaN too."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    exact: Callable[[Any, Any], tuple[Any, Any]]  # (value, slope) of a finite number, in mpmath: of any precision


_FAR = 1000.0  # every gate has reached its limits there, to the last bit of a float64


def _far_is_plain(truth: Truth) -> Truth:
    """Of x F(x), where an infinity times zero would be NaN: far above zero x, far below -0."""

    def value(x: Tensor) -> Tensor:
        limit = torch.where(x > 0, x, torch.full_like(x, -0.0))
        return torch.where(x.abs() > _FAR, limit, truth.value(x))

    def slope(x: Tensor) -> Tensor:
        return torch.where(x.abs() > _FAR, (x > 0).to(x), truth.slope(x))

    def exact(mp: Any, x: Any) -> tuple[Any, Any]:
        return (mp.mpf(max(x, 0)), mp.mpf(x > 0)) if abs(x) > _FAR else truth.exact(mp, x)

    return Truth(value, slope, exact)


def _phi(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _normal_cdf(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-x * math.sqrt(0.5))


def _exact_gelu(mp: Any, x: Any) -> tuple[Any, Any]:
    cdf = mp.erfc(-x / mp.sqrt(2)) / 2
    return x * cdf, cdf + x * mp.npdf(x)


def _gate(linear: float, cubic: float = 0.0, exact_linear: Callable[[Any], Any] | None = None) -> Truth:
    """x sigmoid(u), u = linear (x + cubic x^3); both factors of sigmoid' are sigmoids, so that nothing cancels."""

    def exact(mp: Any, x: Any) -> tuple[Any, Any]:
        k, c = exact_linear(mp) if exact_linear else mp.mpf(str(linear)), mp.mpf(str(cubic))
        u, u_slope = k * (x + c * x**3), k * (1 + 3 * c * x * x)
        sigma = 1 / (1 + mp.exp(-u))
        return x * sigma, sigma * (1 + x * u_slope / (1 + mp.exp(u)))

    def u(x: Tensor) -> Tensor:
        return linear * (x + cubic * x * x * x) if cubic else linear * x

    return _far_is_plain(
        Truth(
            lambda x: x * torch.sigmoid(u(x)),
            lambda x: torch.sigmoid(u(x)) * (1 + x * linear * (1 + 3 * cubic * x * x) * torch.sigmoid(-u(x))),
            exact,
        )
    )


def _mish() -> Truth:
    """x tanh(log(1 + e^x)), for x > 0 in e^-x, which does not overflow; (1 - tanh^2) sigmoid(x) is 4 rest/divisor^2."""

    def parts(x: Tensor) -> tuple[Tensor, Tensor]:
        e = torch.exp(torch.where(x > 0, -x, x))
        divisor = torch.where(x > 0, 1 + 2 * e + 2 * e * e, 2 + 2 * e + e * e)
        tanh = torch.where(x > 0, 1 + 2 * e, e * (2 + e)) / divisor
        rest = torch.where(x > 0, e * e * (1 + e), e * (1 + e))
        return tanh, 4 * rest / (divisor * divisor)

    def exact(mp: Any, x: Any) -> tuple[Any, Any]:
        tanh = mp.tanh(mp.log1p(mp.exp(x)))
        return x * tanh, tanh + x * mp.sech(mp.log1p(mp.exp(x))) ** 2 / (1 + mp.exp(-x))

    return _far_is_plain(Truth(lambda x: x * parts(x)[0], lambda x: parts(x)[0] + x * parts(x)[1], exact))


TRUTHS: dict[str, Truth] = {
    "gelu": _far_is_plain(Truth(lambda x: x * _normal_cdf(x), lambda x: _normal_cdf(x) + x * _phi(x), _exact_gelu)),
    "gelu_tanh": _gate(math.sqrt(8 / math.pi), 0.044715, lambda mp: mp.sqrt(8 / mp.pi)),
    "gelu_sigmoid": _gate(1.702),
    "silu": _gate(1.0),
    "relu": Truth(
        torch.relu,
        lambda x: torch.where(x <= 0, 0.0, torch.ones_like(x)),
        lambda mp, x: (mp.mpf(max(x, 0)), mp.mpf(x > 0)),
    ),
    "relu2": Truth(
        lambda x: torch.relu(x) ** 2,
        lambda x: 2 * torch.relu(x),
        lambda mp, x: (mp.mpf(max(x, 0)) ** 2, 2 * mp.mpf(max(x, 0))),
    ),
    "sigmoid": Truth(
        torch.sigmoid,
        lambda x: torch.sigmoid(x) * torch.sigmoid(-x),
        lambda mp, x: (1 / (1 + mp.exp(-x)), 1 / (1 + mp.exp(-x)) / (1 + mp.exp(x))),
    ),
    "tanh": Truth(
        torch.tanh,
        lambda x: 4 * torch.sigmoid(2 * x) * torch.sigmoid(-2 * x),
        lambda mp, x: (mp.tanh(x), mp.sech(x) ** 2),
    ),
    "mish": _mish(),
    "elu": Truth(
        lambda x: torch.where(x > 0, x, torch.expm1(x.clamp(max=0))),
        lambda x: torch.exp(x.clamp(max=0)),
        lambda mp, x: (mp.mpf(x), mp.mpf(1)) if x > 0 else (mp.expm1(x), mp.exp(x)),
    ),
    "identity": Truth(torch.clone, torch.ones_like, lambda mp, x: (mp.mpf(x), mp.mpf(1))),
}
ACTIVATIONS = [name for name in _native.activations() if name in TRUTHS]  # one that is missing fails a test by name
FORMS = list(GELUS)  # of GELU, in torch's word `approximate`


def value(activation: str, x: Tensor) -> Tensor:
    """The activation at x in float64."""
    return TRUTHS[activation].value(x.detach().cpu().double())


def slope(activation: str, x: Tensor) -> Tensor:
    """Its derivative at x in float64."""
    return TRUTHS[activation].slope(x.detach().cpu().double())


# --- units in the last place ------------------------------------------------------------------------------------------

_DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def _power_of_two(exponent: Tensor | int) -> Tensor:
    return torch.as_tensor(np.ldexp(1.0, np.asarray(exponent)))


def ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of `dtype` around the float64 x."""
    lowest = round(math.log2(torch.finfo(dtype).tiny)) + 1
    exponent = torch.frexp(x)[1]
    exponent = torch.where(x == 0, torch.full_like(exponent, lowest), exponent).clamp(min=lowest)
    return _power_of_two(exponent - _DIGITS[dtype])


def _finite(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in float64 with what overflows `dtype` at the next power of two, where a distance can be taken."""
    x = x.detach().cpu().double()
    if dtype is torch.float64:
        return x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max)
    beyond = 2.0 ** (16 if dtype is torch.float16 else 128)
    return x.clamp(-beyond, beyond)


def error(got: Tensor, truth: Tensor) -> Tensor:
    """|got - truth|: zero where both are NaN, infinite where only one is."""
    distance = (_finite(got, got.dtype) - _finite(truth, got.dtype)).abs()
    distance[got.detach().isnan().cpu() & truth.isnan()] = 0.0
    if got.is_cuda:  # a GPU may flush what is subnormal in float32
        distance[(got.detach() == 0).cpu() & (truth.abs() < 1e-37)] = 0.0
    return torch.nan_to_num(distance, nan=math.inf)


def ulp_error(got: Tensor, truth: Tensor) -> Tensor:
    """The error of `got` in units in the last place of its dtype."""
    return error(got, truth) / ulp(torch.nan_to_num(_finite(truth, got.dtype)), got.dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit: -0 is not 0, and a NaN is equal to itself."""
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[a.element_size()]
    return a.dtype == b.dtype and torch.equal(
        a.detach().contiguous().view(integer), b.detach().contiguous().view(integer)
    )


# --- bounds -----------------------------------------------------------------------------------------------------------


class Bound(NamedTuple):
    truth: Tensor
    tolerance: Tensor


def assert_within(got: Tensor, bound: Bound, what: str = "result") -> None:
    assert got.shape == bound.truth.shape, f"{what}: shape {tuple(got.shape)}, expected {tuple(bound.truth.shape)}"
    excess = error(got, bound.truth) - bound.tolerance
    wrong = ~(excess <= 0)
    if not wrong.any():
        return
    worst = int(torch.where(wrong, excess, -math.inf).argmax())
    index = tuple(int(i) for i in np.unravel_index(worst, got.shape)) if got.dim() else ()
    units = ulp_error(got, bound.truth).flatten()[worst]
    raise AssertionError(
        f"{what}: {int(wrong.sum())} of {wrong.numel()} outside the bound, worst at {index}: "
        f"got {got.detach()[index].item()!r}, expected {bound.truth[index].item()!r} "
        f"+- {bound.tolerance[index].item():.3g}, off by {units:.4g} ulp"
    )


def _rows(t: Tensor) -> Tensor:
    return t.flatten(0, -2) if t.dim() > 1 else t.unsqueeze(0)


def _is_half(dtype: torch.dtype) -> bool:
    return dtype in HALVES


def value_error(v: Tensor, dtype: torch.dtype) -> Tensor:
    """How far off the arithmetic may be before a result is rounded to `dtype`."""
    if dtype is torch.float64:
        return 2e-13 * v.abs()
    return VALUE_ERROR[dtype] * ulp(v, dtype)


def slope_error(s: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype is torch.float64:
        return 1e-13 * s.abs() + 2e-15
    # Near the root the arithmetic is float32's: a 16-bit x meets no root, but x + bias comes as close as a float32.
    units = SLOPE_ERROR[dtype] * ulp(s, dtype)
    near_root = units.clamp(min=SLOPE_NEAR_ROOT) if _is_half(dtype) else torch.full_like(s, SLOPE_NEAR_ROOT)
    return torch.where(s.abs() > 0.05, units, near_root)


def rounding(truth: Tensor, dtype: torch.dtype) -> Tensor:
    """Of up to three products, in float32 and then once to a 16-bit type, or all in the type itself."""
    return (0.501 if _is_half(dtype) else 1.5) * ulp(_finite(truth, dtype), dtype)


# --- the calls --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    """One way to call the library: by a function of GELU with its form, of any activation with its name, or of SiLU.

    Its second operand, `other`, is a bias or None, or the linear tensor of act_mul.
    """

    op: str
    activation: str  # or the form
    activated: str = ""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.op, self.activation, self.activated)))

    def __call__(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return getattr(gelu_ext, self.op)(x, other, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        return self.named | ({"activated": self.activated} if self.activated else {})

    @property
    def named(self) -> dict[str, str]:
        """The argument that is the activation, where the function is not of one."""
        if self.op in OPERATIONS:
            return {"activation": self.activation}
        return {} if self.op == OPERATIONS[self.operator].silu else {"approximate": self.activation}

    @property
    def name(self) -> str:
        """Of the activation, also where it is called by a form, one of which is "tanh" too."""
        return GELUS[self.activation] if "approximate" in self.named else self.activation

    @property
    def operator(self) -> str:
        """Of the registered operator that it ends in."""
        return next(name for name, op in OPERATIONS.items() if self.op in op.functions)

    def arguments(self, x: Tensor, other: Tensor | None) -> tuple[Any, ...]:
        """Of that operator."""
        absent = (None,) * (len(OPERATIONS[self.operator].tensors) - 2)
        return x, other, *absent, self.name, *filter(None, [self.activated])

    def needs(self, x: bool, other: bool) -> list[bool]:
        """The last argument of the operator's backward."""
        return [x, other] + [False] * (len(OPERATIONS[self.operator].tensors) - 2)

    @property
    def has_bias(self) -> bool:
        return self.operator != "act_mul"

    def width(self, width: int) -> int:
        """Of the input that gives an output of `width`."""
        return OPERATIONS[self.operator].halves * width

    def columns(self, col: int, cols: int) -> list[int]:
        """Of x, those that column `col` of a result of `cols` columns is computed from."""
        return [col] if self.width(1) == 1 else [col, col + cols]

    def biases(self, dtype: torch.dtype) -> list[torch.dtype | None]:
        """Every kind of bias that the call takes: none, of x's dtype, float32."""
        return list(dict.fromkeys([None, dtype, torch.float32])) if self.has_bias else [dtype]

    def other(self, x: Tensor, dtype: torch.dtype | None, seed: int = 1) -> Tensor | None:
        """A random second operand for x, a bias of `dtype` or None."""
        if not self.has_bias:
            return randn(x.shape, x.dtype, x.device, seed)
        return None if dtype is None else randn(x.shape[-1:], dtype, x.device, seed)

    def operands(self, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(what is activated, what it is multiplied with or None), as float64: x + bias is formed in float32."""
        wide = torch.float64 if x.dtype is torch.float64 else torch.float32
        z = x.detach().cpu().to(wide)
        other = None if other is None else other.detach().cpu().to(wide)
        if not self.has_bias:
            return z.double(), other.double()
        z = (z if other is None else z + other).double()
        if not self.activated:
            return z, None
        first, second = z.chunk(2, -1)
        return (first, second) if self.activated == "first" else (second, first)

    def packed(self, activated: Tensor, linear: Tensor) -> Tensor:
        """What lies in x as the two operands do."""
        return torch.cat((activated, linear) if self.activated == "first" else (linear, activated), -1)

    def derivatives(self, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of what is activated and what is linear by what they are computed from: 1, or 0 where it has been clamped."""
        return torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def forward_bound(self, x: Tensor, other: Tensor | None) -> Bound:
        z, linear = self.operands(x, other)
        v = value(self.name, z)
        if linear is None:
            half_ulp = 0.5 * ulp(_finite(v, x.dtype), x.dtype)
            return Bound(v, value_error(_finite(v, x.dtype), x.dtype) + half_ulp * _is_half(x.dtype))
        out = v * linear
        return Bound(out, value_error(v, x.dtype) * linear.abs() + rounding(out, x.dtype))

    def backward_bounds(self, grad_out: Tensor, x: Tensor, other: Tensor | None) -> tuple[Bound, Bound | None]:
        """Of the gradients of x and of the second operand."""
        z, linear = self.operands(x, other)
        g = grad_out.detach().cpu().double()
        s, v = slope(self.name, z), value(self.name, z)
        by_activated, by_linear = self.derivatives(x, other)
        weight = g * by_activated if linear is None else g * linear * by_activated
        activated = Bound(weight * s, weight.abs() * slope_error(s, x.dtype))
        both = [activated]
        if linear is not None:
            both.append(Bound(g * by_linear * v, (g * by_linear).abs() * value_error(v, x.dtype)))
        rounded = [Bound(b.truth, b.tolerance + rounding(b.truth, x.dtype)) for b in both]
        if not self.has_bias:
            return rounded[0], rounded[1]
        grad_x, exact = (
            Bound(*(self.packed(*parts) if len(parts) > 1 else parts[0] for parts in zip(*bounds, strict=True)))
            for bounds in (rounded, both)
        )
        if other is None:
            return grad_x, None
        exact = Bound(*map(_rows, exact))
        total = exact.truth.sum(0)
        # the slopes' own errors, those of a sum in float32 (float64), and one rounding
        of_sum = exact.truth.abs().sum(0) * (1e-14 if x.dtype is torch.float64 else 1e-6)
        of_rounding = (0.501 if _is_half(other.dtype) else 1.5) * ulp(_finite(total, other.dtype), other.dtype)
        return grad_x, Bound(total, exact.tolerance.sum(0) + of_sum + of_rounding)


class ClampedCall(Call):
    """clamped_swiglu with the numbers of gpt-oss: ``activated`` is its layout."""

    ALPHA, LIMIT, OFFSET = 1.702, 7.0, 1.0

    def __init__(self, layout: str) -> None:
        super().__init__("clamped_swiglu", "gelu_sigmoid", layout)  # whose sigmoid has the same alpha

    @property
    def options(self) -> dict[str, Any]:
        return {"alpha": self.ALPHA, "limit": self.LIMIT, "offset": self.OFFSET, "layout": self.activated}

    def arguments(self, x: Tensor, other: Tensor | None) -> tuple[Any, ...]:
        return x, other, *self.options.values()

    def columns(self, col: int, cols: int) -> list[int]:
        return [2 * col, 2 * col + 1] if self.activated == "interleaved" else super().columns(col, cols)

    def _parts(self, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        wide = torch.float64 if x.dtype is torch.float64 else torch.float32
        z = x.detach().cpu().to(wide)
        z = z if other is None else z + other.detach().cpu().to(wide)
        return (z[..., ::2], z[..., 1::2]) if self.activated == "interleaved" else z.chunk(2, -1)

    def operands(self, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        gate, linear = self._parts(x, other)
        linear = linear.clamp(-self.LIMIT, self.LIMIT) + self.OFFSET
        return gate.clamp(max=self.LIMIT).double(), linear.double()

    def packed(self, activated: Tensor, linear: Tensor) -> Tensor:
        if self.activated == "first":
            return super().packed(activated, linear)
        return torch.stack((activated, linear), -1).flatten(-2)

    def derivatives(self, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor]:
        gate, linear = self._parts(x, other)
        return (~(gate > self.LIMIT)).double(), (~(linear.abs() > self.LIMIT)).double()


def _calls(bias_act: str, glu: str, act_mul: str, activations: list[str]) -> list[Call]:
    calls = [Call(bias_act, name) for name in activations]
    calls += [Call(glu, name, activated) for name in activations for activated in ("second", "first")]
    return calls + [Call(act_mul, name) for name in activations]


# Every activation once: GELU's forms by GELU's functions, SiLU by its own, the others by the functions of any.
CALLS = _calls("bias_gelu", "geglu", "gelu_mul", FORMS) + _calls("bias_act", "swiglu", "silu_mul", ["silu"])
CALLS += _calls("bias_act", "glu", "act_mul", [name for name in ACTIVATIONS if name not in (*GELUS.values(), "silu")])
_CLAMPED = [ClampedCall("interleaved"), ClampedCall("first")]
CALLS += _CLAMPED
# For tests of a mechanism (a layout, a transform, a compiler, a checkpoint), which sees no more of an activation than
# whether GELU's functions reach it, by default or by a form, or SiLU's, or those of any, and whether it vanishes below
# zero. Tests of numbers take every activation.
TELLING = ["gelu", "gelu_tanh", "silu", "sigmoid"]
TELLING_CALLS = [call for call in CALLS if call.name in TELLING] + _CLAMPED
EXACT_CALLS = [call for call in CALLS if call.activation == "none"] + _CLAMPED


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


every_call = pytest.mark.parametrize("call", CALLS, ids=str)
telling_calls = pytest.mark.parametrize("call", TELLING_CALLS, ids=str)
every_exact_call = pytest.mark.parametrize("call", EXACT_CALLS, ids=str)
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=_dtype_name)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=_dtype_name)


def randn(shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device = "cpu", seed: int = 0) -> Tensor:
    """Normal, of deviation 2.5: the bulk and both tails of GELU. Never all the same, never all ones."""
    return (2.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(
        device=device, dtype=dtype
    )


def leaf(t: Tensor | None, needs_grad: bool = True) -> Tensor | None:
    """The same memory and strides, as a leaf of a graph of its own."""
    return None if t is None else t.detach().requires_grad_(needs_grad)


def check_forward(call: Call, x: Tensor, other: Tensor | None) -> Tensor:
    """The output is right, fresh and contiguous, the same with and without a graph, and the inputs are untouched."""
    before = [t.clone() for t in (x, other) if t is not None]
    with torch.no_grad():
        out = call(x, other)
    assert_within(out, call.forward_bound(x, other), f"{call} forward")
    assert out.dtype == x.dtype and out.device == x.device and out.is_contiguous() and not out.requires_grad
    tracked = call(leaf(x), leaf(other))
    assert tracked.requires_grad and same_bits(tracked, out)
    for now, then in zip([t for t in (x, other) if t is not None], before, strict=True):
        assert same_bits(now, then), f"{call} wrote to an input"
        assert out.numel() == 0 or out.untyped_storage().data_ptr() != now.untyped_storage().data_ptr()
    return out


def check(
    call: Call, x: Tensor, other: Tensor | None, grad_out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """check_forward, and the same of the backward: (output, gradient of x, gradient of the other operand)."""
    out = check_forward(call, x, other)
    grad_out = randn(out.shape, out.dtype, out.device, seed=2) if grad_out is None else grad_out
    tensors = [t for t in (x, other, grad_out) if t is not None]
    before = [t.clone() for t in tensors]
    x_leaf, other_leaf = leaf(x), leaf(other)
    leaves = [t for t in (x_leaf, other_leaf) if t is not None]
    grads = torch.autograd.grad(call(x_leaf, other_leaf), leaves, grad_out)
    bounds = call.backward_bounds(grad_out, x, other)
    for grad, bound, wrt, name in zip(
        grads, bounds, leaves, ("x", "bias" if call.has_bias else "linear"), strict=False
    ):
        assert_within(grad, bound, f"{call} gradient of {name}")
        assert grad.dtype == wrt.dtype and grad.device == wrt.device
    for now, then in zip(tensors, before, strict=True):
        assert same_bits(now, then), f"{call} backward wrote to an input"
    return out, grads[0], grads[1] if other is not None else None


def check_with_every_bias(call: Call, x: Tensor, grad_out: Tensor | None = None) -> None:
    for bias in call.biases(x.dtype):
        check(call, x, call.other(x, bias), grad_out)


# --- layouts ----------------------------------------------------------------------------------------------------------


def in_buffer(t: Tensor, left: int, right: int, step: int = 1) -> Tensor:
    """t's values in columns of a wider tensor whose other columns are NaN: a stray read shows."""
    cols = t.shape[-1] * step
    buffer = t.new_full((*t.shape[:-1], left + cols + right), math.nan)
    view = buffer[..., left : left + cols : step]
    view.copy_(t)
    return view


def at_offset(t: Tensor, offset: int) -> Tensor:
    """Contiguous, with t's values, `offset` elements into its storage: misaligned."""
    buffer = t.new_full((t.numel() + offset + 8,), math.nan)
    view = buffer[offset : offset + t.numel()].view(t.shape)
    assert view.storage_offset() == offset
    return view.copy_(t)


def _every_second_row(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, math.nan)], -2).flatten(-3, -2)[..., ::2, :]


def _reversed(t: Tensor) -> Tensor:
    order = tuple(reversed(range(t.dim())))
    return t.permute(order).contiguous().permute(order)


# Of a tensor of four dimensions. All but the expanded ones keep its values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "batches_swapped": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "all_dimensions_reversed": _reversed,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "every_second_column": lambda t: in_buffer(t, 0, 0, step=2),
    "every_second_row": _every_second_row,
    "split_of_a_wider_tensor": lambda t: in_buffer(t, 5, 3),
    "slice_in_the_middle": lambda t: torch.cat([t, t, t], 1)[:, t.shape[1] : 2 * t.shape[1]],
    "rows_expanded": lambda t: t[..., :1, :].expand(t.shape),
    "batches_expanded": lambda t: t[:1].expand(t.shape),
    "columns_expanded": lambda t: t[..., 1:2].expand(t.shape),
    "all_expanded": lambda t: t[0, 0, 0, 0].expand(t.shape),
}
