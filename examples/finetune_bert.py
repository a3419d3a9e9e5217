"""Fine-tunes a small BERT of transformers with patch(), beside one without: the same loss at every step.

    python examples/finetune_bert.py

The task: is a line of Python's library prose (of a docstring) or code? The weights are random and the text ships with
Python, so nothing is downloaded. It runs twice, with dropout 0 and with BERT's own, from the same seed. Exits with 1 if
an activation is not fused, if two losses differ by more than 1e-5, or if lines of files that it has not seen are not
told apart.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import gelu_ext

# BERT reads no images, and a torchvision that was built for another torch would fail to import.
sys.modules.setdefault("torchvision", None)
try:
    from transformers import BertConfig, BertForSequenceClassification
except ImportError as error:
    print(f"finetune_bert: skipped, it needs transformers: {error}")
    sys.exit(0)

LENGTH, BATCH, STEPS = 48, 32, 60
START, PADDING = 256, 257  # every byte is a token, and these are two more
TOLERANCE = 1e-5  # of a loss in float32
LEAST_RIGHT = 0.8  # of the lines held out, half of which are prose


def lines_of(path: Path) -> Iterator[tuple[str, int]]:
    """(a line of a module, 1 if it is of a docstring), without what gives it away: indentation and comment signs."""
    source = path.read_text(encoding="utf-8")
    prose: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            prose.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for number, line in enumerate(source.splitlines(), start=1):
        text = line.strip().strip("\"'")
        if len(text) >= 20 and not text.startswith(("#", ">>>")):
            yield text, int(number in prose)


def examples(paths: list[Path], seed: int) -> tuple[Tensor, Tensor]:
    """(tokens ``[lines, LENGTH]``, labels), as many of prose as of code, in random order."""
    lines = [line for path in paths for line in lines_of(path)]
    shuffle = random.Random(seed).shuffle
    shuffle(lines)
    prose, code = ([line for line in lines if line[1] == label] for label in (1, 0))
    lines = [*prose[: len(code)], *code[: len(prose)]]
    shuffle(lines)
    rows = [[START, *text.encode()[: LENGTH - 1]] for text, _ in lines]
    tokens = torch.tensor([row + [PADDING] * (LENGTH - len(row)) for row in rows])
    return tokens, torch.tensor([label for _, label in lines])


def train(model: BertForSequenceClassification, tokens: Tensor, labels: Tensor) -> list[float]:
    """The loss of every step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    torch.manual_seed(1)  # of the dropout
    model.train()
    losses = []
    for step in range(STEPS):
        batch = slice(step * BATCH, (step + 1) * BATCH)
        optimizer.zero_grad()
        mask = (tokens[batch] != PADDING).long()
        loss = model(input_ids=tokens[batch], attention_mask=mask, labels=labels[batch]).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def share_right(model: BertForSequenceClassification, tokens: Tensor, labels: Tensor) -> float:
    model.eval()
    logits = model(input_ids=tokens, attention_mask=(tokens != PADDING).long()).logits
    return (logits.argmax(-1) == labels).double().mean().item()


def main() -> int:
    paths = sorted(Path(os.__file__).parent.glob("*.py"))[:60]
    tokens, labels = examples([path for i, path in enumerate(paths) if i % 5], seed=0)
    unseen, unseen_labels = (t[:512] for t in examples(paths[::5], seed=0))
    print(f"{len(tokens)} lines of {len(paths)} modules of Python's library; {STEPS} steps of {BATCH} lines")
    wrong = []
    for dropout in (0.0, 0.1):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=258, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
            max_position_embeddings=LENGTH, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
        )  # fmt: skip
        model = BertForSequenceClassification(config)
        patched = copy.deepcopy(model)
        report = gelu_ext.patch(patched)
        if not dropout:
            print(report)
        if [row.activation for row in report.fused] != ["gelu"] * config.num_hidden_layers:
            wrong.append("a GELU is not fused")
        eager_losses, losses = (train(m, tokens, labels) for m in (model, patched))
        apart = max(abs(a - b) for a, b in zip(losses, eager_losses, strict=True))
        right = share_right(patched, unseen, unseen_labels)
        print(
            f"dropout {dropout}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, at most {apart:.1e} from unpatched; "
            f"{right:.1%} of {len(unseen)} lines of other modules right"
        )
        if not apart <= TOLERANCE:
            wrong.append(f"with dropout {dropout} the losses differ by {apart:.1e}")
        if right < LEAST_RIGHT:
            wrong.append(f"with dropout {dropout} only {right:.1%} are right")
    print(f"FAILED: {'; '.join(wrong)}" if wrong else "OK: patched and unpatched train alike")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
