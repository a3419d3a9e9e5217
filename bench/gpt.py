"""A small GPT over bytes, the four MLPs that bench/demo.py trains it with, and the text it reads.

The swap to gelu_ext is one line of `forward`: the Linear runs without its bias, and the bias goes into the fused op.
The parameters and their state_dict names stay, so either model loads the other's checkpoint.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gelu_ext

VOCABULARY = 256  # every byte is a token


class MLP(nn.Module):
    """Linear -> GELU -> Linear, as in GPT-2, with the exact (erf) form."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.gelu(self.fc(x)))


class FusedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(gelu_ext.bias_gelu(F.linear(x, self.fc.weight), self.fc.bias))


class GatedMLP(nn.Module):
    """Linear -> GeGLU -> Linear, as in diffusers: the second half is activated, and both halves have a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = round(8 * width / 3 / 32) * 32  # about as many parameters as MLP
        self.fc = nn.Linear(width, 2 * hidden)
        self.proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.fc(x).chunk(2, -1)
        return self.proj(a * F.gelu(b))


class FusedGatedMLP(GatedMLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.proj(gelu_ext.geglu(F.linear(x, self.fc.weight), self.fc.bias))


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.head_width = min(width, 32)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = (t.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(*heads, is_causal=True)  # [batch, heads, time, head_width]
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, mlp: type[nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width)
        self.norm2, self.mlp = nn.LayerNorm(width), mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """tokens [batch, time] -> logits [batch, time, 256]; the head shares its weight with the token embedding."""

    def __init__(self, width: int, layers: int, context: int, mlp: type[nn.Module]) -> None:
        super().__init__()
        self.context = context
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, mlp) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.1)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return F.linear(self.norm(self.blocks(x)), self.token.weight)

    @torch.no_grad()
    def generate(self, prompt: bytes, count: int, seed: int) -> bytes:
        """`count` bytes after `prompt`, at temperature 0.7."""
        random = torch.Generator().manual_seed(seed)
        text = list(prompt)
        for _ in range(count):
            tokens = torch.tensor([text[-self.context :]], device=self.token.weight.device)
            weights = (self(tokens)[0, -1].float() / 0.7).softmax(-1).cpu()
            text.append(int(torch.multinomial(weights, 1, generator=random)))
        return bytes(text)


class TextError(Exception):
    """There is no usable text; the message is one sentence for the user."""


def read_text(path: Path | None) -> tuple[str, bytes]:
    """(where it comes from, the text)."""
    if path is not None:
        try:
            return str(path), path.read_bytes()
        except OSError as error:
            raise TextError(f"--text: cannot read {path}: {error.strerror}") from None
    try:
        from pydoc_data.topics import topics
    except ImportError:  # minimal installations of Python leave it out
        files = sorted(Path(os.__file__).parent.glob("*.py"))
        source = b"".join(file.read_bytes() for file in files)
        return f"the source of {len(files)} modules of Python's library (pydoc_data.topics is not installed)", source
    return "Python's own documentation (pydoc_data.topics)", "\n".join(topics[key] for key in sorted(topics)).encode()


@dataclass
class Text:
    """The text as tokens: the last tenth is held out."""

    tokens: Tensor
    context: int
    batch: int
    seed: int

    @property
    def split(self) -> int:
        return len(self.tokens) * 9 // 10

    def batch_at(self, step: int) -> Tensor:
        """[batch, context + 1]: always the same for one step and seed."""
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return self._windows(torch.randint(self.split - self.context, (self.batch,), generator=random))

    def held_out(self) -> Tensor:
        last = len(self.tokens) - self.context - 1
        return self._windows(torch.linspace(self.split, last, 4 * self.batch).long())

    def _windows(self, starts: Tensor) -> Tensor:
        return self.tokens[starts[:, None] + torch.arange(self.context + 1)].long()
