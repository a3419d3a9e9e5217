"""The microbenchmark: every op, activation, dtype and shape against eager, torch.compile and a copy of the same bytes.

    python bench/bench.py                       # forward and training step, a few telling shapes
    python bench/bench.py --compile             # torch.compile too (it compiles for minutes)
    python bench/bench.py --threads 1,2 --isa avx2 --dtypes float32 --ops geglu --output results.json
    python bench/bench.py --dropout 0.1         # of the result: eager's F.dropout, ours in the pass, and ours without
    python bench/bench.py --values random,-5,-13,-40   # on one value everywhere too: the far tail, subnormal results

Every contender is checked against float64 before it is timed. Contenders take turns; the figures are medians of rounds
and their quartiles, and only ratios within one run are worth comparing. Ratios above 1 mean that gelu_ext is faster.
On a CPU each thread count, shape and dtype has its own process, so that none finds memory that another has freed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from timing import Timing, alternate
from torch import Tensor

import gelu_ext
from gelu_ext import _native
from gelu_ext._activations import ACTIVATIONS
from gelu_ext._operations import CLAMPED_SWIGLU

# What was freed before makes glibc decide where an output of a few megabytes lies. In fresh memory page faults cost
# more than the arithmetic. And where small pieces, which a thread keeps for itself, hold freed tensors apart, outputs
# wander through a handful of places, as many megabytes as the last cache has. Both are luck, so they are fixed for all
# contenders: up to 32 MB are kept, larger is fresh; and what is freed merges at once, and is taken by the next.
HEAP = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 30),
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
}
# What holds torch and oneDNN, which computes torch's exact GELU, to the instructions that --isa holds gelu_ext to. What
# torch.compile finds in its cache may be for other instructions, and then computes something else.
TORCH_LIMITS = {
    isa: {
        "ATEN_CPU_CAPABILITY": aten,
        "ONEDNN_MAX_CPU_ISA": onednn,
        "TORCHINDUCTOR_CACHE_DIR": str(Path(__file__).resolve().parent.parent / "build" / f"inductor_{isa}"),
    }
    for isa, aten, onednn in (("baseline", "default", "SSE41"), ("avx2", "avx2", "AVX2"))
}
SHAPES = {"cpu": "4096x3072,256x3072,8x128,1x768", "cuda": "65536x3072,8192x4096,1024x3072,16x4096,1x4096"}


def eager_bias_act(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation].eager(x + bias)


def eager_glu(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    a, b = (x + bias).chunk(2, -1)
    return a * ACTIVATIONS[activation].eager(b)


def eager_act_mul(x: Tensor, linear: Tensor, activation: str) -> Tensor:
    return ACTIVATIONS[activation].eager(x) * linear


def fused_bias_act(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    return gelu_ext.bias_act(x, bias, activation=activation)


def fused_glu(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    return gelu_ext.glu(x, bias, activation=activation)


def fused_act_mul(x: Tensor, linear: Tensor, activation: str) -> Tensor:
    return gelu_ext.act_mul(x, linear, activation=activation)


def eager_clamped_swiglu(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    return CLAMPED_SWIGLU.eager(x, bias, 1.702, 7.0, 1.0, "interleaved")


def fused_clamped_swiglu(x: Tensor, bias: Tensor, activation: str) -> Tensor:
    return gelu_ext.clamped_swiglu(x, bias)


@dataclasses.dataclass(frozen=True)
class Op:
    """Inputs are x [rows, width * cols] and a second operand, a bias or another x; out is [rows, cols]."""

    eager: Callable[[Tensor, Tensor, str], Tensor]
    fused: Callable[[Tensor, Tensor, str], Tensor]
    width: int
    second_is_bias: bool
    forward_moves: int  # elements that must move per element of the output, without the bias
    backward_moves: int
    only: str = ""  # the activation, where it is for one alone


OPS = {
    "bias_act": Op(eager_bias_act, fused_bias_act, 1, True, 2, 3),
    "glu": Op(eager_glu, fused_glu, 2, True, 3, 5),
    "act_mul": Op(eager_act_mul, fused_act_mul, 1, False, 3, 5),
    "clamped_swiglu": Op(eager_clamped_swiglu, fused_clamped_swiglu, 2, True, 3, 5, CLAMPED_SWIGLU.only),
}


@dataclasses.dataclass(frozen=True)
class Case:
    op: str
    activation: str
    dtype: torch.dtype
    rows: int
    cols: int
    threads: int
    values: str = "random"
    dropout: float = 0.0

    def inputs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        op = OPS[self.op]
        torch.manual_seed(0)
        x = torch.randn(self.rows, op.width * self.cols, device=device).to(self.dtype)
        second = torch.randn(x.shape[-1:] if op.second_is_bias else x.shape, device=device).to(self.dtype)
        if self.values != "random":
            x.fill_(float(self.values))
            second = torch.zeros_like(second) if op.second_is_bias else second
        return x, second, torch.randn(self.rows, self.cols, device=device).to(self.dtype)


def training_step(call: Callable[[Tensor, Tensor, str], Tensor], x: Tensor, y: Tensor, grad: Tensor, activation: str):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(x, y, activation), (x, y), grad)

    return step


def backward_alone(call: Callable[[Tensor, Tensor, str], Tensor], x: Tensor, y: Tensor, grad: Tensor, activation: str):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    out = call(x, y, activation)
    return lambda: torch.autograd.grad(out, (x, y), grad, retain_graph=True)


def check(case: Case, call: Callable[[Tensor, Tensor, str], Tensor], device: torch.device, name: str) -> None:
    """A contender that computes something else is not timed. Loose: eager rounds x + bias to 16 bits."""
    x, y, _ = case.inputs(device)
    rows = slice(0, 64)
    second = y if OPS[case.op].second_is_bias else y[rows]
    truth = OPS[case.op].eager(x[rows].double(), second.double(), case.activation)
    got = call(x, y, case.activation)[rows].double()
    if case.dropout and name != WITHOUT_DROPOUT:
        kept = (got != 0).double()
        truth = truth * kept / (1 - case.dropout)
        if abs(kept.mean().item() - (1 - case.dropout)) > 0.05:
            sys.exit(f"bench: expected {name} of {case} to drop {case.dropout}, got {1 - kept.mean().item():.3f}")
    allowed = 0.05 if case.dtype.itemsize == 2 else 1e-4
    error = ((got - truth).abs() / (1 + truth.abs())).max().item()
    if not error <= allowed:
        sys.exit(f"bench: expected {name} of {case} to agree with float64 within {allowed}, got {error}")


def copy_call(case: Case, moves: int, device: torch.device) -> Callable[[], Tensor]:
    """Reads and writes as many bytes as must move, into memory that has been touched."""
    source = torch.empty(case.rows * case.cols * moves // 2, dtype=case.dtype, device=device).zero_()
    target = torch.empty_like(source).zero_()
    return lambda: target.copy_(source)


Function = Callable[[Tensor, Tensor, str], Tensor]
WITHOUT_DROPOUT = "without dropout"


def functions(case: Case, device: torch.device, with_compile: bool) -> dict[str, Function]:
    """What is compared, checked."""
    op = OPS[case.op]
    calls: dict[str, Function] = {"eager": op.eager, "gelu_ext": op.fused}
    if case.dropout:
        calls["eager"] = lambda x, y, activation: F.dropout(op.eager(x, y, activation), case.dropout)
        fused = getattr(gelu_ext, case.op)
        calls["gelu_ext"] = lambda x, y, activation: fused(x, y, activation=activation, dropout_p=case.dropout)
        calls[WITHOUT_DROPOUT] = op.fused
    if with_compile:
        torch._dynamo.reset()  # or it gives up recompiling after eight cases, and runs eager
        calls["compile"] = torch.compile(calls["eager"], dynamic=False)
    for name, call in calls.items():
        check(case, call, device, name)
    return calls


def passes(case: Case, calls: dict[str, Function], device: torch.device) -> dict[str, dict[str, Callable[[], object]]]:
    """{pass: {name: call}}, on inputs of their own."""
    op = OPS[case.op]
    x, y, grad = case.inputs(device)
    forward: dict[str, Callable[[], object]] = {
        name: lambda c=call: c(x, y, case.activation) for name, call in calls.items()
    }
    forward["copy"] = copy_call(case, op.forward_moves, device)
    if op.second_is_bias and op.width == 1:
        forward["act(x)"] = lambda: ACTIVATIONS[case.activation].eager(x)
    training = {name: training_step(call, x, y, grad, case.activation) for name, call in calls.items()}
    if case.activation == "gelu" and not case.dropout:  # what being exact costs
        forward["gelu_tanh"] = lambda: op.fused(x, y, "gelu_tanh")
        training["gelu_tanh"] = training_step(op.fused, x, y, grad, "gelu_tanh")
    training["copy"] = copy_call(case, op.forward_moves + op.backward_moves, device)
    backward = {name: backward_alone(call, x, y, grad, case.activation) for name, call in calls.items()}
    backward["copy"] = copy_call(case, op.backward_moves, device)
    return {"forward": forward, "training": training, "backward": backward}


def row_of(case: Case, step: str, timings: dict[str, Timing]) -> dict[str, object]:
    ours = timings["gelu_ext"].median
    row: dict[str, object] = dataclasses.asdict(case) | {"dtype": str(case.dtype).removeprefix("torch."), "pass": step}
    row["seconds"] = {name: dataclasses.asdict(timing) for name, timing in timings.items()}
    row["x"] = {name: timing.median / ours for name, timing in timings.items() if name != "gelu_ext"}
    return row


def line_of(row: dict) -> str:
    ours = row["seconds"]["gelu_ext"]
    spread = (ours["high"] - ours["low"]) / ours["median"] * 100
    ratios = "  ".join(f"{name} {ratio:6.2f}x" for name, ratio in row["x"].items())
    what = (
        f"{row['op']:8} {row['activation']:12} {row['dtype']:8} {row['rows']:6} x {row['cols']:<6} {row['threads']} thr"
    )
    what += "" if row["values"] == "random" else f" x = {row['values']}"
    what += f" dropout {row['dropout']}" if row["dropout"] else ""
    return f"{what} {row['pass']:8} {ours['median'] * 1e3:10.4f} ms +-{spread / 2:4.1f} %   {ratios}"


def cases(args: argparse.Namespace) -> Iterator[list[Case]]:
    """Those of a process each."""
    shapes = [tuple(map(int, shape.split("x"))) for shape in args.shapes.split(",")]
    dtypes = [getattr(torch, name) for name in args.dtypes.split(",")]
    threads = [int(n) for n in args.threads.split(",")]
    ops, activations, values = (text.split(",") for text in (args.ops, args.activations, args.values))
    for count, (rows, cols), dtype in itertools.product(threads, shapes, dtypes):
        yield [
            Case(op, activation, dtype, rows, cols, count, x, args.dropout)
            for op, activation, x in itertools.product(ops, activations, values)
            if op not in OPS or OPS[op].only in ("", activation)  # an unknown one fails where it runs
        ]


def measured(args: argparse.Namespace, part: list[Case]) -> Iterator[dict]:
    device = torch.device(args.device)
    hold_to(args.isa)
    # A backward that is called again and again may not take its buffers as its own.
    functorch_config.donated_buffer = "backward" not in args.passes
    for case in part:
        torch.set_num_threads(case.threads)
        calls_of = passes(case, functions(case, device, args.compile), device)
        for step in args.passes.split(","):
            timings = alternate(calls_of[step], device=device, rounds=args.rounds, seconds=args.seconds)
            yield row_of(case, step, timings)


def _send_measured(args: argparse.Namespace, part: list[Case], rows: multiprocessing.connection.Connection) -> None:
    for row in measured(args, part):
        rows.send(row)


def measured_in_its_own_process(args: argparse.Namespace, part: list[Case]) -> Iterator[dict]:
    context = multiprocessing.get_context("spawn")
    rows, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_measured, args=(args, part, sender))
    process.start()
    sender.close()
    with contextlib.suppress(EOFError):
        while True:
            yield rows.recv()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


def environment(device: torch.device) -> dict[str, object]:
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gelu_ext": gelu_ext.__version__,
        "instruction_set": _native.instruction_set(),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability(),
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def write_rows(path: Path, about: dict[str, object], rows: list[dict]) -> None:
    """As JSON with a row on each line, so that a change of one shows as one."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{json.dumps(about)[:-1]}, "rows": [\n{lines}\n]}}\n')


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ops", default="bias_act,glu")
    parser.add_argument("--activations", default=",".join(ACTIVATIONS))
    parser.add_argument("--dtypes", default="float32,bfloat16,float16")
    parser.add_argument("--shapes", help="rows x columns of the output, e.g. 4096x3072,1x768")
    parser.add_argument("--passes", default="forward,training", help="of forward, training, backward")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--values", default="random", help="of x: random, or a number everywhere")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the result, with this probability")
    parser.add_argument("--isa", help="CPU instruction set, of torch too where it is baseline or avx2")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.02, help="of one contender in one round")
    parser.add_argument("--output", type=Path, help="write the results as JSON")
    args = parser.parse_args(argv)
    args.shapes = args.shapes or SHAPES[torch.device(args.device).type]
    if not hold_to(args.isa):
        parser.error(f"expected --isa to be one of {_native.instruction_sets()}, got {args.isa}")
    return args


def hold_to(isa: str | None) -> bool:
    return isa is None or _native.set_instruction_set(isa)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    device = torch.device(args.device)
    command = ["python", "bench/bench.py", *(sys.argv[1:] if argv is None else argv)]
    about = environment(device) | {"command": shlex.join(command)}
    print("  ".join(f"{key} {value}" for key, value in about.items()))
    rows: list[dict] = []
    parts = list(cases(args))
    measure = measured_in_its_own_process if len(parts) > 1 and device.type == "cpu" else measured
    for row in itertools.chain.from_iterable(measure(args, part) for part in parts):
        rows.append(row)
        print(line_of(row), flush=True)
        if args.output:
            write_rows(args.output, {"environment": about}, rows)
    return 0


def run_with(variables: dict[str, str]) -> None:
    """Starts this program again where the environment, read when libraries are loaded, is another."""
    if any(os.environ.get(name) != value for name, value in variables.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | variables)


if __name__ == "__main__":
    run_with(HEAP | TORCH_LIMITS.get(parse(None).isa, {}))
    sys.exit(main())
