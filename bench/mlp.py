"""One MLP, and models of them: bytes that autograd keeps and the time of a training step. Eager, fused, recompute.

`python bench/mlp.py` checks before it times: the output and every gradient against eager in float64. The variants
alternate, and a ratio is the median of the rounds' ratios, so that a busy machine disturbs all of them alike; on a very
busy one, `OMP_NUM_THREADS=1 python bench/mlp.py --cpu-time` counts processor time. A variant loses where its ratio is
above 1; the verdict is about both bars: patched no slower than eager, recompute at most 5 % slower.
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gelu_ext
from gelu_ext.memory import saved_bytes
from gelu_ext.patch import patch

RECOMPUTE_BAR = 1.05
PATCHED_BAR = 1.02  # the resolution of such a measurement


class Gelu(nn.Module):
    """Linear -> GELU -> Linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Relu(nn.Module):
    """Linear -> ReLU -> Linear, which patch() leaves: here the MLP of the package takes its place, to see why."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.recompute: bool | None = None  # None: eager

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute is None:
            return self.fc2(F.relu(self.fc1(x)))
        tensors = self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias
        return gelu_ext.mlp(x, *tensors, activation="relu", recompute=self.recompute)


class Geglu(nn.Module):
    """Linear -> GeGLU of two halves -> Linear, as in diffusers."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, -1)
        return self.fc2(a * F.gelu(b))


class TwoGeglu(nn.Module):
    """GeGLU of two Linears, as in T5 v1.1 and Gemma."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class TwoSwiglu(TwoGeglu):
    """SwiGLU of two Linears, as in Llama, Mistral and Qwen."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Stack(nn.Module):
    """Pre-norm blocks with a residual: a transformer without its attention."""

    def __init__(self, block: Callable[[], nn.Module], width: int, depth: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.blocks = nn.ModuleList(block() for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return x


KINDS: dict[str, type[nn.Module]] = {"GELU": Gelu, "GeGLU": Geglu, "GeGLU, two Linears": TwoGeglu}
KINDS |= {"SwiGLU, two Linears": TwoSwiglu, "ReLU (not by patch)": Relu}


def variants(model: nn.Module) -> dict[str, nn.Module]:
    """Three models with weights of their own and equal, patched and proved."""
    found = {"eager": model, "fused": copy.deepcopy(model), "recompute": copy.deepcopy(model)}
    for name in ("fused", "recompute"):
        by_hand = [module for module in found[name].modules() if isinstance(module, Relu)]
        for module in by_hand:
            module.recompute = name == "recompute"
        if not by_hand:
            report = patch(found[name], recompute=name == "recompute")
            assert report.fused and not report.left_alone, report
    return found


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    out = model(x)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out))
    return [out.detach(), *(p.grad for p in model.parameters())]


def check(models: dict[str, nn.Module], x: Tensor) -> None:
    """Every variant within twice the eager error, and two roundings, of float64."""
    exact = gradients(copy.deepcopy(models["eager"]).double(), x.double())
    errors = {
        name: [((t.double() - e).norm() / e.norm()).item() for t, e in zip(gradients(model, x), exact, strict=True)]
        for name, model in models.items()
    }
    for name, found in errors.items():
        for error, eager in zip(found, errors["eager"], strict=True):
            assert error <= 2 * eager + 2 * torch.finfo(x.dtype).eps, (name, error, eager)


def step_times(
    models: dict[str, nn.Module], x: Tensor, rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of forward and backward in each round, the variants in turn."""
    times: dict[str, list[float]] = {name: [] for name in models}
    grad_out = torch.randn_like(x)
    for i in range(rounds + 1):
        names = list(models) if i % 2 else list(models)[::-1]
        for name in names:
            models[name].zero_grad(set_to_none=True)
            _wait(x)
            start = clock()
            models[name](x).backward(grad_out)
            _wait(x)
            if i:  # the first round is to warm up
                times[name].append(clock() - start)
    return times


def ratio(times: list[float], eager: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, eager, strict=True))


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokens", type=int, default=4096)
    arguments.add_argument("--width", type=int, default=768)
    arguments.add_argument("--hidden", type=int, default=3072)
    arguments.add_argument("--depth", type=int, default=12, help="of the model whose bytes are counted")
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--cpu-time", action="store_true", help="processor time in place of wall-clock time")
    options = arguments.parse_args()
    dtype, width, hidden = getattr(torch, options.dtype), options.width, options.hidden
    torch.manual_seed(0)
    place = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{options.tokens} x {width} -> {hidden} -> {width}, {options.dtype}, {place}, torch {torch.__version__}")

    print("\nbytes kept by autograd per hidden element, beyond the input and the weights; model: MiB at --depth blocks")
    print(f"{'':20} {'eager':>9} {'fused':>9} {'recompute':>9}   model: {'eager':>7} {'fused':>7} {'recompute':>9}")
    for name, kind in KINDS.items():
        block = kind(width, hidden).to(options.device, dtype)
        x = torch.randn(512, width, device=options.device, dtype=dtype, requires_grad=True)
        per_block = [saved_bytes(m, x, exclude=[x]) / (512 * hidden) for m in variants(block).values()]
        stack = Stack(lambda kind=kind: kind(64, 256), 64, options.depth).to(options.device, dtype)
        scale = options.tokens * width / (64 * 64) / 2**20  # of a model as much smaller; all it keeps grows alike
        x = torch.randn(64, 64, device=options.device, dtype=dtype)
        per_model = [saved_bytes(m, x) * scale for m in variants(stack).values()]
        cells = " ".join(f"{n:9.2f}" for n in per_block)
        print(f"{name:20} {cells}          {per_model[0]:7.0f} {per_model[1]:7.0f} {per_model[2]:9.0f}")

    print("\nmilliseconds of a training step, ratio to eager; bars: fused no slower, recompute at most 5 % slower")
    for name, kind in KINDS.items():
        models = variants(kind(width, hidden).to(options.device, dtype))
        check(models, torch.randn(256, width, device=options.device, dtype=dtype))
        x = torch.randn(options.tokens, width, device=options.device, dtype=dtype, requires_grad=True)
        times = step_times(models, x, options.rounds, time.process_time if options.cpu_time else time.perf_counter)
        ratios = {variant: ratio(seconds, times["eager"]) for variant, seconds in times.items()}
        medians = {variant: statistics.median(seconds) * 1e3 for variant, seconds in times.items()}
        verdict = ratios["fused"] <= PATCHED_BAR and ratios["recompute"] <= RECOMPUTE_BAR
        cells = "   ".join(f"{v} {milliseconds:8.2f} ({ratios[v]:.3f})" for v, milliseconds in medians.items())
        print(f"{name:20} {cells}   {'holds' if verdict else 'does not hold'}", flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
