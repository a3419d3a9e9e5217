"""Finds the blocks of a model that hold an activation, and understands them, the smallest first."""

from __future__ import annotations

import inspect
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..linear import is_unwatched
from . import swap
from .forms import SERVED, Found, classify, gains, mentioned
from .plan import NothingToFuse, NotUnderstood, Options, Plan, is_linear_like, make_plan
from .proof import copy_of, quiet, random_input
from .reads import loads_of
from .record import DidNotRun, callables, first_line, record, weights_of_experts

# The methods that hold the MLP of a module whose forward does more: torch.nn's and Hugging Face's names.
_METHODS = ("forward", "_ff_block", "ff_chunk", "feed_forward_chunk", "feed_forward", "mlp_forward", "ffn")
_GATE = "_apply_gate"  # and the one between the matrix products of experts whose weights are one tensor
_EXPERTS = "the weights of its experts are one tensor, not Linears"
_ANY_WIDTH = 64
_MOST_MODULES = 32  # in a block; a larger one is no MLP
_DEPTH = 3  # of the activation and the Linears below the block
_NO_ACTIVATIONS = (nn.Dropout, nn.Identity, nn.Flatten, nn.Embedding)

Site = tuple[int, str]  # where a module stands: id of its parent, name


@dataclass
class Block:
    """An understood block, and an input that it runs on."""

    path: str
    module: nn.Module
    plan: Plan
    x: Tensor

    @property
    def name(self) -> str:
        method = "" if self.plan.method == "forward" else self.plan.method
        return ".".join(filter(None, (self.path, method))) or "(the model)"

    def claims(self) -> set[int]:
        """What no other block may fuse as well: the Linears before the activations."""
        return {id(self.module.get_submodule(path)) for step in self.plan.fused for path in step.firsts}

    def sites(self) -> set[Site]:
        """Where the activation modules that it replaces stand."""
        return {_site(self.module, step.activation_path) for step in self.plan.fused if step.activation_path}


