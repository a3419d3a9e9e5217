"""Puts a plan into a module and takes it out again, by the module's class alone.

A patched module is an instance of a subclass of its class, of the same name, whose forward runs the plan. Parameters,
buffers, children, hooks and state_dict are not touched. The plan was proved for the modules that the block had then: on
every call it holds only if they are still the same, still plain and unwatched; otherwise the original forward runs.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._operations import OPERATIONS
from ..functional import CALLS, elementwise
from ..linear import has_hooks
from ..mlp import linear_op_linear
from .plan import Plan, Step, linear_kind
from .record import callables

_CLASSES: dict[tuple[type, str], type] = {}


class _Slot:
    """A child that the plan relies on: ``module`` must still be ``owner.name``. Without an owner, the block's own."""

    def __init__(self, owner: nn.Module | None, name: str, module: nn.Module, role: str) -> None:
        self.owner, self.name, self.module, self.role = owner, name, module, role

    def holds(self, block: nn.Module) -> bool:
        owner = block if self.owner is None else self.owner
        module = self.module
        if owner._modules.get(self.name) is not module:
            return False
        if self.role == "linear":
            return linear_kind(module) != ""
        return self.role == "called" or not (has_hooks(module) or "forward" in module.__dict__)


class _Kept:
    """A function kept in an attribute, as nn.TransformerEncoderLayer keeps its activation."""

    def __init__(self, owner: nn.Module | None, name: str, function: Any) -> None:
        self.owner, self.name, self.function = owner, name, function

    def holds(self, block: nn.Module) -> bool:
        owner = block if self.owner is None else self.owner
        return owner.__dict__.get(self.name) is self.function


_SETTING = (bool, int, float, str, type(None))


class _Settings:
    """The plain attributes and the names of the children of a module whose own forward is not called any more."""

    name = "an attribute"

    def __init__(self, owner: nn.Module | None, module: nn.Module) -> None:
        self.owner = owner
        self.settings = {
            name: value
            for name, value in vars(module).items()
            if isinstance(value, _SETTING) and name != "training" and not name.startswith("_")
        }
        self.children = tuple(module._modules)

    def holds(self, block: nn.Module) -> bool:
        owner = block if self.owner is None else self.owner
        if tuple(owner._modules) != self.children:
            return False
        for name, value in self.settings.items():  # noqa: SIM110 (this runs under torch.compile)
            if owner.__dict__.get(name) != value:
                return False
        return True


def _weight(linear: nn.Module) -> Tensor:
    """As F.linear takes it; Conv1D keeps it transposed."""
    return linear.weight if isinstance(linear, nn.Linear) else linear.weight.t()


