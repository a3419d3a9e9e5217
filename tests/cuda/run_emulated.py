#!/usr/bin/env python3
"""Runs the CUDA kernels on the CPU: builds csrc/cuda with g++ and the emulator, checks results, races and memory.

    python tests/cuda/run_emulated.py [--only WORD]

Needs g++ with its sanitizers; no GPU, no CUDA toolkit, no torch. The kernels' sources are compiled as they are;
tests/cuda/emulator stands in for the CUDA runtime and for NVIDIA's 16-bit types. The builds:

    plain       -O2: all shapes in four orders of threads and blocks, and forced launch shapes
    address     AddressSanitizer and UndefinedBehaviorSanitizer: nothing outside of exact-size allocations is touched
    thread      ThreadSanitizer, which takes each CUDA thread for a thread: no barrier is missing
    portable    plain, with fibers made by ucontext
    nvidia      NVIDIA's own headers for the 16-bit types, if a toolkit is there

All must give the same bits. Planted faults (emulated_faults.cpp) show that each check catches what it is for.
Device arithmetic is written with explicit fused multiply-adds, so contraction is off, and -mfma on where the CPU has it.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EMULATOR = HERE / "emulator"
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
CXX = os.environ.get("CXX", "g++")
SECONDS = 420  # for one command

SANITIZED = {
    "plain": ["-O2"],
    "address": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}
# What is forced, see csrc/cuda/launch.cu: lanes that leave warps with several rows, and more chunks than rows.
LAUNCH_SHAPES = ["lanes=1,chunks=3", "lanes=8,chunks=65535", "lanes=256,chunks=5"]

# Fault -> {build: words that its output must have}. What no build is named for, it need not notice.
DIVERGENT_BARRIER = {"plain": "divergent barrier"}
INVALID_LAUNCH = {"plain": "invalid configuration argument"}
FAULTS = {
    "read_outside": {"address": "heap-buffer-overflow"},
    "write_outside": {"address": "heap-buffer-overflow"},
    "misaligned_vector": {"address": "misaligned address"},
    "shared_overrun": {"address": "out of bounds for type"},
    "unwritten_shared": {"plain": "nan, should be"},
    "missing_barrier": {"plain": "nan, should be", "thread": "data race"},
    "missing_warp_barrier": {"thread": "data race"},
    "barrier_in_branch": DIVERGENT_BARRIER,
    "return_before_barrier": DIVERGENT_BARRIER | {"address": "divergent barrier", "thread": "divergent barrier"},
    "two_barriers": DIVERGENT_BARRIER,
    "shuffle_in_branch": {"plain": "divergent shuffle"},
    "shuffle_outside_mask": {"plain": "takes no part in"},
    "block_too_large": INVALID_LAUNCH,
    "grid_too_tall": INVALID_LAUNCH,
    "empty_grid": INVALID_LAUNCH,
}


class Failed(Exception):
    pass


def run(command: list[str], env: dict[str, str] | None = None, expect_failure: bool = False) -> str:
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(command)}\ntook more than {SECONDS} seconds") from None
    if (done.returncode != 0) != expect_failure:
        raise Failed(f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def flags() -> list[str]:
    common = ["-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    cpu = Path("/proc/cpuinfo")
    fma = ["-mfma"] if cpu.exists() and re.search(r"^flags.*\bfma\b", cpu.read_text(), re.MULTILINE) else []
    return [*common, *fma, "-DGELU_EXT_EMULATE_CUDA", f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}"]


def toolkit_headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    found = (Path(root) / "include" for root in roots if root)
    return next((headers for headers in found if (headers / "cuda_bf16.h").exists()), None)


class Workshop:
    """Compiles into one folder, every object once, as many at a time as there are processors."""

    def __init__(self, folder: Path, workers: int):
        self.folder = folder
        self.pool = ThreadPoolExecutor(workers)
        self.objects = {}

    def compile(self, name: str, source: Path, extra: list[str], headers: Path = EMULATOR / "standin"):
        target = self.folder / f"{name}.o"
        command = [CXX, "-x", "c++", *flags(), *extra, f"-isystem{headers}", "-c", str(source), "-o", str(target)]
        self.objects[name] = self.pool.submit(run, command)

    def compile_kernels(self, build: str, extra: list[str], **headers: Path):
        for kernel in sorted(KERNELS, key=lambda path: path.stat().st_size, reverse=True):
            self.compile(f"{build}.{kernel.stem}", kernel, extra, **headers)

    def program(self, name: str, objects: list[str], extra: list[str]) -> str:
        for needed in objects:
            self.objects[needed].result()
        target = self.folder / name
        run([CXX, *extra, *[str(self.folder / f"{needed}.o") for needed in objects], "-o", str(target)])
        return str(target)

    def kernel_program(self, build: str, emulator: str = "emulator", name: str | None = None) -> str:
        objects = ["driver", emulator, *[f"{build}.{kernel.stem}" for kernel in KERNELS]]
        return self.program(name or build, objects, SANITIZED.get(build, []))


class Report:
    def __init__(self, only: str):
        self.only = only
        self.passed = self.failed = 0

    def step(self, name: str, check: Callable[[], str]):
        if self.only not in name:
            return
        start = time.monotonic()
        try:
            result, word = check(), "passed"
            self.passed += 1
        except Failed as error:
            result, word = str(error), "FAILED"
            self.failed += 1
        print(f"{word}  {time.monotonic() - start:6.1f} s  {name}: {result}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="run the steps that have this in their name")
    report = Report(parser.parse_args().only)
    headers = toolkit_headers()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        workshop = Workshop(Path(folder), os.cpu_count() or 1)
        compile_all(workshop, headers)
        run_kernels(workshop, report, headers)
        run_faults(workshop, report)
    print(f"{time.monotonic() - start:.0f} seconds")
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed or not report.passed else 0


def compile_all(workshop: Workshop, headers: Path | None):
    # The scheduler must not be instrumented; the driver need not be: only kernels are looked at.
    workshop.compile("emulator", EMULATOR / "cuda_emulator.cpp", ["-O2"])
    workshop.compile("portable_emulator", EMULATOR / "cuda_emulator.cpp", ["-O2", "-DCUDA_EMULATOR_UCONTEXT"])
    workshop.compile("driver", HERE / "emulated_kernels.cpp", ["-O2"])
    for build, extra in SANITIZED.items():
        workshop.compile_kernels(build, extra)
    for build, extra in SANITIZED.items():
        workshop.compile(f"{build}.faults", HERE / "emulated_faults.cpp", extra)
    if headers is not None:
        workshop.compile_kernels("nvidia", ["-O1"], headers=headers)


def run_kernels(workshop: Workshop, report: Report, headers: Path | None):
    checksums = {}

    def small(build: str, orders: list[str], **program: str) -> str:
        output = run([workshop.kernel_program(build, **program), "small", *orders]).strip()
        checksums[program.get("name", build)] = output.split()[-1]
        return output

    def same_bits() -> str:
        if len(checksums) < 2 or len(set(checksums.values())) != 1:
            raise Failed(str(checksums))
        return ", ".join(checksums)

    def all_shapes() -> str:
        return run([workshop.kernel_program("plain"), "large", "up", "down", "1", "2"]).strip()

    def forced(shape: str) -> str:
        return run([workshop.kernel_program("plain"), "small", "up", "3"], {"GELU_EXT_CUDA_LAUNCH": shape}).strip()

    report.step("plain, all shapes", all_shapes)
    report.step("plain, small shapes", lambda: small("plain", ["up"]))
    for shape in LAUNCH_SHAPES:
        report.step(f"plain, {shape}", lambda shape=shape: forced(shape))
    report.step("portable fibers", lambda: small("plain", ["up"], emulator="portable_emulator", name="portable"))
    report.step("address and undefined behaviour sanitizers", lambda: small("address", ["up", "5"]))
    report.step("thread sanitizer", lambda: small("thread", ["up"]))
    if headers is None:
        print("skipped  no CUDA toolkit to compare its headers with the stand-ins")
    else:
        report.step(f"nvidia headers of {headers}", lambda: small("nvidia", ["up"]))
    if not report.only:
        report.step("the same bits in all builds", same_bits)


def run_faults(workshop: Workshop, report: Report):
    programs = {}

    def program(build: str) -> str:
        if build not in programs:
            name, objects = f"{build}.faults.program", [f"{build}.faults", "emulator"]
            programs[build] = workshop.program(name, objects, SANITIZED[build])
        return programs[build]

    def whole() -> str:
        for build in SANITIZED:
            run([program(build), "none"])
        return "passes in " + ", ".join(SANITIZED)

    def caught(fault: str) -> str:
        for build, words in FAULTS[fault].items():
            output = run([program(build), fault], {"TSAN_OPTIONS": "halt_on_error=1"}, expect_failure=True)
            if words not in output:
                raise Failed(f'the {build} build does not say "{words}" but\n{output[-2000:]}')
        return "caught by " + ", ".join(f"{build} ({words})" for build, words in FAULTS[fault].items())

    report.step("kernel without a fault", whole)
    for fault in FAULTS:
        report.step(f"fault {fault}", lambda fault=fault: caught(fault))


if __name__ == "__main__":
    sys.exit(main())
