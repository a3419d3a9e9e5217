"""Linear -> fused activation -> linear as one autograd node that need not keep the activation.

The node computes through torch's own matrix products and the native operation. With ``recompute=True`` it keeps its
input and the pre-activation, and computes the activation once more in its backward: the same kernel on the same
numbers, so the gradients are equal to the bit. There is one node for all three MLPs: its branches are the Linears
before the activation, one or two, whose biases the operation adds. Knows functional.py's neighbours and torch; nothing
here knows a kernel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from . import _composite, _native
from ._activations import GELUS
from ._checks import activation_or_form, check_activated, check_activation, check_approximate, check_bool, check_mlp
from ._operations import ACT_MUL, BIAS_ACT, GLU, OPERATIONS, Operation
from ._surroundings import (
    as_it_is,
    as_it_was,
    as_linear_casts,
    autocasts,
    in_transform,
    is_exporting,
    is_tracing,
    overrides,
)
from .functional import CALLS

_ops = torch.ops.gelu_ext
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # by autograd.grad(..., is_grads_batched=True)
_is_compiling = torch.compiler.is_compiling
_has_torch_function = torch.overrides.has_torch_function
_Tensors = tuple[Tensor | None, ...]


def _rows(t: Tensor) -> Tensor:
    """``[..., C]`` as ``[rows, C]``."""
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])  # reshape(-1, 0) is ambiguous, and flatten cannot be batched


def _weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    return _rows(grad_out).t() @ _rows(x)


def _grad_hidden(grad_out: Tensor, w2: Tensor, spare: Tensor | None) -> Tensor:
    """``grad_out @ w2``, in the memory of ``spare`` where there is one: a fresh tensor costs page faults."""
    if spare is None or type(spare) is not Tensor or _is_batched(grad_out):
        return grad_out @ w2
    torch.mm(_rows(grad_out), w2, out=_rows(spare))
    return spare


def _activate(op: str, tensors: _Tensors, names: tuple[str, ...]) -> Tensor:
    return CALLS[op](op, *tensors, *names)


def _activate_backward(
    op: str, grad_hidden: Tensor, tensors: _Tensors, names: tuple[str, ...], needs: tuple[bool, ...]
) -> _Tensors:
    """Gradients of the tensors; those that are not needed are anything."""
    home = _ops if _is_compiling() else _native
    return getattr(home, f"{op}_backward")(grad_hidden, *tensors, *names, needs)


def _wanted(ctx: Any) -> list[bool]:
    """Of the tensors x, w2, b2 and the branches': whose gradient this very backward is to compute.

    ``needs_input_grad`` says what required a gradient in the forward; ``torch.autograd.grad(out, x)`` wants less.
    """
    needs = list(ctx.needs_input_grad[3:])
    if _is_compiling():
        return needs
    edges = iter(ctx.next_functions)  # one for each argument that is a tensor
    nodes = [next(edges)[0] if given else None for given in ctx.given]
    return [need and _will_run(node) for need, node in zip(needs, nodes, strict=True)]


def _will_run(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that autograd.grad() was asked for
        return True


class _Mlp(Function):
    """linear(op(linear(x, w), ..., b, ..., *names), w2, b2): ``branches`` are the weights w, then the biases b."""

    @staticmethod
    def forward(
        ctx: Any,
        op: str,
        names: tuple[str, ...],
        recompute: bool,
        x: Tensor,
        w2: Tensor,
        b2: Tensor | None,
        *branches: Tensor | None,
    ) -> Tensor:
        weights, biases = _halves(branches)
        pre = tuple(F.linear(x, w) for w in weights)
        hidden = _activate(op, pre + biases, names)
        ctx.save_for_backward(x, w2, *weights, *map(as_it_is, biases), *pre, None if recompute else hidden)
        ctx.op, ctx.names, ctx.biases = op, names, biases
        ctx.given = tuple(t is not None for t in (x, w2, b2, *branches))
        return F.linear(hidden, w2, b2)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> _Tensors:
        device = grad_out.device.type
        if not autocasts(device):
            return None, None, None, *_Mlp.gradients(ctx, grad_out)
        with torch.autocast(device, enabled=False):  # the forward has cast what was to be cast
            return None, None, None, *_Mlp.gradients(ctx, grad_out)

    @staticmethod
    def gradients(ctx: Any, grad_out: Tensor) -> _Tensors:
        """Of x, w2, b2 and the branches."""
        op, names = ctx.op, ctx.names
        needs_x, needs_w2, needs_b2, *needs = _wanted(ctx)
        x, w2, *saved = ctx.saved_tensors
        branches, pre, hidden = saved[: len(needs)], tuple(saved[len(needs) : -1]), saved[-1]
        weights, biases = _halves(branches)
        grad_b2 = _rows(grad_out).sum(0) if needs_b2 else None
        if not _is_compiling() and (torch.is_grad_enabled() or in_transform()):

            def without_b2(x: Tensor, w2: Tensor, *branches: Tensor | None) -> Tensor:
                weights, biases = _halves(branches)
                return F.linear(OPERATIONS[op].composite(*(F.linear(x, w) for w in weights), *biases, *names), w2)

            inputs = (x, w2, *weights, *map(as_it_was, ctx.biases, biases))
            grad_x, grad_w2, *grads = _composite.vjp(without_b2, inputs, grad_out, (needs_x, needs_w2, *needs))
            return grad_x, grad_w2, grad_b2, *grads
        grad_x = grad_w2 = None
        spare = None  # memory of the node's own, as large as grad_hidden
        if needs_w2:
            if hidden is None and _is_compiling():
                hidden = getattr(_ops, f"{op}_again")(grad_out, *pre, *biases, *names)
            elif hidden is None:
                hidden = spare = _activate(op, pre + biases, names)
            grad_w2 = _weight_gradient(grad_out, hidden)
        del hidden
        needs_w, needs_b = _halves(needs)
        needs_pre = tuple(needs_x or need for need in needs_w)
        grads = [None] * len(needs)
        if any(needs_pre + needs_b):
            grad_hidden = _grad_hidden(grad_out, w2, spare)
            del spare
            grad_pre, grad_b = _halves(_activate_backward(op, grad_hidden, pre + biases, names, needs_pre + needs_b))
            del grad_hidden  # before the next large tensors
            if needs_x:
                for grad, w in zip(grad_pre, weights, strict=True):
                    grad_x = grad @ w if grad_x is None else grad_x + grad @ w
            grads = [_weight_gradient(grad, x) if need else None for grad, need in zip(grad_pre, needs_w, strict=True)]
            grads += [grad if need else None for grad, need in zip(grad_b, needs_b, strict=True)]
        return grad_x, grad_w2, grad_b2, *grads


def _halves(branches: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(what belongs to the weights, what belongs to the biases)"""
    count = len(branches) // 2
    return tuple(branches[:count]), tuple(branches[count:])


