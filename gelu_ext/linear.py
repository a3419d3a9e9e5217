"""What is asked of, and done to, the nn.Linear beside an activation."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules import module as _module

from ._surroundings import overrides

_FORWARD, _LINEAR = nn.Linear.forward, F.linear
_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl
# The dictionaries that register_module_forward_hook() and the like fill, for every module there is.
_GLOBAL_HOOKS = [
    getattr(_module, f"_global_{name}_hooks") for name in ("forward", "forward_pre", "backward", "backward_pre")
]


def has_hooks(module: nn.Module) -> bool:
    """Whether someone watches the calls of this module: then it must be called, not bypassed."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def any_global_hooks() -> bool:
    """Whether someone watches the calls of all modules."""
    return any(_GLOBAL_HOOKS) or nn.Module._call_impl is not _CALL_IMPL


def is_called_oddly(module: nn.Module) -> bool:
    """Whether its class, or all classes, have another ``__call__`` than torch's. (torch's tracers put theirs there.)"""
    return type(module).__call__ is not _CALL and not (torch.compiler.is_compiling() or is_fx_symbolic_tracing())


def is_unwatched(module: nn.Module) -> bool:
    """Whether a call of the module is a call of its class's forward."""
    return not (has_hooks(module) or "forward" in module.__dict__ or is_called_oddly(module))


def parameter(module: nn.Module, name: str) -> Tensor | None:
    """Its parameter: sooner than by its attribute (0.3 us), which torch.fx would show as a proxy.

    A replica of nn.DataParallel has attributes only.
    """
    parameters = module._parameters
    return parameters[name] if name in parameters else getattr(module, name)


def is_plain_linear(module: Any) -> bool:
    """An nn.Linear whose call is torch's F.linear of its weight and bias, and no more."""
    return (
        type(module) is nn.Linear
        and nn.Linear.forward is _FORWARD
        and F.linear is _LINEAR
        and is_unwatched(module)
        and not overrides(parameter(module, "weight"))
        and not overrides(parameter(module, "bias"))
    )


def interleave_halves(packed: Tensor, parts: int, dim: int = 0) -> Tensor:
    """Reorders a packed ``[a, b]`` (weight ``[2H, C]`` or bias ``[2H]``) into ``[a_0, b_0, a_1, b_1, ...]``.

    Each of ``parts`` equal pieces along ``dim`` is then a packed pair of its own, and ``geglu`` of the local tensors
    after a column-parallel linear is right. With ``[a, b]`` as it is, a piece would hold one half only.

    Args:
        packed: the weight or the bias of a Linear before a packed GLU.
        parts: how many processes share it.
        dim: along which its rows lie.

    Returns:
        A new tensor of the same shape.

    Raises:
        ValueError: a size along ``dim`` that ``2 * parts`` does not divide.

    >>> gelu_ext.interleave_halves(torch.tensor([0, 1, 2, 3, 10, 11, 12, 13]), parts=2)
    tensor([ 0,  1, 10, 11,  2,  3, 12, 13])
    """
    size = packed.size(dim)
    if size % (2 * parts):
        raise ValueError(f"interleave_halves: expected a size divisible by 2 * {parts} along {dim}, got {size}")
    pieces = packed.unflatten(dim, (2, parts, size // (2 * parts)))
    dim = dim % packed.dim()
    return pieces.transpose(dim, dim + 1).flatten(dim, dim + 2)
