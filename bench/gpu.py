"""`make gpu`: everything that needs a GPU, in one command, in under ten minutes, from a bare checkout.

Steps: what machine this is, the test suite on the device (with the exhaustive 16-bit sweeps, side streams, graph
capture), more than 2^31 elements, bitwise repeatable bias gradients, compute-sanitizer where it is installed, then the
benchmark: every op, activation, dtype and shape against eager, torch.compile and a copy of the same bytes in the same
run, the most important cells first. Results are written after every cell, as JSON and as a table, under bench/results/;
a second call on the same commit goes on where the first ran out of time.

    python bench/gpu.py                  # on the first GPU
    python bench/gpu.py --device cpu     # every step that can run without one, to try the command itself
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from timing import alternate

import gelu_ext
from bench import Case, contenders, environment, fused_bias_act, line_of, row_of
from gelu_ext._activations import ACTIVATIONS

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


class Report:
    """Results of one machine and commit, on disk after every step."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device = device
        self.deadline = time.monotonic() + seconds
        commit = output("git", "rev-parse", "--short", "HEAD")
        about = environment(device) | {"commit": commit, "driver": driver(device)}
        name = "".join(c if c.isalnum() else "_" for c in str(about["device"])).strip("_")
        self.path = RESULTS / f"{name}_{commit or 'nogit'}.json"
        self.data: dict = {"about": about, "steps": {}, "cells": []}
        if self.path.exists():
            earlier = json.loads(self.path.read_text())
            if earlier["about"] == json.loads(json.dumps(about)):
                self.data = earlier
        print("  ".join(f"{key} {value}" for key, value in about.items()), flush=True)

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def save(self) -> None:
        RESULTS.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(table(self.data))

    def step(self, name: str, run: Callable[[], str]) -> None:
        """Runs a step that has not passed yet; its result is a line of text, or an exception."""
        if self.data["steps"].get(name, "").startswith("ok"):
            print(f"{name}: passed before", flush=True)
            return
        start = time.monotonic()
        try:
            result = f"ok, {run()}"
        except Exception as error:
            result = f"FAILED, {type(error).__name__}: {str(error)[-400:]}"
        self.data["steps"][name] = f"{result} ({time.monotonic() - start:.0f} s)"
        print(f"{name}: {self.data['steps'][name]}", flush=True)
        self.save()


def output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def driver(device: torch.device) -> str:
    if device.type != "cuda":
        return "none"
    return output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]


def run_script(seconds: float, *command: str, **variables: str) -> str:
    """The last line that a command prints; RuntimeError with the end of its output if it fails."""
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=max(10, seconds), env=os.environ | variables
    )
    if done.returncode != 0:
        raise RuntimeError((done.stdout + done.stderr)[-1500:])
    return (done.stdout.strip().splitlines() or ["done"])[-1]


# --- steps ------------------------------------------------------------------------------------------------------------


def tests(report: Report) -> str:
    return run_script(report.left() * 0.6, sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "tests")


def sanitizer(report: Report) -> str:
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if report.device.type != "cuda":
        return "skipped: no GPU"
    if tool is None:
        return "skipped: compute-sanitizer is not installed"
    script = str(ROOT / "bench" / "sanitize.py")
    for kind in ("memcheck", "racecheck"):
        run_script(90, tool, "--tool", kind, "--error-exitcode", "9", sys.executable, script, "--device", "cuda")
    return "memcheck and racecheck found nothing"


