"""Learns how a block computes by running it once, on a copy, and writing down what it calls.

Leaf modules (Linear, activation, dropout, norm) are events, and so are torch functions called outside of them; a module
with children is seen through. Every tensor gets a number when it first appears.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .forms import mentioned
from .reads import METADATA, Reader, Stop, Watch

# What a forward may ask of a tensor without using its numbers: attributes by __get__, and these. Dtype and device can
# be compared on every call; of a shape one recording says too little.
_QUESTIONS = METADATA | {"__get__", "__len__", "__hash__", "get_device", "storage_offset", "type"}
_BY_DTYPE = {"dtype", "is_floating_point", "is_complex", "element_size", "itemsize", "type"}
_BY_DEVICE = {"device", "is_cuda", "is_cpu", "is_meta", "get_device"}


@dataclass(frozen=True)
class Event:
    """One call. ``name`` is a module's path in the block, ``path.attribute`` of a callable, or a function's name."""

    kind: str  # "module", "attribute" or "function"
    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    simple: bool  # one tensor in, one tensor out, no other argument
    call: Any = None  # the function; None for a module
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


class DidNotRun(Exception):
    """The block failed on this input; the message is the error's first line."""


@dataclass
class Recording:
    events: list[Event]
    values: list[Tensor]
    source: int
    result: int | None  # None: the block does not return one tensor
    odd: str  # what it does beside computing, as a clause: then it is no straight line
    reader: Reader  # what it depends on beside its tensors
    asks_dtype: bool  # of some tensor
    asks_device: bool
    method: str


def looks_like_activation(name: str, value: Any) -> bool:
    """A function kept in a module's attribute, as in nn.TransformerEncoderLayer.activation."""
    if isinstance(value, (nn.Module, type)) or not callable(value):
        return False
    named = any(word in name.lower() for word in ("act", "nonlin")) or mentioned(name) is not None
    return named and not name.startswith("_")


def callables(root: nn.Module) -> Iterator[tuple[str, nn.Module, str, Callable[..., Any]]]:
    """(path of the module, module, attribute, callable) of every function kept in an attribute."""
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            if looks_like_activation(name, value):
                yield path, module, name, value


