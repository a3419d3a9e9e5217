"""Proves on the spot that a plan computes what the block computes, on copies: the model itself is never run.

Values and all gradients of the original and of the patched block, in the block's own dtype, against the original in
float64. The patched one may err at most twice as much as the original does.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..memory import saved_bytes
from .plan import Plan, linear_kind
from .record import first_line
from .swap import install

_TOKENS = (2, 3)
_SCALE = 2.0  # standard deviation of the pre-activation: the region where forms and halves differ


@dataclass
class Proof:
    """``problem`` is empty if the block may be swapped. Bytes that autograd keeps per token, before and after."""

    problem: str
    eager_bytes: int = 0
    fused_bytes: int = 0


def copy_of(block: nn.Module) -> nn.Module:
    """A copy to experiment with: without hooks, every parameter trainable, and no bias that is all zero.

    Models are born with zero biases, and one that is lost on the way would not be missed.
    """
    block = copy.deepcopy(block)
    generator = torch.Generator().manual_seed(0)
    for module in block.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
        bias = getattr(module, "bias", None)
        if linear_kind(module) and bias is not None and not bias.any():
            with torch.no_grad():
                bias.copy_(torch.randn(bias.shape, generator=generator))
    for parameter in block.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True).grad = None
    return block


def place_of(block: nn.Module) -> tuple[torch.device, torch.dtype]:
    tensors = [t for t in [*block.parameters(), *block.buffers()] if t.is_floating_point()]
    return (tensors[0].device, tensors[0].dtype) if tensors else (torch.device("cpu"), torch.float32)


def random_input(block: nn.Module, features: int) -> Tensor:
    device, dtype = place_of(block)
    x = torch.randn(*_TOKENS, features, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x.to(device, dtype)


@contextmanager
def quiet(device: torch.device) -> Iterator[None]:
    """Leaves the random state as it was, and does not care in which mode the caller is."""
    with (
        torch.random.fork_rng(devices=range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield


def _scaled(block: nn.Module, plan: Plan, x: Tensor) -> Tensor:
    """x such that the first Linear returns numbers of the size of _SCALE."""
    path = plan.steps[0].path
    module = block.get_submodule(path) if path else None
    if module is None or not linear_kind(module):
        return x
    with torch.no_grad():
        weight = module.weight.double() if isinstance(module, nn.Linear) else module.weight.double().t()
        spread = torch.nn.functional.linear(x.double(), weight).std()
    return (x * (_SCALE / spread)).to(x.dtype) if spread > 0 else x


def _results(block: nn.Module, method: str, x: Tensor, training: bool) -> dict[str, Tensor]:
    """The output and every gradient of a random weighting of it."""
    block.train(training)
    torch.manual_seed(0)  # the same dropout in each
    x = x.detach().clone().requires_grad_()
    out = getattr(block, method)(x)
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out)
    parameters = {name: p for name, p in block.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(out, [x, *parameters.values()], grad_out, allow_unused=True)
    names = ["the gradient of the input", *(f"the gradient of {name}" for name in parameters)]
    found = {name: grad for name, grad in zip(names, grads, strict=True) if grad is not None}
    return {"the output": out.detach(), **found}


def _error(result: Tensor, truth: Tensor) -> float:
    return _largest(result.double() - truth)


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0


def _allowed(eager: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Twice the error of the original, and two roundings of the largest value, since an error can be zero by luck."""
    return {
        name: 2 * _error(eager[name], exact) + 2 * torch.finfo(eager[name].dtype).eps * _largest(exact)
        for name, exact in truth.items()
    }


def _disagreement(fused: dict[str, Tensor], reference: dict[str, Tensor], allowed: dict[str, float]) -> str:
    """What differs by more than is allowed, as a clause; empty if nothing does."""
    odd = fused.keys() ^ reference.keys()
    if odd:
        return f"{sorted(odd)[0]} exists only in one of the two"
    for name, expected in reference.items():
        if fused[name].shape != expected.shape:
            return f"{name} has shape {list(fused[name].shape)}, not {list(expected.shape)}"
        error = _error(fused[name], expected.double())
        if not error <= allowed[name]:  # a NaN is no agreement
            return f"{name} is off by {error:.2g}, and {allowed[name]:.2g} is allowed"
    return ""


def _compare(block: nn.Module, patched: nn.Module, eager: nn.Module, method: str, x: Tensor) -> str:
    truth = _results(copy.deepcopy(block).double(), method, x.double(), training=False)
    fused, before = (_results(b, method, x, training=False) for b in (patched, eager))
    if any(fused[name].dtype != t.dtype for name, t in before.items() if name in fused):
        return "the dtype of a result differs"
    if before.keys() != truth.keys():
        return "it computes something else in float64"
    allowed = _allowed(before, truth)
    problem = _disagreement(fused, truth, allowed)
    if problem:
        return problem
    # In training mode dropout must fall on the same places: the original with the same random numbers is the reference.
    fused, before = (_results(b, method, x, training=True) for b in (patched, eager))
    allowed = {name: 2 * allowed[name] + 8 * torch.finfo(t.dtype).eps * _largest(t) for name, t in before.items()}
    problem = _disagreement(fused, before, allowed)
    if problem:
        return f"in training mode {problem}"
    if x.dtype == torch.float32:
        with torch.no_grad(), torch.autocast(x.device.type, dtype=torch.bfloat16):
            kinds = [getattr(b.eval(), method)(x).dtype for b in (patched, eager)]
        if kinds[0] != kinds[1]:
            return "under autocast the dtype of the output differs"
    return ""


def prove(block: nn.Module, plan: Plan, x: Tensor, verify: bool) -> Proof:
    """Runs the block with and without the plan. ``block`` is a copy by copy_of(), which is not changed.

    Without ``verify``, it measures the memory only.
    """
    method = plan.method
    x = _scaled(block, plan, x)
    eager, patched = copy.deepcopy(block), copy.deepcopy(block)
    install(plan, patched)
    with quiet(x.device):
        try:
            if verify:
                problem = _compare(block, patched, eager, method, x)
                if problem:
                    return Proof(problem)
            tokens = x[..., 0].numel()
            x.requires_grad_()
            kept = [saved_bytes(getattr(b.train(), method), x, exclude=_alive(b)) // tokens for b in (eager, patched)]
            return Proof("", *kept)
        except Exception as error:
            return Proof(f"it does not run ({first_line(error)})")


def _alive(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]
