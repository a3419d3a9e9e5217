"""What a call costs where the data are too small to matter: our functions beside eager, and what a call is made of.

    python bench/call_cost.py [--rounds 200] [--json FILE]

Medians over rounds in which every contender runs in turn, on one thread, so that a busy machine slows all alike. Each
result is checked before it is timed. Ratios are ours / eager: below 1 is faster. Targets: at most 1.00 without
gradients, at most 1.15 for forward and backward.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from families import declare_torchvision_operators
from torch import Tensor, nn

import gelu_ext
from gelu_ext import _native
from gelu_ext.patch import patch, swap

Contenders = dict[str, Callable[[], object]]


def microseconds(contenders: Contenders, rounds: int) -> dict[str, float]:
    """Medians per call, over alternating rounds of about a millisecond."""
    calls = {}
    for name, run in contenders.items():
        start = time.perf_counter()
        for _ in range(20):
            run()
        calls[name] = max(5, int(1e-3 * 20 / (time.perf_counter() - start)))
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            n = calls[name]
            start = time.perf_counter()
            for _ in range(n):
                run()
            taken[name].append((time.perf_counter() - start) / n)
    return {name: 1e6 * statistics.median(times) for name, times in taken.items()}


def eager_bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def eager_geglu(x: Tensor, bias: Tensor) -> Tensor:
    a, b = (x + bias).chunk(2, -1)
    return a * F.gelu(b)


def eager_gelu_mul(activated: Tensor, linear: Tensor) -> Tensor:
    return F.gelu(activated) * linear


PAIRS = {
    "bias_gelu": (gelu_ext.bias_gelu, eager_bias_gelu),
    "geglu": (gelu_ext.geglu, eager_geglu),
    "gelu_mul": (gelu_ext.gelu_mul, eager_gelu_mul),
}
SHAPES = [(1,), (1024,), (8, 128), (1, 768)]


def operands(op: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    shape = (*shape[:-1], 2 * shape[-1]) if op == "geglu" else shape
    return torch.randn(shape), torch.randn(shape if op == "gelu_mul" else shape[-1:])


def forward_backward(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Callable[[], object]:
    grad_out = torch.randn(function(*inputs).shape)
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad_out)


def compare(op: str, shape: tuple[int, ...], rounds: int) -> dict[str, dict[str, float]]:
    ours, eager = PAIRS[op]
    inputs = operands(op, shape)
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    torch.testing.assert_close(ours(*inputs), eager(*inputs), rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad(f(*leaves).sin().sum(), leaves) for f in (ours, eager)]
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)
    return {
        "no grad": microseconds({"ours": lambda: ours(*inputs), "eager": lambda: eager(*inputs)}, rounds),
        "forward with grad": microseconds({"ours": lambda: ours(*leaves), "eager": lambda: eager(*leaves)}, rounds),
        "forward + backward": microseconds(
            {"ours": forward_backward(ours, leaves), "eager": forward_backward(eager, leaves)}, rounds
        ),
    }


class Mlp(nn.Module):
    """As vision transformers have it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.drop1 = nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1)
        self.fc2, self.drop2 = nn.Linear(32, 8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


def guards() -> Contenders:
    """What a patched block asks before it runs, on every call."""
    contenders: Contenders = {}
    blocks = {"an MLP of two Linears": (Mlp().eval(), torch.randn(3, 8))}
    with contextlib.suppress(ImportError):
        _library = declare_torchvision_operators()  # which transformers imports
        from transformers import BertConfig
        from transformers.models.bert.modeling_bert import BertLayer

        config = BertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=32)
        blocks["a BERT layer"] = (BertLayer(config).eval(), torch.randn(1, 3, 8))
    for name, (block, x) in blocks.items():
        patch(nn.Sequential(block))
        block = next(module for module in block.modules() if swap.installed(module))
        plan = swap.installed(block).plan
        assert plan.holds(block, x) is not None
        contenders[f"guard of {name}"] = functools.partial(plan.holds, block, x)
    return contenders


def ingredients(rounds: int) -> dict[str, float]:
    """Of bias_gelu with one element, and of a patched block."""
    x, bias = operands("bias_gelu", (1,))
    leaf = x.clone().requires_grad_()
    op = torch.ops.gelu_ext.bias_act.default
    grad_out = torch.randn(1)
    return microseconds(
        {
            "torch.empty_like": lambda: torch.empty_like(x),
            "torch.compiler.is_compiling": torch.compiler.is_compiling,
            "native function": lambda: _native.bias_act("bias_gelu", x, bias, "gelu"),
            "native function, declining": lambda: _native.bias_act("bias_gelu", leaf, bias, "gelu"),
            "gelu_ext.bias_gelu": lambda: gelu_ext.bias_gelu(x, bias),
            "torch.ops.gelu_ext.bias_act.default": lambda: op(x, bias, "gelu"),
            "native backward": lambda: _native.bias_act_backward(grad_out, x, bias, "gelu", (True, True)),
            **guards(),
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    figures: dict[str, object] = {"torch": torch.__version__, "rounds": arguments.rounds}
    print(f"microseconds per call on the CPU, float32, torch {torch.__version__},")
    print(f"medians of {arguments.rounds} alternating rounds\n")
    print(f"{'op':10} {'shape':9} {'':19} {'ours':>7} {'eager':>7} {'ratio':>6}")
    for op in PAIRS:
        for shape in SHAPES:
            results = figures[f"{op} {list(shape)}"] = compare(op, shape, arguments.rounds)
            for what, us in results.items():
                shown = str(list(shape)).replace(" ", "")
                print(
                    f"{op:10} {shown:9} {what:19} {us['ours']:7.2f} {us['eager']:7.2f} {us['ours'] / us['eager']:6.2f}"
                )
    print("\nwhat bias_gelu of one element is made of, and what a patched block asks on every call")
    figures["ingredients"] = ingredients(arguments.rounds)
    for what, us in figures["ingredients"].items():
        print(f"{what:38} {us:6.2f}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
