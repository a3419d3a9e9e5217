"""Every op, activation, dtype and kind of layout once, forward and backward, on small shapes: for compute-sanitizer."""

from __future__ import annotations

import argparse
import itertools
import sys

import torch

import gelu_ext
from gelu_ext import _native

# full tiles, tails, one row, one column, tall and thin, odd widths that have no 16-byte access
SHAPES = ((64, 512), (33, 264), (1, 4104), (70, 1), (700, 6), (9, 131))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(argv).device
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    for (rows, cols), dtype, name in itertools.product(SHAPES, dtypes, _native.activations()):
        wide = torch.randn(rows, 2 * cols + 3, device=device).to(dtype)
        for packed in (wide[:, : 2 * cols], wide[:, 3:]):
            x = packed.detach().requires_grad_()
            bias = torch.randn(2 * cols, device=device).requires_grad_()
            grad = torch.randn(rows, cols, device=device).to(dtype)
            half_bias = bias.to(dtype) if dtype != torch.float64 else bias.double()
            torch.autograd.grad(gelu_ext.glu(x, half_bias, activation=name), (x, bias), grad)
            torch.autograd.grad(gelu_ext.glu(x, bias, activation=name, activated="first"), (x, bias), grad)
            a, b = x.chunk(2, -1)
            torch.autograd.grad(gelu_ext.bias_act(a, bias[:cols], activation=name), (x, bias), grad)
            torch.autograd.grad(gelu_ext.act_mul(a, b, activation=name), x, grad)
    if device == "cuda":
        torch.cuda.synchronize()
    print("every op ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
