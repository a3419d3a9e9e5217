"""The operations in torch's own differentiable operations.

For what a fused kernel cannot follow: functorch transforms, forward-mode differentiation, and the backward of the
backward. Written in the forms that do not cancel in the negative tail, in float32 for 16-bit tensors, as the kernels
do, and without NaN or overflow wherever the kernels have none, in every derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ._activations import ACTIVATIONS
from ._dropout import then_dropout

_SQRT_HALF = 0.7071067811865476


def _biased(x: Tensor, bias: Tensor | None) -> Tensor:
    return _widened(x) if bias is None else _widened(x) + _widened(bias)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


@then_dropout
def bias_act(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return ACTIVATIONS[activation].composite(_biased(x, bias))


@then_dropout
def glu(x: Tensor, bias: Tensor | None, activation: str, activated: str) -> Tensor:
    a, b = _biased(x, bias).chunk(2, -1)
    act = ACTIVATIONS[activation].composite
    return act(a) * b if activated == "first" else a * act(b)


@then_dropout
def act_mul(
    activated: Tensor, linear: Tensor, activated_bias: Tensor | None, linear_bias: Tensor | None, activation: str
) -> Tensor:
    return ACTIVATIONS[activation].composite(_biased(activated, activated_bias)) * _biased(linear, linear_bias)


def clamped_swiglu(x: Tensor, bias: Tensor | None, alpha: float, limit: float, offset: float, layout: str) -> Tensor:
    z = _biased(x, bias)
    gate, linear = (z[..., ::2], z[..., 1::2]) if layout == "interleaved" else z.chunk(2, -1)
    gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    swish = ACTIVATIONS["silu"].composite(alpha * gate) / alpha
    return (swish * (linear + offset)).to(x.dtype)


def gaussian_gelu(x: Tensor, mu: Tensor, sigma: Tensor, bias: Tensor | None) -> Tensor:
    z, mu, sigma = _biased(x, bias), _widened(mu), _widened(sigma)
    # As of gelu: far out Phi is 1 or 0, and the formula sees a harmless number instead.
    far = ((z - mu) / sigma).abs() > (40.0 if z.dtype == torch.float64 else 14.9)
    near = z.masked_fill(far, 0.0)
    out = near * (0.5 * torch.erfc((near - mu) / sigma * -_SQRT_HALF))
    return torch.where(far & (z > mu), z, out).to(x.dtype)


def vjp(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], grad_out: Tensor, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``function(*inputs)`` that can be differentiated again, None where not needed."""
    with torch.enable_grad():
        # Views, so that each input gets its own part only, also where one is computed from the other, or is the other.
        views = [t if t is None else t.view_as(t) for t in inputs]
        wanted = [t if t.requires_grad else t.requires_grad_() for t, need in zip(views, needs, strict=True) if need]
        grads = iter(torch.autograd.grad(function(*views), wanted, grad_out, create_graph=True) if wanted else ())
    return tuple(next(grads) if need else None for need in needs)
