"""The activations, one row each: the table that functions, composites, patch(), the benchmarks and the docs read.

The kernels' own list is in csrc/activations.h; a test compares the two by name. To add a row, see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    name: str  # as in csrc/activations.h
    label: str  # in reports
    formula: str
    source: str
    eager: Function  # as a model spells it in torch: what the benchmarks compare with
    composite: Function  # in torch's differentiable operations, right in every derivative, in float32 or float64
    approximate: str = ""  # the name of a form of GELU, in torch's word for it; else ""


def _saturating(formula: Function, limit32: float, limit64: float) -> Function:
    """``formula`` where |z| is below the limit for z's dtype; beyond, z or zero, which it is there to every bit.

    The limits are where the tail has vanished: for z sigmoid(k z) 112.5 / k and 749 / k, or more.
    """

    def composite(z: Tensor) -> Tensor:
        limit = limit64 if z.dtype == torch.float64 else limit32
        # Far out, the formula sees a harmless number instead: infinity times zero must not arise in a derivative that
        # is then masked, either. (Not a clamp: its derivative at NaN is zero.)
        return torch.where(z > limit, z, formula(z.masked_fill(z.abs() > limit, -limit)))

    return composite


def _sigmoid(z: Tensor) -> Tensor:
    """Its derivative s (1 - s) would cancel where s is close to 1: there it is that of 1 - sigmoid(-z)."""
    below = torch.sigmoid(torch.where(z > 0, -z, z))
    return torch.where(z > 0, 1 - below, below)


def _tanh(z: Tensor) -> Tensor:
    """The same for 1 - tanh^2: far out it is 2 sigmoid(2 z) - 1."""
    far = 1 - 2 * torch.sigmoid(torch.where(z > 0, -2 * z, 2 * z))
    return torch.where(z.abs() < 1, torch.tanh(z), torch.where(z > 0, far, -far))


def _elu(z: Tensor) -> Tensor:
    """The derivative of expm1 is computed as expm1 + 1, which cancels far below 0."""
    below = z.masked_fill(z > 0, 0.0)
    return torch.where(z > 0, z, torch.where(below > -1, torch.expm1(below), torch.exp(below) - 1))


_SQRT_HALF = 0.7071067811865476
_SQRT_8_OVER_PI = 1.5957691216057308
_LOG_2 = 0.6931471805599453
_GELU = "Hendrycks and Gimpel, arXiv:1606.08415"

_ROWS = (
    Activation(
        "gelu",
        "exact (erf)",
        "z Phi(z), Phi the normal distribution function",
        _GELU,
        F.gelu,
        _saturating(lambda z: 0.5 * z * torch.erfc(-z * _SQRT_HALF), 14.9, 40.0),
        approximate="none",
    ),
    Activation(
        "gelu_tanh",
        "tanh",
        "z (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2",
        _GELU,
        lambda z: F.gelu(z, approximate="tanh"),
        _saturating(lambda z: z * torch.sigmoid(_SQRT_8_OVER_PI * (z + 0.044715 * z * z * z)), 11.75, 24.0),
        approximate="tanh",
    ),
    Activation(
        "gelu_sigmoid",
        "quick (sigmoid)",
        "z sigmoid(1.702 z)",
        _GELU,
        lambda z: z * torch.sigmoid(1.702 * z),
        _saturating(lambda z: z * torch.sigmoid(1.702 * z), 80.0, 460.0),
        approximate="sigmoid",
    ),
    Activation(
        "silu",
        "SiLU",
        "z sigmoid(z)",
        "Elfwing, Uchibe and Doya, arXiv:1702.03118",
        F.silu,
        _saturating(lambda z: z * torch.sigmoid(z), 112.5, 748.75),
    ),
    Activation(
        "relu",
        "ReLU",
        "max(z, 0)",
        "Nair and Hinton, ICML 2010",  # T5, OPT
        F.relu,
        F.relu,
    ),
    Activation(
        "relu2",
        "squared ReLU",
        "max(z, 0)^2",
        "So et al., arXiv:2109.08668",  # Primer, Nemotron
        lambda z: F.relu(z) ** 2,
        lambda z: F.relu(z) ** 2,
    ),
    Activation(
        "sigmoid",
        "Sigmoid",
        "1 / (1 + exp(-z))",
        "Dauphin, Fan, Auli and Grangier, arXiv:1612.08083",  # the gate of the first GLU
        torch.sigmoid,
        _sigmoid,
    ),
    Activation(
        "tanh",
        "Tanh",
        "tanh(z)",
        "van den Oord et al., arXiv:1606.05328",  # PixelCNN's and WaveNet's gated unit
        torch.tanh,
        _tanh,
    ),
    Activation(
        "mish",
        "Mish",
        "z tanh(log(1 + exp(z)))",
        "Misra, arXiv:1908.08681",  # YOLOv4
        F.mish,
        # tanh(log(1 + e^z)) = sigmoid(log(n/2)), n = e^z (e^z + 2)
        _saturating(lambda z: z * torch.sigmoid(z + F.softplus(z - _LOG_2)), 112.5, 748.75),
    ),
    Activation(
        "elu",
        "ELU",
        "z for z > 0, else exp(z) - 1",
        "Clevert, Unterthiner and Hochreiter, arXiv:1511.07289",
        F.elu,
        _elu,
    ),
    Activation(
        "identity",
        "Identity",
        "z",
        "Shazeer, arXiv:2002.05202",  # bilinear GLU
        torch.clone,
        torch.clone,
    ),
)
ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}
# The forms of GELU: torch's `approximate` -> name of the activation.
GELUS: dict[str, str] = {row.approximate: row.name for row in _ROWS if row.approximate}

# Activations without kernels, by the label that patch() reports them with.
OTHERS: dict[str, Function] = {
    "ReLU6": F.relu6,
    "LeakyReLU": F.leaky_relu,
    "Hardswish": F.hardswish,
    "GELU clipped to [-10, 10]": lambda z: F.gelu(z).clamp(-10, 10),
}


class ActivationTable(dict[str, Activation]):
    """A dict from names to rows that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {row.formula} ({row.source})" for name, row in self.items())

    __repr__ = __str__


def activations() -> ActivationTable:
    """Every activation that the kernels compute, by the name that ``activation=`` takes: formula, source, label.

    Returns:
        A dict that prints as a table; its values have ``name``, ``label``, ``formula``, ``source``, ``eager`` (torch's
        own spelling) and ``approximate`` (the form's name where it is one of GELU's).

    >>> gelu_ext.activations()["silu"].formula
    'z sigmoid(z)'
    """
    return ActivationTable(ACTIVATIONS)
