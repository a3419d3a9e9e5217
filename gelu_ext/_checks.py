"""Every sentence about bad input that Python says; those of the operations themselves are in csrc/checks.cpp.

A sentence is "<op>: expected <what>, got <value>", and is said before anything is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ._activations import ACTIVATIONS, GELUS

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def gelu_named(op: str, approximate: str) -> str:
    """The activation that is this form of GELU, or TypeError, ValueError."""
    try:
        return GELUS[approximate]
    except (KeyError, TypeError):
        pass
    if not isinstance(approximate, str):
        raise TypeError(f"{op}: expected approximate to be a string, got {type(approximate).__name__}")
    raise _no_form(op, approximate)


def _no_form(op: str, approximate: object) -> ValueError:
    return _not_one_of(op, "approximate", GELUS, approximate)


def _not_one_of(op: str, name: str, known: Iterable[str], value: object) -> ValueError:
    return ValueError(f"{op}: expected {name} to be one of {', '.join(map(repr, known))}, got {value!r}")


def check_approximate(op: str, approximate: object) -> None:
    """For a layer, of whose options everything wrong is a wrong value: ValueError."""
    if not isinstance(approximate, str) or approximate not in GELUS:
        raise _no_form(op, approximate)


def check_activation(op: str, activation: object) -> None:
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise _not_one_of(op, "activation", ACTIVATIONS, activation)


def check_activations(op: str, activations: Iterable[str] | None, known: tuple[str, ...]) -> frozenset[str]:
    """A set of names out of those known; None for all of these."""
    if activations is None:
        return frozenset(known)
    expected = f"{op}: expected activations to be None or a set of {', '.join(map(repr, known))}"
    if isinstance(activations, str) or not isinstance(activations, Iterable):
        raise TypeError(f"{expected}, got {activations!r}")
    names = list(activations)
    for name in names:
        if name not in known:
            raise ValueError(f"{expected}, got one with {name!r}")
    return frozenset(names)


def activation_or_form(op: str, activation: str | None, approximate: str) -> str:
    """Of the two options of an MLP: the activation, where one is given, else this form of GELU."""
    check_approximate(op, approximate)
    if activation is None:
        return GELUS[approximate]
    check_activation(op, activation)
    if approximate != "none":
        both = f"activation={activation!r} and approximate={approximate!r}"
        raise ValueError(f"{op}: expected activation or approximate, got {both}")
    return activation


def check_activated(op: str, activated: object) -> None:
    if activated not in ("first", "second"):
        raise ValueError(f"{op}: expected activated to be 'first' or 'second', got {activated!r}")


def check_bool(op: str, name: str, flag: object) -> None:
    if not isinstance(flag, bool):
        raise TypeError(f"{op}: expected {name} to be a bool, got {flag!r}")


def check_generator(op: str, generator: Any, device: torch.device) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"{op}: expected generator to be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != device.type:
        raise RuntimeError(f"{op}: expected generator on device {device.type}, got {generator.device.type}")


def check_dropout_p(op: str, dropout_p: object) -> None:
    if not isinstance(dropout_p, int | float) or isinstance(dropout_p, bool):
        raise TypeError(f"{op}: expected dropout_p to be a number, got {type(dropout_p).__name__}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: expected dropout_p to be at least 0 and below 1, got {dropout_p}")


def check_count(op: str, name: str, count: object) -> None:
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ValueError(f"{op}: expected {name} to be an int above 0, got {count!r}")


def check_tile_rows(op: str, tile_rows: object) -> None:
    if tile_rows is None or (isinstance(tile_rows, str) and tile_rows == "auto"):
        return
    expected = f"{op}: expected tile_rows to be None, 'auto' or an int above 0, got {tile_rows!r}"
    if isinstance(tile_rows, bool) or not isinstance(tile_rows, int | str):
        raise TypeError(expected)
    if isinstance(tile_rows, str) or tile_rows < 1:
        raise ValueError(expected)


_OPTIONS: dict[str, Callable[[str, Any], None]] = {
    "activation": check_activation,
    "approximate": check_approximate,
    "activated": check_activated,
    "recompute": lambda op, flag: check_bool(op, "recompute", flag),
    "num_parameters": lambda op, count: check_count(op, "num_parameters", count),
    "tile_rows": check_tile_rows,
    "dropout_p": check_dropout_p,
}


def check_options(op: str, **options: object) -> None:
    """Those of a module, in this order; what is no option of the operations can be anything."""
    for name in filter(_OPTIONS.get, options):
        _OPTIONS[name](op, options[name])


def check_tensor(op: str, name: str, t: Any, like: Tensor | None, shape: tuple[int | None, ...] | None) -> None:
    """A tensor of the dtype and on the device of ``like``. None in ``shape`` is any size."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: expected {name} to be a Tensor, got {type(t).__name__}")
    if like is not None and t.device != like.device:
        raise RuntimeError(f"{op}: expected {name} on device {like.device}, got {t.device}")
    if like is not None and t.dtype != like.dtype and not torch.is_autocast_enabled(t.device.type):
        raise TypeError(f"{op}: expected {name} of the dtype of x, {like.dtype}, got {t.dtype}")
    if shape is not None and (
        t.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, t.shape, strict=True))
    ):
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{op}: expected {name} of shape [{text}], got {list(t.shape)}")


def _check_hidden_bias(op: str, name: str, bias: Any, x: Tensor, width: int) -> None:
    """A bias of the fused operation, which may be float32 beside an x of 16 bits."""
    if bias is not None:
        may_differ = isinstance(bias, Tensor) and bias.dtype == torch.float32 and bias.device == x.device
        check_tensor(op, name, bias, None if may_differ else x, (width,))


def check_mlp(
    op: str, names: tuple[tuple[str, str], ...], parts: int, x: Any, w2: Any, b2: Any, *branches: Any
) -> None:
    """The tensors of an MLP, whose branches are its weights and then its biases: called ``names``, each in `parts`."""
    check_tensor(op, "x", x, None, None)
    if x.dtype not in _DTYPES:
        raise TypeError(f"{op}: expected x of dtype float64, float32, float16 or bfloat16, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{op}: expected x of at least 1 dimension, got a scalar")
    rows: int | None = None
    for i, (w_name, b_name) in enumerate(names):
        w, b = branches[i], branches[i + len(names)]
        check_tensor(op, w_name, w, x, (rows, x.size(-1)))
        rows = w.shape[0]
        if rows % parts:
            raise ValueError(f"{op}: expected {w_name} with an even number of rows (two halves), got {rows}")
        _check_hidden_bias(op, b_name, b, x, rows)
    check_tensor(op, "w2", w2, x, (None, rows // parts))
    if b2 is not None:
        check_tensor(op, "b2", b2, x, (w2.shape[0],))
