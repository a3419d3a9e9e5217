"""An MLP and a GeGLU MLP, each written in four ways: gradients against float64, and what autograd keeps.

    python examples/write_your_own_mlp.py

The parameters and their names are the same in all ways of a kind, so each loads the others' state_dict. Exits with 1 if
an output or a gradient is further from eager float64 than twice eager float32 is, and two roundings, or if one node
does not keep less than eager.
"""

from __future__ import annotations

import copy
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gelu_ext
from gelu_ext.memory import saved_bytes

WIDTH, HIDDEN, TOKENS = 256, 1024, 512


class MLP(nn.Module):
    """Linear -> GELU -> Linear in torch's own functions."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class FusedMLP(MLP):
    """The first Linear runs without its bias, which goes into the fused function."""

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu_ext.bias_gelu(F.linear(x, self.fc1.weight), self.fc1.bias))


class OneNodeMLP(MLP):
    """All of it is one autograd node, which keeps the pre-activation and computes the activation once more."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu_ext.mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


class GatedMLP(nn.Module):
    """Linear -> GeGLU -> Linear in torch's own functions; the second half is activated, as in diffusers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc1(x).chunk(2, -1)
        return self.fc2(a * F.gelu(b))


class FusedGatedMLP(GatedMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu_ext.geglu(F.linear(x, self.fc1.weight), self.fc1.bias))


class OneNodeGatedMLP(GatedMLP):
    def forward(self, x: Tensor) -> Tensor:
        return gelu_ext.geglu_mlp(x, self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)


KINDS = {
    "MLP": {
        "eager": MLP(),
        "bias_gelu()": FusedMLP(),
        "mlp()": OneNodeMLP(),
        "module MLP": gelu_ext.MLP(WIDTH, HIDDEN),
    },
    "GeGLU MLP": {
        "eager": GatedMLP(),
        "geglu()": FusedGatedMLP(),
        "geglu_mlp()": OneNodeGatedMLP(),
        "module GEGLUMLP": gelu_ext.GEGLUMLP(WIDTH, HIDDEN),
    },
}


def results(model: nn.Module, x: Tensor, grad_out: Tensor) -> list[Tensor]:
    """The output and the gradients of x and of every parameter."""
    leaf = x.detach().requires_grad_()
    out = model(leaf)
    tensors = [leaf, *model.parameters()]
    return [out.detach(), *torch.autograd.grad(out, tensors, grad_out)]


def error(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest, relative to the largest number of its tensor."""
    return max(((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, exact, strict=True))


def main() -> int:
    torch.manual_seed(0)
    x, grad_out = torch.randn(TOKENS, WIDTH), torch.randn(TOKENS, WIDTH)
    wrong = []
    print(f"{'':10} {'':16} {'error to float64':>16} {'bytes kept per token':>21}   (float32, {WIDTH} -> {HIDDEN})")
    for kind, ways in KINDS.items():
        eager = ways["eager"]
        exact = results(copy.deepcopy(eager).double(), x.double(), grad_out.double())
        bar = 2 * error(results(eager, x, grad_out), exact) + 2 * torch.finfo(torch.float32).eps
        kept = {}
        for way, model in ways.items():
            model.load_state_dict(eager.state_dict())
            off = error(results(model, x, grad_out), exact)
            kept[way] = saved_bytes(model, x, exclude=[x]) / TOKENS
            print(f"{kind:10} {way:16} {off:16.1e} {kept[way]:21.0f}")
            if not off <= bar:
                wrong.append(f"{kind}, {way}: an error of {off:.1e} where {bar:.1e} is allowed")
        one_node = list(ways)[2:]
        wrong += [f"{kind}, {way}: keeps no less than eager" for way in one_node if kept[way] >= kept["eager"]]
    print(f"FAILED: {'; '.join(wrong)}" if wrong else "OK: the same gradients, and one node keeps less")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
