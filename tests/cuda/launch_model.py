"""Predicts, without a GPU, what share of a copy's bandwidth the launch shapes allow; beside what a card has measured.

    python tests/cuda/launch_model.py

Compiles the rule of csrc/cuda/launch.cu with g++ and asks it for the shape of each problem. A problem's time is then
that of a launch, of its waves (blocks that a device holds at once), and of the second step of the bias gradients:

    a wave      STARTS, and the longer of its bytes at the rate that the main loop allows and of its threads' loads,
                one after another, at LATENCY each
    second      SECOND_EARLY where it can start early (programmatic dependent launch), else SECOND; its partial sums are
                written and read once

A copy takes a launch and its bytes. The launch rule of 0.1.0, put into the same formulas, gives on an H100 57 % for
the backward of 512 x 3072 with its sums, 85 % for that of 4096 x 3072, and 90 % for its forward. budgets.py writes the
table into bench/results/cuda_budgets.md. Measured: from the files that `make gpu` wrote under bench/results/.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DTYPES = ("float64", "float32", "float16", "bfloat16")  # in the order of enum DType
THREADS = 256


@dataclass(frozen=True)
class Gpu:
    """Bytes/s of a device copy, and FFMA lanes of a multiprocessor among the rest."""

    name: str
    architecture: int
    bandwidth: float
    multiprocessors: int
    clock: float
    fma_lanes: int


# The copy bandwidths of H100 and H200 were measured; the others are taken to reach the same share (90 %) of their data
# sheets.
GPUS = (
    Gpu("A100", 80, 1.83e12, 108, 1.41e9, 64),
    Gpu("H100", 90, 3.0e12, 132, 1.98e9, 128),
    Gpu("H200", 90, 4.3e12, 132, 1.98e9, 128),
    Gpu("B200", 100, 7.2e12, 148, 1.96e9, 128),
)

LAUNCH, LATENCY, STARTS, SECOND, SECOND_EARLY = 2e-6, 0.75e-6, 0.3e-6, 3e-6, 1.2e-6  # seconds
# What is left of the rate where pieces are so small that rows begin and end within a sector of memory: a guess.
OF_PIECES = {16: 1.0, 8: 0.97, 4: 0.92, 2: 0.7}


class Problem(NamedTuple):
    op: str  # "bias_act" or "act_mul"
    way: str
    dtype: str
    rows: int
    cols: int
    bias: bool = True

    @property
    def kernel(self) -> str:
        """As budgets.py calls it."""
        return f"{self.op}_{self.way}{' + dbias' if self.sums else ''}"

    @property
    def sums(self) -> bool:
        return self.bias and self.way == "backward"

    @property
    def size(self) -> int:
        return {"float64": 8, "float32": 4}.get(self.dtype, 2)

    @property
    def bytes(self) -> int:
        matrices = {"forward": (2, 3), "backward": (3, 5)}[self.way][self.op == "act_mul"]
        return matrices * self.rows * self.cols * self.size


class Shape(NamedTuple):
    """Of the first launch; what is left of a flat view is a second one."""

    rows: int
    lanes: int
    tiles: int
    chunks: int
    blocks: int  # on a multiprocessor at once
    unroll: int
    piece: int  # bytes that are accessed together
    launches: int


SHAPES = ((1, 4096), (16, 4096), (512, 768), (512, 3072), (1024, 3072), (2048, 3072), (4096, 3072), (8192, 11008),
          (16384, 16384), (1000000, 64), (8192, 3420), (8192, 1234), (8192, 4095))  # fmt: skip
WAYS = (("bias_act", "forward"), ("bias_act", "backward"), ("act_mul", "forward"), ("act_mul", "backward"))
PROBLEMS = [Problem(op, way, "bfloat16", *shape) for op, way in WAYS for shape in SHAPES]
PROBLEMS += [Problem(op, way, "bfloat16", 8192, cols, False) for op, way in WAYS for cols in (3420, 1234, 4095)]
PROBLEMS += [Problem(op, way, "float32", *shape) for op, way in WAYS for shape in ((512, 3072), (4096, 3072))]


def shapes_of(questions: list[tuple[Problem, Gpu]]) -> list[Shape]:
    lines = [
        f"{int(p.way == 'backward')} {int(p.op == 'act_mul')} {DTYPES.index(p.dtype)} {p.rows} {p.cols} {int(p.bias)} "
        f"{gpu.multiprocessors} {10 * gpu.architecture}"
        for p, gpu in questions
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "launch_shapes"
        command = [
            "g++",
            "-std=c++17",
            "-O1",
            "-DGELU_EXT_EMULATE_CUDA",
            f"-I{ROOT / 'csrc'}",
            f"-I{HERE / 'emulator'}",
        ]
        command += [f"-isystem{HERE / 'emulator' / 'standin'}", "-Wno-unknown-pragmas", "-x", "c++"]
        sources = [
            HERE / "launch_shapes.cpp",
            ROOT / "csrc" / "cuda" / "launch.cu",
            HERE / "emulator/cuda_emulator.cpp",
        ]
        subprocess.run([*command, *map(str, sources), "-o", str(program)], check=True)
        answer = subprocess.run([str(program)], input="\n".join(lines), capture_output=True, text=True, check=True)
    return [Shape(*map(int, line.split())) for line in answer.stdout.splitlines()]


def predicted(p: Problem, shape: Shape, gpu: Gpu, rate: float = 1.0) -> float:
    """Share of a copy; `rate` is the share of its bandwidth that the kernel's main loop allows."""
    grid, wave = shape.tiles * shape.chunks, shape.blocks * gpu.multiprocessors
    passes = math.ceil(math.ceil(shape.rows / (THREADS // shape.lanes)) / shape.chunks)
    seconds, left = LAUNCH * shape.launches, grid
    while left > 0:
        blocks = min(left, wave)
        left -= blocks
        moved = p.bytes * blocks / grid / (gpu.bandwidth * rate * OF_PIECES[shape.piece])
        seconds += STARTS + max(moved, math.ceil(passes / shape.unroll) * LATENCY)
    if p.sums and shape.chunks > 1:
        partials = 8 * shape.chunks * p.cols * (2 if p.op == "act_mul" else 1)
        seconds += partials / gpu.bandwidth + (SECOND_EARLY if gpu.architecture >= 90 else SECOND)
    return (LAUNCH + p.bytes / gpu.bandwidth) / seconds


def measured() -> dict[tuple[str, Problem], float]:
    """{(device's name, problem): share of a copy in the same run}, of exact GELU, from the files of `make gpu`."""
    found = {}
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or "rows" not in data or "about" not in data:
            continue
        for row in data["rows"]:
            if row["activation"] == "gelu" and row["pass"] in ("forward", "backward") and "copy" in row["x"]:
                problem = Problem(row["op"], row["pass"], row["dtype"], row["rows"], row["cols"])
                found[data["about"]["device"], problem] = row["x"]["copy"]
    return found


def table(rate: Callable[[Problem, Gpu], float] = lambda *_: 1.0) -> str:
    """Markdown: per problem and GPU the launch and the predicted share; "-" stands for what no card has measured."""
    questions = [(p, gpu) for p in PROBLEMS for gpu in GPUS]
    facts = measured()
    lines = [
        "## Launch shapes",
        "",
        "**Predicted** by tests/cuda/launch_model.py, which has the formulas: share of a copy of the same bytes, exact",
        "GELU. Waves: blocks in multiples of what the device holds at once. Passes: rows of a thread. Together: bytes",
        "that are accessed at once, less than 16 where the width allows no more. Measured: by `make gpu`, where it has",
        "run; -: not yet measured on a GPU.",
        "",
        "| kernel | dtype | shape | bias | gpu | blocks | waves | passes | together | predicted | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (p, gpu), shape in zip(questions, shapes_of(questions), strict=True):
        blocks = shape.tiles * shape.chunks
        passes = p.rows * p.cols * p.size / 16 / THREADS / blocks
        fact = next((share for (name, q), share in facts.items() if gpu.name in name and q == p), None)
        cells = [
            p.kernel, p.dtype, f"{p.rows} x {p.cols}", "yes" if p.bias else "no", gpu.name, blocks,
            f"{blocks / (shape.blocks * gpu.multiprocessors):.2f}", f"{passes:.1f}", shape.piece,
            f"{predicted(p, shape, gpu, rate(p, gpu)):.0%}", "-" if fact is None else f"{fact:.0%}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
