"""``nn.Module`` shells over the public functions: the activation alone, with a bias, gated, and whole MLPs.

A module keeps the options of its function as attributes of the same names; those named after GELU take a form of it in
the place of an activation, and are otherwise the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ._activations import GELUS
from ._checks import activation_or_form, check_approximate, check_options
from ._tiles import TileRows
from .functional import bias_act, bias_gelu, elementwise, gaussian_gelu, geglu, glu
from .linear import any_global_hooks, is_plain_linear
from .mlp import geglu_mlp, glu_mlp, mlp


class GELU(nn.GELU):
    """``gelu(x)``: replaces ``nn.GELU``, and is one, with quick GELU as a third form.

    Args:
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.

    Raises:
        ValueError: unknown ``approximate``.

    >>> gelu_ext.GELU("sigmoid")(torch.tensor([-1.0, 1.0]))
    tensor([-0.1542,  0.8458])
    >>> isinstance(gelu_ext.GELU(), nn.GELU)
    True
    """

    def __init__(self, approximate: str = "none") -> None:
        check_approximate("GELU", approximate)
        super().__init__(approximate)

    def forward(self, x: Tensor) -> Tensor:
        return elementwise(x, GELUS[self.approximate])


class _Shell(nn.Module):
    """Of a function: its options are attributes, are checked, and are what the module prints."""

    dropout_p = 0.0  # in training mode

    def __init__(self, **options: Any) -> None:
        check_options(type(self).__name__, **options)
        super().__init__()
        for name, option in options.items():
            setattr(self, name, option)
        self._printed = tuple(name for name in options if name != "dropout_p")

    def extra_repr(self) -> str:
        printed = (*self._printed, *(("dropout_p",) if self.dropout_p else ()))
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in printed)

    @property
    def _dropout(self) -> dict[str, Any]:
        return {"dropout_p": self.dropout_p, "training": self.training}


class _WithBias(_Shell):
    """And a learned bias, which starts at zero."""

    def __init__(
        self, features: int | None, device: torch.device | str | None, dtype: torch.dtype | None, **options: Any
    ) -> None:
        super().__init__(features=features, **options)
        bias = None if features is None else nn.Parameter(torch.zeros(features, device=device, dtype=dtype))
        self.register_parameter("bias", bias)


class BiasAct(_WithBias):
    """``act(x + bias)`` with a learned bias, to follow an ``nn.Linear(..., bias=False)``; without one, ``act(x)``.

    Args:
        features: width C of the input; None for no bias.
        activation: the name of any of :func:`gelu_ext.activations`.
        dropout_p: dropout of the result in training mode, see :func:`gelu_ext.bias_act`.
        device, dtype: of the bias, which starts at zero.

    Raises:
        ValueError: unknown ``activation``.

    >>> layer = nn.Sequential(nn.Linear(4, 8, bias=False), gelu_ext.BiasAct(8, activation="silu"))
    >>> layer[1]
    BiasAct(features=8, activation='silu')
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        activation: str,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, device, dtype, activation=activation, dropout_p=dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None and self.dropout_p == 0:
            return elementwise(x, self.activation)
        options = {"activation": self.activation, "dropout_p": self.dropout_p, "training": self.training}
        return bias_act(x, self.bias, **options)


class BiasGELU(_WithBias):
    """``gelu(x + bias)`` with a learned bias, to follow an ``nn.Linear(..., bias=False)``.

    Args:
        features: width C of the input; None for no bias.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        dropout_p: dropout of the result in training mode, see :func:`gelu_ext.bias_act`.
        device, dtype: of the bias, which starts at zero.

    Raises:
        ValueError: unknown ``approximate``.

    >>> layer = nn.Sequential(nn.Linear(4, 8, bias=False), gelu_ext.BiasGELU(8))
    >>> layer[1]
    BiasGELU(features=8, approximate='none')
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        approximate: str = "none",
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(features, device, dtype, approximate=approximate, dropout_p=dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        return bias_gelu(x, self.bias, approximate=self.approximate, **self._dropout)


class GaussianGELU(_Shell):
    """:func:`gelu_ext.gaussian_gelu` with a learned mean and deviation: ``x * Phi((x - mu) / exp(log_sigma))``.

    The deviation is kept above 0 by its logarithm, which is the parameter. Both start at 0: at first it is GELU.

    Args:
        num_parameters: 1 for all columns, or the width C of the input for one of each column.
        device, dtype: of the parameters ``mu`` and ``log_sigma``.

    Raises:
        ValueError: ``num_parameters`` not an int above 0.

    >>> layer = gelu_ext.GaussianGELU(8)
    >>> [name for name, _ in layer.named_parameters()]
    ['mu', 'log_sigma']
    >>> layer(torch.randn(3, 8)).shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        num_parameters: int = 1,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_parameters=num_parameters)
        for name in ("mu", "log_sigma"):
            self.register_parameter(name, nn.Parameter(torch.zeros(num_parameters, device=device, dtype=dtype)))

    def forward(self, x: Tensor) -> Tensor:
        return gaussian_gelu(x, self.mu, self.log_sigma.exp())


