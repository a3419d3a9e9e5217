"""Train a small GPT on real text twice, with eager MLPs and with gelu_ext swapped in, and compare the two.

    python bench/demo.py                      the default: a GPU if there is one; a minute or two on two CPU cores
    python bench/demo.py --quick              a few steps of a small model: does everything run?
    python bench/demo.py --text FILE          any text; the default is the documentation that ships with Python
    python bench/demo.py --device cuda --dtype bfloat16 --width 768 --layers 12

Two variants are trained, bias+GELU and GeGLU; bench/gpt.py has the model and the swap. Both models of a variant start
from the same parameters, see the same batches, and take turns of a few steps so that noise of the machine hits both.
The exit code is 1 if their losses ever differ by more than --tolerance, relative to the eager loss, and 2 if the demo
cannot run as asked. Every number printed is measured in this run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import textwrap
import time
import weakref
import zlib
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from gpt import GPT, MLP, FusedGatedMLP, FusedMLP, GatedMLP, Text, TextError, read_text
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gelu_ext

VARIANTS = {
    "bias+GELU": (MLP, FusedMLP),
    "GeGLU": (GatedMLP, FusedGatedMLP),
}
SIZES = {
    "cpu": {"steps": 400, "width": 128, "layers": 2, "batch": 16, "context": 64},
    "cuda": {"steps": 400, "width": 256, "layers": 4, "batch": 64, "context": 128},
    "quick": {"steps": 10, "width": 64, "layers": 2, "batch": 4, "context": 64},
}
TURN = 5  # steps of one model before the other has its turn
WARM_UP = 3  # first steps of each model, left out of the step times
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2}


def load_text(options: argparse.Namespace) -> Text:
    source, content = read_text(options.text)
    needed = 20 * (options.context + 1)
    if len(content) < needed:
        raise TextError(f"text: expected at least {needed} bytes for --context {options.context}, got {len(content)}")
    say(f"text: {source}, {len(content):,} bytes, one token per byte; the last tenth is held out")
    tokens = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return Text(tokens, options.context, options.batch, options.seed)


# --- the training -----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One model in training, and what was measured on the way."""

    model: GPT
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    seen: int = 0  # checksum of every batch so far

    def loss(self, batch: Tensor) -> Tensor:
        """The mean cross entropy in float32, whatever the dtype of the model's arithmetic."""
        batch = batch.to(self.model.token.weight.device)
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            logits = self.model(batch[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())

    def step(self, batch: Tensor, rate: float) -> None:
        self.seen = zlib.crc32(batch.numpy(), self.seen)
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        loss.backward()
        self.optimizer.step()
        self.losses.append(loss.item())  # waits for the device
        self.seconds.append(time.perf_counter() - start)


def start_pair(kinds: tuple[type[nn.Module], type[nn.Module]], options: argparse.Namespace) -> tuple[Run, Run]:
    """The eager and the swapped model, from the same parameters under the same names."""
    torch.manual_seed(options.seed)
    eager, fused = (GPT(options.width, options.layers, options.context, kind) for kind in kinds)
    fused.load_state_dict(eager.state_dict())  # strict: a name that differs is an error
    if not all(torch.equal(a, b) for a, b in zip(eager.parameters(), fused.parameters(), strict=True)):
        raise AssertionError("the two models start from different parameters")
    return start(eager, options), start(fused, options)


def start(model: GPT, options: argparse.Namespace) -> Run:
    model.to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True)
    return Run(model, optimizer, getattr(torch, options.dtype))


def rate_at(step: int, options: argparse.Namespace) -> float:
    """Learning rate: warm-up over the first tenth, then half a cosine down to a tenth; lower for wider models."""
    warm_up = min(1.0, (step + 1) / (options.steps / 10 + 1))
    return min(4e-3, 0.5 / options.width) * warm_up * (0.55 + 0.45 * math.cos(math.pi * step / options.steps))


