"""Under autocast the functions run in the dtype of their input, as F.gelu does; gradients have their leaf's dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reference import check, every_half, leaf, randn, telling_calls
from torch import nn

import gelu_ext


@every_half
@telling_calls
def test_runs_in_the_dtype_of_its_input(call, dtype, device):
    with torch.autocast(device, dtype=dtype):
        for kind in (torch.float32, dtype, torch.float64):
            x = randn((5, call.width(7)), kind, device)
            for bias in call.biases(kind):
                out, grad_x, grad_other = check(call, x, call.other(x, bias))
                assert out.dtype == F.gelu(x).dtype == grad_x.dtype == kind
                assert grad_other is None or grad_other.dtype == (bias or kind)


class Block(nn.Module):
    """Every function behind and before a Linear, as in a transformer; `fused` or as torch has it."""

    def __init__(self, fused: bool):
        super().__init__()
        self.fused = fused
        self.a, self.b, self.c = nn.Linear(8, 16, bias=False), nn.Linear(16, 24, bias=False), nn.Linear(12, 4)
        self.bias, self.packed_bias = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(24))

    def forward(self, x):
        h = self.a(x)
        h = gelu_ext.bias_gelu(h, self.bias) if self.fused else F.gelu(h + self.bias)
        h = self.b(h)
        if self.fused:
            h = gelu_ext.geglu(h, self.packed_bias, approximate="tanh")
        else:
            a, b = (h + self.packed_bias).chunk(2, -1)
            h = a * F.gelu(b, approximate="tanh")
        c, d = self.c(h).chunk(2, -1)
        return gelu_ext.gelu_mul(c, d) if self.fused else F.gelu(c) * d


@every_half
def test_a_model_with_float32_parameters(dtype, device):
    torch.manual_seed(0)
    block, eager = Block(True).to(device), Block(False).to(device)
    eager.load_state_dict(block.state_dict())
    x = leaf(randn((32, 8), torch.float32, device))
    results = {}
    for model in (block, eager):
        with torch.autocast(device, dtype=dtype):
            out = model(x)
        # eager promotes half + float32 bias to float32, we keep the input's dtype
        assert out.dtype == dtype
        grads = torch.autograd.grad(out.float().square().mean(), [x, *model.parameters()])
        assert all(g.dtype == torch.float32 for g in grads)
        results[model] = grads
    wide = Block(False).double().to(device)
    wide.load_state_dict(block.state_dict())
    x64 = leaf(x.double())
    truth = torch.autograd.grad(wide(x64).square().mean(), [x64, *wide.parameters()])
    for ours, theirs, true in zip(results[block], results[eager], truth, strict=True):
        ours, theirs = ((g.double() - true).norm() / true.norm() for g in (ours, theirs))
        assert ours <= 2 * theirs + 4 * torch.finfo(dtype).eps


@every_half
@telling_calls
def test_double_backward_and_transforms(call, dtype):
    x = randn((5, call.width(7)), dtype)
    other = call.other(x, torch.float32 if call.has_bias else dtype)
    leaves = leaf(x), leaf(other)
    with torch.autocast("cpu", dtype=dtype):
        out = call(*leaves)
        first = torch.autograd.grad(out.float().sin().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.float().sin().sum() for g in first), leaves)
        batched = torch.func.vmap(call, (0, None if call.has_bias else 0))(x, other)
    assert batched.dtype == out.dtype == dtype
    for got, wrt in zip([*first, *second], [*leaves, *leaves], strict=True):
        assert got.dtype == wrt.dtype and got.isfinite().all()
    torch.testing.assert_close(batched, out.detach())


def test_training_with_a_grad_scaler(device):
    torch.manual_seed(0)
    block = Block(True).to(device)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.05)
    scaler = torch.amp.GradScaler(device, init_scale=2.0**40, growth_interval=1000)
    x, y = randn((64, 8), torch.float32, device), randn((64, 2), torch.float32, device, seed=1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            loss = F.mse_loss(block(x).float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() < 2.0**40, "no overflow was met and skipped"
    assert losses[-1] < losses[0] and all(p.isfinite().all() for p in block.parameters())
