"""A C++ program loads and runs an AOTInductor package whose operators come from the extension's shared library.

The extension links libtorch_python, which uses Python's symbols without naming libpython: in Python they are there. In
another program libpython must be opened first, with RTLD_GLOBAL; the interpreter need not be started. A libpython.a
linked in whole, with -rdynamic, works as well. Lazy binding or --unresolved-symbols do not: libtorch_python takes
addresses of Python's functions and types, so that opening it fails.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from reference import randn, same_bits
from torch import nn
from torch.utils import cpp_extension

import gelu_ext
from gelu_ext import _native

SOURCE = Path(__file__).with_name("native") / "load_package.cpp"
COMPILER = shlex.split(os.environ.get("CXX", "g++"))  # as AOTInductor, which needs one too


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.rise = nn.Linear(8, 16, bias=False, dtype=torch.float64)
        self.fall = nn.Linear(16, 12, dtype=torch.float64)
        self.bias = nn.Parameter(randn((16,), torch.float64, seed=1))

    def forward(self, x):
        x = gelu_ext.bias_gelu(self.rise(x), self.bias)
        return gelu_ext.geglu(self.fall(x), approximate="tanh")


@pytest.fixture
def libpython() -> Path:
    name = f"libpython{sysconfig.get_config_var('LDVERSION')}.so.1.0"
    folders = (Path(sysconfig.get_config_var("LIBDIR")), Path(sys.base_prefix, "lib"))
    found = [path for folder in folders if (path := folder / name).exists()]
    if not found:
        pytest.skip(f"a C++ program needs {name}, which this Python lacks")
    return found[0]


@pytest.fixture
def program(tmp_path) -> Path:
    """load_package.cpp, compiled."""
    if not shutil.which(COMPILER[0]):
        pytest.skip(f"there is no C++ compiler ({COMPILER[0]!r} is not on the PATH)")
    command = [*COMPILER, "-std=c++20", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-I{path}" for path in cpp_extension.include_paths()]
    command += [str(SOURCE), "-o", str(tmp_path / "load_package")]
    for path in cpp_extension.library_paths():
        command += [f"-L{path}", f"-Wl,-rpath,{path}"]
    subprocess.run([*command, "-ltorch_cpu", "-lc10", "-ldl"], check=True)
    return tmp_path / "load_package"


@pytest.mark.slow
def test_a_package_runs_in_a_cpp_program(libpython, program, tmp_path):
    # by its path: a program's rpath is not searched for what an opened library needs
    libraries = [libpython, Path(torch.__file__).with_name("lib") / "libtorch_python.so", _native.location]
    model, x = Model(), randn((11, 8), torch.float64)
    rows = torch.export.Dim("rows", min=2)
    exported = torch.export.export(model, (x[:3],), dynamic_shapes={"x": {0: rows}})
    package = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "model.pt2"))
    torch.save(x, tmp_path / "input.pt")
    command = [program, package, tmp_path / "input.pt", tmp_path / "output.pt"]

    without = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert without.returncode == 1 and "Could not find schema for gelu_ext::bias_act" in without.stderr

    done = subprocess.run([*command, *libraries], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    got = torch.load(tmp_path / "output.pt")
    assert same_bits(got, torch._inductor.aoti_load_package(package)(x))
    torch.testing.assert_close(got, model(x).detach(), rtol=1e-12, atol=1e-12)
