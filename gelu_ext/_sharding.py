"""How the registered operators run on DTensors: which placements of the arguments give which placements of the results.

Imported when first needed only (see _fake.py): torch.distributed.tensor takes longer to import than all of gelu_ext.

Rows may be sharded along any dimension. Columns may be too, with the biases sharded alike, except where a matrix holds
two operands: its halves lie apart, so a contiguous piece of [a, b] is no pair of pieces. There DTensor redistributes
first. The functions are not linear, so a partial sum is never passed on, but reduced first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._op_schema import RuntimeSchemaInfo
from torch.distributed.tensor.experimental import register_sharding
from torch.distributed.tensor.placement_types import Placement

from ._operations import OPERATIONS, Operation

_Placements = list[Placement | None]  # None: not a tensor
_Rule = tuple[_Placements, _Placements]  # of the results, of the arguments


def _of_matrices(op: Operation, x: Any) -> list[Placement]:
    return [Replicate(), *map(Shard, range(x.ndim if op.halves == 1 else x.ndim - 1))]


def _of_tensors(op: Operation, p: Placement, tensors: tuple[Any, ...]) -> _Placements:
    """Of the arguments, where the matrices have p."""
    columns = p == Shard(tensors[0].ndim - 1)
    of_bias = Shard(0) if columns else Replicate()
    return [None if t is None else p if i < len(op.matrices) else of_bias for i, t in enumerate(tensors)]


def _of_gradients(op: Operation, p: Placement, tensors: tuple[Any, ...], needs: list[bool]) -> _Placements:
    """Of the gradients, where the matrices have p. One that is not needed is an empty placeholder."""
    columns = p == Shard(tensors[0].ndim - 1)
    of_bias = p if p == Replicate() else Shard(0) if columns else Partial()
    return [
        Replicate() if t is None or not need else p if i < len(op.matrices) else of_bias
        for i, (t, need) in enumerate(zip(tensors, needs, strict=True))
    ]


def _forward(op: Operation) -> Callable[..., list[_Rule]]:
    def rule(*args: Any) -> list[_Rule]:
        tensors, names = args[: len(op.tensors)], [None] * (len(args) - len(op.tensors))
        return [([p], [*_of_tensors(op, p, tensors), *names]) for p in _of_matrices(op, args[0])]

    return rule


def _backward(op: Operation) -> Callable[..., list[_Rule]]:
    def rule(grad_out: Any, *args: Any) -> list[_Rule]:
        tensors, rest = args[: len(op.tensors)], [None] * (len(args) - len(op.tensors))
        needs = args[op.place_of_needs]
        return [
            (_of_gradients(op, p, tensors, needs), [p, *_of_tensors(op, p, tensors), *rest])
            for p in _of_matrices(op, args[0])
        ]

    return rule


def _again(op: Operation) -> Callable[..., list[_Rule]]:
    """As the forward; grad_out is not read, and may lie as it does."""
    forward = _forward(op)

    def rule(grad_out: Any, *args: Any) -> list[_Rule]:
        anywhere = [Replicate(), *map(Shard, range(grad_out.ndim))]
        return [(out, [p, *places]) for out, places in forward(*args) for p in anywhere]

    return rule


def _register() -> None:
    propagator = DTensor._op_dispatcher.sharding_propagator
    for op in OPERATIONS.values():
        rules = {"": _forward(op), "_backward": _backward(op), "_again": _again(op)}
        for suffix, rule in rules.items():
            operator = getattr(torch.ops.gelu_ext, op.name + suffix).default
            register_sharding(operator)(rule)
            # DTensor remembers results by tensors and by the arguments from here on: what is needed matters.
            arguments = operator._schema.arguments
            first = next((i for i, arg in enumerate(arguments) if "Tensor" not in str(arg.type)), len(arguments))
            propagator.op_to_schema_info[operator] = RuntimeSchemaInfo(static_argnum=first)


_register()