def _takes_node(recompute: bool, x: Tensor, w2: Tensor, b2: Tensor | None, *branches: Tensor | None) -> bool:
    """Whether autograd is to record the call as one node.

    It pays where w2 and what comes before it have gradients: torch's own functions keep the hidden activations then.
    Where weights are frozen, the operations one by one keep less than the node. Nor may the node hide the operations
    from what has to see each of them (a transform, an export, a subclass).
    """
    if not torch.is_grad_enabled() or not w2.requires_grad:
        return False
    before = (x, *branches) if recompute else _halves(branches)[0]  # the node keeps x, for gradients of the weights
    if not any(t is not None and t.requires_grad for t in before):
        return False
    tensors = (x, w2, b2, *branches)
    if _is_compiling():  # a graph that leaves torch holds operations only: an autograd.Function would lose its backward
        return not (is_exporting() or in_transform())
    if any(t is not None and t.is_inference() for t in tensors):  # which no node can keep, nor always must
        return False
    return not (in_transform() or is_tracing() or _has_subclass(tensors))


def _has_subclass(tensors: _Tensors) -> bool:
    """Whether one of them takes the functions that it is given to. (A mode does that for all, and may.)"""
    return _has_torch_function(tensors) and any(overrides(t) for t in tensors)


def linear_op_linear(
    op: Operation,
    names: tuple[str, ...],
    recompute: bool,
    x: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    *branches: Tensor | None,
) -> Tensor:
    """The MLP of any operation, without checks: ``branches`` as of the node."""
    tensors = (x, w2, b2, *branches)
    device = x.device.type
    if autocasts(device):
        # Cast once, for every path: what is computed may not depend on whether a gradient is wanted.
        with torch.autocast(device, enabled=False):
            return linear_op_linear(op, names, recompute, *map(as_linear_casts, tensors))
    weights, biases = _halves(branches)
    if x.is_nested:  # no kernel takes it, and torch adds a bias in F.linear only
        pre = [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
        return F.linear(op.eager(*pre, *(None for _ in biases), *names), w2, b2)
    if _takes_node(recompute, *tensors):
        return _Mlp.apply(op.name, names, recompute, *tensors)
    return F.linear(_activate(op.name, (*(F.linear(x, w) for w in weights), *biases), names), w2, b2)


# Of an operation's branches: what the arguments of its MLP are called, weight and bias.
_NAMES = {
    BIAS_ACT.name: (("w1", "b1"),),
    GLU.name: (("w1", "b1"),),
    ACT_MUL.name: (("w_activated", "b_activated"), ("w_linear", "b_linear")),
}


def _checked(public: str, op: Operation, names: tuple[str, ...], recompute: bool, *tensors: Tensor | None) -> Tensor:
    """The MLP of an operation: x, w2, b2, then ``branches`` as of the node. Its sentences begin with ``public``."""
    check_bool(public, "recompute", recompute)
    check_mlp(public, _NAMES[op.name], op.halves, *tensors)
    return linear_op_linear(op, names, recompute, *tensors)


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    activation: str | None = None,
    approximate: str = "none",
    recompute: bool = True,
) -> Tensor:
    """``linear(act(linear(x, w1) + b1), w2, b2)`` as one autograd node, with GELU if no other activation is named.

    With ``recompute=True`` the node keeps ``x`` and the pre-activation ``linear(x, w1)``, half of what an unfused MLP
    keeps per hidden element (2 bytes instead of 4 in bfloat16), and computes the activation once more in the backward.
    (What torch computes from its result alone, as ReLU, an unfused MLP keeps in 2 bytes as well.)
    Where frozen weights leave nothing to save, no node is made, and no more is kept than torch's own functions keep.
    The gradients are equal to the bit with and without. The backward can itself be differentiated, in eager mode; that
    pass computes everything again.

    Args:
        x: ``[..., C]``, float64, float32, float16 or bfloat16. Under autocast everything is cast as F.linear does.
        w1: ``[H, C]``, as ``nn.Linear(C, H).weight``, of x's dtype.
        b1: ``[H]`` or None, of x's dtype or float32.
        w2: ``[D, H]``, of x's dtype.
        b2: ``[D]`` or None, of x's dtype.
        activation: the name of any of :func:`gelu_ext.activations`; None for the form of GELU in ``approximate``.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        recompute: keep the pre-activation only.

    Returns:
        ``[..., D]`` of x's dtype.

    Raises:
        ValueError: unknown ``activation`` or ``approximate``, both of them, or shapes that do not fit.
        TypeError: not a tensor, dtypes other than the above, or ``recompute`` not a bool.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.
    """
    names = (activation_or_form("mlp", activation, approximate),)
    return _checked("mlp", BIAS_ACT, names, recompute, x, w2, b2, w1, b1)


