"""What may surround a call: transforms, tracing, autocast, tensor subclasses, and what happens before its backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.nn import Parameter

from . import _native

functorch_depth = torch._C._functorch.get_dynamic_layer_stack_depth  # of grad, vmap, jvp
_tracing_state = torch._C._get_tracing_state
_is_compiling = torch.compiler.is_compiling
# A class whose __torch_function__ is one of these leaves functions as they are.
_NO_OVERRIDE = (Tensor.__torch_function__.__func__, torch._C._disabled_torch_function_impl)


def in_transform() -> bool:
    """Under a functorch transform (grad, vmap, jvp) or forward-mode differentiation."""
    return functorch_depth() > 0 or forward_ad._current_level >= 0


def is_exporting() -> bool:
    return torch.compiler.is_exporting()


# torch.compile asks these while it traces, with the transforms of what it traces entered, and guards on them itself.
# (Torch 2.11 answers the second for itself, always with yes.)
in_transform._dynamo_marked_constant = is_exporting._dynamo_marked_constant = True


def is_tracing() -> bool:
    """Under torch.jit.trace, or the ONNX exporter that is built on it."""
    return _tracing_state() is not None


def overrides(t: Any) -> bool:
    """Whether the tensor is of a class that takes the functions that it is given to. (Parameters do not.)"""
    if type(t) in (Tensor, Parameter) or not isinstance(t, Tensor):
        return False
    override = type(t).__torch_function__
    override = getattr(override, "__func__", override)
    return not any(override is leaves_it for leaves_it in _NO_OVERRIDE)


def autocasts(device: str) -> bool:
    if _is_compiling():  # which does not know the first question
        return torch.is_autocast_enabled(device)
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def as_linear_casts(t: Tensor | None) -> Tensor | None:
    """As autocast casts the arguments of F.linear."""
    if t is None or not t.is_floating_point() or t.dtype == torch.float64:
        return t
    return t.to(torch.get_autocast_dtype(t.device.type))


def plain_apply(function: type[Function]) -> Callable[..., Any]:
    """``function.apply`` without its Python parts: what asks about functorch transforms here (1.3 us of 5), and what
    asks the class for its backward there (0.5 us)."""
    function._backward_cls.apply = function.backward
    return super(Function, function).apply


def as_it_is(vector: Tensor | None) -> Tensor | None:
    """What a node keeps of a bias: a copy, so that a step of an optimizer before the backward does not matter.

    (A matrix is kept itself: if that is changed, torch says so in the backward.)
    """
    return vector if vector is None or _is_compiling() else _native.copy_of_vector(vector)


def as_it_was(vector: Tensor | None, kept: Tensor | None) -> Tensor | None:
    """The copy, as a differentiable function of the bias that it is a copy of."""
    return None if vector is None else plain_apply(_AsItWas)(vector, kept)


class _AsItWas(Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor, kept: Tensor) -> Tensor:
        return kept.view_as(kept)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, None]:
        return grad_out, None
