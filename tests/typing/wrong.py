"""What `mypy --strict` is to reject, each with the code of its error. Not to be run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gelu_ext


def wrong(x: Tensor, w: Tensor, model: nn.Module) -> None:
    gelu_ext.bias_gelu(x, [0.0, 1.0])  # rejected: arg-type
    gelu_ext.glu(x)  # rejected: call-arg
    gelu_ext.bias_act(x, None, "silu")  # rejected: call-arg
    count: int = gelu_ext.geglu(x)  # rejected: assignment
    gelu_ext.mlp(x, w, None, w, None, tile_rows="all")  # rejected: arg-type
    gelu_ext.patch(model, recompute="yes").fusd.clear()  # rejected: arg-type, attr-defined
    gelu_ext.MLP(4, 8, activation=nn.GELU(), dtype=torch.float32)  # rejected: arg-type
    print(count, gelu_ext.Gelu)  # rejected: attr-defined
