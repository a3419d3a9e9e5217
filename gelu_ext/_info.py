"""build_info(): what was built, for what, what runs now, and why not where it does not; and what to do about that."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch

from . import _build, _native


class BuildInfo(dict[str, Any]):
    """A dict that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key.replace('_', ' '):{width}}  {_text(value)}" for key, value in self.items())

    __repr__ = __str__


def build_info() -> BuildInfo:
    """What gelu_ext runs on: a dict that prints as a table. Never raises; a missing native module is a line in it.

    >>> info = gelu_ext.build_info()
    >>> info["instruction_set"] in info["instruction_sets"]
    True
    """
    facts = _native.facts
    info = BuildInfo(gelu_ext=facts.get("version") or _build.__version__)
    if _native.module is None:
        info["native_module"] = None
        info["problem"] = _native.problem
    else:
        info["native_module"] = str(_native.location)
    info["python_files"] = str(_native._HERE)
    info["torch_running"] = str(torch.__version__)
    info["python_running"] = platform.python_version()
    if _native.module is None:
        return info
    info |= {
        "torch_built_for": facts.get("torch"),
        "compiler": facts.get("compiler"),
        "sources": f"{facts.get('sources')}{_compared_to_here(facts.get('sources'))}",
        "cuda": facts.get("cuda") or f"not built: {facts.get('why_no_cuda')}",
        "cuda_architectures": facts.get("architectures"),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "instruction_sets": _native.instruction_sets().split(","),
        "instruction_set": _instruction_set(),
        "threads": torch.get_num_threads(),
    }
    return info


def _instruction_set() -> str:
    try:
        return _native.instruction_set()
    except RuntimeError as error:  # GELU_EXT_CPU_ISA names none
        return str(error)


def _compared_to_here(built_from: str | None) -> str:
    here = _changed_since(built_from)
    return f" (they have changed since, to {here}: build again)" if here else ""


def _changed_since(built_from: str | None) -> str:
    """The sources that are here, where they are others than these."""
    try:
        here = _build.source_hash()
    except (_build.BuildError, OSError):
        return ""
    return "" if here == built_from else here


def advice() -> list[str]:
    """What is wrong, and what to do about it: a sentence for each. Empty if nothing is."""
    if _native.module is None:
        return [_native.problem]
    facts, build = _native.facts, _native.how_to_build()
    built_for, running = facts.get("torch"), str(torch.__version__)
    found = []
    if _changed_since(facts.get("sources")):
        found.append(f"The sources have changed since the compiled module was built: {build}.")
    if built_for != running:  # by no more than a patch release, or it would not have been loaded
        found.append(f"The compiled module was built for torch {built_for} and this is torch {running}: {build}.")
    if not facts.get("cuda") and _has_gpu():
        why = facts.get("why_no_cuda")
        found.append(f"There is a GPU, and the compiled module has no CUDA kernels ({why}): change that and {build}.")
    try:
        _native.instruction_set()
    except RuntimeError as error:
        found.append(f"{error}: unset it, or name one of these.")
    return found


def _has_gpu() -> bool:
    """Also one that a torch without CUDA does not see."""
    return torch.cuda.device_count() > 0 or any(Path("/dev").glob("nvidia[0-9]*"))


def _text(value: object) -> str:
    if value is None:
        return "none"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