def is_leaf(module: nn.Module) -> bool:
    """Called as a whole: it has no children, or it is a Linear or what someone wrapped around one."""
    return not module._modules or isinstance(module, nn.Linear) or hasattr(module, "base_layer")


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.values: list[Tensor] = []  # alive, so that an id stays one tensor's
        self.numbers: dict[int, int] = {}
        self.inside = 0
        self.asked: set[str] = set()  # of a tensor

    def number(self, t: Tensor) -> int:
        if id(t) not in self.numbers:
            self.numbers[id(t)] = len(self.values)
            self.values.append(t)
        return self.numbers[id(t)]

    def note(self, kind: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, call: Any) -> Any:
        """Adds the event. A result that is its own argument becomes a new view, so that every value has one maker."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        simple = len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and isinstance(out, Tensor)
        if isinstance(out, Tensor) and any(out is t for t in inputs) and not _in_place(name):
            out = outputs[0] = out.view_as(out)
        numbers = tuple(map(self.number, inputs)), tuple(map(self.number, outputs))
        self.events.append(Event(kind, name, *numbers, simple, call, args, kwargs))
        return out

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.inside:
            return out
        name = getattr(func, "__name__", "")
        has_result = any(isinstance(leaf, Tensor) for leaf in tree_leaves(out))
        if not has_result and name in _QUESTIONS:
            self.asked.add(getattr(getattr(func, "__self__", None), "__name__", "") if name == "__get__" else name)
            return out
        return self.note("function", name, args, kwargs, out, func)

    def watch(self, root: nn.Module) -> None:
        """Makes the leaf modules and the kept functions of ``root``, a copy, write events."""
        for _, module, name, function in list(callables(root)):
            if isinstance(function, (types.FunctionType, functools.partial)):
                module.__dict__[name] = self._watched(name, function)  # also where a child has the same name
        self._watch_modules(root, "")

    def unwatch(self, root: nn.Module) -> None:
        """So that nothing holds the copy: the recorder holds what it computed, and the hooks held the recorder."""
        for module in root.modules():
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
        for _, module, name, _ in list(callables(root)):
            del module.__dict__[name]

    def _watch_modules(self, module: nn.Module, path: str) -> None:
        for name, child in module._modules.items():
            if child is None:
                continue
            child_path = f"{path}.{name}" if path else name
            if isinstance(child, torch.jit.ScriptModule):
                raise DidNotRun(f"{child_path} is compiled by TorchScript")
            if is_leaf(child):
                if not child._forward_hooks:  # one module under two names is one event, with the first
                    child.register_forward_pre_hook(self._enter)
                    child.register_forward_hook(functools.partial(self._leave, child_path), with_kwargs=True)
            else:
                self._watch_modules(child, child_path)

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.inside += 1

    def _leave(self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        try:
            return self.note("module", path, args, kwargs, out, None) if self.inside == 1 else out
        finally:
            self.inside -= 1

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.inside += 1
            try:
                out = function(*args, **kwargs)
                return self.note("attribute", name, args, kwargs, out, function) if self.inside == 1 else out
            finally:
                self.inside -= 1

        return call


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:100]}" if lines else type(error).__name__


def _in_place(name: str) -> bool:
    last = name.rsplit(".", 1)[-1]
    if last.endswith("__"):
        return last in ("__iadd__", "__imul__", "__isub__", "__itruediv__", "__setitem__")
    return last.endswith("_")


def record(block: nn.Module, original: nn.Module, method: str, x: Tensor, training: bool) -> Recording:
    """Runs ``block.<method>(x)``, in training mode or not. The block is a copy of ``original``."""
    block = alias_of(block).train(training)
    recorder = _Recorder()
    recorder.watch(block)
    reader = Reader(original, {id(module): path for path, module in block.named_modules()})
    watch = Watch(reader, block, method, lambda: recorder.inside > 0)
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=devices):
        x = x.clone().requires_grad_()
        source = recorder.number(x)
        out = None
        try:
            with recorder, watch:
                out = getattr(block, method)(x)
        except Stop:
            pass
        except Exception as error:
            raise DidNotRun(first_line(error)) from error
        finally:
            recorder.unwatch(block)
    asked = sorted(recorder.asked - _BY_DTYPE - _BY_DEVICE - {"__hash__"})
    odd = watch.problem or (f"asks for the {asked[0].strip('_')} of a tensor" if asked else "")
    odd = odd or ("runs no Python code of its own" if watch.main not in watch.ran else "")
    result = recorder.numbers.get(id(out)) if isinstance(out, Tensor) else None
    by_dtype, by_device = bool(recorder.asked & _BY_DTYPE), bool(recorder.asked & _BY_DEVICE)
    return Recording(recorder.events, recorder.values, source, result, odd, reader, by_dtype, by_device, method)


def weights_of_experts(module: nn.Module) -> list[nn.Parameter]:
    """The weights of several Linears, before and after an activation, in tensors of its own: ``[experts, *, *]``."""
    stacks = [t for t in module._parameters.values() if t is not None and not is_lazy(t) and t.dim() == 3]
    stacks = [t for t in stacks if min(t.shape[1:]) > 1]  # nor a vector that is to be broadcast
    return stacks if len(stacks) > len({len(t) for t in stacks}) else []


def copied(block: nn.Module, with_data: bool) -> nn.Module:
    """A copy, or one with new parameters on the old numbers; buffers are copied.

    The weights of experts are left out: no plan uses them, and they may be most of a model.
    """
    memo: dict[int, Any] = {}
    for module in block.modules():
        for parameter in weights_of_experts(module):
            memo[id(parameter)] = nn.Parameter(parameter.new_empty((0, 0, 0)), parameter.requires_grad)
    for parameter in () if with_data else block.parameters():
        data = parameter.clone() if parameter.is_inference() else parameter
        memo.setdefault(id(parameter), nn.Parameter(data.detach(), parameter.requires_grad))
    return copy.deepcopy(block, memo)


def alias_of(block: nn.Module) -> nn.Module:
    return copied(block, with_data=False)