def huge(report: Report) -> str:
    """More elements than an int32 counts: the last rows are right, forward and backward."""
    rows, cols = (2**31 // 4096 + 64, 4096) if report.device.type == "cuda" else (2**12, 512)
    x = torch.full((rows, cols), 1.5, dtype=torch.bfloat16, device=report.device)
    x[-3:] = torch.randn(3, cols, device=report.device).bfloat16()
    grad = torch.randn(1, cols, device=report.device).bfloat16()
    results = []
    for part in (x, x[-3:].clone()):
        out = gelu_ext.bias_gelu(part.requires_grad_())
        (grad_x,) = torch.autograd.grad(out, part, grad.expand_as(part))
        results.append((out[-3:], grad_x[-3:]))
    if not all(torch.equal(whole, alone) for whole, alone in zip(*results, strict=True)):
        raise AssertionError("the rows beyond 2^31 elements differ")
    return f"{rows} x {cols}"


def repeatable(report: Report) -> str:
    x = torch.randn(8192, 3072, device=report.device).bfloat16()
    bias = torch.randn(3072, device=report.device).bfloat16().requires_grad_()
    grad = torch.randn_like(x)
    first, *others = (torch.autograd.grad(fused_bias_act(x, bias, "gelu"), bias, grad)[0] for _ in range(5))
    if not all(torch.equal(first, other) for other in others):
        raise AssertionError("two runs gave different bias gradients")
    return "five runs, the same bits"


# --- benchmark --------------------------------------------------------------------------------------------------------


def cells(device: torch.device) -> Iterator[tuple[Case, bool]]:
    """(case, whether to time torch.compile), the most important first."""
    threads = torch.get_num_threads()
    if device.type != "cuda":
        yield Case("bias_act", "gelu", torch.bfloat16, 64, 256, threads), False
        return
    large, ops = ((16384, 4096), (65536, 3072)), ("bias_act", "glu", "act_mul")
    for dtype in DTYPES:
        for op in ops:
            for activation in ACTIVATIONS:
                yield Case(op, activation, dtype, *large[0], threads), activation != "gelu_sigmoid"
    for rows, cols in (large[1], (1, 4096), (16, 4096), (1024, 3072), (8192, 14336), (2048, 16384), (65536, 1024)):
        for op in ops:
            for dtype in DTYPES[:2]:
                yield Case(op, "gelu", dtype, rows, cols, threads), rows <= 16


def benchmark(report: Report) -> None:
    done = {(c["op"], c["activation"], c["dtype"], c["rows"], c["cols"], c["pass"]) for c in report.data["cells"]}
    for case, with_compile in cells(report.device):
        for step, calls in contenders(case, report.device, with_compile).items():
            key = (case.op, case.activation, str(case.dtype).removeprefix("torch."), case.rows, case.cols, step)
            if key in done:
                continue
            if report.left() < 15:
                print("out of time: call again to go on where this stopped", flush=True)
                return
            row = row_of(case, step, alternate(calls, device=report.device, rounds=7, seconds=0.02))
            report.data["cells"].append(row)
            print(line_of(row), flush=True)
            report.save()
        if report.device.type == "cuda":
            torch.cuda.empty_cache()


def table(data: dict) -> str:
    lines = ["# " + ", ".join(f"{key} {value}" for key, value in data["about"].items()), ""]
    lines += [f"- {name}: {result}" for name, result in data["steps"].items()]
    lines += [
        "",
        "Share: of the bandwidth of a copy of the same bytes in the same run. x: time of the other over ours.",
        "",
    ]
    lines += ["| op | activation | dtype | rows x cols | pass | ms | share | x eager | x compile |", "|" + "---|" * 9]
    for cell in data["cells"]:
        compiled = cell["x"].get("compile")
        lines.append(
            f"| {cell['op']} | {cell['activation']} | {cell['dtype']} | {cell['rows']} x {cell['cols']} "
            f"| {cell['pass']} | "
            f"{cell['seconds']['gelu_ext']['median'] * 1e3:.4f} | {cell['x']['copy'] * 100:.0f} % | "
            f"{cell['x']['eager']:.2f} | {f'{compiled:.2f}' if compiled else ''} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="when to stop; call again to go on")
    parser.add_argument("--skip-tests", action="store_true")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"gpu: expected a CUDA device, got none (torch {torch.__version__}); --device cpu tries the command out")
        return 2
    report = Report(device, args.minutes * 60)
    if device.type == "cuda" and not gelu_ext._native.with_cuda:
        print("gpu: expected a build with CUDA kernels, got one without; `python -m gelu_ext` says why")
        return 2
    if not args.skip_tests:
        report.step("tests", lambda: tests(report))
    report.step("more than 2^31 elements", lambda: huge(report))
    report.step("repeatable bias gradients", lambda: repeatable(report))
    report.step("compute-sanitizer", lambda: sanitizer(report))
    benchmark(report)
    print(f"results: {report.path} and .md")
    return int(any(not result.startswith("ok") for result in report.data["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
