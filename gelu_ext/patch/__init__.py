"""patch(model): the activations of an existing model run fused, each swap proved on the spot.

find.py -> record.py (run a copy of the block, write down its calls) and reads.py (what its code depends on beside its
tensors) -> plan.py (the straight line that it is, or why it is none; limits.py: a gate between limits) and guard.py
(while that stays true) -> proof.py (the same numbers, before and after) -> swap.py (the instance's method, and nothing
else).
A block that is not a straight line still gets its activation module fused alone, which is safe wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from .. import _native
from .._activations import ACTIVATIONS
from .._checks import check_activations, check_bool, check_tile_rows
from .._tiles import TileRows
from . import swap
from .find import Block, Search, Site
from .forms import SERVED, Found, activation_of
from .plan import Options, Plan, is_linear_like, plan_of_activation
from .proof import Proof, place_of, prove, prove_again, random_input
from .report import Fused, LeftAlone, Report

__all__ = ["Fused", "LeftAlone", "Report", "activation_of", "patch", "patched", "unpatch"]


def patch(
    model: nn.Module,
    activations: Iterable[str] | None = None,
    *,
    recompute: bool = False,
    tile_rows: TileRows = None,
    dropout: bool = False,
    verify: bool = True,
) -> Report:
    """Swaps the activations of the model's MLPs for the fused path, in place, and reports what it did and what it left.

    A block is found by its structure and its activation by what it computes, never by names: a Linear (or Hugging
    Face's Conv1D) and an activation of the table, a packed GLU with either half activated, a GLU of two Linears; in
    Hugging Face, timm, diffusers, torch.nn and hand-written models. Of experts whose weights are one tensor it is the
    gate between them, if their forward calls it as a method (``_apply_gate`` of transformers, where the experts run as
    ``grouped_mm`` or ``batched_mm``). Where a block does more than that, its activation
    module is fused alone and the bias stays in its Linear. Of what torch computes back from its result (ReLU, sigmoid,
    tanh) only GLUs are swapped: elsewhere nothing is gained.

    Parameters, state_dict, hooks, dtype, device, mode, tied weights and dropout stay as they are. Patched modules can
    be copied and pickled. Whoever changes a block afterwards (a hook on its Linear, an adapter, another activation)
    gets the original forward back for that block, on the next call. Patching again is harmless: it starts afresh.

    In inference nn.TransformerEncoderLayer goes on to use torch's own fast path where torch would.

    Args:
        model: any module; also one MLP, or one activation.
        activations: names of :func:`gelu_ext.activations`, all but the identity; None for all of these.
        recompute: where both Linears of a block are plain, keep the pre-activation only and compute the activation
            once more in the backward, see :func:`gelu_ext.mlp`.
        tile_rows: where both Linears of a block are plain, None, a number of rows or "auto": the block takes its rows
            as many at a time, see :func:`gelu_ext.mlp`. With ``recompute`` it keeps its input only.
        dropout: take the dropout that follows an activation into its pass, see :func:`gelu_ext.bias_act`: no mask is
            kept, and ``recompute`` and ``tile_rows`` hold while it is active. ``p`` and the mode of the nn.Dropout stay
            live. The model then drops other elements than unpatched for the same seed, so False leaves it to torch.
        verify: run each block on random input before and after, forward and backward, in its own dtype, and swap it
            only if every result is within twice the original's error against float64. All on copies of the block.

    Returns:
        A report that prints as a table; its ``fused`` and ``left_alone`` are lists.

    Raises:
        TypeError: ``model`` is not a module, ``activations`` no set of names, ``recompute``, ``dropout`` or ``verify``
            not a bool, ``tile_rows`` neither None, an int nor a string.
        ValueError: an unknown name in ``activations``, or ``tile_rows`` not above 0 or another word than "auto".
        ImportError: there is no compiled module.

    >>> model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    >>> report = gelu_ext.patch(model)
    >>> [(row.block, row.op, row.bias) for row in report.fused]
    [('(the model)', 'bias_gelu', 'fused')]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: expected model to be an nn.Module, got {type(model).__name__}")
    options = Options(check_activations("patch", activations, SERVED), recompute, tile_rows, dropout)
    for name, flag in (("recompute", recompute), ("dropout", dropout), ("verify", verify)):
        check_bool("patch", name, flag)
    check_tile_rows("patch", tile_rows)
    _native.require()
    before = _methods(model)
    unpatch(model)
    try:
        with _undisturbed():
            return _Patch(model, options, verify).run()
    except BaseException:  # out of memory, Ctrl-C
        _put_back(model, before)
        raise


@contextmanager
def _undisturbed() -> Iterator[None]:
    """In whichever mode and on whichever default device the caller is."""
    with _disable_current_modes(), torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        yield


def _methods(model: nn.Module) -> dict[nn.Module, swap.Installed]:
    """What is installed, to be put back."""
    found = ((module, swap.installed(module)) for module in model.modules())
    return {module: method.moved_to(module) for module, method in found if method is not None}


def _put_back(model: nn.Module, methods: dict[nn.Module, swap.Installed]) -> None:
    unpatch(model)
    for module, method in methods.items():
        if not swap.is_replaced(module, method.name):
            swap.put(module, method)


class _Patch:
    """One call of patch(). Nothing is installed before everything is proved."""

    def __init__(self, model: nn.Module, options: Options, verify: bool) -> None:
        self.model, self.verify = model, verify
        self.report = Report()
        self.installs: list[tuple[Plan, nn.Module]] = []
        self.served: set[Site] = set()  # where activation modules are served by a block's plan
        self.proofs: dict[int, Proof] = {}  # of the plans, by id
        self.disproved: dict[Site, str] = {}  # why the block of an activation module is not swapped, though understood
        self.bar = _bar(sum(1 for _ in model.modules()))
        self.search = Search(model, options, self.bar.update)

    def run(self) -> Report:
        try:
            self.search.run()
            self.blocks()
            self.activations()
        finally:
            self.bar.close()
        for plan, module in self.installs:
            swap.install(plan, module)
        return self.report

    def blocks(self) -> None:
        claimed: set[int] = set()
        for block in self.search.in_order():
            if claimed & block.claims():
                continue
            proof = self.prove(block.module, block.plan, block.x)
            if proof.problem:
                self.disproved.update(dict.fromkeys(block.sites(), proof.problem))
                if not block.sites():
                    self.search.not_understood.append((block.path, block.module, proof.problem))
                continue
            self.installs.append((block.plan, block.module))
            claimed |= block.claims()
            self.served |= block.sites()
            self.report.fused += _rows(block, proof)

    def prove(self, module: nn.Module, plan: Plan, x: torch.Tensor) -> Proof:
        """The first block of a plan whole, the others with their own weights."""
        known = self.proofs.get(id(plan))
        if known is None or known.problem:
            self.proofs[id(plan)] = known = prove(module, plan, x, self.verify)
            return known
        problem = prove_again(module, plan, x) if self.verify else ""
        return Proof(problem) if problem else known

    def activations(self) -> None:
        """The activation modules that stand in no understood block are fused alone; the others are reported."""
        done: set[int] = set()
        for owner_path, owner in self.model.named_modules(remove_duplicate=False):
            for name, activation in owner._modules.items():
                found = self.search.activations.get(id(activation))
                if found is None or id(activation) in done or (id(owner), name) in self.served:
                    continue
                path = f"{owner_path}.{name}" if owner_path else name
                why_not, disproved = (
                    found.why_not(self.search.options.activations),
                    self.disproved.get((id(owner), name)),
                )
                if not why_not:
                    done.add(id(activation))
                    reason = disproved or self.search.reasons.get((id(owner), name), "no Linear before it")
                    self.activation(path, activation, found, reason, _place(owner))
                elif any(is_linear_like(child) for child in owner.children()):
                    done.add(id(activation))
                    self.leave(path, activation, disproved or why_not)
        found = self.search.activations.get(id(self.model))
        if found and not found.why_not(self.search.options.activations):
            self.activation("", self.model, found, "no Linear before it", _place(self.model))
        for path, module, reason in self.search.not_understood:
            self.leave(path, module, reason)

    def activation(
        self, path: str, module: nn.Module, found: Found, reason: str, place: tuple[torch.device, torch.dtype]
    ) -> None:
        if type(module).__module__.split(".")[0] == "gelu_ext":
            return
        device, dtype = place
        problem, proof = "someone has replaced its forward", None
        if not swap.is_replaced(module, "forward"):
            plan = plan_of_activation(module, found, self.search.options)
            x = random_input(module, 64).to(device, dtype)
            proof = prove(module, plan, x, self.verify)
            problem = proof.problem
        if problem:
            self.leave(path, module, problem)
            return
        self.installs.append((plan, module))
        row = ACTIVATIONS[found.activation]
        kept = proof.eager_bytes, proof.fused_bytes
        name, function = path or "(the model)", plan.steps[0].function
        self.report.fused.append(Fused(name, row.label, function, "kept", *kept, row.name, "", reason))

    def leave(self, path: str, module: nn.Module, reason: str) -> None:
        self.report.left_alone.append(LeftAlone(path or "(the model)", type(module).__name__, reason))


class _NoBar:
    def update(self) -> None:
        pass

    close = update


def _bar(total: int) -> Any:
    """A progress bar after two seconds, where tqdm is installed."""
    try:
        from tqdm import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=total, desc="gelu_ext.patch", unit=" modules", delay=2.0, leave=False)


