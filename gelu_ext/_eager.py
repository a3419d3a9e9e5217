"""The operations as a model spells them in torch.

For tensors that the kernels do not take and torch's own functions do (nested, quantised, mkldnn), and for graphs that
leave the package (ONNX, ``ExportedProgram.run_decompositions``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._activations import ACTIVATIONS
from ._dropout import then_dropout


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


@then_dropout
def bias_act(x: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return ACTIVATIONS[activation].eager(_plus(x, bias))


@then_dropout
def glu(x: Tensor, bias: Tensor | None, activation: str, activated: str) -> Tensor:
    a, b = _plus(x, bias).chunk(2, -1)
    act = ACTIVATIONS[activation].eager
    return act(a) * b if activated == "first" else a * act(b)


@then_dropout
def act_mul(
    activated: Tensor, linear: Tensor, activated_bias: Tensor | None, linear_bias: Tensor | None, activation: str
) -> Tensor:
    return ACTIVATIONS[activation].eager(_plus(activated, activated_bias)) * _plus(linear, linear_bias)


def clamped_swiglu(x: Tensor, bias: Tensor | None, alpha: float, limit: float, offset: float, layout: str) -> Tensor:
    z = _plus(x, bias)
    gate, linear = (z[..., ::2], z[..., 1::2]) if layout == "interleaved" else z.chunk(2, -1)
    gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (linear + offset)


def gaussian_gelu(x: Tensor, mu: Tensor, sigma: Tensor, bias: Tensor | None) -> Tensor:
    z = _plus(x, bias)
    return 0.5 * z * (1 + torch.erf((z - mu.to(x.dtype)) / (sigma.to(x.dtype) * 2**0.5)))
