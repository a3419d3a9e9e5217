"""What a forward depends on beside its tensors, read from its code.

A plan stands in for a forward, so it may be used only while that would do the same. Every name that the code loads is
therefore one of

- a function of torch that works on tensors: those that ran are in the recording;
- a module of the block: the plan knows it;
- a value (a setting, a flag, a function): it goes into the plan's guard, by the way in which the code reached it.

What is none of these, a random source, a write, a context manager, makes the block not understood, with that reason.
For a block the instructions that ran while it was recorded count: which these are follows from the values. An
activation is read whole before it runs at all.
"""

from __future__ import annotations

import builtins
import copy
import dis
import enum
import functools
import math
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from .._operations import OPERATIONS


class NotGuarded(Exception):
    """What a forward does that no guard can watch, as a clause for the report."""


class Stop(BaseException):
    """Ends a recording; no forward may catch it."""


class Read(NamedTuple):
    """``base.names[0].names[1]...`` was ``value``. The base is a module's path in the block, or an object."""

    base: Any
    names: tuple[str, ...]
    value: Any
    relation: str  # "is", "==", or what it must be an instance of: "tensor", "module"

    @property
    def key(self) -> tuple[Any, tuple[str, ...]]:
        return (self.base if isinstance(self.base, str) else id(self.base)), self.names


class Scope:
    """Global variables that are no module's: attributes, once ``__dict__`` is set."""


class Load(NamedTuple):
    """What one instruction begins to load: a name and the attributes that are asked of it at once."""

    kind: str  # "local", "free", "global", "result" (of something else: no name), or what is refused
    name: str
    attributes: tuple[str, ...]


_WRITES = {
    "STORE_ATTR": "writes to an attribute",
    "DELETE_ATTR": "writes to an attribute",
    "STORE_GLOBAL": "writes to a global variable",
    "DELETE_GLOBAL": "writes to a global variable",
    "STORE_SUBSCR": "writes into a container",
    "STORE_SLICE": "writes into a container",
    "DELETE_SUBSCR": "writes into a container",
    "BEFORE_WITH": "opens a context",
    "SETUP_WITH": "opens a context",
    "LOAD_SPECIAL": "opens a context",
    "BEFORE_ASYNC_WITH": "opens a context",
    "SETUP_ASYNC_WITH": "opens a context",
    "IMPORT_NAME": "imports a module",
    "LOAD_BUILD_CLASS": "makes a class",
    "MATCH_CLASS": "matches patterns",
    "MATCH_KEYS": "matches patterns",
}
_LOCAL = ("LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW")
_PAIRS = ("LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW")
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD")
_BETWEEN = ("EXTENDED_ARG", "CACHE", "NOP", "PUSH_NULL")  # may stand between a load and its attributes


@functools.lru_cache(maxsize=4096)
def loads_of(code: types.CodeType) -> dict[int, tuple[Load, ...]]:
    """What each instruction loads, by its offset."""
    loads: dict[int, list[Load]] = {}
    last: tuple[int, int] | None = None  # where attributes would go on
    for instruction in dis.get_instructions(code):
        op, value, at = instruction.opname, instruction.argval, instruction.offset
        if op in _BETWEEN:
            continue
        if op in _ATTRIBUTE:
            if last is None:
                loads.setdefault(at, []).append(Load("result", "", (value,)))
                last = at, 0
            else:
                load = loads[last[0]][last[1]]
                loads[last[0]][last[1]] = load._replace(attributes=(*load.attributes, value))
            continue
        last = None
        if op in _LOCAL or (op in ("LOAD_DEREF", "LOAD_CLASSDEREF") and value not in code.co_freevars):
            found = [Load("local", value, ())]
        elif op in _PAIRS:
            found = [Load("local", name, ()) for name in value]
        elif op == "STORE_FAST_LOAD_FAST":
            found = [Load("local", value[1], ())]
        elif op in ("LOAD_DEREF", "LOAD_CLASSDEREF"):
            found = [Load("free", value, ())]
        elif op in ("LOAD_GLOBAL", "LOAD_NAME"):
            found = [Load("global", value, ())]
        elif op == "LOAD_SUPER_ATTR":
            found = [Load("result", "", (value,))]
        elif op in _WRITES:
            found = [Load(_WRITES[op], "", ())]
        elif op.startswith("INPLACE_") or (op == "BINARY_OP" and instruction.argrepr.endswith("=")):
            found = [Load("in place", "", ())]
        elif op == "STORE_DEREF" and value in code.co_freevars:
            found = [Load("writes to a variable of an outer function", "", ())]
        else:
            continue
        loads[at] = found
        last = at, len(found) - 1
    return {at: tuple(found) for at, found in loads.items()}


