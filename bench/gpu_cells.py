"""The cells of `make gpu`, measured in a process of their own: what one does to its process, no other cell sees.

    python bench/gpu_cells.py --list full        # the cells, one JSON object on each line, the most important first
    python bench/gpu_cells.py --about            # the machine and the build
    python bench/gpu_cells.py < cells            # measures them: a row of JSON on each line, or {"error": ...}

On a GPU each figure is the time of a CUDA graph: of calls that take turns over inputs that together exceed the second
level cache, so that the host's time and what the last call has left in the cache do not count. What the host takes is
beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import torch
from timing import alternate, captured, host_seconds

import gelu_ext
from bench import OPS, Case, environment, functions, line_of, passes, row_of
from gelu_ext import _build, _native
from gelu_ext._activations import ACTIVATIONS

PASSES = ("forward", "backward", "training")
LARGE = ((16384, 4096), (65536, 3072))
SIZES = ((512, 3072), (1, 4096), (16, 4096), (4096, 3072), (8192, 14336), (2048, 16384), (65536, 1024), (8192, 3420))


def cells(kind: str, device: str) -> Iterator[dict[str, Any]]:
    """Of ``kind`` "full", "quick" or "tune"; "compile" says whether torch.compile is timed as well."""

    def cell(op: str, activation: str, dtype: str, shape: tuple[int, int], compile: bool = False) -> dict[str, Any]:
        activation = OPS[op].only or activation
        return {"op": op, "activation": activation, "dtype": dtype, "rows": shape[0], "cols": shape[1]} | {
            "compile": compile
        }

    if device == "cpu":  # enough to try the command
        yield cell("bias_act", "gelu", "bfloat16", (64, 256))
        return
    important = [(op, dtype, shape) for shape in LARGE[:1] for dtype in ("bfloat16", "float32") for op in OPS]
    if kind == "quick":
        for op, dtype, shape in important:
            yield cell(op, "gelu", dtype, shape)
        for op in ("bias_act", "glu"):
            for shape in ((512, 3072), (4096, 3072), (1, 4096)):
                yield cell(op, "gelu", "bfloat16", shape)
        return
    if kind == "tune":
        for op in ("bias_act", "glu"):
            for dtype in ("bfloat16", "float32"):
                for shape in ((512, 3072), (4096, 3072), (16384, 4096)):
                    yield cell(op, "gelu", dtype, shape)
        return
    for op, dtype, shape in important:
        yield cell(op, "gelu", dtype, shape)
    for shape in SIZES:
        for op in OPS:
            yield cell(op, "gelu", "bfloat16", shape)
    for dtype in ("bfloat16", "float32", "float16"):
        for op in OPS:
            for activation in ACTIVATIONS:
                done = activation == "gelu" and dtype != "float16"
                if not done and OPS[op].only in ("", activation):
                    yield cell(op, activation, dtype, LARGE[0])
    for op in OPS:
        for dtype in ("bfloat16", "float32"):
            yield cell(op, "gelu", dtype, LARGE[1])
    for shape in SIZES:
        for op in OPS:
            yield cell(op, "gelu", "float32", shape)
    # Compiling takes seconds a cell, so this is the last.
    for shape in (LARGE[0], (4096, 3072), (512, 3072), (1, 4096)):
        for dtype in ("bfloat16", "float32"):
            for op in OPS:
                yield cell(op, "gelu", dtype, shape, compile=True)


def measured(cell: dict[str, Any], device: torch.device) -> Iterator[dict[str, Any]]:
    case = Case(
        cell["op"], cell["activation"], getattr(torch, cell["dtype"]), cell["rows"], cell["cols"],
        threads=torch.get_num_threads(),
    )  # fmt: skip
    calls = functions(case, device, cell["compile"])
    if device.type != "cuda":
        for step, contenders in passes(case, calls, device).items():
            yield row_of(case, step, alternate(contenders, rounds=5, seconds=0.01)) | {"compile": cell["compile"]}
        return
    moved = case.rows * case.cols * case.dtype.itemsize * OPS[case.op].backward_moves
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    inputs = max(1, min(16, 4 * cache // moved + 1))
    count = max(inputs, min(20, 1 + (1 << 28) // moved))
    sets = [passes(case, calls, device) for _ in range(inputs)]
    for step in PASSES:
        graphs, host, failed = {}, {}, {}
        for name in sets[0][step]:
            try:
                graphs[name] = captured([each[step][name] for each in sets], count)
                if name in calls:
                    host[name] = host_seconds(sets[0][step][name])
            except Exception as error:  # of another's: ours must be there
                if name == "gelu_ext":
                    raise
                failed[name] = f"{type(error).__name__}: {error}"[:300]
        timings = {
            name: timing.of_one_of(count)
            for name, timing in alternate(graphs, device=device, rounds=7, seconds=0.02).items()
        }
        row = row_of(case, step, timings) | {"compile": cell["compile"], "inputs": inputs, "host": host}
        yield row | ({"failed": failed} if failed else {})


def about(device: torch.device) -> dict[str, Any]:
    facts = environment(device) | {"sources": _build.source_hash(), "built_from": _native.facts["sources"]}
    if device.type == "cuda":
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(query, capture_output=True, text=True, timeout=30).stdout
            facts["driver"] = answer.strip().split("\n")[0]
        except (OSError, subprocess.TimeoutExpired):
            facts["driver"] = "unknown"
    return facts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--list", choices=("full", "quick", "tune"))
    parser.add_argument("--about", action="store_true")
    args = parser.parse_args(argv)
    if args.list:
        for cell in cells(args.list, args.device):
            print(json.dumps(cell))
        return 0
    if _native.module is None:
        gelu_ext.jit.load(cuda=args.device == "cuda")
    if args.device == "cuda" and not _native.with_cuda:
        print("gpu: expected a build with CUDA kernels, got one without; `python -m gelu_ext` says why")
        return 2
    device = torch.device(args.device)
    if args.about:
        print(json.dumps(about(device)))
        return 0
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured
        torch._functorch.config.donated_buffer = False  # a backward is run again
    for line in sys.stdin:
        cell = json.loads(line)
        try:
            for row in measured(cell, device):
                print(json.dumps(row | {"line": line_of(row)}), flush=True)
            print(json.dumps({"done": cell}), flush=True)
        except BaseException as error:
            print(json.dumps({"error": f"{type(error).__name__}: {error}"[:600], "cell": cell}), flush=True)
            if "CUDA error" in str(error) or isinstance(error, KeyboardInterrupt):
                return 1  # the process's context is lost
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
