"""Trains a small GPT on sequences of 32768 bytes, with MLPs as they are and in tiles of rows: peak memory, and losses.

    python examples/long_context.py                    32768 tokens
    python examples/long_context.py --tokens 8192      a shorter context

The hidden activations of its gated MLPs are 8 times as wide as the model, as in Gemma 2B, and at this length they are
most of the memory. patch(model, recompute=True, tile_rows="auto") lets them exist for 512 tokens at a time. Attention
looks back over two windows, as a context of this length needs on a CPU, and the head takes its tokens in parts, so
neither is the peak. Exits with 1 if two losses differ by more than 1e-5, or if the peak is more than half of eager's.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gelu_ext
from gelu_ext.memory import peak_bytes

WIDTH, HEADS, LAYERS = 64, 2, 2
HIDDEN = 8 * WIDTH
WINDOW = 128  # a token sees those of its own window before it, and all of the window before that
STEPS = 3
TOLERANCE = 1e-5  # of a loss in float32
MOST = 0.5  # of eager's peak


class Attention(nn.Module):
    """Causal, over two windows: windows are the batch, so no matrix is larger than WINDOW x 2 WINDOW."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        query, key = torch.arange(WINDOW)[:, None] + WINDOW, torch.arange(2 * WINDOW)
        self.register_buffer("mask", key <= query, persistent=False)

    def forward(self, x: Tensor) -> Tensor:  # [tokens, WIDTH]
        windows = self.qkv(x).view(-1, WINDOW, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = windows  # [windows, HEADS, WINDOW, WIDTH / HEADS]
        before = (F.pad(t, (0, 0, 0, 0, 0, 0, 1, 0))[:-1] for t in (key, value))  # the first window sees zeros there
        key, value = (torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return self.proj(out.transpose(1, 2).reshape(x.shape))


class GatedMLP(nn.Module):
    """GeGLU of two Linears, as in Gemma."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(WIDTH, HIDDEN, bias=False), nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), GatedMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Over bytes; what it knows of positions is what the windows tell it."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(256, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.token.weight, std=0.1)

    def loss(self, tokens: Tensor) -> Tensor:
        """The mean cross entropy of each token after the ones before it."""
        x = self.norm(self.blocks(self.token(tokens[:-1])))
        parts = zip(x.split(2048), tokens[1:].split(2048), strict=True)
        # A checkpoint keeps the part's input alone: all logits at once would be the next peak.
        return sum(checkpoint(self.head, *part, use_reentrant=False) for part in parts) / len(x)

    def head(self, x: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(x, self.token.weight), targets, reduction="sum")


def text(tokens: int) -> Tensor:
    """The source of Python's library, in bytes."""
    content = bytearray()
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        content += path.read_bytes()
    return torch.frombuffer(content, dtype=torch.uint8)[: tokens * STEPS + 1].long()


def train(model: GPT, tokens: Tensor, count: int) -> tuple[list[float], int, float]:
    """(the loss of every step, the peak of the first in bytes above what was there, seconds of one of the others)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []

    def step(batch: Tensor) -> None:
        optimizer.zero_grad()
        loss = model.loss(batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    peak = peak_bytes(step, tokens[: count + 1])
    start = time.perf_counter()
    for i in range(1, STEPS):
        step(tokens[i * count : (i + 1) * count + 1])
    return losses, peak, (time.perf_counter() - start) / (STEPS - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32768, help=f"in a sequence, a multiple of {WINDOW}")
    count = parser.parse_args().tokens
    if count < 2 * WINDOW or count % WINDOW:
        parser.error(f"--tokens: expected a multiple of {WINDOW}, two windows or more, got {count}")
    tokens = text(count)
    if len(tokens) <= STEPS * count:
        parser.error(f"--tokens: expected at most {len(tokens) // STEPS // WINDOW * WINDOW}, got {count}")
    torch.manual_seed(0)
    model = GPT()
    models = {"eager": model, "recompute": copy.deepcopy(model), "in tiles": copy.deepcopy(model)}
    reports = {
        "recompute": gelu_ext.patch(models["recompute"], recompute=True),
        "in tiles": gelu_ext.patch(models["in tiles"], recompute=True, tile_rows="auto"),
    }
    print(reports["in tiles"])
    wrong = [f"{name}: an MLP is not fused" for name, report in reports.items() if len(report.fused) != LAYERS]

    print(f"{count} tokens, {LAYERS} layers, {WIDTH} -> {HIDDEN} -> {WIDTH}, {torch.get_num_threads()} thread(s)")
    eager_losses, eager_peak = [], 0
    for name, of in models.items():
        losses, peak, seconds = train(of, tokens, count)
        eager_losses, eager_peak = eager_losses or losses, eager_peak or peak
        apart = max(abs(a - b) for a, b in zip(losses, eager_losses, strict=True))
        print(
            f"{name:9}  peak {peak / 2**20:4.0f} MiB ({peak / eager_peak:.2f})   {seconds:.2f} s per step   "
            f"losses {' '.join(f'{loss:.6f}' for loss in losses)}",
            *([f"at most {apart:.1e} from eager"] if name != "eager" else []),
            sep="   ",
        )
        if not apart <= TOLERANCE:
            wrong.append(f"{name}: the losses differ by {apart:.1e}")
    if peak > MOST * eager_peak:
        wrong.append(f"in tiles the peak is {peak / eager_peak:.2f} of eager's")
    print(f"FAILED: {'; '.join(wrong)}" if wrong else "OK: the same losses in less memory")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