def _is_active(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.training and module.p > 0


@dataclass
class _Bound:
    """A step with its modules."""

    step: Step
    modules: tuple[nn.Module, ...]  # the module, or the Linears before the activation
    between: tuple[nn.Module, ...]
    second: nn.Module | None

    def run(self, x: Tensor) -> Tensor:
        if self.step.op == "module":
            return self.modules[0](x)
        if self.second is None:
            return self.activate(x)
        if not any(_is_active(module) for module in self.between):
            return self.node(x)
        x = self.activate(x)
        for module in self.between:
            x = module(x)
        return self.second(x)

    def activate(self, x: Tensor) -> Tensor:
        step, modules = self.step, self.modules
        if step.takes_bias:
            pre = [F.linear(x, _weight(module)) for module in modules]
            biases = [module.bias for module in modules]
        else:
            pre = [module(x) for module in modules] or [x]
            biases = [None for _ in pre]
            if step.op == "bias_act":
                return elementwise(pre[0], step.activation)
        return CALLS[step.op](step.function, *pre, *biases, *step.names)

    def node(self, x: Tensor) -> Tensor:
        step, second = self.step, self.second
        weights, biases = [_weight(module) for module in self.modules], [module.bias for module in self.modules]
        return linear_op_linear(
            OPERATIONS[step.op], step.names, step.recompute, x, _weight(second), second.bias, *weights, *biases
        )


class Installed:
    """A plan with the modules of one block: what a patched module carries."""

    def __init__(self, plan: Plan, block: nn.Module) -> None:
        self.plan = plan
        self.steps = [_bind(step, block) for step in plan.steps]
        self.conditions = [*_slots(plan, block), *_kept(plan, block)]
        self.conditions.append(_Settings(None, block))
        for slot in list(self.conditions):
            if isinstance(slot, _Slot) and slot.role == "bypassed":
                self.conditions.append(_Settings(slot.module, slot.module))
        modules = [m for step in self.steps for m in (*step.modules, step.second)]
        self.linears = [m for m in modules if m is not None and linear_kind(m)]
        if len({linear.weight.dtype for linear in self.linears}) > 1:
            self.linears = []

    def holds(self, block: nn.Module, x: Tensor) -> bool:
        only = self.plan.only_dtype
        if only is not None and (x.dtype != only or torch.is_autocast_enabled(x.device.type)):
            return False
        # Some forwards cast between Linears of different dtypes (T5 does), which a proof at one dtype has not seen.
        for linear in self.linears[1:]:
            if linear.weight.dtype != self.linears[0].weight.dtype:
                return False
        for condition in self.conditions:  # noqa: SIM110 (this runs on every call, and under torch.compile)
            if not condition.holds(block):
                return False
        return True

    def run(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step.run(x)
        return x


def _bind(step: Step, block: nn.Module) -> _Bound:
    modules, between = (tuple(map(block.get_submodule, paths)) for paths in (step.firsts, step.between))
    return _Bound(step, modules, between, block.get_submodule(step.second) if step.second else None)


def _slots(plan: Plan, block: nn.Module) -> Iterator[_Slot]:
    roles: dict[str, str] = dict.fromkeys(plan.bypassed, "bypassed")
    for step in plan.steps:
        for path in step.between:
            roles[path] = "bypassed"
        role = "linear" if step.second or step.takes_bias else "called"
        roles.update(dict.fromkeys((*step.firsts, *filter(None, [step.second])), role))
        if step.activation_path:
            roles[step.activation_path] = "bypassed"
    for path, role in roles.items():
        owner_path, _, name = path.rpartition(".")
        owner = block.get_submodule(owner_path) if owner_path else None
        yield _Slot(owner, name, block.get_submodule(path), role)


def _kept(plan: Plan, block: nn.Module) -> Iterator[_Kept]:
    for path, owner, name, function in callables(block):
        yield _Kept(owner if path else None, name, function)


def why_not(plan: Plan, block: nn.Module) -> str:
    """Why the plan would not hold for the block as it is now; empty if it would."""
    failing = next((c for c in Installed(plan, block).conditions if not c.holds(block)), None)
    if failing is None:
        return ""
    if isinstance(failing, _Slot) and has_hooks(failing.module):
        return f"{failing.name} has a hook"
    return f"{failing.name} has a forward of its own"


def _rebuild(original: type, method: str) -> nn.Module:
    """For copy and pickle, which find the original class by its name."""
    return object.__new__(_class(original, method))


def _class(original: type, method: str) -> type:
    """The subclass of ``original`` whose ``method`` runs the plan of the instance, cached."""
    if (original, method) in _CLASSES:
        return _CLASSES[original, method]
    unpatched = getattr(original, method)
    argument = list(inspect.signature(unpatched).parameters)[1]  # after self

    @functools.wraps(unpatched)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        installed = self._gelu_ext
        if installed is not None and len(args) + len(kwargs) == 1:
            x = args[0] if args else kwargs.get(argument)
            if isinstance(x, Tensor) and not x.is_nested and installed.holds(self, x):
                return installed.run(x)
        return unpatched(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        made = original.__reduce_ex__(self, protocol)
        if type(self) is patched and made[0] is copyreg.__newobj__:
            return _rebuild, (original, method), *made[2:]
        return made

    members = {
        method: call,
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
        "_gelu_ext": None,
        "_gelu_ext_original": original,
    }
    patched = type(original)(original.__name__, (original,), members)
    _CLASSES[original, method] = patched
    return patched


def install(plan: Plan, block: nn.Module) -> None:
    block.__dict__["_gelu_ext"] = Installed(plan, block)
    block.__class__ = _class(type(block), plan.method)


def installed(module: nn.Module) -> Installed | None:
    return module.__dict__.get("_gelu_ext")


def remove(module: nn.Module) -> None:
    """The module as it was. Where another has put a class of its own on top (FSDP2 does), ours stays and is inert."""
    module.__dict__.pop("_gelu_ext", None)
    original = type(module).__dict__.get("_gelu_ext_original")
    if original is not None:
        module.__class__ = original