class GLU(_WithBias):
    """A GLU of a packed input, with a learned bias on both halves, to follow an ``nn.Linear(C, 2H, bias=False)``.

    Args:
        features: packed width 2H of the input; None for no bias.
        activation: the name of any of :func:`gelu_ext.activations`.
        activated: which half it is applied to, ``"second"`` or ``"first"``, see :func:`gelu_ext.glu`.
        dropout_p: dropout of the result in training mode, see :func:`gelu_ext.bias_act`.
        device, dtype: of the bias, which starts at zero.

    Raises:
        ValueError: unknown ``activation`` or ``activated``.

    >>> layer = nn.Sequential(nn.Linear(4, 2 * 8, bias=False), gelu_ext.GLU(2 * 8, activation="silu"))
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        activation: str,
        activated: str = "second",
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"activation": activation, "activated": activated, "dropout_p": dropout_p}
        super().__init__(features, device, dtype, **options)

    def forward(self, x: Tensor) -> Tensor:
        return glu(x, self.bias, activation=self.activation, activated=self.activated, **self._dropout)


class GEGLU(_WithBias):
    """GeGLU of a packed input, with a learned bias on both halves, to follow an ``nn.Linear(C, 2H, bias=False)``.

    Args:
        features: packed width 2H of the input; None for no bias.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        activated: which half goes through GELU, ``"second"`` or ``"first"``, see :func:`gelu_ext.geglu`.
        dropout_p: dropout of the result in training mode, see :func:`gelu_ext.bias_act`.
        device, dtype: of the bias, which starts at zero.

    Raises:
        ValueError: unknown ``approximate`` or ``activated``.

    >>> layer = nn.Sequential(nn.Linear(4, 2 * 8, bias=False), gelu_ext.GEGLU(2 * 8))
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 8])
    """

    def __init__(
        self,
        features: int | None = None,
        *,
        approximate: str = "none",
        activated: str = "second",
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"approximate": approximate, "activated": activated, "dropout_p": dropout_p}
        super().__init__(features, device, dtype, **options)

    def forward(self, x: Tensor) -> Tensor:
        return geglu(x, self.bias, approximate=self.approximate, activated=self.activated, **self._dropout)


class _TwoLinears(_Shell):
    """And fc1 and fc2, so that the state_dict has the names of a plain stack of Linears."""

    def __init__(
        self,
        in_features: int,
        fc1_features: int,
        hidden_features: int,
        out_features: int | None,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.fc1 = nn.Linear(in_features, fc1_features, bias=bias, device=device, dtype=dtype)
        out_features = in_features if out_features is None else out_features
        self.fc2 = nn.Linear(hidden_features, out_features, bias=bias, device=device, dtype=dtype)

    def _is_plain(self) -> bool:
        return is_plain_linear(self.fc1) and is_plain_linear(self.fc2) and not any_global_hooks()

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias


class MLP(_TwoLinears):
    """``fc2(act(fc1(x)))`` through :func:`gelu_ext.mlp`; parameters ``fc1.weight``, ``fc1.bias``, ``fc2.weight``, ...

    Where fc1 or fc2 has been wrapped, hooked or quantised, it is called as a module and the activation alone is fused.

    Args:
        in_features: C.
        hidden_features: H.
        out_features: D; C if None.
        bias: whether both layers have a bias.
        activation: the name of any of :func:`gelu_ext.activations`; None for the form of GELU in ``approximate``.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        recompute: keep the pre-activation only, see :func:`gelu_ext.mlp`.
        tile_rows: None, a number of rows, or "auto": in tiles, see :func:`gelu_ext.mlp`.
        dropout_p: dropout of the hidden activations in training mode, see :func:`gelu_ext.mlp`.
        device, dtype: of the parameters, initialised as nn.Linear's.

    Raises:
        ValueError: unknown ``activation`` or ``approximate``, or both of them.
        TypeError: ``recompute`` not a bool, ``tile_rows`` not one of these.

    >>> layer = gelu_ext.MLP(4, 16, activation="silu")
    >>> list(layer.state_dict())
    ['fc1.weight', 'fc1.bias', 'fc2.weight', 'fc2.bias']
    >>> layer(torch.randn(3, 4)).shape
    torch.Size([3, 4])
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        approximate: str = "none",
        recompute: bool = True,
        tile_rows: TileRows = None,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        activation_or_form("MLP", activation, approximate)
        options = {"approximate": approximate, "recompute": recompute, "tile_rows": tile_rows, "dropout_p": dropout_p}
        sizes = (in_features, hidden_features, hidden_features, out_features)
        super().__init__(*sizes, bias, device, dtype, **options)
        self.activation = activation
        if activation is not None:
            self._printed = ("activation", "recompute", "tile_rows")

    def forward(self, x: Tensor) -> Tensor:
        if self._is_plain():
            options = {"activation": self.activation, "approximate": self.approximate, **self._dropout}
            return mlp(x, *self._tensors(), **options, recompute=self.recompute, tile_rows=self.tile_rows)
        activation = self.activation or GELUS[self.approximate]
        return self.fc2(bias_act(self.fc1(x), activation=activation, **self._dropout))


