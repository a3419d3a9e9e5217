"""Counts what autograd keeps, from the saved tensors themselves, and what is alive at the peak, from the allocator."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.utils._pytree import tree_leaves


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

    >>> x = torch.randn(8, 16, requires_grad=True)
    >>> gelu_ext.memory.saved_bytes(gelu_ext.bias_gelu, x)
    512
    >>> gelu_ext.memory.saved_bytes(gelu_ext.bias_gelu, x, exclude=[x])  # nothing but its input
    0
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


def peak_bytes(function: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """Bytes of memory at the peak of ``function(*args, **kwargs)``, above what was there before.

    On the CPU every allocation of torch's allocator during the call is counted until it is freed: also what a C++
    operator holds for a while, its workspaces, and a few bytes for a number beside a tensor. Where a tensor among the
    arguments, or a parameter of a module, is on CUDA, it is ``torch.cuda.max_memory_allocated`` of that device, whose
    peak is reset. What the call returns counts. It runs once, in the caller's mode; to see a backward, give a function
    that runs it.

    Args:
        function: a module or any callable.
        args, kwargs: what it is called with.

    Returns:
        The number of bytes; 0 if there were never more than before.

    Raises:
        RuntimeError: on the CPU, if a profiler of torch is running.

    >>> x = torch.randn(1024, 1024)
    >>> gelu_ext.memory.peak_bytes(gelu_ext.bias_gelu, x) >= x.nbytes
    True
    """
    parameters = [*function.parameters(), *function.buffers()] if isinstance(function, nn.Module) else []
    devices = {t.device for t in [*tree_leaves((args, kwargs)), *parameters] if isinstance(t, Tensor) and t.is_cuda}
    if devices:
        (device,) = devices
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function(*args, **kwargs)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as profiler:
        function(*args, **kwargs)
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(0, *alive, 0)


def _storage_key(t: Tensor) -> tuple[torch.device, int]:
    return t.device, t.untyped_storage()._cdata
