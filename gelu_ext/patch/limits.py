"""A SwiGLU between limits, recognised in the calls that were recorded: what is called with which numbers.

    gate.clamp(max=limit) -> silu, or g * sigmoid(alpha * g)  \\
                                                               product
    linear.clamp(-limit, limit) -> maybe + offset             /

The numbers come from the calls themselves. Where the code had them from (a setting) is what reads.py has guarded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from .forms import Found
from .record import Event

_PRODUCT = ("mul", "__mul__", "__rmul__", "multiply")
_SUM = ("add", "__add__", "__radd__")
_SIGMOIDS = {"silu": 1.0, "gelu_sigmoid": 1.702}  # activations that are z sigmoid(alpha z)


class Limits(NamedTuple):
    alpha: float
    limit: float
    offset: float
    result: int  # the value
    events: tuple[Event, ...]
    activation: Event | None  # of these, the one that computes SiLU at once


def between_limits(
    gate: int, linear: int, users: Callable[[int], list[Event]], found: Callable[[Event], Found]
) -> Limits | None:
    """From the two parts, by the numbers of their values; ``users`` are the events that take a value."""
    clamps = [_only(users(part)) for part in (gate, linear)]
    if not all(clamps):
        return None
    bounds = [_bounds(event) for event in clamps]
    if None in bounds or None in bounds[1] or bounds[0][0] is not None:
        return None
    limit = bounds[0][1]
    if limit is None or bounds[1] != (-limit, limit) or not 0 < limit < math.inf:
        return None
    (gate,), (linear,) = (event.outputs for event in clamps)
    swish = _swish(gate, users, found)
    if swish is None:
        return None
    alpha, swished, events, activation = swish
    product, offset = _only(users(linear)), 0.0
    number = product and _with_number(product, _SUM)
    if number is not None:
        events, offset, (linear,) = [*events, product], number, product.outputs
        product = _only(users(linear))
    if product is None or product is not _only(users(swished)) or not _is_product(product, {swished, linear}):
        return None
    events = (*clamps, *events, product)
    return Limits(alpha, limit, offset, product.outputs[0], events, activation)


def _swish(
    z: int, users: Callable[[int], list[Event]], found: Callable[[Event], Found]
) -> tuple[float, int, list[Event], Event | None] | None:
    """(alpha, result, events, the one that computes it at once) of ``z * sigmoid(alpha * z)``."""
    event = _only(users(z))
    if event:
        alpha = _SIGMOIDS.get(found(event).activation or "")
        return (alpha, event.outputs[0], [event], event) if alpha else None
    if len(users(z)) != 2:
        return None
    product = next((event for event in users(z) if len(event.inputs) == 2), None)
    inner = next((event for event in users(z) if len(event.inputs) == 1), None)
    if product is None or inner is None:
        return None
    events, alpha = [inner], _with_number(inner, _PRODUCT)
    if alpha is not None:
        inner = _only(users(inner.outputs[0]))
        events.append(inner)
    if inner is None or found(inner).activation != "sigmoid" or not 0 < (alpha or 1.0) < math.inf:
        return None
    sigmoid = inner.outputs[0]
    if _only(users(sigmoid)) is not product or not _is_product(product, {z, sigmoid}):
        return None
    return 1.0 if alpha is None else alpha, product.outputs[0], [*events, product], None


def _only(events: list[Event]) -> Event | None:
    return events[0] if len(events) == 1 else None


def _is_product(event: Event, of: set[int]) -> bool:
    named = event.kind == "function" and event.name in _PRODUCT
    return named and len(event.inputs) == 2 and set(event.inputs) == of and not event.options


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _with_number(event: Event, names: tuple[str, ...]) -> float | None:
    """The number that a tensor is added to or multiplied by."""
    if event.kind != "function" or event.name not in names or event.options or len(event.inputs) != 1:
        return None
    numbers = [argument for argument in event.arguments if _is_number(argument)]
    return float(numbers[0]) if len(event.arguments) == 2 and len(numbers) == 1 else None


def _bounds(event: Event) -> tuple[float | None, float | None] | None:
    """Of a clamp by numbers: below and above."""
    if event.kind != "function" or event.name not in ("clamp", "clip", "clamp_max") or len(event.inputs) != 1:
        return None
    order = ("max",) if event.name == "clamp_max" else ("min", "max")
    given = {**dict(zip(order, event.arguments[1:], strict=False)), **event.options}
    if not given.keys() <= {"min", "max"} or not all(v is None or _is_number(v) for v in given.values()):
        return None
    low, high = (None if given.get(name) is None else float(given[name]) for name in ("min", "max"))
    return low, high
