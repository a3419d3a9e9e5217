"""The same functions in torch's own differentiable operations.

For what a fused kernel cannot follow: functorch transforms, forward-mode differentiation, and the backward of the
backward. Written in the forms that do not cancel in the negative tail, in float32 for 16-bit tensors, as the kernels do.
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


_FORMS: dict[str, Callable[[Tensor], Tensor]] = {"none": _gelu_erf, "tanh": _gelu_tanh, "sigmoid": _gelu_sigmoid}


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return _widened(x) if bias is None else _widened(x) + bias


def bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return _FORMS[approximate](_biased(x, bias)).to(x.dtype)


def geglu(x: Tensor, bias: Tensor | None, approximate: str, activated: str) -> Tensor:
    a, b = _biased(x, bias).chunk(2, -1)
    gelu = _FORMS[approximate]
    return (gelu(a) * b if activated == "first" else a * gelu(b)).to(x.dtype)


def gelu_mul(activated: Tensor, linear: Tensor, approximate: str) -> Tensor:
    return (_FORMS[approximate](_widened(activated)) * _widened(linear)).to(activated.dtype)


def vjp(
    function: Callable[..., Tensor],
    inputs: tuple[Tensor, Tensor | None],
    options: tuple[str, ...],
    grad_out: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``function(*inputs, *options)`` that can be differentiated again, None where not needed."""
    with torch.enable_grad():
        out = function(*inputs, *options)
        wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
        grads = iter(torch.autograd.grad(out, wanted, grad_out, create_graph=True))
    return tuple(next(grads) if need else None for need in needs)
