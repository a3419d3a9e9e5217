#!/usr/bin/env python3
"""Compiles the CPU kernels for aarch64 and with clang: what is not x86-64 by GCC builds the baseline.

    python tests/native/cross_compile.py

Uses clang++ and aarch64-linux-gnu-g++, whichever is installed; exits with 2 if neither is. Each also builds
accuracy.cpp, and runs it where this machine can: clang's as it is, aarch64's in qemu-aarch64 (two minutes). Needs the
headers of torch, not its library.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from run_accuracy import CSRC, FLAGS, SOURCE

# Compiler, what accuracy.cpp is linked with beside FLAGS, what runs the program.
COMPILERS = {
    "clang++": ([], []),
    "aarch64-linux-gnu-g++": (["-static"], ["qemu-aarch64"]),
}


def torch_headers() -> Path:
    """Found without importing torch, which takes seconds."""
    return Path(importlib.util.find_spec("torch").origin).parent / "include"


def compile_kernels(compiler: str, folder: Path) -> None:
    flags = ["-Werror", "-fPIC", f"-I{CSRC}", "-isystem", str(torch_headers())]
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        command = [compiler, *FLAGS, *flags, "-c", str(source), "-o", str(folder / f"{source.stem}.o")]
        subprocess.run(command, check=True)
        print(f"{compiler} compiled {source.name}", flush=True)


def measure_accuracy(compiler: str, folder: Path, link: list[str], runner: list[str]) -> None:
    program = str(folder / "accuracy")
    subprocess.run([compiler, *FLAGS, *link, f"-I{CSRC}", str(SOURCE), "-o", program], check=True)
    if runner and shutil.which(runner[0]) is None:
        print(f"{compiler} built accuracy.cpp; not run, there is no {runner[0]}")
        return
    # An emulated processor, with a long double in software, takes a twentieth of the samples.
    subprocess.run([*runner, program, *(["--thinned"] if runner else [])], check=True)


def main() -> int:
    found = [compiler for compiler in COMPILERS if shutil.which(compiler)]
    for compiler in found:
        link, runner = COMPILERS[compiler]
        with tempfile.TemporaryDirectory() as folder:
            compile_kernels(compiler, Path(folder))
            measure_accuracy(compiler, Path(folder), link, runner)
    if not found:
        print(f"there is none of {', '.join(COMPILERS)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
