"""Dropout in the pass of an operation: who draws its two integers, and the same mask in torch's own operations.

An operation drops elements of its value by a key and a counter, ``philox``: an int64 tensor of two on its device, which
a backward gets again in the place of a mask (csrc/dropout.h). They are drawn by torch's own generator, as a tensor like
any other; seeds, ``fork_rng``, checkpoints, CUDA graphs and the compiler's functional generators then need no care.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ._checks import check_bool, check_dropout_p, check_generator

BLOCK = 8  # elements that share a block of random numbers
_LOW = 0xFFFFFFFF


def drawn(
    op: str, x: Any, dropout_p: float, training: bool, generator: torch.Generator | None
) -> tuple[float, Tensor | None]:
    """``dropout_p`` and ``philox`` for the operation; without the latter, :func:`by_torch` has to do it.

    That is for what draws numbers by rules of its own or is no matrix (DTensor, nested and quantised tensors), for
    graphs of ONNX, and for devices whose kernels have no dropout, which are all but the CPU.
    """
    check_dropout_p(op, dropout_p)
    check_bool(op, "training", training)
    if not training or dropout_p == 0 or not isinstance(x, Tensor):
        return 0.0, None
    check_generator(op, generator, x.device)
    foreign = x.is_nested or x.is_quantized or x.layout is not torch.strided or is_traceable_wrapper_subclass(x)
    if foreign or x.device.type != "cpu" or torch.onnx.is_in_onnx_export():
        return float(dropout_p), None
    philox = torch.randint(2**63 - 1, (2,), dtype=torch.int64, device=x.device, generator=generator)
    return float(dropout_p), philox


def by_torch(value: Tensor, dropout_p: float, generator: torch.Generator | None) -> Tensor:
    """Dropout in a pass of its own, which keeps a mask."""
    if generator is None:
        return F.dropout(value, dropout_p)
    kept = torch.empty_like(value).bernoulli_(1 - dropout_p, generator=generator)
    return value * kept.div_(1 - dropout_p)


def advanced(philox: Tensor | None, elements: int) -> Tensor | None:
    """For the elements of a result from this one on, a multiple of BLOCK."""
    if philox is None or elements == 0:
        return philox
    philox = philox.clone()
    philox[1] += elements // BLOCK
    return philox


def then_dropout(value: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operation of this value: with ``dropout_p`` and ``philox`` as further arguments, in the first one's dtype."""
    count = len(inspect.signature(value).parameters)

    @functools.wraps(value)
    def operation(*args: Any) -> Tensor:
        return dropped(value(*args[:count]), *args[count:]).to(args[0].dtype)

    return operation


def dropped(value: Tensor, dropout_p: float = 0.0, philox: Tensor | None = None) -> Tensor:
    """What the kernels make of ``value``, in torch's operations."""
    if philox is None:
        return value
    count = value.numel()
    blocks = torch.arange((count + BLOCK - 1) // BLOCK, dtype=torch.int64, device=value.device)
    numbers = _numbers(philox[1] + blocks, philox[0]).flatten()[:count].view(value.shape)
    last_kept = max(round((1 - dropout_p) * 2**16), 1) - 1
    return value * ((numbers <= last_kept).to(value.dtype) * (1 / (1 - dropout_p)))


def _numbers(counter: Tensor, key: Tensor) -> Tensor:
    """Philox 4x32-10: the 8 numbers of 16 bits of each counter. (Products overflow to their lower 64 bits.)"""
    zero = torch.zeros_like(counter)
    c0, c1, c2, c3 = counter & _LOW, counter >> 32 & _LOW, zero, zero
    k0, k1 = key & _LOW, key >> 32 & _LOW
    for _ in range(10):
        p0, p2 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p2 >> 32 & _LOW) ^ c1 ^ k0, p2 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = k0 + 0x9E3779B9 & _LOW, k1 + 0xBB67AE85 & _LOW
    words = torch.stack([c0, c1, c2, c3], -1)
    return torch.stack([words & 0xFFFF, words >> 16], -1)
