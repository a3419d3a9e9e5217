"""Puts a plan into a module and takes it out again: an attribute of the instance in the place of its method.

The module's class, parameters, buffers, children, hooks and state_dict are not touched. On every call the plan must
hold for the module as it is then (guard.py); otherwise the method of its class runs.
"""

from __future__ import annotations

import copy
import types
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

from .plan import Plan

_KEY = "_gelu_ext"
_REPLICATE = "_replicate_for_data_parallel"


class _OfOwner:
    """A callable in the ``__dict__`` of a module, its owner, that goes along when that is copied or pickled.

    It does not keep its owner alive: a cycle would keep the parameters until the garbage is collected.
    """

    def __init__(self, owner: nn.Module, name: str) -> None:
        self._owner, self.name = weakref.ref(owner), name

    @property
    def owner(self) -> nn.Module:
        owner = self._owner()
        if owner is None:
            raise RuntimeError(
                f"patch: expected the module whose {self.name} was patched to be alive, got a shallow copy of it: use "
                "copy.deepcopy, or unpatch before you copy"
            )
        return owner

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """The method of the class: what inspect and torch.jit.script look at."""
        return getattr(type(self.owner), self.name).__get__(self.owner)

    @property
    def __class__(self) -> type:
        """To isinstance it is a method, with __func__ and __self__: inspect and torch.jit ask so."""
        return types.MethodType

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_owner") or name in ("name", "plan"):  # not there yet
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self.owner))
        if copied is None:  # somebody copies the method
            return copy.deepcopy(self.owner, memo).__dict__[self.name]
        return self.moved_to(copied)


class Method(_OfOwner):
    """What stands in the place of a method of a block: runs the plan where that holds, else the method."""

    def __init__(self, owner: nn.Module, plan: Plan | None, name: str, again: bool | None = None) -> None:
        super().__init__(owner, name)
        self.plan = plan
        self.again = again  # unpickled: `recompute` of a plan that is to be made on the first call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        owner = self._owner()
        if owner is None:
            owner = self.owner  # raises
        if self.again is not None:
            self.make_again(owner)
        plan = self.plan
        if plan is not None and len(args) + len(kwargs) == 1:
            x = args[0] if args else kwargs.get(plan.argument)
            modules = plan.holds(owner, x)
            if modules is not None:
                return plan.run(modules, x)
        return getattr(type(owner), self.name)(owner, *args, **kwargs)

    def make_again(self, owner: nn.Module) -> None:
        """The plan, in the process that has unpickled the block: its code may be another here."""
        from . import plan_again

        recompute, self.again = self.again, None
        self.plan = plan_again(owner, self.name, recompute)

    def moved_to(self, owner: nn.Module) -> Method:
        return Method(owner, self.plan, self.name, self.again)

    def __reduce__(self) -> Any:
        again = self.again if self.plan is None else self.plan.recompute
        return Method, (self.owner, None, self.name, again)


class _Replicate(_OfOwner):
    """For nn.DataParallel, which copies ``__dict__`` as it is: a replica must have a method of its own."""

    def __call__(self) -> nn.Module:
        owner = self.owner
        replica = self.__wrapped__()
        method = owner.__dict__.get(_KEY)
        if method is not None:
            put(replica, method.moved_to(replica))
        return replica

    def moved_to(self, owner: nn.Module) -> _Replicate:
        return _Replicate(owner, self.name)

    def __reduce__(self) -> Any:
        return _Replicate, (self.owner, self.name)


def put(module: nn.Module, method: Method) -> None:
    module.__dict__[_KEY] = module.__dict__[method.name] = method
    module.__dict__[_REPLICATE] = _Replicate(module, _REPLICATE)


def install(plan: Plan, block: nn.Module) -> None:
    put(block, Method(block, plan, plan.method))


def installed(module: nn.Module) -> Method | None:
    return module.__dict__.get(_KEY)


def remove(module: nn.Module) -> None:
    """The module as it was. A method that somebody has kept goes on to work, as that of the class."""
    method = module.__dict__.pop(_KEY, None)
    if method is None:
        return
    method.plan = method.again = None
    module.__dict__.pop(_REPLICATE, None)
    if module.__dict__.get(method.name) is method:
        del module.__dict__[method.name]


def is_replaced(module: nn.Module, name: str) -> bool:
    """Whether somebody else has put a method into the instance."""
    method = module.__dict__.get(name)
    return method is not None and not isinstance(method, Method)