def plan_again(module: nn.Module, method: str, options: Options) -> Plan | None:
    """The plan of a patched block that was pickled in another process, if it is still one."""
    with _undisturbed():
        search = Search(module, options)
        search.run()
        found = search.activations.get(id(module))
        if found and not found.why_not(options.activations):
            return plan_of_activation(module, found, options)
        block = next((b for b in search.blocks if b.module is module and b.plan.method == method), None)
        return block.plan if block and not prove(module, block.plan, block.x, verify=True).problem else None


def _rows(block: Block, proof: Proof) -> Iterator[Fused]:
    for step in block.plan.fused:
        bias = "fused" if step.takes_bias else "none" if step.why_not == "none" else "kept"
        note = step.why_not if bias == "kept" else ""
        between = [block.module.get_submodule(path) for path in step.between]
        done = ["recomputes"] * step.recompute + ["runs in tiles"] * (step.tile_rows is not None)
        has_dropout = any(isinstance(module, nn.Dropout) and module.p > 0 for module in between)
        if done and has_dropout and not step.drops:
            note = f"{' and '.join(done)} where no dropout is active"
        elif step.tile_rows is not None:
            note = "runs in tiles"
        if has_dropout and step.drops:
            note = f"{note}, drops in the pass".removeprefix(", ")
        kept = proof.eager_bytes, proof.fused_bytes
        yield Fused(block.name, step.form, step.function, bias, *kept, step.activation, step.activated, note)


def _place(owner: nn.Module) -> tuple[torch.device, torch.dtype]:
    device, dtype = place_of(owner)
    return (torch.device("cpu") if device.type == "meta" else device), dtype


def unpatch(model: nn.Module) -> nn.Module:
    """Every module of the model as it was before patch(), exactly. Returns the model.

    >>> model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    >>> report = gelu_ext.patch(model)
    >>> gelu_ext.unpatch(model) is model
    True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"unpatch: expected model to be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if swap.installed(module) is not None:
            swap.remove(module)
    return model


@contextmanager
def patched(
    model: nn.Module,
    activations: Iterable[str] | None = None,
    *,
    recompute: bool = False,
    tile_rows: TileRows = None,
    dropout: bool = False,
    verify: bool = True,
) -> Iterator[Report]:
    """``with patched(model) as report:`` patches for the length of the block, and puts back what was there before.

    >>> model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    >>> with gelu_ext.patched(model) as report:
    ...     model(torch.randn(3, 8)).shape
    torch.Size([3, 8])
    """
    before = _methods(model)
    try:
        yield patch(model, activations, recompute=recompute, tile_rows=tile_rows, dropout=dropout, verify=verify)
    finally:
        _put_back(model, before)
