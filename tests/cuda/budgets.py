"""Proves from machine code, without a GPU, that the CUDA kernels keep within their instruction budgets.

    python tests/cuda/budgets.py [--check | --add]

Compiles csrc/cuda/ for sm_80, sm_90 and sm_100, disassembles it and counts, in the main loop of every kernel that loads
16 bytes at a time: instructions and special-function operations (MUFU) per element, 128-bit loads and stores, and how
many loads are issued before the first is used. Fails if a kernel exceeds its limit in budgets.json, uses local memory,
calls a function, has a double-precision instruction, waits for its bias before it loads rows, loads too few bytes at a
time on a multiprocessor, or has an opcode that this script does not know. Writes bench/results/cuda_budgets.md; with
--check it compares with that file instead, with --add it writes limits for the kernels that have none. Shares of
bandwidth are predictions of a simple model: no GPU ran.

Needs nvcc (see compile.py) and nvdisasm: in the folder NVDISASM names, in PATH, in the toolkit or in an installed
triton package. Exits with 2 if either is missing.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import launch_model
from compile import SOURCES, compile_one, default_jobs, nvcc_or_exit, without_reports
from launch_model import DTYPES, GPUS, THREADS, Gpu
from machine_code import find_nvdisasm, functions_of, loads_together, main_loop, opcode_of, pipe_of

ROOT = Path(__file__).resolve().parents[2]
LIMITS_FILE = Path(__file__).with_name("budgets.json")
LIMITS = json.loads(LIMITS_FILE.read_text())
TABLE = ROOT / "bench" / "results" / "cuda_budgets.md"
ARCHITECTURES = (80, 90, 100)
WAYS = ("forward", "backward")


def snake(name: str) -> str:
    """BiasAct -> bias_act"""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


# {struct: name} of the activations, {kernel: operands} of the operations, as csrc says.
ACTIVATIONS = dict(
    re.findall(
        r"^struct (\w+)[^;{]*\{\n  static constexpr const char\* name = \"(\w+)\"",
        (ROOT / "csrc" / "activations.h").read_text(),
        re.MULTILINE,
    )
)
OPERANDS = {
    struct: int(operands)
    for struct, operands in re.findall(
        r"^struct (\w+) \{\n  static constexpr int operands = (\d+)",
        (ROOT / "csrc" / "operations.h").read_text(),
        re.MULTILINE,
    )
}
WANTED = {None: "", "0": "", "1": " + dbias", "2": " (some)"}
INPUTS = {f"{snake(struct)}_{way}": n + (way == "backward") for struct, n in OPERANDS.items() for way in WAYS}
OUTPUTS = {f"{snake(struct)}_{way}": n if way == "backward" else 1 for struct, n in OPERANDS.items() for way in WAYS}
KINDS = {f"{snake(struct)}_{way}": (n, way) for struct, n in OPERANDS.items() for way in WAYS}
VECTOR_BYTES, SIZES = 16, {"float32": 4, "float16": 2, "bfloat16": 2}
# KB that a multiprocessor loads at least at once; and what it should, by architecture: CUB's numbers for an A100 or
# H100, an H200 and a B200. What is between them has a reason: of the architecture if it is 48 or more, of kernels of so
# many operands if it is 32 or more, else of the activation; or of the kernel.
LEAST_IN_FLIGHT, IN_FLIGHT = 32, {80: 32, 90: 48, 100: 64}
DELAYED = "the compiler delays loads for the sake of the formula's many intermediate results"
REASONS = {
    (1, "forward", 32): "the compiler delays the third load in the longer formulas",
    (1, "forward", 16): "in pairs of floats the compiler delays the third load, as the formulas are half as long",
    (1, "backward", 16): "the compiler delays the loads of a second row",
    (1, "backward", 32): "the compiler delays the loads of a second row",
    (2, "forward", 32): "the compiler delays loads of float32 where a thread has more than one row",
    (2, "forward", 16): "two biases leave registers for three blocks, and the compiler delays the last load",
    (2, "backward", 16): "two biases and two sums are 32 registers of a thread: a fourth block would spill",
    (2, "backward", 32): "Blackwell's compiler delays loads of float32 for a fourth block",
    "gaussian_gelu_forward": "bias, mean and deviation are 24 registers of a 16-bit thread: a fourth block would spill",
    "gaussian_gelu_backward": "with their sums these are 48 registers: a third block of 16 bits would spill",
    100: "what is in flight occupies registers; 64 KB would be a quarter of them, or take copies to shared memory",
    "mish": DELAYED,
    "tanh": DELAYED,
    "elu": DELAYED,
    "identity": "the compiler delays the loads of a second row, whose use is a few instructions away",
}


def inputs_of(op: str, activation: str) -> int:
    """Matrices that a kernel reads: the slope of the identity needs no x."""
    return INPUTS[op] - ((op, activation) == ("bias_act_backward", "identity"))


FORBIDDEN = {"CALL", "FRND", "LDL", "STL", "LD", "ST", "ATOM", "ATOMG", "RED"}


LATENCY = 0.8e-6  # seconds from a load to its data in a busy memory


@dataclass
class Kernel:
    op: str
    activation: str
    dtype: str
    wanted: str
    architecture: int
    elements: int  # of the main loop, per thread
    counts: collections.Counter  # instructions of the main loop by pipe
    registers: int
    together: int  # loads issued before the first is used
    starts: int  # and the same where the kernel begins
    loads: int
    faults: list[str]

    @property
    def slots(self) -> float:
        return sum(self.counts.values()) / self.elements

    @property
    def mufu(self) -> float:
        return self.counts["mufu"] / self.elements

    @property
    def in_flight(self) -> int:
        blocks = min(65536 // (-(-self.registers // 8) * 8 * THREADS), 2048 // THREADS)
        return blocks * THREADS * VECTOR_BYTES * self.together

    def predicted(self, gpu: Gpu) -> float:
        """Share of a copy's bandwidth that the pipes, and the bytes in flight against the latency, allow."""
        size = SIZES[self.dtype]
        moved = (INPUTS[self.op] + OUTPUTS[self.op]) * size * self.elements  # bytes, per thread and loop
        per_lane = {
            pipe: self.counts[pipe] / lanes
            for pipe, lanes in (("fma", gpu.fma_lanes), ("heavy", 64), ("alu", 64), ("mufu", 16), ("double", 64))
        }
        if gpu.fma_lanes == 64:
            per_lane["fma"] += per_lane["heavy"]
        cycles = max(sum(self.counts.values()) / 128, *per_lane.values())
        compute = moved / (cycles / (gpu.multiprocessors * gpu.clock))
        reads = INPUTS[self.op] / (INPUTS[self.op] + OUTPUTS[self.op])
        latency = self.in_flight * gpu.multiprocessors / LATENCY / reads
        return min(1.0, compute / gpu.bandwidth, latency / gpu.bandwidth)