@dataclass
class Search:
    """All of a model's activations, the understood blocks, and why the others are not."""

    model: nn.Module
    options: Options
    tick: Callable[[], Any] = lambda: None  # called for every module
    activations: dict[int, Found] = field(default_factory=dict)  # by id of the module
    blocks: list[Block] = field(default_factory=list)
    reasons: dict[Site, str] = field(default_factory=dict)  # why the block of an activation module is not fused
    not_understood: list[tuple[str, nn.Module, str]] = field(default_factory=list)  # blocks without such a module
    plans: dict[Any, list[tuple[Plan, int]]] = field(default_factory=lambda: defaultdict(list))  # with their widths
    refusals: dict[Any, str] = field(default_factory=dict)
    understood: set[str] = field(default_factory=set)  # the reasons that are what a block computes

    def run(self) -> None:
        known: dict[Any, Found] = {}
        for module in self.model.modules():
            if not module._modules and not isinstance(module, _NO_ACTIVATIONS):
                key = _key(module, settings=True)
                found = known[key] if key in known else classify(module)
                known[key] = found
                if found:
                    self.activations[id(module)] = found
        self._visit("", self.model, set())

    def _visit(self, path: str, module: nn.Module, seen: set[int]) -> None:
        seen.add(id(module))
        self.tick()
        if isinstance(module, torch.jit.ScriptModule):
            graph = str(getattr(module, "inlined_graph", ""))
            if any(f"aten::{name}(" in graph and gains(name) for name in SERVED):
                self.not_understood.append((path, module, "it is compiled by TorchScript"))
            return
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                self._visit(f"{path}.{name}" if path else name, child, seen)
        if type(module).__module__.split(".")[0] == "gelu_ext":
            return
        is_experts = bool(weights_of_experts(module))
        if not (module._modules or is_experts or self._may_be_a_gate(module)):
            return
        sites, named = self._sites_below(module), _mentions(module) & self.options.activations
        if not (sites or named or (self.options.of_nodes and self._could_grow(module))):
            return
        widths = _widths(module)
        if not widths or sum(1 for _ in module.modules()) > _MOST_MODULES:
            return
        try:
            block, reason = self._understand(path, module, widths)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            block, reason = None, f"it cannot be looked at ({first_line(error)})"
        if block:
            self.blocks.append(block)
        is_told = is_experts or reason in self.understood or (module._modules and any(map(gains, named)))
        if is_experts:
            reason = "; ".join(filter(None, (_EXPERTS, reason)))
        for site in sites:
            self.reasons.setdefault(site, reason)
        if not block and not sites and is_told:
            self.not_understood.append((path, module, reason))

    def _sites_below(self, module: nn.Module) -> list[Site]:
        """Where activations that are asked for stand below this one, and no smaller block has been tried."""
        return [
            (id(owner), name)
            for owner in (module, *_children(module, _DEPTH - 1))
            for name, child in owner._modules.items()
            if self.is_asked_for(child) and (id(owner), name) not in self.reasons
        ]

    def is_asked_for(self, module: nn.Module | None) -> bool:
        return self.activations.get(id(module), Found()).activation in self.options.activations

    def _may_be_a_gate(self, module: nn.Module) -> bool:
        """Without children, tensors and an activation's look: a GLU of its input may be left."""
        return not (module._parameters or module._buffers or id(module) in self.activations)

    def _could_grow(self, module: nn.Module) -> bool:
        """Whether a block right below lacks the second Linear, which this one may have."""
        below = {id(m) for m in _children(module, 2)}
        return any(id(b.module) in below and not any(s.second for s in b.plan.fused) for b in self.blocks)

    def _understand(self, path: str, module: nn.Module, widths: list[int]) -> tuple[Block | None, str]:
        if any(parameter.is_meta for parameter in module.parameters()):
            return None, "its parameters have no data (meta device)"
        methods = _methods(module)
        if not methods:
            return None, "its forward spells the gate out" if _is_gated(module) else ""
        key = methods, _key(module, settings=False)
        with quiet(torch.device("cpu")):
            for plan, width in self.plans[key]:  # of a block that looks the same
                x = random_input(module, width)
                if not swap.is_replaced(module, plan.method) and plan.holds(module, x) is not None:
                    return Block(path, module, plan, x), ""
        refusal = methods, _key(module, settings=True)
        if refusal in self.refusals:
            return None, self.refusals[refusal]
        block, reason = self._look_at(path, module, methods, widths)
        if block:
            self.plans[key].append((block.plan, block.x.shape[-1]))
        else:
            self.refusals[refusal] = reason
        return block, reason

    def _look_at(
        self, path: str, module: nn.Module, methods: tuple[str, ...], widths: list[int]
    ) -> tuple[Block | None, str]:
        kind, reason = type(module), ""
        try:
            copied = copy_of(module)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            return None, f"it cannot be copied ({first_line(error)})"
        for method in methods:
            for width in widths:
                try:
                    x = random_input(copied, width)
                    return Block(path, module, self._plan(module, copied, method, x), x), ""
                except NothingToFuse as why:
                    self.understood.add(str(why))
                    return None, str(why)
                except NotUnderstood as why:
                    reason = reason if method != "forward" and reason else str(why)
                    break
                except DidNotRun as error:
                    odd = "its forward takes more than one tensor" if _needs_more(kind, method) else ""
                    reason = reason or odd or f"its {method} does not run on a [2, 3, {width}] ({error})"
        return None, reason

    def _plan(self, module: nn.Module, copied: nn.Module, method: str, x: Tensor) -> Plan:
        if swap.is_replaced(module, method):
            raise NotUnderstood(f"someone has replaced its {method}")
        with quiet(x.device):
            recordings = [record(copied, module, method, x, training) for training in (True, False)]
            plan = make_plan(module, method, recordings, self.options)
            why_not = plan.why_not(module, x)
        if why_not:
            raise NotUnderstood(why_not)
        return plan

    def in_order(self) -> list[Block]:
        """With such options a block that has its second Linear goes before a smaller one that has not."""
        if not self.options.of_nodes:
            return self.blocks
        return sorted(self.blocks, key=lambda block: not any(step.second for step in block.plan.fused))


def _site(root: nn.Module, path: str) -> Site:
    owner, _, name = path.rpartition(".")
    return id(root.get_submodule(owner)), name


def _children(module: nn.Module, depth: int) -> Iterator[nn.Module]:
    for child in module._modules.values():
        if child is not None:
            yield child
            if depth > 1:
                yield from _children(child, depth - 1)


def _methods(module: nn.Module) -> tuple[str, ...]:
    """Those that may be an MLP: a forward of experts in one tensor is none."""
    if weights_of_experts(module):
        return (_GATE,) if _is_gated(module) and _runs(module, _GATE) else ()
    return tuple(name for name in _METHODS if hasattr(type(module), name))


def _is_gated(experts: nn.Module) -> bool:
    """transformers gives the method to those without a gate as well."""
    return hasattr(type(experts), _GATE) and getattr(experts, "has_gate", True)


