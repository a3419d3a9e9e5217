"""What each registered operator returns for tensors without data: meta and fake tensors, symbolic shapes.

Arguments have been checked by then, before the dispatcher chose this.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._operations import OPERATIONS, Operation


def _forward(op: Operation) -> Callable[..., Tensor]:
    def fake(x: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(x.shape if op.halves == 1 else (*x.shape[:-1], x.shape[-1] // op.halves))

    return fake


def _backward(op: Operation) -> Callable[..., tuple[Tensor, ...]]:
    count = len(op.tensors)

    def fake(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        tensors, needs = rest[:count], rest[op.place_of_needs]
        # A gradient that is not needed is an empty tensor of one dimension, see csrc/ops.h.
        return tuple(
            t.new_empty(t.shape) if need and t is not None else rest[0].new_empty((0,))
            for t, need in zip(tensors, needs, strict=True)
        )

    return fake


def _again(op: Operation) -> Callable[..., Tensor]:
    forward = _forward(op)
    return lambda grad_out, *args: forward(*args)


def _after_sharding_rules(fake: Callable[..., Any]) -> Callable[..., Any]:
    """DTensor asks for the fake result of an operator before it looks for its sharding rule: time to register that."""

    @functools.wraps(fake)
    def with_rules(*args: Any) -> Any:
        if "torch.distributed.tensor" in sys.modules:
            from . import _sharding  # noqa: F401
        return fake(*args)

    return with_rules


def register() -> None:
    for op in OPERATIONS.values():
        torch.library.register_fake(f"gelu_ext::{op.name}", _after_sharding_rules(_forward(op)))
        torch.library.register_fake(f"gelu_ext::{op.name}_backward", _after_sharding_rules(_backward(op)))
        torch.library.register_fake(f"gelu_ext::{op.name}_again", _after_sharding_rules(_again(op)))