def faults_of(lines: list[tuple[int | str, str]], loop: list[str], op: str, inputs: int, loads: int) -> list[str]:
    code = {text for where, text in lines if not isinstance(where, str)}
    opcodes = {opcode_of(text).split(".")[0] for text in code}
    # Without a RET, what sm_80 calls CALL.REL.NOINC is the jump by which a warp's last thread leaves a loop.
    forbidden = FORBIDDEN - ({"CALL"} if "RET" not in opcodes else set())
    faults = [f"has {opcode}" for opcode in sorted(opcodes & forbidden)]
    if any(opcode_of(text).startswith("MUFU.TANH") for text in code):
        faults.append("has MUFU.TANH")
    if any(pipe_of(text) == "double" for text in code):
        faults.append("has double-precision instructions")
    if unknown := sorted({opcode_of(text) for text in loop if pipe_of(text) is None}):
        faults.append(f"has opcodes of unknown pipes: {', '.join(unknown)}")
    stores = sum(opcode_of(text).startswith("STG") for text in loop)
    wide = sum(".128" in opcode_of(text) for text in loop if opcode_of(text)[:3] in ("LDG", "STG"))
    if loads % inputs or stores * inputs != loads * OUTPUTS[op] or wide != loads + stores:
        faults.append(f"loop has {loads} loads and {stores} stores, {wide} of them of 128 bits")
    return faults


