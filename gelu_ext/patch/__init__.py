"""patch(model): the activations of an existing model run fused, each swap proved on the spot.

find (this file) -> record.py (run a copy of the block, write down its calls) -> plan.py (the straight line that it is,
or why it is none) -> proof.py (the same numbers, before and after) -> swap.py (the module's class, and nothing else).
A block that is not a straight line still gets its activation module fused alone, which is safe wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .. import _native
from .._activations import ACTIVATIONS
from .._checks import check_bool
from . import swap
from .find import Block, Search, Site
from .forms import form_of
from .plan import Plan, Step, is_linear_like
from .proof import Proof, copy_of, place_of, prove, random_input
from .report import Fused, LeftAlone, Report

__all__ = ["Fused", "LeftAlone", "Report", "form_of", "patch", "patched", "unpatch"]


def patch(model: nn.Module, *, recompute: bool = False, verify: bool = True) -> Report:
    """Swaps every GELU of the model's MLPs for the fused path, in place, and reports what it did and what it left.

    A block is found by its structure and its activation by what it computes, never by names: a Linear (or Hugging
    Face's Conv1D) and a GELU of any of the three forms, packed GeGLU with either half activated, GeGLU of two Linears;
    in Hugging Face, timm, diffusers, torch.nn and hand-written models. Where a block does more than that, its
    activation module is fused alone and the bias stays in its Linear.

    Parameters, state_dict, hooks, dtype, device, mode, tied weights and dropout stay as they are. Patched modules can
    be copied and pickled. Whoever changes a block afterwards (a hook on its Linear, an adapter, another activation)
    gets the original forward back for that block, on the next call. Patching again is harmless: it starts afresh.

    In inference nn.TransformerEncoderLayer goes on to use torch's own fast path where torch would.

    Args:
        model: any module; also one MLP, or one activation.
        recompute: where both Linears of a block are plain, keep the pre-activation only and compute the activation
            once more in the backward, see :func:`gelu_ext.mlp`.
        verify: run each block on random input before and after, forward and backward, in its own dtype, and swap it
            only if every result is within twice the original's error against float64. All on copies of the block.

    Returns:
        A report that prints as a table; its ``fused`` and ``left_alone`` are lists.

    Raises:
        TypeError: ``model`` is not a module, ``recompute`` or ``verify`` not a bool.
        ImportError: there is no compiled module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: expected model to be an nn.Module, got {type(model).__name__}")
    for name, flag in (("recompute", recompute), ("verify", verify)):
        check_bool("patch", name, flag)
    _native.require()
    unpatch(model)
    report = Report()
    with torch.inference_mode(False), torch.enable_grad():  # in whichever the caller is
        search = Search(model, recompute)
        search.run()
        served = _swap_blocks(search, verify, report)
        _swap_activations(search, verify, served, report)
    return report


def _swap_blocks(search: Search, verify: bool, report: Report) -> set[Site]:
    """Installs the plans that are proved. Returns where activation modules are served by one."""
    claimed: set[int] = set()
    served: set[Site] = set()
    for block in search.in_order():
        if claimed & block.claims():
            continue
        proof = prove(block.copy, block.plan, block.x, verify)
        if proof.problem:
            search.reasons.update(dict.fromkeys(block.sites(), proof.problem))
            if not block.sites():
                search.not_understood.append((block.path, block.module, proof.problem))
            continue
        swap.install(block.plan, block.module)
        claimed |= block.claims()
        served |= block.sites()
        report.fused += _rows(block, proof)
    return served


def _rows(block: Block, proof: Proof) -> Iterator[Fused]:
    for step in block.plan.fused:
        bias = "fused" if step.takes_bias else "none" if step.why_not == "none" else "kept"
        note = step.why_not if bias == "kept" else ""
        between = [block.module.get_submodule(path) for path in step.between]
        if step.recompute and any(isinstance(module, nn.Dropout) and module.p > 0 for module in between):
            note = "recomputes where no dropout is active"
        kept = proof.eager_bytes, proof.fused_bytes
        approximate = ACTIVATIONS[step.activation].approximate
        yield Fused(block.name, step.form, step.function, bias, *kept, approximate, step.activated, note)


def _swap_activations(search: Search, verify: bool, served: set[Site], report: Report) -> None:
    """The activation modules that stand in no understood block are fused alone; the others are reported."""
    done: set[int] = set()
    for owner_path, owner in search.model.named_modules(remove_duplicate=False):
        for name, activation in owner._modules.items():
            found = search.activations.get(id(activation))
            if found is None or id(activation) in done or (id(owner), name) in served:
                continue
            path = f"{owner_path}.{name}" if owner_path else name
            if found.activation is not None:
                done.add(id(activation))
                reason = search.reasons.get((id(owner), name), "no Linear before it")
                _swap_activation(path, activation, found.activation, reason, _place(owner), verify, report)
            elif any(is_linear_like(child) for child in owner.children()):
                done.add(id(activation))
                report.left_alone.append(
                    LeftAlone(path, type(activation).__name__, f"computes {found.other}, not GELU")
                )
    found = search.activations.get(id(search.model))
    if found and found.activation:
        _swap_activation(
            "", search.model, found.activation, "no Linear before it", _place(search.model), verify, report
        )
    for path, module, reason in search.not_understood:
        report.left_alone.append(LeftAlone(path or "(the model)", type(module).__name__, reason))


def _swap_activation(
    path: str,
    module: nn.Module,
    activation: str,
    reason: str,
    place: tuple[torch.device, torch.dtype],
    verify: bool,
    report: Report,
) -> None:
    if type(module).__module__.split(".")[0] == "gelu_ext":
        return
    device, dtype = place
    plan = Plan("forward", (Step("bias_act", activation=activation),))
    x = random_input(module, 64).to(device, dtype)
    proof = prove(copy_of(module), plan, x, verify)
    problem = "someone has replaced its forward" if "forward" in vars(module) else proof.problem
    if problem:
        report.left_alone.append(LeftAlone(path or "(the model)", type(module).__name__, problem))
        return
    swap.install(plan, module)
    kept = proof.eager_bytes, proof.fused_bytes
    row = ACTIVATIONS[activation]
    form = row.label, plan.steps[0].function
    report.fused.append(Fused(path or "(the model)", *form, "kept", *kept, row.approximate, "", reason))


def _place(owner: nn.Module) -> tuple[torch.device, torch.dtype]:
    device, dtype = place_of(owner)
    return (torch.device("cpu") if device.type == "meta" else device), dtype


def unpatch(model: nn.Module) -> nn.Module:
    """Every module of the model as it was before patch(), exactly. Returns the model."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"unpatch: expected model to be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if swap.installed(module) is not None:
            swap.remove(module)
    return model


@contextmanager
def patched(model: nn.Module, *, recompute: bool = False, verify: bool = True) -> Iterator[Report]:
    """``with patched(model) as report:`` patches for the length of the block, and puts back what was there before."""
    before = {module: swap.installed(module) for module in model.modules()}
    try:
        yield patch(model, recompute=recompute, verify=verify)
    finally:
        unpatch(model)
        for module, installed in before.items():
            if installed is not None:
                swap.install(installed.plan, module)
