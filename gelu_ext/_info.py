"""build_info(): what was built, for what, what runs now, and why not where it does not."""

from __future__ import annotations

import platform

import torch

from . import _build, _native


class BuildInfo(dict):
    """A dict that prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{key.replace('_', ' '):{width}}  {_text(value)}" for key, value in self.items())

    __repr__ = __str__


def build_info() -> BuildInfo:
    """What gelu_ext runs on: a dict that prints as a table. Never raises; a missing native module is a line in it."""
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
    try:
        here = _build.source_hash()
    except (_build.BuildError, OSError):
        return ""
    return "" if here == built_from else f" (they have changed since, to {here}: build again)"


def _text(value: object) -> str:
    if value is None:
        return "none"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