def train(eager: Run, fused: Run, text: Text, options: argparse.Namespace) -> None:
    """Both models in turns of TURN steps, the first of a pair of turns alternating; a line every few seconds."""
    steps = options.steps
    begin = said = time.perf_counter()
    for first in range(0, steps, TURN):
        turn = range(first, min(first + TURN, steps))
        for run in (eager, fused) if first // TURN % 2 == 0 else (fused, eager):
            for step in turn:
                run.step(text.batch_at(step), rate_at(step, options))
        now = time.perf_counter()
        if now - said > 3 or turn.stop == steps:
            said = now
            times = " / ".join(f"{1e3 * statistics.mean(run.seconds[first:]):.1f}" for run in (eager, fused))
            say(
                f"  step {turn.stop:>4}/{steps}   loss {eager.losses[-1]:.6f} eager  {fused.losses[-1]:.6f} gelu_ext"
                f"   ms per step {times}   {now - begin:.0f} s"
            )
    if eager.seen != fused.seen:
        raise AssertionError("the two models have seen different batches")


# --- the measurement --------------------------------------------------------------------------------------------------


@dataclass
class Memory:
    kept: int  # bytes of activations kept for the backward, whole model
    kept_by_mlps: int
    peak: int  # highest use of memory in one forward and backward, above what was in use before it


