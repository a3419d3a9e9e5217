#!/usr/bin/env python3
"""Runs the CUDA kernels on the CPU: builds csrc/cuda with g++ and the emulator, checks results, races and memory.

    python tests/cuda/run_emulated.py [--only WORD]

Needs g++ with its sanitizers; no GPU, no CUDA toolkit, no torch. The kernels' sources are compiled as they are;
tests/cuda/emulator stands in for the CUDA runtime and for NVIDIA's 16-bit types. The builds:

    plain       -O2: all shapes in four orders of threads and blocks, and forced launch shapes
    address     AddressSanitizer, alignment, bounds, overflow: nothing outside of exact-size allocations is touched
    thread      ThreadSanitizer, which takes each CUDA thread for a thread: no barrier is missing
    portable    plain, with fibers made by ucontext
    pairs       plain, the forward kernels in pairs of floats, as for compute capability 10.0 and later
    nvidia      NVIDIA's own headers for the 16-bit types, if a toolkit is there

All must give the same bits. Planted faults show that each check catches what it is for: in a kernel of their own
(emulated_faults.cpp), and in copies of csrc/cuda (MUTANTS).
What is fused is written as fused in the sources, so contraction is off; -mfma is on where this CPU has it.
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
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EMULATOR = HERE / "emulator"
KERNELS = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
CXX = os.environ.get("CXX", "g++")
SECONDS = 900  # for one command

BUILDS = {
    "plain": ["-O2"],
    # Of "undefined", what concerns memory and indices: the rest doubles the time of compilation.
    "address": [
        "-O1",
        "-g1",
        "-fsanitize=address,alignment,bounds,signed-integer-overflow",
        "-fno-sanitize-recover=all",
    ],
    "thread": ["-O1", "-g1", "-fsanitize=thread"],
}
# What is forced, see csrc/cuda/launch.cu: lanes that leave warps with several rows, and more chunks than rows.
LAUNCH_SHAPES = ["lanes=4,chunks=3", "lanes=8,chunks=65535", "lanes=256,chunks=5"]

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
# Name -> (file of csrc/cuda, what is taken out of it, the source that is then compiled anew): the values must be wrong.
MUTANTS = {
    "no wait for the earlier kernel": ("column_sums.cu", "  wait_for_earlier_kernel();\n", "column_sums"),
    "a flat view of strided rows": ("launch.cuh", " || !is_contiguous(p)", "forward"),
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
    except FileNotFoundError as error:  # what failed to build
        raise Failed(f"{error.filename} is not there") from None
    if (done.returncode != 0) != expect_failure:
        raise Failed(f"{' '.join(command)}\nended with {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def fma() -> list[str]:
    cpu = Path("/proc/cpuinfo")
    return ["-mfma"] if cpu.exists() and re.search(r"^flags.*\bfma\b", cpu.read_text(), re.MULTILINE) else []


def flags() -> list[str]:
    common = ["-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    return [*common, *fma(), "-DGELU_EXT_EMULATE_CUDA", f"-I{EMULATOR}", f"-I{ROOT / 'csrc'}"]


def toolkit_headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parent.parent, "/usr/local/cuda"]
    found = (Path(root) / "include" for root in roots if root)
    return next((headers for headers in found if (headers / "cuda_bf16.h").exists()), None)


@dataclass
class Program:
    """Objects {name: (source, flags, headers)} and how to link them. Objects of one name are compiled once."""

    objects: dict[str, tuple[Path, list[str], Path]]
    link_flags: list[str] = field(default_factory=list)


def mutate(name: str, folder: Path) -> Path:
    """A copy of csrc with a fault; the source to compile."""
    file, text, source = MUTANTS[name]
    copy = folder / name.replace(" ", "_")
    shutil.copytree(ROOT / "csrc", copy)
    path = copy / "cuda" / file
    before = path.read_text()
    if before.count(text) != 1:
        raise SystemExit(f"{file} has {text!r} {before.count(text)} times, not once: mend MUTANTS")
    path.write_text(before.replace(text, ""))
    return copy / "cuda" / f"{source}.cu"


def programs(toolkit: Path | None, folder: Path) -> dict[str, Program]:
    standin = EMULATOR / "standin"
    # The scheduler must not be instrumented; the driver need not be: only kernels are looked at.
    emulator = {"emulator": (EMULATOR / "cuda_emulator.cpp", ["-O2"], standin)}
    ucontext = {"ucontext": (EMULATOR / "cuda_emulator.cpp", ["-O2", "-DCUDA_EMULATOR_UCONTEXT"], standin)}
    driver = {"driver": (HERE / "emulated_kernels.cpp", ["-O2"], standin)}

    def kernels(build: str, extra: list[str], headers: Path = standin) -> dict[str, tuple[Path, list[str], Path]]:
        return {f"{build}.{kernel.stem}": (kernel, extra, headers) for kernel in KERNELS} | driver

    result = {build: Program(kernels(build, extra) | emulator, extra) for build, extra in BUILDS.items()}
    pairs = {"pairs.forward": (ROOT / "csrc" / "cuda" / "forward.cu", ["-O2", "-DGELU_EXT_EMULATE_PAIRS"], standin)}
    others = {name: how for name, how in kernels("plain", BUILDS["plain"]).items() if name != "plain.forward"}
    result["pairs"] = Program(pairs | others | emulator)
    result["portable"] = Program(kernels("plain", BUILDS["plain"]) | ucontext)
    if toolkit is not None:
        result["nvidia"] = Program(kernels("nvidia", ["-O1"], toolkit) | emulator)
    for build, extra in BUILDS.items():
        faults = {f"{build}.faults": (HERE / "emulated_faults.cpp", extra, standin)}
        result[f"{build}.faults"] = Program(faults | emulator, extra)
    for name, (_, _, source) in MUTANTS.items():
        mutant = {f"plain.{source}.{name}": (mutate(name, folder), BUILDS["plain"], standin)}
        sound = {other: how for other, how in kernels("plain", BUILDS["plain"]).items() if other != f"plain.{source}"}
        result[name] = Program(mutant | sound | emulator)
    return result


class Workshop:
    """Compiles into one folder, as many objects at a time as there are processors."""

    def __init__(self, folder: Path, wanted: dict[str, Program]):
        self.folder = folder
        self.programs = wanted
        pool = ThreadPoolExecutor(os.cpu_count() or 1)
        objects = {name: how for program in wanted.values() for name, how in program.objects.items()}
        self.done = {name: pool.submit(self._compile, name, *how) for name, how in objects.items()}

    def _compile(self, name: str, source: Path, extra: list[str], headers: Path):
        output = str(self.folder / f"{name}.o")
        run([CXX, "-x", "c++", *flags(), *extra, f"-isystem{headers}", "-c", str(source), "-o", output])

    def path(self, program: str) -> str:
        return str(self.folder / program)

    def link(self, name: str) -> str:
        program = self.programs[name]
        for needed in program.objects:
            self.done[needed].result()
        objects = [str(self.folder / f"{needed}.o") for needed in program.objects]
        run([CXX, *program.link_flags, *objects, "-o", self.path(name)])
        return f"{len(objects)} objects"


@dataclass
class Step:
    name: str
    programs: list[str]
    check: Callable[[Workshop], str]
    last: bool = False  # needs what the others found


def steps(toolkit: Path | None) -> list[Step]:
    checksums = {}

    def kernels(build: str, size: str, *orders: str, shape: str = "") -> Step:
        def check(workshop: Workshop) -> str:
            output = run([workshop.path(build), size, *orders], {"GELU_EXT_CUDA_LAUNCH": shape}).strip()
            if size == "small" and not shape:
                checksums[build] = output.split()[-1]
            return output

        name = " ".join(word for word in [build, size, shape, *orders] if word)
        return Step(name, [build], check)

    def same_bits(_: Workshop) -> str:
        if len(checksums) < 2 or len(set(checksums.values())) != 1:
            raise Failed(f"different checksums: {checksums}")
        return ", ".join(checksums)

    builds = ["plain", "portable", "pairs", "address", "thread", *(["nvidia"] if toolkit else [])]
    return [
        *[kernels(build, "small", "up", *(["5"] if build == "address" else [])) for build in builds],
        Step("same bits", builds, same_bits, last=True),
        *[kernels("plain", "small", "up", "3", shape=shape) for shape in LAUNCH_SHAPES],
        kernels("plain", "large", "up", "down", "1", "2"),
        Step("no fault", [f"{build}.faults" for build in BUILDS], run_sound_kernel),
        *[fault_step(fault, words) for fault, words in FAULTS.items()],
        *[mutant_step(name) for name in MUTANTS],
    ]


def run_sound_kernel(workshop: Workshop) -> str:
    for build in BUILDS:
        run([workshop.path(f"{build}.faults"), "none"])
    return "passes in " + ", ".join(BUILDS)


def fault_step(fault: str, words: dict[str, str]) -> Step:
    def check(workshop: Workshop) -> str:
        for build, expected in words.items():
            options = {"TSAN_OPTIONS": "halt_on_error=1"}
            output = run([workshop.path(f"{build}.faults"), fault], options, expect_failure=True)
            if expected not in output:
                raise Failed(f'{build} does not say "{expected}" but\n{output[-2000:]}')
        return "; ".join(f'{build} says "{expected}"' for build, expected in words.items())

    return Step(f"fault {fault}", [f"{build}.faults" for build in words], check)


def mutant_step(name: str) -> Step:
    def check(workshop: Workshop) -> str:
        output = run([workshop.path(name), "small", "up"], expect_failure=True)
        if ", should be " not in output:
            raise Failed(f"it is not the values that are wrong:\n{output[-2000:]}")
        return output.strip().splitlines()[-1]

    return Step(f"fault {name}", [name], check)


def run_steps(steps: list[Step], workshop: Workshop) -> int:
    """Runs independent steps, as many at a time as there are processors, and says how many passed."""

    def attempt(step: Step) -> bool:
        start = time.monotonic()
        try:
            word, text = "passed", step.check(workshop)
        except Failed as error:
            word, text = "FAILED", str(error)
        print(f"{word} {time.monotonic() - start:6.1f} s  {step.name}: {text}", flush=True)
        return word == "passed"

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return sum(pool.map(attempt, steps))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="the steps that have this in their name")
    only = parser.parse_args().only
    toolkit = toolkit_headers()
    if toolkit is None:
        print("no CUDA toolkit here, so its headers are not compared with the stand-ins")
    selected = [step for step in steps(toolkit) if only in step.name]
    needed = {name for step in selected for name in step.programs}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        wanted = {name: program for name, program in programs(toolkit, Path(folder)).items() if name in needed}
        workshop = Workshop(Path(folder), wanted)
        linked = [Step(f"build {name}", [], lambda shop, name=name: shop.link(name)) for name in wanted]
        passed = run_steps(linked, workshop)
        passed += run_steps([step for step in selected if not step.last], workshop)
        passed += run_steps([step for step in selected if step.last], workshop)
    failed = len(linked + selected) - passed
    print(f"{time.monotonic() - begin:.0f} seconds\n{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
