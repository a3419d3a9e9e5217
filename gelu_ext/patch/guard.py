"""Whether a plan still holds: a function of its own for each plan, since it runs before every call.

It holds if every module that the plan passes by is one whose call does what was recorded, and every value that the
code depends on (reads.py) is what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._surroundings import overrides
from ..linear import any_global_hooks, is_plain_linear, is_unwatched, parameter
from .reads import Read, Scope, is_plain

Modules = dict[str, nn.Module]  # by path in the block
Holds = Callable[[nn.Module, Tensor], "Modules | None"]


def linear_kind(module: Any) -> str:
    """``"linear"`` or ``"conv1d"`` (Hugging Face's, with a transposed weight) of a plain layer, else ""."""
    if is_plain_linear(module):
        return "linear"
    if is_conv1d(module) and is_unwatched(module) and not overrides(parameter(module, "weight")):
        return "conv1d"
    return ""


def is_conv1d(module: Any) -> bool:
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def dtype_of(linear: nn.Module) -> torch.dtype:
    return parameter(linear, "weight").dtype


def is_dense(x: Any) -> bool:
    """What kernels take, of a class that leaves functions to torch."""
    if not (isinstance(x, Tensor) and x.is_floating_point() and x.layout is torch.strided):
        return False
    return not (x.is_nested or x.is_quantized or overrides(x))


def make_guard(
    block: nn.Module,
    method: str,
    roles: dict[str, str],
    reads: Iterable[Read],
    modes: Iterable[str],
    like: Tensor,
    by_dtype: bool,
    by_device: bool,
    halves: Iterable[str] = (),
    by_width: bool = False,
) -> Holds:
    """``roles`` are "called", "linear" or "bypassed", by path; ``modes`` the modules that must be in the block's mode.

    With ``by_dtype``, ``by_device``, ``by_width`` the plan holds for the dtype, the device, the width of ``like`` only.
    ``halves`` are the paths of the Linears whose output is taken apart: at numbers that are its width's. What cannot be
    asked for any more (an attribute is gone, a comparison raises) is not what it was.
    """
    names = {"": "block"}
    home: dict[str, Any] = {"any_global_hooks": any_global_hooks, "is_dense": is_dense, "linear_kind": linear_kind}
    home |= {"is_unwatched": is_unwatched, "dtype_of": dtype_of, "torch": torch, "F": F}
    lines = []

    def constant(value: Any) -> str:
        home[f"_{len(home)}"] = value
        return f"_{len(home) - 1}"

    def name_of(path: str) -> str:
        if path not in names:
            parent, _, last = path.rpartition(".")
            above = name_of(parent)
            names[path] = f"m{len(names)}"
            lines.append(f"{names[path]} = {above}._modules[{last!r}]")
            lines.append(f"if {names[path]} is None or {last!r} in {above}.__dict__: return None")
        return names[path]

    def require(condition: str) -> None:
        lines.append(f"if not ({condition}): return None")

    require("is_dense(x) and not any_global_hooks()")
    require(f"type(block).{method} is {constant(getattr(type(block), method))}")
    lines_of_linears = []
    for path, role in roles.items():
        name, module = name_of(path), block.get_submodule(path)
        if role == "linear":
            require(f"linear_kind({name}) == {linear_kind(module)!r}")
            lines_of_linears.append(name)
        elif role == "bypassed":
            require(f"is_unwatched({name}) and type({name}).forward is {constant(type(module).forward)}")
            if isinstance(module, nn.Dropout):
                require(f"F.dropout is {constant(F.dropout)}")
    for path in ["", *(path for path, role in roles.items() if role == "bypassed")]:
        module = block.get_submodule(path)
        if module._modules:
            require(f"list({name_of(path)}._modules) == {constant(list(module._modules))}")
    dtypes = {block.get_submodule(path).weight.dtype for path, role in roles.items() if role == "linear"}
    if len(dtypes) == 1:  # some forwards cast between Linears of different dtypes, which no recording has seen
        for name in lines_of_linears[1:]:
            require(f"dtype_of({name}) == dtype_of({lines_of_linears[0]})")
    for path in halves:
        require(f"{name_of(path)}.weight.shape == {constant(block.get_submodule(path).weight.shape)}")
    for path in modes:
        require(f"{name_of(path)}.training is block.training")
    for read in reads:
        base = name_of(read.base) if isinstance(read.base, str) else constant(read.base)
        loaded = ".".join([base, *read.names])
        if read.relation == "tensor":
            require(f"isinstance({loaded}, torch.Tensor)")
        elif read.relation == "module":
            names_in = list(block.get_submodule(read.base)._modules)
            same_names = f"list({loaded}._modules) == {constant(names_in)}" if names_in else f"not {loaded}._modules"
            require(f"type({loaded}) is {constant(read.value)} and {same_names}")
            if isinstance(block.get_submodule(read.base), nn.ParameterDict):
                require(f"list({loaded}) == {constant(list(block.get_submodule(read.base)))}")
        elif read.relation == "is" or read.value is None or isinstance(read.value, bool):
            require(f"{loaded} is {constant(read.value)}")
        elif isinstance(read.value, dict):  # in their order
            require(f"type(v := {loaded}) is dict and list(v.items()) == {constant(list(read.value.items()))}")
        else:  # of the type as well: a number may become a tensor
            require(f"type(v := {loaded}) is {constant(type(read.value))} and v == {constant(read.value)}")
    if by_dtype:
        require(f"x.dtype == {constant(like.dtype)} and not torch.is_autocast_enabled(x.device.type)")
        for name in lines_of_linears:
            require(f"dtype_of({name}) == {constant(like.dtype)}")
    if by_width:
        require(f"x.shape[-1] == {like.shape[-1]}")
    if by_device:
        require(f"x.device.type == {like.device.type!r}")
    found = ", ".join(f"{path!r}: {name}" for path, name in names.items())
    body = "\n".join(f"        {line}" for line in [*lines, f"return {{{found}}}"])
    source = f"def holds(block, x):\n    try:\n{body}\n    except Exception:\n        return None\n"
    constants = tuple(map(_identity, home.values()))
    if (source, constants) not in _MADE:
        exec(compile(source, "<the guard of a plan>", "exec"), home)
        _MADE[source, constants] = home["holds"]
    return _MADE[source, constants]


def _identity(value: Any) -> Any:
    return repr(value) if is_plain(value) else id(vars(value)) if isinstance(value, Scope) else id(value)


# Equal plans have one guard: a compiler takes another for other code. (It keeps alive what the ids in the key are of.)
_MADE: dict[tuple[str, tuple[Any, ...]], Holds] = {}