_PLAIN = {bool, int, float, complex, str, bytes, type(None), type(...), torch.Size}
_PLAIN |= {torch.dtype, torch.device, torch.layout, torch.memory_format}
_CONTAINERS = (list, tuple, dict, set, frozenset)
_ASKS_ONLY = {"get", "items", "keys", "values", "index", "count", "copy"}  # the methods of containers that may run
_PURE = "abs all any bool callable dict enumerate float frozenset int isinstance issubclass iter len list max min next"
_PURE += " range repr reversed set slice sorted str sum super tuple zip"
_BUILTINS = {getattr(builtins, name) for name in _PURE.split()}
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.getitem}
_HARMLESS = {torch.jit.is_scripting, torch.jit.annotate, torch.finfo, torch.overrides.has_torch_function}
# What a function may ask of a tensor without using its numbers, and take another way because of it.
METADATA = {"shape", "ndim", "size", "dim", "ndimension", "numel", "nelement", "stride", "is_contiguous", "dtype"}
METADATA |= {"device", "is_cuda", "is_cpu", "is_meta", "requires_grad", "is_leaf", "grad", "grad_fn", "layout"}
METADATA |= {"is_nested", "is_quantized", "is_sparse", "is_floating_point", "is_complex", "element_size", "itemsize"}


_OURS = {functional.elementwise}
_OURS |= {getattr(functional, name) for op in OPERATIONS.values() for name in op.functions}


@functools.cache
def _tensor_functions() -> set[Any]:
    """The functions of torch that work on tensors, and tell a mode that they run."""
    known = {f for functions in torch.overrides.get_overridable_functions().values() for f in functions}
    made_of_them = {f for f in vars(F).values() if getattr(f, "__module__", None) == F.__name__ and callable(f)}
    return known | made_of_them | _OURS


def is_tensor_function(function: Any) -> bool:
    try:
        return function in _tensor_functions()
    except TypeError:  # not hashable
        return False


def is_torchs(function: Any) -> bool:
    """Torch's own, or ours."""
    return (getattr(function, "__module__", None) or "").split(".")[0] in ("torch", "gelu_ext")


def is_plain(value: Any) -> bool:
    if isinstance(value, _CONTAINERS):
        parts: Iterable[Any] = [*value, *value.values()] if isinstance(value, dict) else value
        return type(value) in _CONTAINERS and len(value) <= 64 and all(map(is_plain, parts))
    return type(value) in _PLAIN or isinstance(value, enum.Enum)


