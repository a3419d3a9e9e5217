"""Finds the compiled module, or says in one sentence what to run.

`_native.<name>` is a name of the compiled module: loading binds them all into this one, so a call costs one attribute.
Where there is no usable compiled module `import gelu_ext` still works (so that gelu_ext.jit.load() can build one), and
the first use of a native name raises ImportError. A process can hold one native module only: registering the operators
twice would abort it.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch  # before the compiled module, which links to libraries that this loads

from . import _build

if TYPE_CHECKING:
    from ._C import *  # noqa: F403 (what loading binds into this module)

module: ModuleType | None = None
facts: dict[str, str | None] = {}  # what the build recorded
location: Path | None = None
problem = ""  # why there is no module, and what to do

_HERE = Path(__file__).resolve().parent
_REGISTRY = "_gelu_ext_native"  # in sys.modules: survives a second import of this package
_waiting: list[Callable[[], None]] = []


def require() -> ModuleType:
    """The native module, or ImportError with the sentence."""
    if module is None:
        raise ImportError(problem)
    return module


def on_load(call: Callable[[], None]) -> None:
    """Calls it when there is a native module: now, or when jit.load() has built one."""
    if module is None:
        _waiting.append(call)
    else:
        call()


def use(native: ModuleType, path: Path) -> None:
    """Makes `native` the module that gelu_ext runs on."""
    global module, facts, location, problem
    names = {name: value for name, value in vars(native).items() if not name.startswith("_")}
    clashes = names.keys() & globals().keys()
    assert module is None and not clashes, f"cannot bind {native}: {module or clashes}"
    module, location, problem = native, path, ""
    facts = json.loads(native.build_facts.removeprefix(_build.FACTS_PREFIX))
    globals().update(names)
    sys.modules[_REGISTRY] = native
    while _waiting:
        _waiting.pop(0)()


def read_facts(path: Path) -> dict[str, str | None]:
    """What the build recorded in a compiled module, without loading it: loading one for another torch may crash."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary:
        prefix = _build.FACTS_PREFIX.encode()
        start = binary.find(prefix + b"{")
        if start < 0:
            return {}
        return json.loads(binary[start + len(prefix) : binary.find(b"\n", start)])


def what_is_wrong(recorded: dict[str, str | None]) -> str:
    """Why a build with these facts cannot be loaded here; empty if it can."""
    built_for, running = recorded.get("torch") or "an unknown version", str(torch.__version__)
    # The C++ interface changes with every minor version, and not within one.
    if built_for.split(".")[:2] != running.split(".")[:2]:
        return f"it was built for torch {built_for} and this is torch {running}"
    return ""


def find() -> Path:
    """The compiled module to load. Raises ImportError with the sentence."""
    if os.environ.get("GELU_EXT_JIT") == "1":
        raise ImportError("GELU_EXT_JIT=1 leaves the compiled module to gelu_ext.jit.load(): call that first.")
    path = _compiled(_HERE)
    if path:
        return path
    # Python run from the root of a checkout imports the sources there, also where the package is installed: then the
    # installed module serves, provided that it was built from these very sources.
    others = [Path(entry or ".").resolve() / "gelu_ext" for entry in sys.path]
    elsewhere = next((path for other in others if other != _HERE and (path := _compiled(other))), None)
    if elsewhere:
        if read_facts(elsewhere).get("sources") == _build.source_hash():
            return elsewhere
        raise ImportError(
            f"gelu_ext is imported from {_HERE}, which has no compiled module, and the one in {elsewhere.parent} was "
            f"built from other sources: {_advice()}, or start Python in another folder."
        )
    other_python = sorted(_HERE.glob("_C.*" + importlib.machinery.EXTENSION_SUFFIXES[-1]))
    if other_python:
        raise ImportError(f"gelu_ext was compiled for another Python ({other_python[0].name}): {_advice()}.")
    raise ImportError(f"gelu_ext has no compiled module in {_HERE}: {_advice()}.")


def load() -> None:
    """Loads what find() finds, or keeps the sentence that says why not."""
    global problem
    loaded = sys.modules.get(_REGISTRY)
    if loaded:
        return use(loaded, Path(loaded.__file__))
    try:
        path = find()
        why_not = what_is_wrong(read_facts(path))
        if not why_not and registered_by_another():
            why_not = "this process has loaded another build of gelu_ext already, and can hold only one"
        if why_not:
            raise ImportError(f"the compiled gelu_ext in {path} cannot be loaded: {why_not}; {_advice()}.")
        try:
            use(import_from(path, "gelu_ext._C"), path)
        except (ImportError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ImportError(f"the compiled gelu_ext in {path} cannot be loaded ({reason}): {_advice()}.") from error
    except ImportError as error:
        problem = str(error)


def import_from(path: Path, name: str) -> ModuleType:
    """Imports an extension module by its path; `name` ends in the name that it was compiled with."""
    spec = importlib.util.spec_from_file_location(name, path)
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    return native


def registered_by_another() -> bool:
    """Whether the operators are there although this package has loaded nothing: loading would abort the process."""
    return any(name.startswith("gelu_ext::") for name in torch._C._dispatch_get_all_op_names())


def _compiled(folder: Path) -> Path | None:
    paths = (folder / f"_C{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in paths if path.exists()), None)


def how_to_build() -> str:
    """What to do for another compiled module."""
    if (_HERE.parent / "setup.py").exists():
        return f"run `{Path(sys.executable).name} setup.py build_ext --inplace` in {_HERE.parent}"
    return "install gelu_ext again (`pip install --no-build-isolation --no-deps --force-reinstall`)"


def _advice() -> str:
    return f"{how_to_build()}, or call gelu_ext.jit.load()"


def __getattr__(name: str):
    if module is None and not name.startswith("__"):
        raise ImportError(problem)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


load()
