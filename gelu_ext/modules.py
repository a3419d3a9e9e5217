"""``nn.Module`` shells over the public functions, to stand where a model has an activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import _composite
from .functional import bias_gelu, geglu


def _bias_parameter(
    features: int | None, device: torch.device | str | None, dtype: torch.dtype | None
) -> nn.Parameter | None:
    return None if features is None else nn.Parameter(torch.zeros(features, device=device, dtype=dtype))


class BiasGELU(nn.Module):
    """``gelu(x + bias)`` with a learned bias, to follow an ``nn.Linear(..., bias=False)``.

    Args:
        features: width C of the input; None for no bias.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        device, dtype: of the bias, which starts at zero.

    Raises:
        ValueError: unknown ``approximate``.
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        approximate: str = "none",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _composite.check_form("BiasGELU", approximate)
        super().__init__()
        self.features = features
        self.approximate = approximate
        self.register_parameter("bias", _bias_parameter(features, device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return bias_gelu(x, self.bias, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"features={self.features}, approximate={self.approximate!r}"


class GEGLU(nn.Module):
    """GeGLU of a packed input, with a learned bias on both halves, to follow an ``nn.Linear(C, 2H, bias=False)``.

    Args:
        features: packed width 2H of the input; None for no bias.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        activated: which half goes through GELU, ``"second"`` or ``"first"``, see :func:`gelu_ext.geglu`.
        device, dtype: of the bias, which starts at zero.

    Raises:
        ValueError: unknown ``approximate`` or ``activated``.
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        approximate: str = "none",
        activated: str = "second",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _composite.check_form("GEGLU", approximate)
        _composite.check_half("GEGLU", activated)
        super().__init__()
        self.features = features
        self.approximate = approximate
        self.activated = activated
        self.register_parameter("bias", _bias_parameter(features, device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return geglu(x, self.bias, approximate=self.approximate, activated=self.activated)

    def extra_repr(self) -> str:
        return f"features={self.features}, approximate={self.approximate!r}, activated={self.activated!r}"
