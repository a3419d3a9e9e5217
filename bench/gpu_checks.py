"""What only a GPU can show and the tests leave out, each in a process of its own: `python bench/gpu_checks.py NAME`."""

from __future__ import annotations

import argparse
import sys

import torch

import gelu_ext
from bench import fused_bias_act


def large(device: str) -> str:
    """More elements than an int32 counts: the last rows are right, forward and backward."""
    rows, cols = (2**31 // 4096 + 64, 4096) if device == "cuda" else (2**12, 512)
    x = torch.full((rows, cols), 1.5, dtype=torch.bfloat16, device=device)
    x[-3:] = torch.randn(3, cols, device=device).bfloat16()
    grad = torch.randn(1, cols, device=device).bfloat16()
    results = []
    for part in (x, x[-3:].clone()):
        out = gelu_ext.bias_gelu(part.requires_grad_())
        (grad_x,) = torch.autograd.grad(out, part, grad.expand_as(part))
        results.append((out[-3:], grad_x[-3:]))
    if not all(torch.equal(whole, alone) for whole, alone in zip(*results, strict=True)):
        raise AssertionError("the rows beyond 2^31 elements differ")
    return f"{rows} x {cols}"


def repeatable(device: str) -> str:
    x = torch.randn(8192, 3072, device=device).bfloat16()
    bias = torch.randn(3072, device=device).bfloat16().requires_grad_()
    grad = torch.randn_like(x)
    first, *others = (torch.autograd.grad(fused_bias_act(x, bias, "gelu"), bias, grad)[0] for _ in range(5))
    if not all(torch.equal(first, other) for other in others):
        raise AssertionError("two runs gave different bias gradients")
    return "five runs, the same bits"


def first_use_in_a_graph(device: str) -> str:
    """A capture that is the first thing a process does with every operation."""
    if device != "cuda":
        return "skipped: no GPU"
    x = torch.randn(64, 512, device=device).bfloat16().requires_grad_()
    bias = torch.randn(512, device=device).bfloat16().requires_grad_()

    def every_operation() -> list[torch.Tensor]:
        outputs = [
            gelu_ext.bias_act(x, bias, activation="gelu"),
            gelu_ext.glu(x, bias, activation="gelu"),
            gelu_ext.act_mul(x, x, bias, None, activation="gelu"),
            gelu_ext.clamped_swiglu(x, bias),
        ]
        gradients = [torch.autograd.grad(out, (x, bias), out.detach().sin()) for out in outputs]
        return [*(out.detach() for out in outputs), *(grad for pair in gradients for grad in pair)]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = every_operation()
    graph.replay()
    torch.cuda.synchronize()
    expected = every_operation()
    if not all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)):
        raise AssertionError("a graph captured on first use computes something else")
    return "every operation, forward and backward"


CHECKS = {check.__name__: check for check in (large, repeatable, first_use_in_a_graph)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=CHECKS)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(argv)
    print(CHECKS[args.check](args.device))
    return 0


if __name__ == "__main__":
    sys.exit(main())
