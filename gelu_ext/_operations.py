"""The operations, one row each: the table that everything of theirs in Python is made from.

The autograd functions and the operators' registration (functional.py), shapes for fake tensors (_fake.py), rules for
DTensor (_sharding.py) and the MLP's node (mlp.py). An operation takes its matrices, then its vectors, then what is no
tensor, then those of dropout where it has them.
To add one, see CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import _composite, _eager
from ._activations import GELUS

DROPOUT = ("dropout_p", "philox")  # see _dropout.py


@dataclass(frozen=True)
class Operation:
    name: str  # of the public function, the operator and the native function
    matrices: tuple[str, ...]
    vectors: tuple[str, ...]  # along the columns: biases, and others
    names: tuple[str, ...]  # of the arguments that are no tensors: the activation first, where it takes any
    composite: Callable[..., Tensor]  # the same in torch's own differentiable operations
    eager: Callable[..., Tensor]  # and as a model spells it in torch
    halves: int = 1  # how many operands lie side by side in a matrix
    only: str = ""  # the activation, where it takes one alone
    drops: bool = False  # it can drop elements of its value: its last arguments are those of DROPOUT
    # Public functions, where there are such: this with GELU, with SiLU, and the MLPs of any activation and of GELU.
    gelu: str = ""
    silu: str = ""
    mlp: str = ""
    gelu_mlp: str = ""

    @property
    def dropout(self) -> tuple[str, ...]:
        return DROPOUT if self.drops else ()

    @property
    def place_of_needs(self) -> int:
        """Of the argument ``needs`` of its backward, after ``grad_out``."""
        return len(self.tensors) + len(self.names)

    @property
    def tensors(self) -> tuple[str, ...]:
        return self.matrices + self.vectors

    @property
    def functions(self) -> tuple[str, ...]:
        """Of any activation, and of one."""
        return tuple(filter(None, (self.name, self.gelu, self.silu)))

    def called(self, activation: str, in_mlp: bool = False) -> str:
        """The name of the public function that computes this activation: its own, if there is one."""
        if activation in GELUS.values():
            return self.gelu_mlp if in_mlp else self.gelu
        return self.mlp if in_mlp else (activation == "silu" and self.silu) or self.name


BIAS_ACT = Operation(
    "bias_act",
    ("x",),
    ("bias",),
    ("activation",),
    _composite.bias_act,
    _eager.bias_act,
    drops=True,
    gelu="bias_gelu",
    mlp="mlp",
    gelu_mlp="mlp",
)
GLU = Operation(
    "glu",
    ("x",),
    ("bias",),
    ("activation", "activated"),
    _composite.glu,
    _eager.glu,
    halves=2,
    drops=True,
    gelu="geglu",
    silu="swiglu",
    mlp="glu_mlp",
    gelu_mlp="geglu_mlp",
)
ACT_MUL = Operation(
    "act_mul",
    ("activated", "linear"),
    ("activated_bias", "linear_bias"),
    ("activation",),
    _composite.act_mul,
    _eager.act_mul,
    drops=True,
    gelu="gelu_mul",
    silu="silu_mul",
    mlp="act_mul_mlp",
    gelu_mlp="gelu_mul_mlp",
)
CLAMPED_SWIGLU = Operation(
    "clamped_swiglu",
    ("x",),
    ("bias",),
    ("alpha", "limit", "offset", "layout"),
    _composite.clamped_swiglu,
    _eager.clamped_swiglu,
    halves=2,
    only="silu",
)
GAUSSIAN_GELU = Operation(
    "gaussian_gelu",
    ("x",),
    ("mu", "sigma", "bias"),
    (),
    _composite.gaussian_gelu,
    _eager.gaussian_gelu,
    only="gelu",
)
OPERATIONS: dict[str, Operation] = {op.name: op for op in (BIAS_ACT, GLU, ACT_MUL, CLAMPED_SWIGLU, GAUSSIAN_GELU)}
