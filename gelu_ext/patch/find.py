"""Finds the blocks of a model that hold a GELU, and understands them, the smallest first."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

from . import swap
from .forms import Found, classify
from .plan import NotUnderstood, Plan, is_linear_like, make_plan
from .proof import copy_of, quiet, random_input
from .record import DidNotRun, callables, first_line, record

# The methods that hold the MLP of a module whose forward does more: torch.nn's and Hugging Face's names.
_METHODS = ("forward", "_ff_block", "ff_chunk", "feed_forward_chunk", "feed_forward", "mlp_forward", "ffn")
_MOST_MODULES = 32  # in a block; a larger one is no MLP
_DEPTH = 3  # of the activation and the Linears below the block
_NO_ACTIVATIONS = (nn.Dropout, nn.Identity, nn.Flatten, nn.Embedding)

Site = tuple[int, str]  # where a module stands: id of its parent, name


@dataclass
class Block:
    """An understood block: the module itself, a copy to prove the plan on, and an input that it runs on."""

    path: str
    module: nn.Module
    plan: Plan
    copy: nn.Module
    x: Tensor

    @property
    def name(self) -> str:
        return self.path + ("" if self.plan.method == "forward" else f".{self.plan.method}") or "(the model)"

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
    recompute: bool
    activations: dict[int, Found] = field(default_factory=dict)  # by id of the module
    blocks: list[Block] = field(default_factory=list)
    reasons: dict[Site, str] = field(default_factory=dict)  # why the block of an activation module is not fused
    not_understood: list[tuple[str, nn.Module, str]] = field(default_factory=list)  # blocks without such a module

    def run(self) -> None:
        for module in self.model.modules():
            if not module._modules and not isinstance(module, _NO_ACTIVATIONS):
                found = classify(module)
                if found:
                    self.activations[id(module)] = found
        self._visit("", self.model, set())

    def _visit(self, path: str, module: nn.Module, seen: set[int]) -> None:
        seen.add(id(module))
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen:
                self._visit(f"{path}.{name}" if path else name, child, seen)
        if not module._modules or type(module).__module__.split(".")[0] == "gelu_ext":
            return
        sites = self._sites_below(module)
        if not (sites or _mentions_gelu(module) or (self.recompute and self._could_grow(module))):
            return
        widths = _widths(module)
        if not widths or sum(1 for _ in module.modules()) > _MOST_MODULES:
            return
        block, reason = self._understand(path, module, widths)
        if block:
            self.blocks.append(block)
        for site in sites:
            self.reasons.setdefault(site, reason)
        if not block and not sites and _mentions_gelu(module):
            self.not_understood.append((path, module, reason))

    def _sites_below(self, module: nn.Module) -> list[Site]:
        """Where GELU modules stand below this one, and no smaller block has been tried."""
        return [
            (id(owner), name)
            for owner in (module, *_children(module, _DEPTH - 1))
            for name, child in owner._modules.items()
            if self.activations.get(id(child), Found()).activation and (id(owner), name) not in self.reasons
        ]

    def _could_grow(self, module: nn.Module) -> bool:
        """Whether a block right below lacks the second Linear, which this one may have."""
        below = {id(m) for m in _children(module, 2)}
        return any(id(b.module) in below and not any(s.second for s in b.plan.fused) for b in self.blocks)

    def _understand(self, path: str, module: nn.Module, widths: list[int]) -> tuple[Block | None, str]:
        kind, reason = type(module), ""
        if any(parameter.is_meta for parameter in module.parameters()):
            return None, "its parameters have no data (meta device)"
        try:
            copied = copy_of(module)
        except Exception as error:
            return None, f"it cannot be copied ({first_line(error)})"
        for method in (name for name in _METHODS if hasattr(kind, name)):
            for width in widths:
                try:
                    x = random_input(copied, width)
                    plan = self._plan(module, copied, method, x)
                    return Block(path, module, plan, copied, x), ""
                except NotUnderstood as why:
                    reason = reason if method != "forward" and reason else str(why)
                    break
                except DidNotRun as error:
                    odd = "its forward takes more than one tensor" if _needs_more(kind, method) else ""
                    reason = reason or odd or f"its {method} does not run on a [2, 3, {width}] ({error})"
        return None, reason

    def _plan(self, module: nn.Module, copied: nn.Module, method: str, x: Tensor) -> Plan:
        if method in vars(module):
            raise NotUnderstood(f"someone has replaced its {method}")
        with quiet(x.device):
            recordings = [record(copied, method, x, training) for training in (True, False)]
            plans = [make_plan(module, method, recording, self.recompute) for recording in recordings]
        if plans[0] != plans[1]:
            raise NotUnderstood("its forward takes another way in training mode than in evaluation mode")
        why_not = swap.why_not(plans[0], module)
        if why_not:
            raise NotUnderstood(why_not)
        return plans[0]

    def in_order(self) -> list[Block]:
        """With ``recompute`` a block that has its second Linear goes before a smaller one that has not."""
        if not self.recompute:
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


def _widths(module: nn.Module) -> list[int]:
    """The input widths of the Linears below, nearest first, each once."""
    widths: dict[int, None] = {}
    for depth in range(1, _DEPTH + 1):
        for child in _children(module, depth):
            if is_linear_like(child):
                width = getattr(child, "in_features", None) or getattr(child, "nx", None)
                if isinstance(width, int):
                    widths[width] = None
    return list(widths)[:4]


def _mentions_gelu(module: nn.Module) -> bool:
    """Whether the code of its class calls a function with gelu in its name, or it keeps such a function.

    What makes the module (its __init__) calls none. What it makes is seen where it stands: a container is not to answer
    for the GELUs of its children.
    """
    if any(classify(function).activation for path, _, _, function in callables(module) if not path):
        return True
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        for method, member in vars(cls).items():
            function = inspect.unwrap(member) if callable(member) else member
            if method in ("__init__", "__setstate__") or not isinstance(function, types.FunctionType):
                continue
            if any("gelu" in name.lower() and not _is_part(module, name) for name in function.__code__.co_names):
                return True
    return False


def _is_part(module: nn.Module, name: str) -> bool:
    """Whether the name is that of a child or a setting, its own or a child's, as nn.TransformerEncoder asks for one."""
    if name == "gelu":
        return False  # torch's function, whatever else is called so
    parts = (m for m in module.modules() if name in m._modules or name in vars(m))
    return any(name in m._modules or not callable(vars(m)[name]) for m in parts)


def _needs_more(kind: type, method: str) -> bool:
    parameters = list(inspect.signature(getattr(kind, method)).parameters.values())[2:]  # after self and x
    return any(p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