class Reader:
    """Collects what code reads, and raises NotGuarded where that cannot be watched.

    ``paths`` are the modules of the block by id, as the code sees them; ``root`` is the block that the guard will see.
    """

    def __init__(self, root: nn.Module | None, paths: dict[int, str]) -> None:
        self.root, self.paths = root, paths
        self.reads: dict[Any, Read] = {}
        self.outside: dict[int, nn.Module] = {}  # modules that are no part of it
        self.whole = False  # nothing has run, so what is called is read here or not at all
        self.modes: set[str] = set()  # the modules, other than the block, whose training flag was asked for
        self.containers = 0  # how many were read
        modules = list(root.modules()) if root is not None else []
        # Methods of the block's own classes: where one is called, its code is read as well.
        self.methods = {
            name
            for module in modules
            for cls in type(module).__mro__
            if cls not in nn.Module.__mro__
            for name, member in vars(cls).items()
            if isinstance(member, types.FunctionType)
        }

    # --- ways into it

    def instruction(self, load: Load, scope: dict[str, Any], local: Callable[[str], Any]) -> None:
        """One that is about to run, in a frame with these globals and local variables."""
        if load.kind == "local":
            self._local(load, local(load.name))
        elif load.kind == "free":
            self._free(load, local(load.name))
        elif load.kind == "global":
            self._global(load, scope)
        elif load.kind == "result":
            self._result(load)
        elif load.kind != "in place":
            raise NotGuarded(load.kind)
        elif self.containers:
            raise NotGuarded("changes something in place, and reads containers")

    def frame(self, code: types.CodeType, local: Callable[[str], Any]) -> None:
        """A function that begins to run: where it is a method of a module, it must stay that."""
        first = local(code.co_varnames[0]) if code.co_argcount else None
        if id(first) not in self.paths:
            return
        for cls in type(first).__mro__:
            for name, member in vars(cls).items():
                function = member.fget if isinstance(member, property) else member
                if getattr(function, "__code__", None) is not code:
                    continue
                self._add(Read(cls, (name,), member, "is"))
                self._defaults(function)

    def function(self, function: Any, module: nn.Module | None = None) -> None:
        """A whole function, before it runs, and those that it calls. Its first argument is ``module``, if given."""
        self.whole = True
        waiting, seen = [(function, module)], set()
        while waiting:
            function, module = waiting.pop()
            if isinstance(function, functools.partial):
                if not is_plain([*function.args, *function.keywords.values()]):
                    raise NotGuarded(f"is a partial of {_name(function.func)} with arguments that are no settings")
                waiting.append((function.func, None))
                continue
            if isinstance(function, types.MethodType):
                module = function.__self__ if isinstance(function.__self__, nn.Module) else None
                function = function.__func__
            if not isinstance(function, types.FunctionType) or is_tensor_function(function):
                self._callable((), function)
                continue
            if function.__code__ in seen:
                continue
            seen.add(function.__code__)
            waiting += [(f, None) for f in self._whole(function, module)]
            waiting += [(type(other).forward, other) for other in self.outside.values()]

    def _whole(self, function: types.FunctionType, module: nn.Module | None) -> Iterator[Any]:
        code = function.__code__
        first = code.co_varnames[0] if code.co_argcount and module is not None else None
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        for loads in loads_of(code).values():
            for load in loads:
                if load.kind == "local" and load.name == first:
                    if not load.attributes:
                        raise NotGuarded("hands itself on")
                    self._follow(self._base(module), (), module, load.attributes)
                elif load.kind in ("local", "result"):
                    odd = METADATA.intersection(load.attributes[:1])
                    if odd:
                        raise NotGuarded(f"asks for the {odd.pop()} of a tensor")
                    self._result(load)
                elif load.kind == "free":
                    self._follow(cells[load.name], ("cell_contents",), cells[load.name].cell_contents, load.attributes)
                elif load.kind == "global":
                    self._global(load, function.__globals__)
                elif load.kind != "in place":
                    raise NotGuarded(load.kind)
        self._defaults(function)
        if any(isinstance(constant, types.CodeType) for constant in code.co_consts):
            raise NotGuarded("makes a function")
        for read in list(self.reads.values()):
            called = read.value
            if isinstance(called, types.FunctionType) and not is_torchs(called):
                is_method = read.names[-1:] == ("__func__",) and module is not None
                yield types.MethodType(called, module) if is_method else called

    def _defaults(self, function: types.FunctionType) -> None:
        for name in ("__defaults__", "__kwdefaults__"):
            value = getattr(function, name)
            if not is_plain(value):
                raise NotGuarded("has a default argument that is no setting")
            if value is not None:
                self._end(function, (name,), value)

    # --- what a load leads to

    def _local(self, load: Load, value: Any) -> None:
        path = self.paths.get(id(value))
        if path is not None:
            self._follow(path, (), self._real(path), load.attributes)
        elif isinstance(value, _CONTAINERS):
            if load.attributes and load.attributes[0] not in _ASKS_ONLY:
                raise NotGuarded(f"calls {load.name}.{load.attributes[0]}")
        elif load.attributes and not (isinstance(value, Tensor) or is_plain(value)):
            raise NotGuarded(f"reads {_text(load)} of a {type(value).__name__}")

    def _free(self, load: Load, value: Any) -> None:
        path = self.paths.get(id(value))
        if path is not None:
            self._follow(path, (), self._real(path), load.attributes)
        elif load.name != "__class__" or load.attributes:
            raise NotGuarded(f"reads {_text(load)}, a variable of an outer function")

    def _global(self, load: Load, scope: dict[str, Any]) -> None:
        if load.name not in scope:
            value = getattr(builtins, load.name, None)
            if load.attributes:
                raise NotGuarded(f"reads {_text(load)}")
            self._callable((load.name,), value) if callable(value) else None
            return
        home = sys.modules.get(scope.get("__name__", ""))
        if home is None or vars(home) is not scope:
            home = Scope()
            home.__dict__ = scope
        self._follow(home, (load.name,), scope[load.name], load.attributes)

    def _result(self, load: Load) -> None:
        """An attribute of what a call, an index, a variable gave: of a tensor, whose operations are recorded."""
        name = load.attributes[0] if load.attributes else ""
        if name and not hasattr(Tensor, name) and name not in self.methods and name not in _ASKS_ONLY:
            raise NotGuarded(f"reads .{name} of something that is no tensor")

    def _follow(self, base: Any, taken: tuple[str, ...], value: Any, names: tuple[str, ...]) -> None:
        """``names`` are asked of ``value``, one of the other; ``base.taken`` is how to reach it again."""
        for name in names:
            path = self._path(value)
            if path is not None:
                base, taken = path, ()
                if name == "training":
                    if path:
                        self.modes.add(path)
                    return
            elif isinstance(value, nn.Module) and id(value) not in self.outside:
                raise NotGuarded(f"uses {_name(value)}, a module outside of the block")
            if isinstance(value, Tensor):
                break
            if is_plain(value) and not isinstance(value, (enum.Enum, *_CONTAINERS)):
                break
            if isinstance(value, _CONTAINERS):
                if name not in _ASKS_ONLY:
                    raise NotGuarded(f"calls {'.'.join((*taken, name))}")
                break
            kind = getattr(type(value), name, None) if isinstance(value, nn.Module) else None
            if isinstance(kind, (property, functools.cached_property)) and name not in vars(value):
                # Its code has run on a copy, and has been read there.
                if self.whole or name != names[-1] or not isinstance(kind, property):
                    raise NotGuarded(f"reads {name}, a property")
                return
            try:
                value, taken = getattr(value, name), (*taken, name)
            except AttributeError:
                raise NotGuarded(f"reads {name}, which is not there") from None
        self._end(base, taken, value)

    def _end(self, base: Any, taken: tuple[str, ...], value: Any) -> None:
        if isinstance(value, types.ModuleType):
            return
        if isinstance(value, Tensor):
            if self.whole:
                raise NotGuarded(f"uses {'.'.join(taken)}, a tensor of its own")
            self._add(Read(base, taken, None, "tensor"))
            return
        path = self._path(value)
        if path is not None:
            if path:
                self._add(Read(path, (), type(value), "module"))
            return
        if is_plain(value):
            self.containers += isinstance(value, _CONTAINERS) and not isinstance(value, (tuple, frozenset))
            self._add(Read(base, taken, copy.deepcopy(value), "=="))
            return
        if isinstance(value, functools.partial):  # by its parts: torch.compile takes no partial for another
            for name in ("func", "args", "keywords"):
                self._end(base, (*taken, name), getattr(value, name))
            return
        if isinstance(value, types.MethodType):
            is_read = isinstance(value.__func__, types.FunctionType) and not is_torchs(value.__func__)
            if not is_read and getattr(value.__func__, "__name__", "") != "forward":
                raise NotGuarded(f"calls {'.'.join(taken)}, whose result may change")
            taken, value = (*taken, "__func__"), value.__func__
        else:
            self._callable(taken, value)
        self._add(Read(base, taken, value, "is"))

    def _callable(self, taken: tuple[str, ...], value: Any) -> None:
        """A function that may run: it is recorded, or read as well, or changes nothing and asks for nothing."""
        try:
            known = value in _BUILTINS or value in _HARMLESS or is_tensor_function(value)
        except TypeError:
            known = False
        if known or value in vars(math).values() or value in _ARITHMETIC:
            return
        if isinstance(value, functools.partial):
            return self._callable(taken, value.func)
        if isinstance(value, type):
            known = issubclass(value, (nn.Module, Tensor, BaseException)) or value in _PLAIN or is_torchs(value)
            if hasattr(value, "__enter__"):
                raise NotGuarded("opens a context")
            if known or (isinstance(value.__init__, types.FunctionType) and not self.whole):
                return
        elif isinstance(value, types.FunctionType) and not is_torchs(value):
            return
        elif isinstance(value, nn.Module) and self.whole and not isinstance(value, torch.jit.ScriptModule):
            # An activation in a variable: it is read where it stands.
            if value._modules or value._parameters or value._buffers or "forward" in vars(value):
                raise NotGuarded(f"calls {'.'.join(taken)}, a module outside of the block")
            self.outside[id(value)] = value
            return
        what = ".".join(taken) or _name(value)
        if callable(value):
            raise NotGuarded(f"calls {what}, whose result may change")
        raise NotGuarded(f"reads {what}, a {type(value).__name__}")

    def _add(self, read: Read) -> None:
        self.reads.setdefault(read.key, read)

    def _path(self, value: Any) -> str | None:
        """The path of a module of the block that the guard will see."""
        if not isinstance(value, nn.Module) or self.root is None:
            return None
        return next((path for path, module in self.root.named_modules() if module is value), None)

    def _base(self, module: nn.Module) -> Any:
        path = self._path(module)
        return module if path is None else path

    def _real(self, path: str) -> nn.Module:
        return self.root.get_submodule(path)


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", None) or type(value).__name__


