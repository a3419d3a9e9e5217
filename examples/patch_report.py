"""The report of patch() on a small model: three MLPs fused whole, one activation alone, one left alone.

python examples/patch_report.py
"""

import torch
from torch import nn

import gelu_ext


class GatedMLP(nn.Module):
    """Of two Linears with biases: SwiGLU as in Llama, GeGLU as in T5 v1.1 and Gemma."""

    def __init__(self, width: int, hidden: int, act: nn.Module) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.act(self.gate(x)) * self.up(x))


model = nn.ModuleDict(
    {
        "layer": nn.TransformerEncoderLayer(512, 8, 2048, activation="gelu", batch_first=True),
        "gated": GatedMLP(512, 1024, nn.GELU("tanh")),
        "swiglu": GatedMLP(512, 1024, nn.SiLU()),
        "head": nn.Sequential(nn.LayerNorm(512), nn.GELU(), nn.Linear(512, 10)),
        "gate": nn.Sequential(nn.Linear(512, 64), nn.LeakyReLU(), nn.Linear(64, 512)),
    }
)
print(gelu_ext.patch(model, recompute=True))