KERNEL = re.compile(
    r"(?P<way>forward|backward)_kernelINS_\d+(?P<op>[A-Z]\w*?)ENS_\d+(?P<activation>[A-Z]\w*?)ENS0_\d+VectorColumns"
    r"ILNS_5DTypeE(?P<dtype>\d)EEE(?:LNS0_6WantedE(?P<wanted>\d))?"
)


def kernels_of(source: Path, architecture: int, folder: Path, nvcc: Path, nvdisasm: Path) -> list[Kernel]:
    cubin = folder / f"{source.stem}.{architecture}.cubin"
    passed, _, log = compile_one(nvcc, source, architecture, cubin, "-cubin")
    if not passed:
        raise RuntimeError(f"{source.name} does not compile for sm_{architecture}:\n{without_reports(log)}")
    registers = dict(re.findall(r"Compiling entry function '(\S+)' for.*?Used (\d+) registers", log, re.DOTALL))
    kernels = []
    for name, lines in functions_of(nvdisasm, cubin).items():
        if not (match := KERNEL.search(name)):
            continue
        op, dtype, loop = f"{snake(match['op'])}_{match['way']}", DTYPES[int(match["dtype"])], main_loop(lines)
        activation = ACTIVATIONS.get(match["activation"], match["activation"])
        inputs = inputs_of(op, activation)
        loads = sum(opcode_of(text).startswith("LDG") for text in loop)
        size = SIZES[dtype]
        kernels.append(
            Kernel(
                op=op,
                activation=activation,
                dtype=dtype,
                wanted=WANTED[match["wanted"]],
                architecture=architecture,
                elements=VECTOR_BYTES // size * max(1, loads // inputs),
                counts=collections.Counter(pipe_of(text) or "unknown" for text in loop),
                registers=int(registers[name]),
                together=loads_together(loop),
                starts=loads_together([text for where, text in lines if not isinstance(where, str)]),
                loads=loads,
                faults=faults_of(lines, loop, op, inputs, loads),
            )
        )
    return kernels


def reason_for_less(kernel: Kernel) -> str:
    """Why the kernel has fewer bytes in flight than it should; "" if it has them, or there is no reason."""
    found, goal = kernel.in_flight >> 10, IN_FLIGHT[kernel.architecture]
    if found >= goal:
        return ""
    if found >= 48:
        return REASONS.get(kernel.architecture, "")
    if kernel.op in REASONS:
        return REASONS[kernel.op]
    if found >= LEAST_IN_FLIGHT:
        return REASONS.get((*KINDS[kernel.op], 32 if kernel.dtype == "float32" else 16), "")
    return REASONS.get(kernel.activation, "")


def check(kernel: Kernel) -> None:
    """Adds what breaks a limit to the kernel's faults."""
    bits = "32" if kernel.dtype == "float32" else "16"
    limit = LIMITS[kernel.op].get(kernel.activation, {}).get(bits)
    if limit is None:
        kernel.faults.append("has no limit in budgets.json")
        return
    if kernel.slots > limit["slots"]:
        kernel.faults.append(f"takes {kernel.slots:.2f} instructions an element, more than {limit['slots']}")
    if kernel.mufu > limit["mufu"]:
        kernel.faults.append(f"takes {kernel.mufu:.2f} MUFU an element, more than {limit['mufu']}")
    if kernel.in_flight >> 10 < IN_FLIGHT[kernel.architecture] and not reason_for_less(kernel):
        kernel.faults.append(f"has {kernel.in_flight >> 10} KB in flight, less than {IN_FLIGHT[kernel.architecture]}")
    if kernel.starts < inputs_of(kernel.op, kernel.activation):
        kernel.faults.append(f"waits for a load when it has issued {kernel.starts}")