def _text(load: Load) -> str:
    return ".".join((load.name, *load.attributes))


class Watch:
    """While it is entered, reads every instruction of Python code that runs and is not torch's own.

    Of torch's own code the forwards of the block's modules count as well. ``skip`` says whether what runs now is a
    module that the plan calls.
    """

    def __init__(self, reader: Reader, block: nn.Module, method: str, skip: Callable[[], bool]) -> None:
        self.reader, self.skip, self.problem = reader, skip, ""
        methods = [getattr(type(module), "forward", None) for module in block.modules()]
        methods.append(getattr(type(block), method, None))
        self.forwards = {f.__code__ for f in methods if isinstance(f, types.FunctionType)}
        self.main = getattr(type(block), method).__code__ if isinstance(methods[-1], types.FunctionType) else None
        self.ran: set[types.CodeType] = set()

    def __enter__(self) -> None:
        self.before = sys.gettrace()
        sys.settrace(self._call)

    def __exit__(self, *error: object) -> None:
        sys.settrace(self.before)

    def _call(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if self.skip():
            return None
        name = frame.f_globals.get("__name__", "").split(".")[0]
        if frame.f_code not in self.forwards and name in ("torch", "gelu_ext", "functools", "contextlib", "typing"):
            return None
        self.ran.add(frame.f_code)
        self.read(frame, lambda local: self.reader.frame(frame.f_code, local))
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._opcode

    def _opcode(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            for load in loads_of(frame.f_code).get(frame.f_lasti, ()):
                self.read(frame, lambda local, load=load: self.reader.instruction(load, frame.f_globals, local))
        return self._opcode

    def read(self, frame: types.FrameType, reading: Callable[[Callable[[str], Any]], None]) -> None:
        if self.problem:
            return
        try:
            reading(frame.f_locals.get)
        except NotGuarded as why:
            self.problem = str(why)
            raise Stop from None  # before it rolls dice, writes or prints
