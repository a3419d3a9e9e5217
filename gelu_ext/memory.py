"""Counts what autograd keeps: the truth about memory, from the saved tensors themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(function: Callable[..., Any], *args: Any, exclude: Iterable[Tensor] = (), **kwargs: Any) -> int:
    """Bytes of memory that the autograd graph of ``function(*args, **kwargs)`` keeps for its backward.

    Every saved tensor is seen through ``torch.autograd.graph.saved_tensors_hooks``, and each storage counts once, and
    whole: two halves of one tensor keep all of it, and a tensor saved twice costs once. Not counted are storages that
    live anyway: those of ``exclude`` and, where ``function`` is a module, of its parameters and buffers.

    Args:
        function: a module or any callable; it runs once, with gradients enabled.
        args, kwargs: what it is called with.
        exclude: tensors whose storages are not counted, say the input or the weights.

    Returns:
        The number of bytes.
    """
    alive = {_storage_key(t) for t in exclude if t is not None}
    if isinstance(function, nn.Module):
        alive.update(_storage_key(t) for t in [*function.parameters(), *function.buffers()])
    kept: dict[tuple[torch.device, int], int] = {}
    held = []  # so that no storage is freed and its address used again while counting

    def pack(t: Tensor) -> Tensor:
        key = _storage_key(t)
        if key not in alive:
            kept[key] = t.untyped_storage().nbytes()
            held.append(t.detach())
        return t.detach()  # itself, where it is the result, would keep the graph alive that keeps it

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = function(*args, **kwargs)
    del out
    return sum(kept.values())


def _storage_key(t: Tensor) -> tuple[torch.device, int]:
    return t.device, t.untyped_storage()._cdata
