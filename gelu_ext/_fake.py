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


def _gradient(t: Tensor | None, x: Tensor, needed: bool) -> Tensor:
    """A gradient that is not needed is an empty tensor of one dimension, see csrc/ops.h."""
    if needed and t is not None:
        return t.new_empty(t.shape)
    return x.new_empty((0,))


def _bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    return x.new_empty(x.shape)


def _geglu(x: Tensor, bias: Tensor | None, approximate: str, activated: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _gelu_mul(activated: Tensor, linear: Tensor, approximate: str) -> Tensor:
    return activated.new_empty(activated.shape)


def _bias_gelu_backward(
    grad_out: Tensor, x: Tensor, bias: Tensor | None, approximate: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor, Tensor]:
    return _gradient(x, x, needs_x), _gradient(bias, x, needs_bias)


def _geglu_backward(
    grad_out: Tensor, x: Tensor, bias: Tensor | None, approximate: str, activated: str, needs_x: bool, needs_bias: bool
) -> tuple[Tensor, Tensor]:
    return _gradient(x, x, needs_x), _gradient(bias, x, needs_bias)


def _gelu_mul_backward(
    grad_out: Tensor, activated: Tensor, linear: Tensor, approximate: str, needs_activated: bool, needs_linear: bool
) -> tuple[Tensor, Tensor]:
    return _gradient(activated, activated, needs_activated), _gradient(linear, activated, needs_linear)


def _after_sharding_rules(fake: Callable[..., Any]) -> Callable[..., Any]:
    """DTensor asks for the fake result of an operator before it looks for its sharding rule: time to register that."""

    @functools.wraps(fake)
    def with_rules(*args: Any) -> Any:
        if "torch.distributed.tensor" in sys.modules:
            from . import _sharding  # noqa: F401
        return fake(*args)

    return with_rules


def register() -> None:
    for fake in (_bias_gelu, _geglu, _gelu_mul, _bias_gelu_backward, _geglu_backward, _gelu_mul_backward):
        torch.library.register_fake(f"gelu_ext::{fake.__name__.removeprefix('_')}", _after_sharding_rules(fake))