def add_limits(kernels: list[Kernel]) -> None:
    """Gives every activation that has none the limits that its kernels just meet, and writes the file."""
    for kernel in kernels:
        bits = "32" if kernel.dtype == "float32" else "16"
        mine = [k for k in kernels if (k.op, k.activation) == (kernel.op, kernel.activation)]
        found = LIMITS.setdefault(kernel.op, {}).setdefault(kernel.activation, {})
        if bits not in found:
            same = [k for k in mine if (k.dtype == "float32") == (bits == "32")]
            found[bits] = {"slots": math.ceil(max(k.slots for k in same)), "mufu": math.ceil(max(k.mufu for k in same))}
    rows = (
        f'  "{op}": {{\n'
        + ",\n".join(f'    "{name}": {json.dumps(limits)}' for name, limits in activations.items())
        + "\n  }"
        for op, activations in LIMITS.items()
    )
    LIMITS_FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def table_of(kernels: list[Kernel], version: str) -> str:
    letters = {reason: chr(ord("a") + i) for i, reason in enumerate(dict.fromkeys(REASONS.values()))} | {"": ""}
    lines = [
        "# Instruction budgets of the CUDA kernels",
        "",
        "Written by tests/cuda/budgets.py from machine code; no GPU ran. Slots: instructions of the main loop per",
        "element of the output. Together: loads issued before the first is used, of those in the loop.",
        "In flight: KB that a multiprocessor loads at once; a letter: why not more. Shares of a copy's bandwidth are",
        f"**predicted** by a model of pipes and latency. nvcc {version}.",
        "",
        *(f"{letter}: {reason}.  " for reason, letter in letters.items() if reason),
        "",
        "| kernel | activation | dtype | sm | slots | limit | MUFU | registers | together | in flight | "
        + " | ".join(f"{gpu.name} (predicted)" for gpu in GPUS)
        + " |",
        "|---|---|---|---|---|---|---|---|---|---|" + "---|" * len(GPUS),
    ]
    for kernel in kernels:
        bits = "32" if kernel.dtype == "float32" else "16"
        limit = LIMITS[kernel.op].get(kernel.activation, {}).get(bits, {}).get("slots", "")
        shares = [f"{kernel.predicted(gpu):.0%}" if gpu.architecture == kernel.architecture else "" for gpu in GPUS]
        cells = [
            kernel.op + kernel.wanted,
            kernel.activation,
            kernel.dtype,
            kernel.architecture,
            f"{kernel.slots:.2f}",
            limit,
            f"{kernel.mufu:g}",
            kernel.registers,
            f"{kernel.together}/{kernel.loads}",
            f"{kernel.in_flight >> 10} {letters[reason_for_less(kernel)]}".strip(),
            *shares,
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    found = {(k.op + k.wanted, k.activation, k.dtype, k.architecture): k for k in kernels}

    def rate(problem: launch_model.Problem, gpu: Gpu) -> float:
        return found[problem.kernel, "gelu", problem.dtype, gpu.architecture].predicted(gpu)

    return "\n".join(lines) + "\n\n" + launch_model.table(rate)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the table instead of writing it")
    parser.add_argument("--add", action="store_true", help="write limits for activations that have none yet")
    parser.add_argument("--jobs", type=int, default=default_jobs())
    arguments = parser.parse_args()
    nvcc = nvcc_or_exit()
    if not (nvdisasm := find_nvdisasm(nvcc)):
        print("no nvdisasm found: pip install triton, or set NVDISASM to the folder that has it")
        return 2
    version = re.search(r"V([\d.]+)", subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout)[1]
    sources = [source for source in SOURCES if source.stem in WAYS]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.jobs) as pool:
        jobs = [
            pool.submit(kernels_of, source, architecture, Path(folder), nvcc, nvdisasm)
            for architecture in ARCHITECTURES
            for source in sources
        ]
        kernels = [kernel for job in jobs for kernel in job.result()]
    kernels.sort(
        key=lambda k: (list(INPUTS).index(k.op), DTYPES.index(k.dtype), k.activation, k.wanted, k.architecture)
    )
    if arguments.add:
        add_limits(kernels)
    for kernel in kernels:
        check(kernel)
    faults = [
        f"{kernel.op}{kernel.wanted} {kernel.activation} {kernel.dtype} sm_{kernel.architecture}: {fault}"
        for kernel in kernels
        for fault in kernel.faults
    ]
    if not kernels:
        faults.append("no kernel was found in the machine code: have their names changed?")
    table = table_of(kernels, version)
    if not arguments.check:
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text(table)
    elif not TABLE.exists() or (f"nvcc {version}." in TABLE.read_text() and TABLE.read_text() != table):
        faults.append(f"{TABLE.relative_to(ROOT)} is out of date: run tests/cuda/budgets.py")
    print(*faults, f"{len(kernels)} kernels, {len(faults)} faults", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
