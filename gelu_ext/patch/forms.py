"""Which function an activation computes, found by running it: names and configurations lie.

A module or callable is an activation if its values and its gradient are, in float64, over the whole range. It is run
only if its code does nothing but compute (reads.py). patch() serves the forms of GELU; the other activations that are
known are named in the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .._activations import ACTIVATIONS, GELUS, OTHERS
from .reads import NotGuarded, Read, Reader

_KNOWN = {row.label: row.composite for row in ACTIVATIONS.values()} | OTHERS

# The forms are 4e-4 and 2e-2 apart; constants in the wild are written with as few as eight digits.
_TOLERANCE = 1e-6


def _probe() -> Tensor:
    """``[3, 4, 36]``: of three dimensions, so that what mixes one of them (softmax, a norm) cannot pass for a form."""
    tails = torch.tensor([10.5, 15.0, 30.0, 100.0, 1e4, 1e30], dtype=torch.float64, device="cpu")
    bulk = torch.linspace(-9.5, 9.5, 420, dtype=torch.float64, device="cpu")
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


# What makes a function another one for other numbers than those of the probe.
_BY_NUMBERS = {"__bool__", "__float__", "__int__", "__index__", "item", "tolist", "numpy", "nan_to_num"}
_BY_NUMBERS |= {"isnan", "isinf", "isfinite", "isposinf", "isneginf"}


class _Asked(TorchFunctionMode):
    """Notes which functions of torch run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


class Found(NamedTuple):
    """What an activation computes: one that patch() serves, by name, or another that is known, by label, or nothing."""

    activation: str | None = None
    other: str | None = None
    reads: tuple[Read, ...] = ()  # what it depends on; the base "" is the module itself

    def __bool__(self) -> bool:
        return self.activation is not None or self.other is not None


def classify(activation: Any) -> Found:
    """Runs a module without parameters, or a callable, and compares it with every known activation."""
    if isinstance(activation, nn.Module):
        odd = activation._modules or "forward" in vars(activation) or isinstance(activation, torch.jit.ScriptModule)
        if odd or any(True for _ in activation.parameters()) or any(True for _ in activation.buffers()):
            return Found()
        reader = Reader(activation, {id(activation): ""})
        function, code = activation.forward, type(activation).forward  # not __call__: hooks are not for us
    else:
        reader, function, code = Reader(None, {}), activation, activation
    try:
        reader.function(code, activation if isinstance(activation, nn.Module) else None)
    except NotGuarded:
        return Found()
    x, asked = _probe(), _Asked()
    try:
        with torch.random.fork_rng(devices=[]), asked:
            found = _values_and_slopes(function, x)
    except Exception:  # not a function of one tensor
        return Found()
    if found is None or asked.names & _BY_NUMBERS:
        return Found()
    label = next((label for label, function in _KNOWN.items() if _same(found, function, x)), None)
    served = next((name for name in GELUS.values() if ACTIVATIONS[name].label == label), None)
    if served and reader.outside:  # a module that might get hooks, and stands nowhere
        return Found()
    return Found(served, None if served else label, tuple(reader.reads.values()))


def form_of(activation: Any) -> str | None:
    """The ``approximate`` that a module or callable computes: "none", "tanh" or "sigmoid"; None if it is no GELU."""
    served = classify(activation).activation
    return ACTIVATIONS[served].approximate if served else None
