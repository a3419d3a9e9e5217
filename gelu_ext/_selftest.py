"""Every operation and activation, forward and backward, against float64, on every device: for `python -m gelu_ext`.

The truth is an operation's composite, on the same numbers in float64. These are multiples of 2^-10 below 2^5, so that
x + bias is exact in float32, where the kernels form it. A case is made from an operation's row and the signature of
its public function: a new row needs nothing here.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _native, functional
from ._activations import ACTIVATIONS
from ._operations import OPERATIONS, Operation

# How far a value and a gradient may be off, in ulp. The truth of float64 is itself some hundred ulp off in the tails.
BARS = {
    torch.float64: (2000.0, 2000.0),
    torch.float32: (8.0, 16.0),
    torch.float16: (0.6, 0.7),
    torch.bfloat16: (0.55, 0.6),
}
# Of the arguments that are no tensors; another has the default of the public function.
_CHOICES = {"activation": tuple(ACTIVATIONS), "activated": ("first", "second"), "layout": ("first", "interleaved")}
_ROWS = 24
_COLUMNS = {True: 136, False: 131}  # with a bias, and without: on CUDA 16 bytes at a time, and words between rows


@dataclass(frozen=True)
class Case:
    op: Operation
    options: dict[str, Any]
    dtype: torch.dtype
    vectors: str  # their dtype, or "no bias"
    tensors: tuple[Tensor | None, ...]
    grad_out: Tensor

    def __str__(self) -> str:
        options = [f"{name}={value!r}" for name, value in self.options.items()]
        return ", ".join([*options, name_of(self.dtype), self.vectors])


class Problem(NamedTuple):
    what: str  # is wrong
    why: str


@dataclass
class Result:
    """Of one device."""

    device: str
    cases: int = 0
    failed: int = 0
    largest: dict[str, float] = field(default_factory=dict)  # dtype -> error in ulp, of values and gradients
    problems: list[Problem] = field(default_factory=list)

    def __str__(self) -> str:
        errors = ", ".join(f"{error:.3g} in {dtype}" for dtype, error in self.largest.items()) or "unknown"
        return f"{self.device}: {self.cases - self.failed} of {self.cases} cases pass, largest error in ulp: {errors}"

    def as_dict(self) -> dict[str, Any]:
        largest = {dtype: error if math.isfinite(error) else None for dtype, error in self.largest.items()}
        return {"device": self.device, "cases": self.cases, "failed": self.failed, "largest_error_in_ulp": largest}


@dataclass
class _Failures:
    """Of one operation on one device."""

    cases: int = 0
    count: int = 0
    excess: float = 1.0  # the error over its bar
    worst: str = ""
    raised: tuple[str, str] | None = None  # type and message of the first exception


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def devices() -> list[str]:
    """That this build has kernels for and this machine has."""
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count() if _native.with_cuda else 0))]


def run() -> list[Result]:
    """Tests every device. What goes wrong there is a problem of the result."""
    results = [Result(device) for device in devices()]
    failures = {result.device: {name: _Failures() for name in OPERATIONS} for result in results}
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # for small tensors, whose threads would only wait for each other
    try:
        for case in cases():
            truth = _truth(case)
            for result in results:
                _try(case, truth, result, failures[result.device][case.op.name])
    finally:
        torch.set_num_threads(before)
    for result in results:
        result.problems += _problems(failures[result.device])
    return results


def cases() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(0)

    def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        return _rounded(2.5 * normal, dtype)

    def positive(width: int, dtype: torch.dtype) -> Tensor:  # as a vector may be a deviation
        return _rounded(0.5 + 1.5 * torch.rand(width, generator=generator, dtype=torch.float64), dtype)

    for op in OPERATIONS.values():
        parameters = inspect.signature(getattr(functional, op.name)).parameters
        optional = {name for name in op.vectors if parameters[name].default is None}
        choices = [_CHOICES.get(name, (parameters[name].default,)) for name in op.names]
        for values, dtype in itertools.product(itertools.product(*choices), BARS):
            for kind in dict.fromkeys((None, dtype, torch.promote_types(dtype, torch.float32))):
                columns = _COLUMNS[kind is not None]
                width = op.halves * columns
                vectors = (
                    None if kind is None and name in optional else positive(width, kind or dtype) for name in op.vectors
                )
                yield Case(
                    op,
                    dict(zip(op.names, values, strict=True)),
                    dtype,
                    "no bias" if kind is None else f"bias of {name_of(kind)}",
                    (*(numbers((_ROWS, width), dtype) for _ in op.matrices), *vectors),
                    numbers((_ROWS, columns), dtype),
                )


def _rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    return (t * 1024).round().div(1024).to(dtype)


def _truth(case: Case) -> tuple[Tensor, ...]:
    """The value, and the gradient of every tensor, in float64."""
    with torch.enable_grad():
        tensors = [None if t is None else t.double().requires_grad_() for t in case.tensors]
        value = case.op.composite(*tensors, *case.options.values())
        given = [t for t in tensors if t is not None]
        return value.detach(), *torch.autograd.grad(value, given, case.grad_out.double())


def _try(case: Case, truth: tuple[Tensor, ...], result: Result, failures: _Failures) -> None:
    """One case on one device."""
    result.cases += 1
    failures.cases += 1
    try:
        errors = _errors(case, truth, result.device)
    except Exception as error:  # a broken build or device may raise anything
        result.failed += 1
        failures.count += 1
        failures.raised = failures.raised or (type(error).__name__, (str(error).splitlines() or ["no message"])[0])
        return
    dtype = name_of(case.dtype)
    result.largest[dtype] = max(result.largest.get(dtype, 0.0), *errors.values())
    bars = dict.fromkeys(errors, BARS[case.dtype][1]) | {"value": BARS[case.dtype][0]}
    worst = max(errors, key=lambda what: errors[what] / bars[what])
    excess = errors[worst] / bars[worst]
    if excess > 1:
        result.failed += 1
        failures.count += 1
    if excess > failures.excess:
        failures.excess = excess
        failures.worst = f"the {worst} with {case} is {errors[worst]:.3g} ulp off, expected at most {bars[worst]:g}"


def _errors(case: Case, truth: tuple[Tensor, ...], device: str) -> dict[str, float]:
    """Of the value, with and without a graph, and of every gradient: the largest, in ulp."""
    function = getattr(functional, case.op.name)
    tensors = [None if t is None else t.detach().to(device) for t in case.tensors]
    with torch.no_grad():
        plain = function(*tensors, **case.options)
    leaves = [t.requires_grad_() for t in tensors if t is not None]
    with torch.enable_grad():
        out = function(*tensors, **case.options)
        grads = torch.autograd.grad(out, leaves, case.grad_out.to(device))
    right = all(t.dtype == case.dtype and t.shape == case.grad_out.shape for t in (plain, out))
    errors = {"value": max(_ulps(t, truth[0], case.dtype) for t in (plain, out)) if right else math.inf}
    names = [name for name, t in zip(case.op.tensors, tensors, strict=True) if t is not None]
    for name, leaf, grad, expected in zip(names, leaves, grads, truth[1:], strict=True):
        # Terms cancel in it: it is as exact as they are, which are as large as the largest result. In 16 bits the
        # arithmetic has some digits more.
        terms = expected.abs().max() / (8 if case.dtype.itemsize == 2 else 1)
        right = grad.dtype == leaf.dtype and grad.shape == leaf.shape
        errors[f"gradient of {name}"] = _ulps(grad, expected, case.dtype, terms) if right else math.inf
    return errors


def _ulps(got: Tensor, truth: Tensor, dtype: torch.dtype, least: Tensor | None = None) -> float:
    """The largest error in ulp of the truth, or of the number `least` where that is more."""
    unit = _ulp(truth if least is None else truth.abs().clamp(min=least), dtype)
    error = (got.detach().cpu().double() - truth).abs() / unit
    return torch.nan_to_num(error, nan=math.inf, posinf=math.inf).max().item()


def _ulp(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring numbers of `dtype` around the float64 x."""
    info = torch.finfo(dtype)
    unit = info.eps / 2 * 2.0 ** torch.frexp(x)[1].double()
    return unit.masked_fill(x == 0, 0.0).clamp(min=info.eps * info.tiny)


def _problems(failures: dict[str, _Failures]) -> Iterator[Problem]:
    """One for each operation that is wrong, and one for each exception."""
    raised: dict[tuple[str, str], list[str]] = {}
    for op, failed in failures.items():
        if failed.raised:
            raised.setdefault(failed.raised, []).append(op)
        elif failed.count:
            yield Problem(f"{op} is wrong in {failed.count} of {failed.cases} cases", failed.worst)
    for (kind, message), ops in raised.items():
        yield Problem(f"{', '.join(ops)} raised {kind}", message)