def glu_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    activation: str,
    activated: str = "second",
    recompute: bool = True,
) -> Tensor:
    """``linear(glu(linear(x, w1) + b1), w2, b2)`` as one autograd node: the gated twin of :func:`gelu_ext.mlp`.

    With ``recompute=True`` it keeps 4 bytes per output element of the GLU in bfloat16; an unfused block keeps 8.

    Args:
        x: ``[..., C]``, see :func:`gelu_ext.mlp`.
        w1: ``[2H, C]``, both halves packed.
        b1: ``[2H]`` or None.
        w2: ``[D, H]``.
        b2: ``[D]`` or None.
        activation: the name of any of :func:`gelu_ext.activations`.
        activated: which half it is applied to, ``"second"`` or ``"first"``, see :func:`gelu_ext.glu`.
        recompute: keep the pre-activation only.

    Returns:
        ``[..., D]`` of x's dtype.

    Raises:
        As :func:`gelu_ext.mlp`; ValueError also for an unknown ``activated`` or an odd number of rows in ``w1``.
    """
    check_activation("glu_mlp", activation)
    check_activated("glu_mlp", activated)
    return _checked("glu_mlp", GLU, (activation, activated), recompute, x, w2, b2, w1, b1)


def geglu_mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    approximate: str = "none",
    activated: str = "second",
    recompute: bool = True,
) -> Tensor:
    """:func:`gelu_ext.glu_mlp` with the form of GELU in ``approximate``, see :func:`gelu_ext.bias_gelu`."""
    check_approximate("geglu_mlp", approximate)
    check_activated("geglu_mlp", activated)
    return _checked("geglu_mlp", GLU, (GELUS[approximate], activated), recompute, x, w2, b2, w1, b1)


def act_mul_mlp(
    x: Tensor,
    w_activated: Tensor,
    b_activated: Tensor | None,
    w_linear: Tensor,
    b_linear: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    activation: str,
    recompute: bool = True,
) -> Tensor:
    """``linear(act(linear(x, wa) + ba) * (linear(x, wl) + bl), w2, b2)`` as one node: Llama, Mistral, Qwen with SiLU.

    Arguments, result and errors as of :func:`gelu_ext.glu_mlp`; each half has its weight ``[H, C]`` and bias ``[H]``.
    """
    check_activation("act_mul_mlp", activation)
    branches = (w_activated, w_linear, b_activated, b_linear)
    return _checked("act_mul_mlp", ACT_MUL, (activation,), recompute, x, w2, b2, *branches)


def gelu_mul_mlp(
    x: Tensor,
    w_activated: Tensor,
    b_activated: Tensor | None,
    w_linear: Tensor,
    b_linear: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    approximate: str = "none",
    recompute: bool = True,
) -> Tensor:
    """:func:`gelu_ext.act_mul_mlp` with the form of GELU in ``approximate``, as in T5 v1.1 and Gemma."""
    check_approximate("gelu_mul_mlp", approximate)
    branches = (w_activated, w_linear, b_activated, b_linear)
    return _checked("gelu_mul_mlp", ACT_MUL, (GELUS[approximate],), recompute, x, w2, b2, *branches)
