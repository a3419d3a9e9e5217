"""The operations, one row each: the table that everything of theirs in Python is made from.

The autograd functions and the operators' registration (functional.py), shapes for fake tensors (_fake.py), rules for
DTensor (_sharding.py) and the MLP's node (mlp.py). An operation takes its matrices, then its vectors, then names.
To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import _composite, _eager


@dataclass(frozen=True)
class Operation:
    name: str  # of the public function, the operator and the native function
    gelu: str  # the public function that is this with GELU
    gelu_mlp: str  # and the one that is it between Linears
    matrices: tuple[str, ...]
    vectors: tuple[str, ...]  # along the columns: the biases
    names: tuple[str, ...]  # of the arguments that are no tensors: the activation first
    composite: Callable[..., Tensor]  # the same in torch's own differentiable operations
    eager: Callable[..., Tensor]  # and as a model spells it in torch
    halves: int = 1  # how many operands lie side by side in a matrix

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.matrices + self.vectors


BIAS_ACT = Operation(
    "bias_act", "bias_gelu", "mlp", ("x",), ("bias",), ("activation",), _composite.bias_act, _eager.bias_act
)
GLU = Operation(
    "glu", "geglu", "geglu_mlp", ("x",), ("bias",), ("activation", "activated"), _composite.glu, _eager.glu, halves=2
)
ACT_MUL = Operation(
    "act_mul",
    "gelu_mul",
    "gelu_mul_mlp",
    ("activated", "linear"),
    ("activated_bias", "linear_bias"),
    ("activation",),
    _composite.act_mul,
    _eager.act_mul,
)
OPERATIONS: dict[str, Operation] = {op.name: op for op in (BIAS_ACT, GLU, ACT_MUL)}
