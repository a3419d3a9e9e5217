"""Which activation a function computes, found by running it: names and configurations lie.

A module or callable is an activation if its values and its gradient are, in float64, over the whole range. It is run
only if its code does nothing but compute (reads.py). patch() serves those of the table; the others that are known are
named in the report. What is served where, and why not, stands here.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from .._activations import ACTIVATIONS, OTHERS
from .reads import NotGuarded, Read, Reader, is_plain, is_tensor_function

# By name. What computes the identity in a model stands there for nothing, and nothing is gained by computing it.
SERVED = tuple(name for name in ACTIVATIONS if name != "identity")
_KNOWN = {ACTIVATIONS[name].label: ACTIVATIONS[name].composite for name in SERVED} | OTHERS
_SERVED_BY_LABEL = {ACTIVATIONS[name].label: name for name in SERVED}

# GELU's forms are 4e-4 and 2e-2 apart; constants in the wild are written with as few as eight digits.
_TOLERANCE = 1e-6


def _probe() -> Tensor:
    """``[3, 4, 36]``: of three dimensions, so that what mixes one of them (softmax, a norm) cannot pass for a form."""
    wide = torch.tensor([10.5, 15.0, 30.0, 100.0, 1e4, 1e30], dtype=torch.float64, device="cpu")
    small = torch.tensor([0.0, 1e-20, 1e-8, 1e-6, 1e-4, 1e-2], dtype=torch.float64, device="cpu")  # around a kink
    bulk = torch.linspace(-9.5, 9.5, 408, dtype=torch.float64, device="cpu")
    return torch.cat([bulk, wide, -wide, small, -small]).reshape(36, 12).t().reshape(3, 4, 36).contiguous()


class _Computed(NamedTuple):
    values: Tensor
    slopes: Tensor
    in_place: bool = False  # it wrote over its argument


def _computed(function: Callable[[Tensor], Any], x: Tensor) -> _Computed | None:
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        given = x.clone()
        out = function(given)
        if not isinstance(out, Tensor) or out.shape != x.shape or out.dtype != x.dtype or not out.requires_grad:
            return None
        return _Computed(out.detach(), torch.autograd.grad(out.sum(), x)[0], given._version > 0)


@functools.lru_cache
def _truth(label: str) -> _Computed:
    return _computed(_KNOWN[label], _probe())


def _same(found: _Computed, truth: _Computed) -> bool:
    return all(
        torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE) for a, b in zip(found[:2], truth[:2], strict=True)
    )


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
    """What an activation computes: its name, if patch() serves it, and its label in reports; nothing if unknown."""

    activation: str | None = None
    label: str = ""
    reads: tuple[Read, ...] = ()  # what it depends on; the base "" is the module itself

    def __bool__(self) -> bool:
        return bool(self.label)

    def why_not(self, asked: frozenset[str]) -> str:
        """Why it is not fused outside of a GLU, as a clause; empty if it is."""
        if self.activation is None:
            return f"computes {self.label}, which has no kernel"
        if self.activation not in asked:
            return f"computes {self.label}, which was not asked for"
        if not gains(self.activation):
            return f"computes {self.label}, where fusing gains nothing: torch keeps its result only"
        return ""


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
    found = _compared(function)
    if found.activation and reader.outside:  # a module that might get hooks, and stands nowhere
        return Found()
    return found._replace(reads=tuple(reader.reads.values()))


def classify_call(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Found:
    """A call of one of torch's functions, of one tensor and settings."""

    def function(x: Tensor) -> Any:
        given, settings = tree_map(lambda leaf: x if isinstance(leaf, Tensor) else leaf, (arguments, options))
        return call(*given, **settings)

    settings = [leaf for leaf in (*arguments, *options.values()) if not isinstance(leaf, Tensor)]
    return _compared(function) if is_tensor_function(call) and is_plain(settings) else Found()


def _compared(function: Callable[[Tensor], Any]) -> Found:
    asked = _Asked()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), asked:
            warnings.simplefilter("ignore")
            found, at_nan = (_computed(function, x) for x in (_probe(), _probe().fill_(torch.nan)))
    except Exception:  # not a function of one tensor
        return Found()
    if found is None or asked.names & _BY_NUMBERS or not at_nan.values.isnan().all():
        return Found()
    label = next((label for label in _KNOWN if _same(found, _truth(label))), "")
    if label and found.in_place:  # whoever has its argument would see another
        return Found(None, f"{label} in place")
    return Found(_SERVED_BY_LABEL.get(label), label)


@functools.lru_cache
def gains(activation: str) -> bool:
    """Whether a fused one gains anything outside of a GLU: whether torch keeps more for its backward than its result.

    ReLU, sigmoid and tanh do not: their slope follows from the result, which the next Linear keeps anyway. A fused
    Linear -> ReLU -> Linear takes 1.00 to 1.03 of eager's time in a training step (bench/mlp.py, 1024 tokens, float32
    and bfloat16), and keeps twice as much for its backward, or as much with recompute.
    """
    kept: list[Tensor] = []
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.ones(2, device="cpu", requires_grad=True)
        with saved_tensors_hooks(lambda t: kept.append(t.detach()), lambda t: t):
            out = ACTIVATIONS[activation].eager(x)
    return any(t.data_ptr() != out.data_ptr() for t in kept)


@functools.lru_cache(maxsize=4096)
def mentioned(name: str) -> str | None:
    """The activation of the table that a function of this name may compute: a reason to look at where it is called."""
    for home in (F, torch):
        function = getattr(home, name, None)
        if is_tensor_function(function):
            return classify(function).activation
    words = (*sorted(SERVED, key=len, reverse=True), "swish")
    word = next((word for word in words if word in name.lower()), None)
    return "silu" if word == "swish" else word


def activation_of(activation: Any) -> str | None:
    """The name, in :func:`gelu_ext.activations`, of what a module or callable computes; None if patch() has none."""
    return classify(activation).activation
