"""Puts a plan into a module and takes it out again: an attribute of the instance in the place of its method.

The module's class, parameters, buffers, children, hooks and state_dict are not touched. On every call the plan must
hold for the module as it is then (guard.py); otherwise the method of its class runs.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import Proxy

from .plan import Options, Plan

_KEY = "_gelu_ext"
_REPLICATE = "_replicate_for_data_parallel"


class _OfOwner:
    """What bound methods in the ``__dict__`` of a module are bound to: it goes along when that is copied or pickled.

    It does not keep its owner alive: a cycle would keep the parameters until the garbage is collected.
    """

    def __init__(self, owner: nn.Module | None, name: str) -> None:
        self._owner: Callable[[], nn.Module | None] = (lambda: None) if owner is None else weakref.ref(owner)
        self.name = name

    @property
    def owner(self) -> nn.Module:
        owner = self._owner()
        if owner is None:
            # A class that copies its ``__dict__`` by itself: the module that has this is the owner.
            found = [thing for thing in gc.get_objects() if issubclass(type(thing), nn.Module) and self._is_in(thing)]
            if len(found) == 1:
                owner = found[0]
                self._owner = weakref.ref(owner)
                return owner
            raise RuntimeError(
                f"patch: expected the module whose {self.name} was patched to be alive, got a shallow copy of it: use "
                "copy.deepcopy, or unpatch before you copy"
            )
        return owner

    def _is_in(self, module: nn.Module) -> bool:
        return getattr(module.__dict__.get(self.name), "__self__", None) is self

    def method(self) -> types.MethodType:
        return types.MethodType(_in_place_of(getattr(type(self.owner), self.name), self.name), self)

    def __getattr__(self, name: str) -> Any:
        """A bound method is pickled by its name."""
        if name == self.__dict__.get("name"):
            return self.method()
        raise AttributeError(name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.moved_to(memo.get(id(self.owner)))


@functools.lru_cache(maxsize=256)
def _in_place_of(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Looks like the original to whoever asks (inspect, torch.jit.script, which wants its globals as well)."""

    def method(bound_to: Any, *args: Any, **kwargs: Any) -> Any:
        return bound_to.call(args, kwargs)

    scope = getattr(original, "__globals__", method.__globals__)
    method = functools.update_wrapper(types.FunctionType(method.__code__, scope), original)
    method.__name__ = name
    return method


class Installed(_OfOwner):
    """A plan in a block: runs where that holds, else the method of the block's class."""

    def __init__(self, owner: nn.Module | None, plan: Plan | None, name: str, again: Options | None = None) -> None:
        super().__init__(owner, name)
        self.plan = plan
        self.again = again  # unpickled: the options of a plan that is to be made on the first call

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        owner = self.owner
        if self.again is not None:
            self.make_again(owner)
        plan = self.plan
        if plan is not None and len(args) + len(kwargs) == 1:
            x = args[0] if args else kwargs.get(plan.argument)
            modules = plan.holds(owner, x)
            if modules is not None:
                if torch.compiler.is_compiling():
                    return plan.run(modules, x)
                try:
                    return plan.run(modules, x)
                except (ValueError, TypeError):
                    pass  # what the kernels refuse, torch may take (a bias of one number), or refuse in its own words
            if isinstance(x, Proxy):
                return self.trace(owner, plan, x, getattr(type(owner), self.name))
        return getattr(type(owner), self.name)(owner, *args, **kwargs)

    def trace(self, owner: nn.Module, plan: Plan, x: Proxy, original: Callable[..., Any]) -> Any:
        """Under torch.fx: the fused operations, so that the graph computes what the model does."""
        parameter = next(owner.parameters(), torch.empty(0))
        modules = plan.holds(owner, parameter.new_empty(0)) if plan.traceable else None
        if modules is None:
            return original(owner, x)
        if hasattr(x.tracer, "node_to_qualname"):
            original(owner, x)  # a feature extractor looks for these nodes, and removes those that it does not need
        return plan.trace(modules, x)

    def make_again(self, owner: nn.Module) -> None:
        """The plan, in the process that has unpickled the block: its code may be another here."""
        from . import plan_again

        options = self.again
        remove(owner)
        self.plan = plan_again(owner, self.name, options)
        put(owner, self)

    def moved_to(self, owner: nn.Module | None) -> Installed:
        return Installed(owner, self.plan, self.name, self.again)

    def __reduce__(self) -> Any:
        again = self.again if self.plan is None else self.plan.options
        return Installed, (self.owner, None, self.name, again)


class _Replicate(_OfOwner):
    """For nn.DataParallel, which copies ``__dict__`` as it is: a replica must have a plan of its own."""

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> nn.Module:
        owner = self.owner
        replica = getattr(type(owner), self.name)(owner)
        found = installed(owner)
        if found is not None:
            put(replica, found.moved_to(replica))
        return replica

    def moved_to(self, owner: nn.Module | None) -> _Replicate:
        return _Replicate(owner, self.name)

    def __reduce__(self) -> Any:
        return _Replicate, (self.owner, self.name)


def put(module: nn.Module, found: Installed) -> None:
    module.__dict__[_KEY], module.__dict__[found.name] = found, found.method()
    module.__dict__[_REPLICATE] = _Replicate(module, _REPLICATE).method()


def install(plan: Plan, block: nn.Module) -> None:
    put(block, Installed(block, plan, plan.method))


def installed(module: nn.Module) -> Installed | None:
    return module.__dict__.get(_KEY)


def remove(module: nn.Module) -> None:
    """The module as it was. A method that somebody has kept goes on to work, as that of the class."""
    found = module.__dict__.pop(_KEY, None)
    if found is None:
        return
    found.plan = found.again = None
    module.__dict__.pop(_REPLICATE, None)
    if not is_replaced(module, found.name):
        module.__dict__.pop(found.name, None)


def is_replaced(module: nn.Module, name: str) -> bool:
    """Whether somebody else has put a method into the instance."""
    method = module.__dict__.get(name)
    return method is not None and not isinstance(getattr(method, "__self__", None), Installed)
