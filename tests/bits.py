"""Hashes every bit that the CPU kernels compute, to show that a change of structure changed none of them.

    python tests/bits.py > before.txt     (at one commit, built)
    python tests/bits.py > after.txt      (at another)
    diff before.txt after.txt

A line is an operation, a form, a dtype, an instruction set and the hash of its outputs and gradients over the shapes
below. It calls nothing but the public functions of the first release, so that it runs at any commit.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

import gelu_ext
from gelu_ext import _native

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
FORMS = ("none", "tanh", "sigmoid")
# (leading sizes, width of the output, how the tensors lie): around the widths of registers, packs, tiles and folds
SHAPES = (
    ((1,), 1, "contiguous"),
    ((3, 5), 7, "contiguous"),
    ((257,), 3, "contiguous"),
    ((1000,), 24, "slice"),
    ((33,), 129, "slice"),
    ((2, 3, 40), 96, "transposed"),
    ((70,), 1023, "contiguous"),
    ((5,), 8193, "slice"),
    ((300,), 520, "expanded"),
    ((2,), 20001, "contiguous"),
)
BIASES = ("none", "own", "float32")


def tensor(rows: tuple[int, ...], cols: int, layout: str, dtype: torch.dtype, random: torch.Generator) -> Tensor:
    """Of both tails, with special values, as a contiguous tensor or a view of another."""

    def values(*sizes: int) -> Tensor:
        x = 3 * torch.randn(sizes, generator=random, dtype=torch.float64)
        flat = x.view(-1)
        special = torch.tensor([0.0, -0.0, 1e-40, -1e-40, 40.0, -40.0, -13.7, -14.4, 1e30, -1e30, float("inf")])
        flat[: special.numel() * 97 : 97][: special.numel()] = special[: flat[::97].numel()].double()
        return x.to(dtype)

    if layout == "slice":
        return values(*rows, cols + 5)[..., 3 : 3 + cols]
    if layout == "transposed":
        return values(*rows[::-1], cols).permute(*reversed(range(len(rows))), len(rows))
    if layout == "expanded":
        return values(*[1] * len(rows), cols).expand(*rows, cols)
    return values(*rows, cols)


def calls(form: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor, list[Tensor]]]:
    """(operation, output, gradients) of every shape, bias and half."""
    random = torch.Generator().manual_seed(0)
    for (rows, cols, layout), bias in itertools.product(SHAPES, BIASES):
        kind = torch.float32 if bias == "float32" else dtype

        def biased(width: int, kind: torch.dtype = kind, bias: str = bias) -> list[Tensor]:
            return [] if bias == "none" else [tensor((), width, "contiguous", kind, random)]

        runs = [("bias_gelu", {}, [tensor(rows, cols, layout, dtype, random), *biased(cols)])]
        for which in ("second", "first"):
            packed = [tensor(rows, 2 * cols, layout, dtype, random), *biased(2 * cols)]
            runs.append(("geglu", {"activated": which}, packed))
        if bias == "none":
            runs.append(("gelu_mul", {}, [tensor(rows, cols, layout, dtype, random) for _ in range(2)]))
        for name, options, inputs in runs:
            leaves = [t.detach().requires_grad_() for t in inputs]
            out = getattr(gelu_ext, name)(*leaves, approximate=form, **options)
            grad_out = tensor(rows, cols, layout if layout != "transposed" else "contiguous", dtype, random)
            yield name, out.detach(), list(torch.autograd.grad(out, leaves, grad_out))
            # one gradient alone takes another way through the kernels
            out = getattr(gelu_ext, name)(*leaves, approximate=form, **options)
            yield name, out.detach(), list(torch.autograd.grad(out, leaves[-1], grad_out))


def main() -> None:
    for isa in _native.instruction_sets().split(","):
        assert _native.set_instruction_set(isa)
        for form, dtype in itertools.product(FORMS, DTYPES):
            hashes = {name: hashlib.sha256() for name in ("bias_gelu", "geglu", "gelu_mul")}
            for name, out, grads in calls(form, dtype):
                for t in (out, *grads):
                    hashes[name].update(t.contiguous().view(torch.uint8).numpy().tobytes())
            for name, digest in hashes.items():
                print(f"{name:10} {form:8} {str(dtype).removeprefix('torch.'):9} {isa:12} {digest.hexdigest()[:16]}")


if __name__ == "__main__":
    main()
