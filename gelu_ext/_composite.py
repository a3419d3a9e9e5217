"""The same functions in torch's own differentiable operations.

For what a fused kernel cannot follow: functorch transforms, forward-mode differentiation, and the backward of the
backward. Written in the forms that do not cancel in the negative tail, in float32 for 16-bit tensors, as the kernels
do, and without NaN or overflow wherever the kernels have none, in every derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SQRT_HALF = 0.7071067811865476
_SQRT_8_OVER_PI = 1.5957691216057308


def _gelu_erf(z: Tensor) -> Tensor:
    return 0.5 * z * torch.erfc(-z * _SQRT_HALF)


def _gelu_tanh(z: Tensor) -> Tensor:
    return z * torch.sigmoid(_SQRT_8_OVER_PI * (z + 0.044715 * z * z * z))


def _gelu_sigmoid(z: Tensor) -> Tensor:
    return z * torch.sigmoid(1.702 * z)


# The formula, and from where on in float32 and in float64 it is z or zero to every bit, as in csrc/activations.h.
_FORMS: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "none": (_gelu_erf, 14.5, 40.0),
    "tanh": (_gelu_tanh, 11.75, 24.0),
    "sigmoid": (_gelu_sigmoid, 80.0, 460.0),
}


def check_form(op: str, approximate: object) -> None:
    """ValueError for what is not the name of a form."""
    if not isinstance(approximate, str) or approximate not in _FORMS:
        forms = ", ".join(f"'{form}'" for form in _FORMS)
        raise ValueError(f"{op}: expected approximate to be one of {forms}, got {approximate!r}")


def check_half(op: str, activated: object) -> None:
    """ValueError for what is not the name of a half."""
    if activated not in ("first", "second"):
        raise ValueError(f"{op}: expected activated to be 'first' or 'second', got {activated!r}")


def _gelu(z: Tensor, approximate: str) -> Tensor:
    formula, limit32, limit64 = _FORMS[approximate]
    limit = limit64 if z.dtype == torch.float64 else limit32
    # Far out, the formula sees a harmless number instead: infinity times zero must not arise in a derivative that is
    # then masked, either. (Not a clamp: its derivative at NaN is zero.)
    return torch.where(z > limit, z, formula(z.masked_fill(z.abs() > limit, -limit)))


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return _widened(x) if bias is None else _widened(x) + _widened(bias)


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return _gelu(_biased(x, bias), approximate).to(x.dtype)


def geglu(x: Tensor, bias: Tensor | None, approximate: str, activated: str) -> Tensor:
    a, b = _biased(x, bias).chunk(2, -1)
    out = _gelu(a, approximate) * b if activated == "first" else a * _gelu(b, approximate)
    return out.to(x.dtype)


def gelu_mul(activated: Tensor, linear: Tensor, approximate: str) -> Tensor:
    return (_gelu(_widened(activated), approximate) * _widened(linear)).to(activated.dtype)


def vjp(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, Tensor | None],
    options: tuple[str, ...],
    grad_out: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``function(*inputs, *options)`` that can be differentiated again, None where not needed."""
    with torch.enable_grad():
        # Views, so that each input gets its own part only, also where one is computed from the other, or is the other.
        views = [t if t is None else t.view_as(t) for t in inputs]
        wanted = [t if t.requires_grad else t.requires_grad_() for t, need in zip(views, needs, strict=True) if need]
        grads = iter(torch.autograd.grad(function(*views, *options), wanted, grad_out, create_graph=True))
    return tuple(next(grads) if need else None for need in needs)