def _runs(module: nn.Module, method: str) -> bool:
    """Whether the code of its forward, or of a method that this calls, names the method."""
    kind, seen = type(module), set()
    waiting = [getattr(_forward_of(module), "__code__", None)]
    while waiting:
        code = waiting.pop()
        if not isinstance(code, types.CodeType) or code in seen:
            continue
        seen.add(code)
        names = {name for name, _ in _names_in(code)}
        if method in names:
            return True
        waiting += code.co_consts  # the code of what it makes: comprehensions
        waiting += (getattr(getattr(kind, name, None), "__code__", None) for name in names - {*vars(nn.Module)})
    return False


def _forward_of(module: nn.Module) -> Callable[..., Any]:
    """That of its class; for experts a setting of transformers may name another function."""
    forward = type(module).forward
    while isinstance(forward, types.FunctionType):
        cells = dict(zip(forward.__code__.co_freevars, forward.__closure__ or (), strict=True))
        if {"experts_interface", "original_forward"} <= cells.keys():
            others, own = (cells[name].cell_contents for name in ("experts_interface", "original_forward"))
            name = getattr(getattr(module, "config", None), "_experts_implementation", None)
            return others.get(name, own)
        if not hasattr(forward, "__wrapped__"):
            break
        forward = forward.__wrapped__
    return forward


def _widths(module: nn.Module) -> list[int]:
    """The input widths of the Linears below, nearest first, each once; of a gate, any that it may have."""
    sizes = {size: None for t in weights_of_experts(module) for size in t.shape[1:]}
    if sizes:
        return sorted(sizes, key=lambda size: size % 2 or size // 2 not in sizes)  # of both halves first
    if not module._modules:
        return [_ANY_WIDTH]
    widths: dict[int, None] = {}
    for depth in range(1, _DEPTH + 1):
        for child in _children(module, depth):
            if is_linear_like(child):
                width = getattr(child, "in_features", None) or getattr(child, "nx", None)
                if isinstance(width, int):
                    widths[width] = None
    return list(widths)[:4]


def _mentions(module: nn.Module) -> set[str]:
    """The activations that the code of its class may call as functions, and those of the functions that it keeps.

    What makes the module (its __init__) calls none. What it makes is seen where it stands: a container is not to answer
    for the activations of its children.
    """
    kept = (classify(function).activation for path, _, _, function in callables(module) if not path)
    found = {name for name in kept if name}
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        for method, member in vars(cls).items():
            function = inspect.unwrap(member) if callable(member) else member
            if method in ("__init__", "__setstate__") or not isinstance(function, types.FunctionType):
                continue
            for name, is_global in _names_in(function.__code__):
                activation = mentioned(name)
                if activation and (is_global or not _is_part(module, name)):
                    found.add(activation)
    return found


def _names_in(code: types.CodeType) -> Iterator[tuple[str, bool]]:
    """The last name of everything that it loads, and whether that is a global variable, or of one."""
    for loads in loads_of(code).values():
        for load in loads:
            if load.attributes or load.kind == "global":
                yield (load.name, *load.attributes)[-1], load.kind == "global"


def _is_part(module: nn.Module, name: str) -> bool:
    """Whether the name is that of a child or a setting, its own or a child's, as nn.TransformerEncoder asks for one."""
    parts = (m for m in module.modules() if name in m._modules or name in vars(m))
    return any(name in m._modules or not callable(vars(m)[name]) for m in parts)


def _key(module: nn.Module, settings: bool) -> Any:
    """Equal for modules that look the same: their kinds, the shapes of their tensors and, with ``settings``, those."""
    return tuple(
        (
            path,
            type(part),
            is_unwatched(part),
            tuple(_tensors(part)),
            tuple(_settings(part)) if settings else (),
        )
        for path, part in module.named_modules()
    )


def _tensors(module: nn.Module) -> Iterator[Any]:
    for name, t in [*module._parameters.items(), *module._buffers.items()]:
        if t is not None:
            yield name, None if is_lazy(t) else t.shape, t.dtype, t.device


def _settings(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """As far as they are hashable and no counters (layers are numbered)."""
    for name, value in vars(module).items():
        if isinstance(value, (bool, float, str, type(None))):
            yield name, value
        elif callable(value):
            yield name, id(value)


def _needs_more(kind: type, method: str) -> bool:
    try:
        parameters = list(inspect.signature(getattr(kind, method)).parameters.values())[2:]  # after self and x
    except (TypeError, ValueError):
        return False
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
