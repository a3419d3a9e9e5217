"""Which function an activation computes, found by running it: names and configurations lie.

A module or callable is a form of GELU if its values and its gradient are, in float64, over the whole range.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _composite

FORM_NAMES = {"none": "exact (erf)", "tanh": "tanh", "sigmoid": "quick (sigmoid)"}

_GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    form: functools.partial(_composite.bias_gelu, bias=None, approximate=form) for form in FORM_NAMES
}
_OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "ReLU": F.relu,
    "SiLU": F.silu,
    "ReLU6": F.relu6,
    "squared ReLU": lambda x: F.relu(x) ** 2,
    "LeakyReLU": F.leaky_relu,
    "ELU": F.elu,
    "Mish": F.mish,
    "Hardswish": F.hardswish,
    "GELU clipped to [-10, 10]": lambda x: F.gelu(x).clamp(-10, 10),
}
# The forms are 4e-4 and 2e-2 apart; constants in the wild are written with as few as eight digits.
_TOLERANCE = 1e-6


def _probe() -> Tensor:
    """``[3, 4, 36]``: of three dimensions, so that what mixes one of them (softmax, a norm) cannot pass for a form."""
    tails = torch.tensor([10.5, 15.0, 30.0, 100.0, 1e3, 1e4], dtype=torch.float64)
    bulk = torch.linspace(-9.5, 9.5, 420, dtype=torch.float64)
    return torch.cat([bulk, tails, -tails]).reshape(36, 12).t().reshape(3, 4, 36).contiguous()


def _values_and_slopes(function: Callable[[Tensor], Any], x: Tensor) -> tuple[Tensor, Tensor] | None:
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        out = function(x)
        if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype or not out.requires_grad:
            return None
        return out.detach(), torch.autograd.grad(out.sum(), x)[0]


def _same(found: tuple[Tensor, Tensor], function: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    truth = _values_and_slopes(function, x)
    return all(torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE) for a, b in zip(found, truth, strict=True))


class Found(NamedTuple):
    """What an activation computes: a form of GELU, or another by name, or nothing that is known."""

    form: str | None = None
    other: str | None = None

    def __bool__(self) -> bool:
        return self.form is not None or self.other is not None


def classify(activation: Any) -> Found:
    """Runs a module without parameters, or a callable, and compares it with every known activation."""
    if isinstance(activation, nn.Module):
        if any(True for _ in activation.parameters()) or any(True for _ in activation.buffers()):
            return Found()
        function = activation.forward  # not __call__: hooks are not for us
    else:
        function = activation
    x = _probe()
    try:
        with torch.random.fork_rng(devices=[]):
            found = _values_and_slopes(function, x)
    except Exception:  # not a function of one tensor
        return Found()
    if found is None:
        return Found()
    form = next((name for name, gelu in _GELUS.items() if _same(found, gelu, x)), None)
    other = next((name for name, function in _OTHERS.items() if _same(found, function, x)), None)
    return Found(form, other)


def form_of(activation: Any) -> str | None:
    """The ``approximate`` that a module or callable computes: "none", "tanh" or "sigmoid"; None if it is no GELU."""
    return classify(activation).form
