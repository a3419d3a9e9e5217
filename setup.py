"""Builds gelu_ext._C. What is built, with which flags and whether with CUDA is decided in gelu_ext/_build.py."""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext as Builder

SOURCES = ("h", "cuh", "cpp", "cu")

# By its path: `import gelu_ext` would need the module that is to be built.
spec = importlib.util.spec_from_file_location("_build", Path(__file__).parent / "gelu_ext" / "_build.py")
_build = sys.modules["_build"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_build)

_build.find_tools()
try:
    from torch.utils.cpp_extension import BuildExtension as Builder
    from torch.utils.cpp_extension import CppExtension as Extension
except ModuleNotFoundError:
    pass  # an sdist and the metadata need no torch; build_extensions says that it does


class build_ext(Builder):
    def build_extensions(self):
        try:
            plan = _build.make_plan()
            generated = Path(self.build_temp, "generated").absolute()
            plan.write_facts(generated)
            link_flags = plan.link_flags(generated)
        except _build.BuildError as error:
            raise SystemExit(f"gelu_ext: {error}") from None
        print(f"gelu_ext: building {plan.summary}", file=sys.stderr)
        (extension,) = self.extensions
        extension.sources = [os.path.relpath(path) for path in plan.sources]
        extension.include_dirs = [str(_build.csrc()), str(generated), *extension.include_dirs]
        extension.extra_compile_args = {"cxx": plan.host_flags, "nvcc": plan.nvcc_flags}
        extension.extra_link_args = link_flags + ["-fopenmp"] * ("-fopenmp" in plan.host_flags)
        with plan.environment():
            super().build_extensions()


setup(
    license="MIT",
    # An installed package carries its sources, for gelu_ext.jit.load().
    packages=[*find_packages(include=["gelu_ext", "gelu_ext.*"]), "gelu_ext.csrc"],
    package_dir={"gelu_ext.csrc": "csrc"},
    package_data={
        "gelu_ext": ["py.typed", "*.pyi"],
        "gelu_ext.csrc": [f"{folder}*.{kind}" for folder in ("", "cpu/", "cuda/") for kind in SOURCES],
    },
    include_package_data=False,
    ext_modules=[Extension("gelu_ext._C", [os.path.relpath(path) for path in _build.sources(cuda=False)])],
    cmdclass={"build_ext": build_ext},
)
