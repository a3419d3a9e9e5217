"""How the registered operators run on DTensors: which placements of the arguments give which placements of the results.

Imported when first needed only (see _fake.py): torch.distributed.tensor takes longer to import than all of gelu_ext.

Rows may be sharded along any dimension. Columns may be too, with the bias sharded alike, except in a packed geglu: its
two halves lie apart, so a contiguous piece of [a, b] is no pair of pieces. There DTensor redistributes first. The
functions are not linear, so a partial sum is never passed on, but reduced first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

_Placements = list[Placement | None]  # None: not a tensor
_Rule = tuple[_Placements, _Placements]  # of the results, of the arguments


def interleave_halves(packed: Tensor, parts: int, dim: int = 0) -> Tensor:
    """Reorders a packed ``[a, b]`` (weight ``[2H, C]`` or bias ``[2H]``) into ``[a_0, b_0, a_1, b_1, ...]``.

    Each of ``parts`` equal pieces along ``dim`` is then a packed pair of its own, and ``geglu`` of the local tensors
    after a column-parallel linear is right. With ``[a, b]`` as it is, a piece would hold one half only.
    """
    size = packed.size(dim)
    if size % (2 * parts):
        raise ValueError(f"interleave_halves: expected a size divisible by 2 * {parts} along {dim}, got {size}")
    pieces = packed.unflatten(dim, (2, parts, size // (2 * parts)))
    dim = dim % packed.dim()
    return pieces.transpose(dim, dim + 1).flatten(dim, dim + 2)


def _rows(x: Any) -> list[Placement]:
    return [Replicate(), *map(Shard, range(x.ndim - 1))]


def _rows_and_columns(x: Any) -> list[Placement]:
    return [Replicate(), *map(Shard, range(x.ndim))]


def _bias_for(p: Placement, x: Any, bias: Any) -> Placement | None:
    if bias is None:
        return None
    return Shard(0) if p == Shard(x.ndim - 1) else Replicate()


def _grad_bias_for(p: Placement, x: Any, needed: bool) -> Placement:
    if not needed or p == Replicate():
        return Replicate()  # a gradient that is not needed is an empty placeholder
    return Shard(0) if p == Shard(x.ndim - 1) else Partial()


def _grad_for(p: Placement, needed: bool) -> Placement:
    return p if needed else Replicate()


def _with_bias(placements: Callable[[Any], list[Placement]], x: Any, bias: Any, *options: str) -> list[_Rule]:
    rest = [None] * len(options)
    return [([p], [p, _bias_for(p, x, bias), *rest]) for p in placements(x)]


def _with_bias_backward(placements: Callable[[Any], list[Placement]], x: Any, bias: Any, *rest: Any) -> list[_Rule]:
    *_, needs_x, needs_bias = rest
    return [
        (
            [_grad_for(p, needs_x), _grad_bias_for(p, x, needs_bias and bias is not None)],
            [p, p, _bias_for(p, x, bias), *[None] * len(rest)],
        )
        for p in placements(x)
    ]


def _bias_gelu(x: Any, bias: Any, approximate: str) -> list[_Rule]:
    return _with_bias(_rows_and_columns, x, bias, approximate)


def _geglu(x: Any, bias: Any, approximate: str, activated: str) -> list[_Rule]:
    return _with_bias(_rows, x, bias, approximate, activated)


def _gelu_mul(activated: Any, linear: Any, approximate: str) -> list[_Rule]:
    return [([p], [p, p, None]) for p in _rows_and_columns(activated)]


def _bias_gelu_backward(grad_out: Any, x: Any, bias: Any, *rest: Any) -> list[_Rule]:
    return _with_bias_backward(_rows_and_columns, x, bias, *rest)


def _geglu_backward(grad_out: Any, x: Any, bias: Any, *rest: Any) -> list[_Rule]:
    return _with_bias_backward(_rows, x, bias, *rest)


def _gelu_mul_backward(
    grad_out: Any, activated: Any, linear: Any, approximate: str, needs_activated: bool, needs_linear: bool
) -> list[_Rule]:
    return [
        ([_grad_for(p, needs_activated), _grad_for(p, needs_linear)], [p, p, p, None, None, None])
        for p in _rows_and_columns(activated)
    ]


def _register() -> None:
    propagator = DTensor._op_dispatcher.sharding_propagator
    for rule in (_bias_gelu, _geglu, _gelu_mul, _bias_gelu_backward, _geglu_backward, _gelu_mul_backward):
        op = getattr(torch.ops.gelu_ext, rule.__name__.removeprefix("_")).default
        register_sharding(op)(rule)
        # DTensor remembers results by tensors and by the arguments from here on: which gradients are needed matters.
        first_option = next(i for i, arg in enumerate(op._schema.arguments) if str(arg.type) in ("str", "bool"))
        propagator.op_to_schema_info[op] = RuntimeSchemaInfo(static_argnum=first_option)


_register()