def kept_for_backward(run: Run, batch: Tensor) -> tuple[int, int]:
    """(whole model, MLP blocks): bytes of the distinct storages that autograd saves in a forward, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in run.model.parameters()}
    everywhere: dict[int, int] = {}
    in_mlps: dict[int, int] = {}
    inside = False

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            everywhere[storage.data_ptr()] = storage.nbytes()
            if inside:
                in_mlps[storage.data_ptr()] = storage.nbytes()
        return tensor

    def enter(*_: object) -> None:
        nonlocal inside
        inside = True

    def leave(*_: object) -> None:
        nonlocal inside
        inside = False

    hooks = [block.mlp.register_forward_pre_hook(enter) for block in run.model.blocks]
    hooks += [block.mlp.register_forward_hook(leave) for block in run.model.blocks]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run.loss(batch)  # keeps the storages alive, so that no address is counted twice
    for hook in hooks:
        hook.remove()
    del loss
    return sum(everywhere.values()), sum(in_mlps.values())


class Meter(TorchDispatchMode):
    """Times each operator on its own, and follows the bytes of the tensors made under it that are still alive."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        parameters = list(model.parameters())
        self.wait = torch.cuda.synchronize if parameters[0].is_cuda else lambda: None
        self.known = {p.untyped_storage()._cdata for p in parameters}
        self.live = self.peak = 0
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.wait()
        start = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.wait()
        self.seconds[str(func.overloadpacket)] += time.perf_counter() - start
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self.known:
                self.born(leaf.untyped_storage())
        return result

    def born(self, storage: torch.UntypedStorage) -> None:
        self.known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.died, storage._cdata, storage.nbytes())

    def died(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    def shares(self) -> dict[str, float]:
        """Shares of the time in operators: matrix products, GELU with the multiplications of a GeGLU, the rest."""
        total = sum(self.seconds.values())
        matrix = sum(self.seconds[f"aten.{name}"] for name in ("mm", "addmm", "bmm")) / total
        gelu = sum(self.seconds[f"aten.{name}"] for name in ("gelu", "gelu_backward", "mul")) / total
        return {"matrix products": matrix, "GELU and its multiplications": gelu, "all else": 1 - matrix - gelu}


def forward_and_backward(run: Run, batch: Tensor) -> None:
    run.loss(batch).backward()
    run.optimizer.zero_grad()


def measure(run: Run, batch: Tensor) -> tuple[Memory, dict[str, float]]:
    """(memory, share of each kind of work) of a forward and backward, which changes no parameter."""
    run.optimizer.zero_grad()
    kept = kept_for_backward(run, batch)
    with Meter(run.model) as meter:
        for _ in range(3):
            forward_and_backward(run, batch)
    peak = meter.peak
    if next(run.model.parameters()).is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        forward_and_backward(run, batch)
        peak = torch.cuda.max_memory_allocated() - before
    return Memory(*kept, peak), meter.shares()


# --- the report -------------------------------------------------------------------------------------------------------


def say(line: str = "") -> None:
    print(line, flush=True)


def table(head: list[str], rows: list[list[str]], left: int = 1) -> None:
    """A table in plain text, its first `left` columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for row in (head, ["-" * width for width in widths], *rows):
        cells = (f"{row[i]:{'<' if i < left else '>'}{width}}" for i, width in enumerate(widths))
        say("  " + "  ".join(cells))
    say()


def differences(eager: Run, fused: Run) -> list[float]:
    """Relative difference of the losses of each step; infinite where one of them is not a number."""
    relative = (abs(f - e) / abs(e) for e, f in zip(eager.losses, fused.losses, strict=True))
    return [r if math.isfinite(r) else math.inf for r in relative]


def report_losses(eager: Run, fused: Run) -> float:
    """The two curves side by side; returns their largest relative difference over all steps."""
    apart = differences(eager, fused)
    last = len(apart) - 1
    shown = sorted({round(i * last / 9) for i in range(10)})
    rows = [[str(i + 1), f"{eager.losses[i]:.6f}", f"{fused.losses[i]:.6f}", f"{apart[i]:.1e}"] for i in shown]
    table(["step", "eager loss", "gelu_ext loss", "relative difference"], rows)
    worst = max(apart)
    say(f"  largest relative difference over all {len(apart)} steps: {worst:.1e} (step {apart.index(worst) + 1})")
    return worst


def step_time(run: Run) -> float:
    """Median in milliseconds, without the first steps."""
    return 1e3 * statistics.median(run.seconds[WARM_UP:] or run.seconds)


def row(what: str, eager: float, fused: float) -> list[str]:
    return [what, f"{eager:.2f}", f"{fused:.2f}", f"{fused / eager:.3f}"]


def verdict(eager: Run, fused: Run, share: dict[str, float]) -> str:
    """What the swap did to the step time, in words, and how much there was to win.

    Each turn of one model is compared with the other's turn beside it: a machine that is busy for a while slows both.
    """
    firsts = range(0, len(eager.seconds), TURN)
    ratios = [sum(fused.seconds[i : i + TURN]) / sum(eager.seconds[i : i + TURN]) for i in firsts]
    ratios = ratios[1:] or ratios  # the first turns warm up
    low, middle, high = statistics.quantiles(ratios if len(ratios) > 1 else ratios * 2, n=4, method="inclusive")
    if len(ratios) < 10:
        word = "too few to tell"
    elif low <= 1 <= high:
        word = "no clear difference"
    else:
        word = "gelu_ext wins" if middle < 1 else "gelu_ext LOSES"
    where = ", ".join(f"{part} {value:.0%}" for part, value in share.items())
    return (
        f"a step with gelu_ext takes {middle:.3f} of the time of an eager one: {word} "
        f"(median of {len(ratios)} pairs of turns, half of which lie between {low:.3f} and {high:.3f})\n"
        f"    an eager forward and backward, operator by operator: {where}"
    )


def report_costs(eager: Run, fused: Run, batch: Tensor) -> tuple[list[list[str]], str]:
    """(rows of the summary, the verdict on the step time)."""
    (old, share), (new, _) = measure(eager, batch), measure(fused, batch)
    mib = 2.0**20
    rows = [
        row("step time, median (ms)", step_time(eager), step_time(fused)),
        row("kept for backward, all (MiB)", old.kept / mib, new.kept / mib),
        row("kept for backward, MLPs (MiB)", old.kept_by_mlps / mib, new.kept_by_mlps / mib),
        row("peak of a forward+backward (MiB)", old.peak / mib, new.peak / mib),
    ]
    return rows, verdict(eager, fused, share)


def quoted(sample: bytes) -> str:
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in sample.decode("utf-8", errors="replace"))
    lines = (part for line in text.splitlines() for part in textwrap.wrap(line, 100))
    return "\n".join(f"  | {line}" for line in lines)


# --- the demo ---------------------------------------------------------------------------------------------------------


def run_variant(name: str, text: Text, options: argparse.Namespace) -> tuple[float, list[list[str]], str]:
    """Trains and reports one variant: (largest relative difference of the losses, rows of the summary, verdict)."""
    eager, fused = start_pair(VARIANTS[name], options)
    count = sum(p.numel() for p in eager.model.parameters())
    say(f"{name}: {count:,} parameters, {options.steps} steps, eager and gelu_ext in turns of {TURN} steps")
    train(eager, fused, text, options)
    say()
    worst = report_losses(eager, fused)
    with torch.no_grad():
        losses = " / ".join(f"{run.loss(text.held_out()).item():.4f}" for run in (eager, fused))
    say(f"  loss on held-out text, eager / gelu_ext: {losses} (one byte of 256 at random: {math.log(256):.4f})")
    say()
    say("  written by the model with gelu_ext:")
    say(quoted(fused.model.generate(b"The ", 200, options.seed)))
    say()
    rows, remark = report_costs(eager, fused, text.batch_at(options.steps))
    return worst, [[name, *r] for r in rows], f"{name}: {remark}"


def demo(options: argparse.Namespace) -> int:
    say(headline(options))
    text = load_text(options)
    say()
    results = {name: run_variant(name, text, options) for name in VARIANTS}
    rows = [row for _, rows, _ in results.values() for row in rows]
    table(["variant", "measured", "eager", "gelu_ext", "ratio"], rows, left=2)
    source = "as torch's allocator counts it" if options.device == "cuda" else "tensors alive between operators"
    say(f"  peak: {source}, gradients included, what was there before excluded")
    for _, _, remark in results.values():
        say("  " + remark)
    say()
    apart, name = max((worst, name) for name, (worst, _, _) in results.items())
    limit = f"{apart:.1e} relative (tolerance {options.tolerance:.0e})"
    if apart > options.tolerance:
        say(f"FAILED: with gelu_ext the losses of {name} differ from the eager ones by up to {limit}")
        return 1
    say(f"OK: with gelu_ext the losses differ from the eager ones by at most {limit}")
    return 0


def headline(options: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    info = gelu_ext.build_info()
    built = f"gelu_ext {info['gelu_ext']} (CUDA {info['cuda']}; CPU {info['instruction_set']})"
    return f"device: {device}; {options.dtype}; torch {torch.__version__}; {built}"


def default_device() -> str:
    """A GPU if torch sees one and gelu_ext was built for it."""
    if not torch.cuda.is_available():
        return "cpu"
    try:
        gelu_ext.bias_gelu(torch.zeros(1, device="cuda"))
    except RuntimeError as error:
        say(f"the GPU is left alone: {error}")
        return "cpu"
    return "cuda"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a file with text to learn (default: Python's documentation)")
    for name in SIZES["cpu"]:
        defaults = ", ".join(f"{preset} {size[name]}" for preset, size in SIZES.items())
        parser.add_argument(f"--{name}", type=positive, help=f"default: {defaults}")
    parser.add_argument("--quick", action="store_true", help="a few steps of a small model")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    parser.add_argument("--dtype", choices=list(TOLERANCES), default="float32", help="bfloat16: under autocast")
    parser.add_argument(
        "--tolerance", type=float, help=f"largest relative difference of losses (default: {TOLERANCES})"
    )
    parser.add_argument("--threads", type=positive, help="CPU threads (default: torch's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    options.device = options.device or default_device()
    for name, value in SIZES["quick" if options.quick else options.device].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.tolerance is None:
        options.tolerance = TOLERANCES[options.dtype]
    if options.width % 32:
        parser.error(f"--width: expected a multiple of 32, got {options.width}")
    return options


def positive(word: str) -> int:
    value = int(word)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value


def main(argv: list[str] | None = None) -> int:
    try:
        gelu_ext.bias_gelu(torch.zeros(1))  # without a compiled module: an ImportError that says what to do
        options = parse(argv)
        if options.threads:
            torch.set_num_threads(options.threads)
        return demo(options)
    except (TextError, ImportError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
