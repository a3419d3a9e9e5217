#!/usr/bin/env python3
"""Runs the tests of the package on the CUDA kernels, on the CPU: what fills their structs and sizes their memory.

    python tests/cuda/emulated_suite.py [arguments of pytest]

Builds the extension with g++ and the emulator (see run_emulated.py): csrc/cuda as it is, and device.cpp, which gives it
CPU tensors; the special-function unit is as inexact as it may be (GELU_EXT_MODEL_DEVICE). Needs torch, g++ and ninja;
no GPU, no CUDA toolkit. The build stays under build/emulated/, with a copy of the package for the tests to import.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import run_emulated
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EMULATOR = HERE / "emulator"
FOLDER = ROOT / "build" / "emulated"
# By its path: the package itself may have a module, whose operators cannot be registered twice.
spec = importlib.util.spec_from_file_location("_build", ROOT / "gelu_ext" / "_build.py")
_build = sys.modules["_build"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_build)

# Those of the operations and of what surrounds them. The others are about the build, the CPU kernels or other programs.
TESTS = (
    "forward", "gradients", "edge_sizes", "edge_torch", "edge_values", "errors", "exhaustive", "operations", "opcheck",
    "clamped_swiglu", "gaussian_gelu", "transforms", "subclasses", "autocast", "checkpoint", "modules", "mlp",
)  # fmt: skip


def build() -> None:
    """FOLDER/gelu_ext: the package, and its module."""
    _build.find_tools()
    objects, package = FOLDER / "objects", FOLDER / "gelu_ext"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "gelu_ext", package, ignore=shutil.ignore_patterns("_C*.so", "__pycache__"))
    objects.mkdir(parents=True, exist_ok=True)
    csrc = FOLDER / "csrc"
    if not csrc.exists():
        csrc.symlink_to(_build.csrc(), target_is_directory=True)
    plan = _build.make_plan("0")
    plan.write_facts(objects)
    kernels = []
    for kernel in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):  # torch would give these to nvcc
        as_cpp = objects / f"{kernel.stem}_cu.cpp"
        text = f'#define GELU_EXT_MODEL_DEVICE 1\n#include "{kernel}"\n'
        if not as_cpp.exists() or as_cpp.read_text() != text:
            as_cpp.write_text(text)
        kernels.append(as_cpp)
    # The kernels first: of a function that the CPU kernels have as well, the linker takes the first.
    sources = [*kernels, EMULATOR / "cuda_emulator.cpp", *_build.sources(cuda=False)]
    flags = [flag for flag in _build.host_flags() if flag != "-O3"] + run_emulated.fma()
    flags += ["-O2", "-DGELU_EXT_WITH_CUDA", "-DGELU_EXT_EMULATE_CUDA", "-DCUDA_EMULATOR_IN_A_LIBRARY"]
    with plan.environment():
        cpp_extension.load(
            "_C",
            [str(source) for source in sources],
            extra_cflags=flags,
            extra_ldflags=["-fopenmp"],
            extra_include_paths=[str(path) for path in (_build.csrc(), objects, EMULATOR, EMULATOR / "standin")],
            build_directory=str(objects),
            is_python_module=False,
            is_standalone=False,
        )
    shutil.copy(objects / "_C.so", package)


def main() -> int:
    # In a process of its own, as torch loads what it has built.
    if sys.argv[1:] == ["--build"]:
        build()
        return 0
    environment = os.environ | {"PYTHONPATH": str(FOLDER), "GELU_EXT_SLOW_TESTS": "1"}
    built = subprocess.run([sys.executable, __file__, "--build"], cwd=ROOT, stdout=subprocess.DEVNULL)
    if built.returncode:
        return built.returncode
    paths = [argument for argument in sys.argv[1:] if argument.startswith("tests/")]
    options = [argument for argument in sys.argv[1:] if argument not in paths]
    tests = [str(ROOT / path) for path in paths] or [str(ROOT / "tests" / f"test_{name}.py") for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    command += ["-o", f"pythonpath={FOLDER} {ROOT / 'bench'}", "-p", "no:cacheprovider", *options, *tests]
    return subprocess.run(command, cwd=FOLDER, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
