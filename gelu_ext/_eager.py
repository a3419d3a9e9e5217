"""The operations as a model spells them in torch.

For tensors that the kernels do not take and torch's own functions do (nested, quantised, mkldnn), and for graphs that
leave the package (ONNX, ``ExportedProgram.run_decompositions``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._activations import ACTIVATIONS
from ._dropout import dropped


def _plus(x: Tensor, bias: Tensor | None) -> Tensor:
    return x if bias is None else x + bias.to(x.dtype)


def bias_act(
    x: Tensor, bias: Tensor | None, activation: str, dropout_p: float = 0.0, philox: Tensor | None = None
) -> Tensor:
    return dropped(ACTIVATIONS[activation].eager(_plus(x, bias)), dropout_p, philox)


def glu(
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    activated: str,
    dropout_p: float = 0.0,
    philox: Tensor | None = None,
) -> Tensor:
    a, b = _plus(x, bias).chunk(2, -1)
    act = ACTIVATIONS[activation].eager
    return dropped(act(a) * b if activated == "first" else a * act(b), dropout_p, philox)


def act_mul(
    activated: Tensor,
    linear: Tensor,
    activated_bias: Tensor | None,
    linear_bias: Tensor | None,
    activation: str,
    dropout_p: float = 0.0,
    philox: Tensor | None = None,
) -> Tensor:
    value = ACTIVATIONS[activation].eager(_plus(activated, activated_bias)) * _plus(linear, linear_bias)
    return dropped(value, dropout_p, philox)


def clamped_swiglu(x: Tensor, bias: Tensor | None, alpha: float, limit: float, offset: float, layout: str) -> Tensor:
    z = _plus(x, bias)
    gate, linear = (z[..., ::2], z[..., 1::2]) if layout == "interleaved" else z.chunk(2, -1)
    gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
    return gate * torch.sigmoid(alpha * gate) * (linear + offset)


def gaussian_gelu(x: Tensor, mu: Tensor, sigma: Tensor, bias: Tensor | None) -> Tensor:
    z = _plus(x, bias)
    return 0.5 * z * (1 + torch.erf((z - mu.to(x.dtype)) / (sigma.to(x.dtype) * 2**0.5)))
