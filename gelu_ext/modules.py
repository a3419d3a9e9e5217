"""``nn.Module`` shells over the public functions: the activation alone, with a bias, gated, and whole MLPs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._activations import GELUS
from ._checks import check_activated, check_approximate, check_bool
from .functional import bias_gelu, elementwise, geglu
from .linear import any_global_hooks, is_plain_linear
from .mlp import geglu_mlp, mlp


class GELU(nn.GELU):
    """``gelu(x)``: replaces ``nn.GELU``, and is one, with quick GELU as a third form.

    Args:
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.

    Raises:
        ValueError: unknown ``approximate``.
    """

    def __init__(self, approximate: str = "none") -> None:
        check_approximate("GELU", approximate)
        super().__init__(approximate)

    def forward(self, x: Tensor) -> Tensor:
        return elementwise(x, GELUS[self.approximate])


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
        check_approximate("BiasGELU", approximate)
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
        check_approximate("GEGLU", approximate)
        check_activated("GEGLU", activated)
        super().__init__()
        self.features = features
        self.approximate = approximate
        self.activated = activated
        self.register_parameter("bias", _bias_parameter(features, device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        return geglu(x, self.bias, approximate=self.approximate, activated=self.activated)

    def extra_repr(self) -> str:
        return f"features={self.features}, approximate={self.approximate!r}, activated={self.activated!r}"


class _TwoLinears(nn.Module):
    """fc1 and fc2, so that the state_dict has the names of a plain stack of Linears."""

    def __init__(
        self,
        in_features: int,
        fc1_features: int,
        hidden_features: int,
        out_features: int | None,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, fc1_features, bias=bias, device=device, dtype=dtype)
        out_features = in_features if out_features is None else out_features
        self.fc2 = nn.Linear(hidden_features, out_features, bias=bias, device=device, dtype=dtype)

    def _is_plain(self) -> bool:
        return is_plain_linear(self.fc1) and is_plain_linear(self.fc2) and not any_global_hooks()

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias


class MLP(_TwoLinears):
    """``fc2(gelu(fc1(x)))`` through :func:`gelu_ext.mlp`; parameters ``fc1.weight``, ``fc1.bias``, ``fc2.weight``, ...

    Where fc1 or fc2 has been wrapped, hooked or quantised, it is called as a module and the activation alone is fused.

    Args:
        in_features: C.
        hidden_features: H.
        out_features: D; C if None.
        bias: whether both layers have a bias.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        recompute: keep the pre-activation only, see :func:`gelu_ext.mlp`.
        device, dtype: of the parameters, initialised as nn.Linear's.

    Raises:
        ValueError: unknown ``approximate``.
        TypeError: ``recompute`` not a bool.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        bias: bool = True,
        approximate: str = "none",
        recompute: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_approximate("MLP", approximate)
        check_bool("MLP", "recompute", recompute)
        super().__init__(in_features, hidden_features, hidden_features, out_features, bias, device, dtype)
        self.approximate = approximate
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        if self._is_plain():
            return mlp(x, *self._tensors(), approximate=self.approximate, recompute=self.recompute)
        return self.fc2(bias_gelu(self.fc1(x), approximate=self.approximate))

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, recompute={self.recompute}"


class GEGLUMLP(_TwoLinears):
    """``fc2(geglu(fc1(x)))`` through :func:`gelu_ext.geglu_mlp`, with fc1 of ``2 * hidden_features`` rows.

    Args:
        in_features, hidden_features, out_features, bias, approximate, recompute, device, dtype: as of :class:`MLP`.
        activated: which half goes through GELU, ``"second"`` or ``"first"``, see :func:`gelu_ext.geglu`.

    Raises:
        ValueError: unknown ``approximate`` or ``activated``.
        TypeError: ``recompute`` not a bool.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        bias: bool = True,
        approximate: str = "none",
        activated: str = "second",
        recompute: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_approximate("GEGLUMLP", approximate)
        check_activated("GEGLUMLP", activated)
        check_bool("GEGLUMLP", "recompute", recompute)
        super().__init__(in_features, 2 * hidden_features, hidden_features, out_features, bias, device, dtype)
        self.approximate = approximate
        self.activated = activated
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        forms = {"approximate": self.approximate, "activated": self.activated}
        if self._is_plain():
            return geglu_mlp(x, *self._tensors(), **forms, recompute=self.recompute)
        return self.fc2(geglu(self.fc1(x), **forms))

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, activated={self.activated!r}, recompute={self.recompute}"
