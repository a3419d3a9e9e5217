"""Proves on the spot that a plan computes what the block computes, on copies: the model itself is never run.

Values and all gradients of the original and of the patched block, in the block's own dtype, against the original in
float64 (float32 for 16 bits). The patched one may err at most twice as much as the original does. Of further blocks
with the same plan the values are compared, with their own weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..memory import saved_bytes
from .guard import linear_kind
from .plan import Plan
from .record import alias_of, copied, first_line
from .swap import install

_TOKENS = (2, 3)
_SCALE = 2.0  # standard deviation of the pre-activation: the region where forms and halves differ; of limits if any


@dataclass
class Proof:
    """``problem`` is empty if the block may be swapped. Bytes that autograd keeps per token, before and after."""

    problem: str
    eager_bytes: int = 0
    fused_bytes: int = 0


def copy_of(block: nn.Module, with_data: bool = True) -> nn.Module:
    """A copy to experiment with: without hooks, every parameter trainable, and no bias that is all zero.

    Models are born with zero biases, and one that is lost on the way would not be missed. Without ``with_data`` the
    other parameters are the block's own numbers.
    """
    block = copied(block, with_data)
    generator = torch.Generator("cpu").manual_seed(0)
    for module in block.modules():
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(module, hooks).clear()
        bias = getattr(module, "bias", None)
        if linear_kind(module) and bias is not None and not bias.any():
            noise = torch.randn(bias.shape, generator=generator, device="cpu").to(bias)
            module.bias = nn.Parameter(noise) if isinstance(bias, nn.Parameter) else noise
    for parameter in block.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True).grad = None
    return block


def place_of(block: nn.Module) -> tuple[torch.device, torch.dtype]:
    tensors = [t for t in [*block.parameters(), *block.buffers()] if t.is_floating_point()]
    return (tensors[0].device, tensors[0].dtype) if tensors else (torch.device("cpu"), torch.float32)


def random_input(block: nn.Module, features: int) -> Tensor:
    device, dtype = place_of(block)
    return _noise((*_TOKENS, features), 1).to(device, dtype)


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    """On the CPU, whatever the default device is."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float64, device="cpu")


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
    """x such that the first Linear returns numbers of that size, or x is what is activated."""
    step = plan.steps[0]
    scale = _SCALE * (step.options.get("limit", 1) if step.op != "module" else 1)
    if not step.path:
        return x * scale
    module = block.get_submodule(step.path)
    if not linear_kind(module):
        return x
    with torch.no_grad():
        weight = module.weight if isinstance(module, nn.Linear) else module.weight.t()
        spread = torch.nn.functional.linear(x, weight).double().std()
    return (x * (scale / spread)).to(x.dtype) if spread > 0 else x


def _results(block: nn.Module, method: str, x: Tensor, training: bool) -> dict[str, Tensor]:
    """The output, and the gradients of a random weighting of it: of a matrix, its product with a random vector.

    Wherever two gradients differ their products do, and the gradients of all matrices need not be there at once.
    """
    block.train(training)
    torch.manual_seed(0)  # the same dropout in each
    x = x.detach().clone().requires_grad_()
    out = getattr(block, method)(x)
    grad_out = _noise(tuple(out.shape), 2).to(out)
    results = {"the output": out.detach()}
    for name, t in [("the input", x), *block.named_parameters()]:
        if not t.requires_grad:
            continue
        (grad,) = torch.autograd.grad(out, t, grad_out, retain_graph=True, allow_unused=True)
        if grad is not None and t is not x and grad.dim() == 2:
            grad = grad @ _noise((grad.shape[1],), 3).to(grad)
        if grad is not None:
            results[f"the gradient of {name}"] = grad
    return results


def _error(result: Tensor, truth: Tensor) -> float:
    return _largest(result.double() - truth)


def _largest(t: Tensor) -> float:
    return t.abs().max().item() if t.numel() else 0.0


def _allowed(eager: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """Twice the error of the original, and two roundings of the largest value, since an error can be zero by luck.

    (In float64 it is zero: there 32 roundings, as sums may run in another order.)
    """
    allowed = {}
    for name, exact in truth.items():
        kind = torch.finfo(eager[name].dtype)
        roundings = 32 if kind.bits == 64 else 2
        allowed[name] = 2 * _error(eager[name], exact) + roundings * kind.eps * _largest(exact)
    return allowed


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


def _compare(patched: nn.Module, eager: nn.Module, method: str, x: Tensor) -> str:
    exact = torch.float64 if torch.finfo(x.dtype).bits >= 32 else torch.float32  # a thousandth of what is allowed
    truth = _results(alias_of(eager).to(exact), method, x.to(exact), training=False)
    fused, before = (_results(b, method, x, training=False) for b in (patched, eager))
    if any(fused[name].dtype != t.dtype for name, t in before.items() if name in fused):
        return "the dtype of a result differs"
    if before.keys() != truth.keys():
        return f"it computes something else in {str(exact).removeprefix('torch.')}"
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


def _pair(block: nn.Module, plan: Plan) -> tuple[nn.Module, nn.Module]:
    """(with the plan, without), on the same numbers."""
    eager = copy_of(block, with_data=False)
    patched = alias_of(eager)
    install(plan, patched)
    return patched, eager


def prove(block: nn.Module, plan: Plan, x: Tensor, verify: bool) -> Proof:
    """Runs copies of the block with and without the plan. Without ``verify``, it measures the memory only."""
    method = plan.method
    x = _scaled(block, plan, x)
    # What is dropped differs, where the operation drops it; all else must not.
    patched, eager = _pair(block, plan.with_torchs_dropout())
    with quiet(x.device):
        try:
            if verify:
                problem = _compare(patched, eager, method, x)
                if problem:
                    return Proof(problem)
            if plan.drops:
                patched, eager = _pair(block, plan)
            return Proof("", *(_bytes_per_token(getattr(b.train(), method), x, _alive(b)) for b in (eager, patched)))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            return Proof(f"it does not run ({first_line(error)})")


def _bytes_per_token(function: Callable[[Tensor], Tensor], x: Tensor, alive: list[Tensor]) -> int:
    """What each further token costs: small copies that are kept once do not count."""
    longer = torch.cat([x, x], dim=0)
    kept = [saved_bytes(function, t.requires_grad_(), exclude=[*alive]) for t in (x.detach(), longer.detach())]
    return (kept[1] - kept[0]) // (x.numel() // x.shape[-1])


_EQUAL = {torch.float64: 1e-12, torch.float32: 3e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def prove_again(block: nn.Module, plan: Plan, x: Tensor) -> str:
    """The values of a block whose equal has been proved with this plan. Returns what differs, or ""."""
    x = _scaled(block, plan, x)
    patched, eager = _pair(block, plan)
    with quiet(x.device), torch.no_grad():
        try:
            found, wanted = (getattr(b.eval(), plan.method)(x) for b in (patched, eager))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            return f"it does not run ({first_line(error)})"
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        return "the shape or the dtype of the output differs"
    error, allowed = _error(found, wanted.double()), _EQUAL[wanted.dtype] * _largest(wanted)
    return "" if error <= allowed else f"the output is off by {error:.2g}, and {allowed:.2g} is allowed"


def _alive(block: nn.Module) -> list[Tensor]:
    return [*block.parameters(), *block.buffers()]