class GLUMLP(_TwoLinears):
    """``fc2(glu(fc1(x)))`` through :func:`gelu_ext.glu_mlp`, with fc1 of ``2 * hidden_features`` rows.

    Args:
        in_features, hidden_features, out_features, bias, device, dtype: as of :class:`MLP`.
        recompute, tile_rows, dropout_p: as of :class:`MLP`.
        activation: the name of any of :func:`gelu_ext.activations`.
        activated: which half it is applied to, ``"second"`` or ``"first"``, see :func:`gelu_ext.glu`.

    Raises:
        ValueError: unknown ``activation`` or ``activated``.
        TypeError: ``recompute`` not a bool, ``tile_rows`` not one of these.

    >>> layer = gelu_ext.GLUMLP(4, 16, bias=False, activation="silu", activated="first")
    >>> {name: list(t.shape) for name, t in layer.state_dict().items()}
    {'fc1.weight': [32, 4], 'fc2.weight': [4, 16]}
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        bias: bool = True,
        activation: str,
        activated: str = "second",
        recompute: bool = True,
        tile_rows: TileRows = None,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"activation": activation, "activated": activated, "recompute": recompute, "tile_rows": tile_rows}
        options["dropout_p"] = dropout_p
        sizes = (in_features, 2 * hidden_features, hidden_features, out_features)
        super().__init__(*sizes, bias, device, dtype, **options)

    def forward(self, x: Tensor) -> Tensor:
        options = {"activation": self.activation, "activated": self.activated, **self._dropout}
        if self._is_plain():
            return glu_mlp(x, *self._tensors(), **options, recompute=self.recompute, tile_rows=self.tile_rows)
        return self.fc2(glu(self.fc1(x), **options))


class GEGLUMLP(_TwoLinears):
    """``fc2(geglu(fc1(x)))`` through :func:`gelu_ext.geglu_mlp`, with fc1 of ``2 * hidden_features`` rows.

    Args:
        in_features, hidden_features, out_features, bias, approximate, device, dtype: as of :class:`MLP`.
        recompute, tile_rows, dropout_p: as of :class:`MLP`.
        activated: which half goes through GELU, ``"second"`` or ``"first"``, see :func:`gelu_ext.geglu`.

    Raises:
        ValueError: unknown ``approximate`` or ``activated``.
        TypeError: ``recompute`` not a bool, ``tile_rows`` not one of these.

    >>> layer = gelu_ext.GEGLUMLP(4, 16, bias=False)
    >>> {name: list(t.shape) for name, t in layer.state_dict().items()}
    {'fc1.weight': [32, 4], 'fc2.weight': [4, 16]}
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
        tile_rows: TileRows = None,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = {"approximate": approximate, "activated": activated, "recompute": recompute, "tile_rows": tile_rows}
        options["dropout_p"] = dropout_p
        sizes = (in_features, 2 * hidden_features, hidden_features, out_features)
        super().__init__(*sizes, bias, device, dtype, **options)

    def forward(self, x: Tensor) -> Tensor:
        options = {"approximate": self.approximate, "activated": self.activated, **self._dropout}
        if self._is_plain():
            return geglu_mlp(x, *self._tensors(), **options, recompute=self.recompute, tile_rows=self.tile_rows)
        return self.fc2(geglu(self.fc1(x), **options))
