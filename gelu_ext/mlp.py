"""Linear -> fused activation -> linear as one autograd node that need not keep the activation.

The node computes through torch's own matrix products and the native operation. With ``recompute=True`` it keeps its
input and the pre-activation, and computes the activation once more in its backward: the same kernel on the same
numbers, so the gradients are equal to the bit; dropout in between is replayed from two integers. In tiles of rows it
keeps no pre-activation either, and computes that once more too. What is computed of a tile is written once: without
tiles, all rows are one. There is one node for all three MLPs: its branches are the Linears before the activation, one
or two, whose biases the operation adds. Knows functional.py's neighbours and torch; nothing here knows a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn import Parameter

from . import _composite, _dropout, _native
from ._activations import GELUS
from ._checks import (
    activation_or_form,
    check_activated,
    check_activation,
    check_approximate,
    check_bool,
    check_mlp,
    check_tile_rows,
)
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
from ._tiles import TileRows, rows_of_a_tile
from .functional import CALLS

_ops = torch.ops.gelu_ext
_is_batched = torch._C._functorch.is_legacy_batchedtensor  # by autograd.grad(..., is_grads_batched=True)
_is_compiling = torch.compiler.is_compiling
_has_torch_function = torch.overrides.has_torch_function
_Tensors = tuple[Tensor | None, ...]
_Names = tuple[Any, ...]  # an operation's: dropout_p and philox are the last two


def _rows(t: Tensor) -> Tensor:
    """``[..., C]`` as ``[rows, C]``."""
    return t.reshape(math.prod(t.shape[:-1]), t.shape[-1])  # reshape(-1, 0) is ambiguous, and flatten cannot be batched


def _weight_gradient(grad_out: Tensor, x: Tensor, total: Tensor | None) -> Tensor:
    """``grad_out.t() @ x``, added to the total of the tiles before where there is one."""
    grad_out, x = _rows(grad_out).t(), _rows(x)
    if total is None:
        return grad_out @ x
    if total.dtype == x.dtype:
        return total.addmm_(grad_out, x)
    if x.is_cuda:
        return total.add_(torch.mm(grad_out, x, out_dtype=total.dtype))
    return total.addmm_(grad_out.to(total.dtype), x.to(total.dtype))  # the CPU has no product of 16 bits into 32


def _linear(x: Tensor, w: Tensor, b: Tensor | None, out: Tensor | None) -> Tensor:
    """``F.linear``, into a tile of a larger result where there is one."""
    if out is None:
        return F.linear(x, w, b)
    return torch.mm(x, w.t(), out=out) if b is None else torch.addmm(b, x, w.t(), out=out)


def _grad_hidden(grad_out: Tensor, w2: Tensor, spare: Tensor | None) -> Tensor:
    """``grad_out @ w2``, in the memory of ``spare`` where there is one: a fresh tensor costs page faults."""
    if spare is None or type(spare) is not Tensor or _is_batched(grad_out):
        return grad_out @ w2
    torch.mm(_rows(grad_out), w2, out=_rows(spare))
    return spare


def _activate(op: str, tensors: _Tensors, names: _Names) -> Tensor:
    return CALLS[op](op, *tensors, *names)


def _activate_backward(
    op: str, grad_hidden: Tensor, tensors: _Tensors, names: _Names, needs: tuple[bool, ...]
) -> _Tensors:
    """Gradients of the tensors; those that are not needed are anything."""
    home = _ops if _is_compiling() else _native
    *names, dropout_p, philox = names
    return getattr(home, f"{op}_backward")(grad_hidden, *tensors, *names, needs, dropout_p, philox)


def _wanted(ctx: Any) -> list[bool]:
    """Of the tensors x, w2, b2 and the branches': whose gradient this very backward is to compute.

    ``needs_input_grad`` says what required a gradient in the forward; ``torch.autograd.grad(out, x)`` wants less.
    """
    needs = list(ctx.needs_input_grad[5:])
    if _is_compiling():
        return needs
    edges = iter(ctx.next_functions)  # one for each argument that is a tensor
    _, *nodes = [next(edges)[0] if given else None for given in ctx.given]  # the first is philox
    return [need and _will_run(node) for need, node in zip(needs, nodes, strict=True)]


def _will_run(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that autograd.grad() was asked for
        return True


class _Mlp(Function):
    """linear(op(linear(x, w), ..., b, ..., *names), w2, b2): ``branches`` are the weights w, then the biases b.

    ``tile`` is a number of rows; None for all of them, which keeps the pre-activation at least.
    """

    @staticmethod
    def forward(
        ctx: Any,
        op: str,
        names: _Names,
        recompute: bool,
        tile: int | None,
        philox: Tensor | None,
        x: Tensor,
        w2: Tensor,
        b2: Tensor | None,
        *branches: Tensor | None,
    ) -> Tensor:
        weights, biases = _halves(branches)
        ctx.op, ctx.names, ctx.tile, ctx.biases = op, names, tile, biases
        names = (*names, philox)
        pre, hidden = (None,) * len(weights), None
        if tile is not None:
            if not recompute:
                pre = tuple(x.new_empty(*x.shape[:-1], w.shape[0]) for w in weights)
            out = _in_tiles(_Rows(op, names, x, w2, weights, biases, pre), b2, tile)
        else:
            pre = tuple(F.linear(x, w) for w in weights)
            hidden = _activate(op, pre + biases, names)
            out = F.linear(hidden, w2, b2)
        ctx.save_for_backward(philox, x, w2, *weights, *map(as_it_is, biases), *pre, None if recompute else hidden)
        ctx.given = tuple(t is not None for t in (philox, x, w2, b2, *branches))
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> _Tensors:
        device = grad_out.device.type
        if not autocasts(device):
            return None, None, None, None, None, *_Mlp.gradients(ctx, grad_out)
        with torch.autocast(device, enabled=False):  # the forward has cast what was to be cast
            return None, None, None, None, None, *_Mlp.gradients(ctx, grad_out)

    @staticmethod
    def gradients(ctx: Any, grad_out: Tensor) -> _Tensors:
        """Of x, w2, b2 and the branches."""
        needs_x, needs_w2, needs_b2, *needs = _wanted(ctx)
        philox, x, w2, *saved = ctx.saved_tensors
        op, names = ctx.op, (*ctx.names, philox)
        branches, pre, hidden = saved[: len(needs)], tuple(saved[len(needs) : -1]), saved[-1]
        weights, biases = _halves(branches)
        grad_b2 = _rows(grad_out).sum(0) if needs_b2 else None
        needs = (needs_x, needs_w2, *needs)
        if not _is_compiling() and (torch.is_grad_enabled() or in_transform()):

            def without_b2(x: Tensor, w2: Tensor, *branches: Tensor | None) -> Tensor:
                weights, biases = _halves(branches)
                return F.linear(OPERATIONS[op].composite(*(F.linear(x, w) for w in weights), *biases, *names), w2)

            inputs = (x, w2, *weights, *map(as_it_was, ctx.biases, biases))
            grads = _composite.vjp(without_b2, inputs, grad_out, needs)
        else:
            of = _Rows(op, names, x, w2, weights, biases, pre)
            if ctx.tile is None or _is_compiling() or type(grad_out) is not Tensor or _is_batched(grad_out):
                grads = _gradients(of, needs, grad_out, hidden)
            else:
                grads = _gradients_in_tiles(of, needs, grad_out, ctx.tile)
        grad_x, grad_w2, *grads = grads
        return grad_x, grad_w2, grad_b2, *grads


class _Rows(NamedTuple):
    """What an MLP is computed from, and its gradients: of all rows, or of those of a tile."""

    op: str
    names: _Names
    x: Tensor
    w2: Tensor
    weights: tuple[Tensor, ...]
    biases: _Tensors
    pre: _Tensors  # the pre-activations, where they are kept

    def names_of(self, part: slice) -> _Names:
        """Those of a tile: dropout begins with its first element of the hidden activations."""
        *names, philox = self.names
        return (*names, _dropout.advanced(philox, part.start * self.w2.shape[1]))


def _in_tiles(of: _Rows, b2: Tensor | None, tile: int) -> Tensor:
    """The MLP, a tile after the other; with the pre-activations in the tensors ``pre``, where they are to be kept."""
    out = of.x.new_empty(*of.x.shape[:-1], of.w2.shape[0])
    rows, out_rows, kept = _rows(of.x), _rows(out), tuple(t if t is None else _rows(t) for t in of.pre)
    for part in _parts(rows, tile):
        places = (t if t is None else t[part] for t in kept)
        now = (_linear(rows[part], w, None, place) for w, place in zip(of.weights, places, strict=True))
        _linear(_activate(of.op, (*now, *of.biases), of.names_of(part)), of.w2, b2, out_rows[part])
    return out


def _gradients_in_tiles(of: _Rows, needs: tuple[bool, ...], grad_out: Tensor, tile: int) -> _Tensors:
    """As _gradients. Those of weights are added up in float32 (float64), and rounded once; of biases in float64."""
    wide = torch.promote_types(of.x.dtype, torch.float32)
    wide_biases = tuple(b if b is None else b.to(wide) for b in of.biases)  # whose gradients are of this dtype then
    whole = (of.w2, *of.weights, *of.biases)
    totals: list[Tensor | None] = [
        torch.zeros(t.shape, dtype=wide if t.dim() == 2 else torch.float64, device=t.device) if need else None
        for need, t in zip(needs[1:], whole, strict=True)
    ]
    rows, grad_rows, kept = _rows(of.x), _rows(grad_out), tuple(t if t is None else _rows(t) for t in of.pre)
    grad_x = of.x.new_empty(of.x.shape) if needs[0] else None
    for part in _parts(rows, tile) if any(needs) else ():
        pre = tuple(t if t is None else t[part] for t in kept)
        of_tile = of._replace(names=of.names_of(part), x=rows[part], biases=wide_biases, pre=pre)
        grad, *_ = _gradients(of_tile, needs, grad_rows[part], None, totals)
        if grad_x is not None:
            _rows(grad_x)[part] = grad
    for i, t in enumerate(whole):
        totals[i] = None if totals[i] is None else totals[i].to(t.dtype)
    return grad_x, *totals


def _parts(rows: Tensor, tile: int) -> Iterator[slice]:
    return (slice(start, start + tile) for start in range(0, rows.shape[0], tile))


def _gradients(
    of: _Rows,
    needs: tuple[bool, ...],
    grad_out: Tensor,
    hidden: Tensor | None,
    totals: list[Tensor | None] | None = None,
) -> _Tensors:
    """Of x, w2, the weights and the biases; all but the first are added to the totals of other tiles, if there are."""
    op, names, x, w2, weights, biases, pre = of
    needs_x, needs_w2, *needs = needs
    needs_w, needs_b = _halves(needs)
    total_w2, *totals = [None] * (1 + len(needs)) if totals is None else totals
    totals_w, totals_b = _halves(totals)
    grad_x = grad_w2 = None
    spare = None  # memory of the node's own, as large as grad_hidden
    needs_pre = tuple(needs_x or need for need in needs_w)
    if pre[0] is None and any((needs_w2, *needs_pre, *needs_b)):
        pre = tuple(F.linear(x, w) for w in weights)
    if needs_w2:
        if hidden is None and _is_compiling():
            hidden = getattr(_ops, f"{op}_again")(grad_out, *pre, *biases, *names)
        elif hidden is None:
            hidden = spare = _activate(op, pre + biases, names)
        grad_w2 = _weight_gradient(grad_out, hidden, total_w2)
    del hidden
    grads = [None] * len(needs)
    if any(needs_pre + needs_b):
        grad_hidden = _grad_hidden(grad_out, w2, spare)
        del spare
        grad_pre, grad_b = _halves(_activate_backward(op, grad_hidden, pre + biases, names, needs_pre + needs_b))
        del grad_hidden  # before the next large tensors
        if needs_x:
            for grad, w in zip(grad_pre, weights, strict=True):
                grad_x = grad @ w if grad_x is None else grad_x + grad @ w
        grads = [
            _weight_gradient(grad, x, total) if need else None
            for grad, total, need in zip(grad_pre, totals_w, needs_w, strict=True)
        ]
        grads += [
            None if not need else grad if total is None else total.add_(grad)
            for grad, total, need in zip(grad_b, totals_b, needs_b, strict=True)
        ]
    return grad_x, grad_w2, *grads


def _halves(branches: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """(what belongs to the weights, what belongs to the biases)"""
    count = len(branches) // 2
    return tuple(branches[:count]), tuple(branches[count:])


def _takes_node(recompute: bool, tile: int | None, tensors: _Tensors) -> bool:
    """Whether autograd is to record the call as one node.

    It pays where w2 and what comes before it have gradients: torch's own functions keep the hidden activations then.
    Where weights are frozen, the operations one by one keep less than the node, unless it keeps its input only. Nor may
    the node hide the operations from what has to see each of them (a transform, an export, a subclass).
    """
    if not _needs_gradient(tensors):
        return False
    x, w2, _, *branches = tensors
    if tile is None or not recompute:
        before = (x, *branches) if recompute else _halves(branches)[0]  # the node keeps x, for gradients of the weights
        if not w2.requires_grad or not any(t is not None and t.requires_grad for t in before):
            return False
    if _is_compiling():  # a graph that leaves torch holds operations only: an autograd.Function would lose its backward
        return not (is_exporting() or in_transform())
    if any(t is not None and t.is_inference() for t in tensors):  # which no node can keep, nor always must
        return False
    return not (in_transform() or is_tracing() or _has_subclass(tensors))


def _needs_gradient(tensors: _Tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _takes_tiles(tensors: _Tensors) -> bool:
    """Whether the rows can be taken apart: of plain tensors, and where nobody has to see each of the operations."""
    given = [t for t in tensors if t is not None]
    if _is_compiling() or in_transform() or is_tracing() or any(type(t) not in (Tensor, Parameter) for t in given):
        return False
    return not (torch.is_grad_enabled() and any(t.is_inference() for t in given))  # which no node can keep


def _has_subclass(tensors: _Tensors) -> bool:
    """Whether one of them takes the functions that it is given to. (A mode does that for all, and may.)"""
    return _has_torch_function(tensors) and any(overrides(t) for t in tensors)


def linear_op_linear(
    op: Operation,
    names: _Names,
    recompute: bool,
    tile_rows: TileRows,
    x: Tensor,
    w2: Tensor,
    b2: Tensor | None,
    *branches: Tensor | None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The MLP of any operation, without checks: ``branches`` as of the node; ``generator`` for torch's own dropout."""
    tensors = (x, w2, b2, *branches)
    device = x.device.type
    if autocasts(device):
        # Cast once, for every path: what is computed may not depend on whether a gradient is wanted.
        with torch.autocast(device, enabled=False):
            cast = map(as_linear_casts, tensors)
            return linear_op_linear(op, names, recompute, tile_rows, *cast, generator=generator)
    weights, biases = _halves(branches)
    *names, dropout_p, philox = names
    if x.is_nested:  # no kernel takes it, and torch adds a bias in F.linear only
        pre = [F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)]
        hidden = op.eager(*pre, *(None for _ in biases), *names)
        return F.linear(_dropout.by_torch(hidden, dropout_p, generator) if dropout_p else hidden, w2, b2)
    if dropout_p and philox is None:
        hidden = _activate(op.name, (*(F.linear(x, w) for w in weights), *biases), names)
        return F.linear(_dropout.by_torch(hidden, dropout_p, generator), w2, b2)
    tile = None
    if tile_rows is not None and _takes_tiles(tensors):
        tile = rows_of_a_tile(tile_rows, x, sum(w.shape[0] for w in weights))
        if philox is not None:  # a tile's hidden activations begin with a block of random numbers
            tile = -(-tile // _dropout.BLOCK) * _dropout.BLOCK
    if _takes_node(recompute, tile, tensors):
        return _Mlp.apply(op.name, (*names, dropout_p), recompute, tile, philox, *tensors)
    names = (*names, dropout_p, philox)
    if tile is not None and tile < math.prod(x.shape[:-1]) and not _needs_gradient(tensors):
        return _in_tiles(_Rows(op.name, names, x, w2, weights, biases, (None,) * len(weights)), b2, tile)
    return F.linear(_activate(op.name, (*(F.linear(x, w) for w in weights), *biases), names), w2, b2)


# Of an operation's branches: what the arguments of its MLP are called, weight and bias.
_NAMES = {
    BIAS_ACT.name: (("w1", "b1"),),
    GLU.name: (("w1", "b1"),),
    ACT_MUL.name: (("w_activated", "b_activated"), ("w_linear", "b_linear")),
}


class _Settings(NamedTuple):
    """What every MLP may be told."""

    recompute: bool
    tile_rows: TileRows
    dropout_p: float
    training: bool
    generator: torch.Generator | None


def _checked(public: str, op: Operation, names: _Names, settings: _Settings, *tensors: Tensor | None) -> Tensor:
    """The MLP of an operation: x, w2, b2, then ``branches`` as of the node. Its sentences begin with ``public``."""
    recompute, tile_rows, *dropout = settings
    check_bool(public, "recompute", recompute)
    check_tile_rows(public, tile_rows)
    check_mlp(public, _NAMES[op.name], op.halves, *tensors)
    names = (*names, *_dropout.drawn(public, tensors[0], *dropout))
    return linear_op_linear(op, names, recompute, tile_rows, *tensors, generator=settings.generator)


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
    tile_rows: TileRows = None,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``linear(act(linear(x, w1) + b1), w2, b2)`` as one autograd node, with GELU if no other activation is named.

    With ``recompute=True`` the node keeps ``x`` and the pre-activation ``linear(x, w1)``, half of what an unfused MLP
    keeps per hidden element (2 bytes instead of 4 in bfloat16), and computes the activation once more in the backward.
    (What torch computes from its result alone, as ReLU, an unfused MLP keeps in 2 bytes as well.)
    Where frozen weights leave nothing to save, no node is made, and no more is kept than torch's own functions keep.
    The gradients are equal to the bit with and without. The backward can itself be differentiated, in eager mode; that
    pass computes everything again.

    With ``tile_rows`` the rows, over all leading dimensions, are taken so many at a time, so that hidden activations
    exist of one tile only. With ``recompute=True`` the node then keeps ``x`` alone, of however few rows, and its
    backward computes the first product once more: 7 products of matrices for 6. With ``recompute=False`` it keeps the
    pre-activation, and does not; frozen weights then leave it all rows at once. ``"auto"`` is what is fast on the CPU
    (from 512 rows on), and of bounded memory on CUDA; it depends on shapes only. The gradients of weights and biases
    are added up over the tiles in float32 (float64) and rounded once: in 16 bits, for which the CPU has no product with
    a float32 result, those products run in float32 there, at some twice the time. A product of a tile may differ from
    that of all rows in the last bit, as BLAS chooses by shape; so None, not "auto", is the default also where no
    gradient is wanted. All rows are taken at once where others have to see each operation: under torch.compile, export,
    tracing and transforms, in a double backward, and of tensors of a subclass such as DTensor.

    Args:
        x: ``[..., C]``, float64, float32, float16 or bfloat16. Under autocast everything is cast as F.linear does.
        w1: ``[H, C]``, as ``nn.Linear(C, H).weight``, of x's dtype.
        b1: ``[H]`` or None, of x's dtype or float32.
        w2: ``[D, H]``, of x's dtype.
        b2: ``[D]`` or None, of x's dtype.
        activation: the name of any of :func:`gelu_ext.activations`; None for the form of GELU in ``approximate``.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        recompute: keep the pre-activation only.
        tile_rows: None for all rows at once, a number of rows, or "auto".
        dropout_p, training, generator: dropout of the hidden activations, see :func:`gelu_ext.bias_act`; the same
            elements with and without ``recompute`` and tiles.

    Returns:
        ``[..., D]`` of x's dtype.

    Raises:
        ValueError: unknown ``activation`` or ``approximate``, both of them, shapes that do not fit, ``tile_rows``
            not above 0 or another word than "auto", or ``dropout_p`` not in [0, 1).
        TypeError: not a tensor, dtypes other than the above, ``recompute`` not a bool, ``tile_rows`` of another type.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> fc1, fc2 = nn.Linear(4, 16), nn.Linear(16, 4)
    >>> out = gelu_ext.mlp(torch.randn(2, 3, 4), fc1.weight, fc1.bias, fc2.weight, fc2.bias, approximate="tanh")
    >>> out.shape
    torch.Size([2, 3, 4])
    """
    names = (activation_or_form("mlp", activation, approximate),)
    settings = _Settings(recompute, tile_rows, dropout_p, training, generator)
    return _checked("mlp", BIAS_ACT, names, settings, x, w2, b2, w1, b1)


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
    tile_rows: TileRows = None,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
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
        tile_rows: None, a number of rows, or "auto", see :func:`gelu_ext.mlp`.
        dropout_p, training, generator: see :func:`gelu_ext.mlp`.

    Returns:
        ``[..., D]`` of x's dtype.

    Raises:
        As :func:`gelu_ext.mlp`; ValueError also for an unknown ``activated`` or an odd number of rows in ``w1``.

    >>> fc1, fc2 = nn.Linear(4, 2 * 16), nn.Linear(16, 4)  # both halves packed
    >>> args = fc1.weight, fc1.bias, fc2.weight, fc2.bias
    >>> gelu_ext.glu_mlp(torch.randn(3, 4), *args, activation="silu", activated="first").shape
    torch.Size([3, 4])
    """
    check_activation("glu_mlp", activation)
    check_activated("glu_mlp", activated)
    settings = _Settings(recompute, tile_rows, dropout_p, training, generator)
    return _checked("glu_mlp", GLU, (activation, activated), settings, x, w2, b2, w1, b1)


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
    tile_rows: TileRows = None,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`gelu_ext.glu_mlp` with the form of GELU in ``approximate``, see :func:`gelu_ext.bias_gelu`.

    >>> fc1, fc2 = nn.Linear(4, 2 * 16), nn.Linear(16, 4)
    >>> gelu_ext.geglu_mlp(torch.randn(3, 4), fc1.weight, fc1.bias, fc2.weight, fc2.bias, tile_rows=2).shape
    torch.Size([3, 4])
    """
    check_approximate("geglu_mlp", approximate)
    check_activated("geglu_mlp", activated)
    settings = _Settings(recompute, tile_rows, dropout_p, training, generator)
    return _checked("geglu_mlp", GLU, (GELUS[approximate], activated), settings, x, w2, b2, w1, b1)


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
    tile_rows: TileRows = None,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``linear(act(linear(x, wa) + ba) * (linear(x, wl) + bl), w2, b2)`` as one node: Llama, Mistral, Qwen with SiLU.

    Arguments, result and errors as of :func:`gelu_ext.glu_mlp`; each half has its weight ``[H, C]`` and bias ``[H]``.

    >>> gate, up, down = (nn.Linear(*sizes, bias=False).weight for sizes in ((4, 16), (4, 16), (16, 4)))
    >>> gelu_ext.act_mul_mlp(torch.randn(3, 4), gate, None, up, None, down, None, activation="silu").shape
    torch.Size([3, 4])
    """
    check_activation("act_mul_mlp", activation)
    branches = (w_activated, w_linear, b_activated, b_linear)
    settings = _Settings(recompute, tile_rows, dropout_p, training, generator)
    return _checked("act_mul_mlp", ACT_MUL, (activation,), settings, x, w2, b2, *branches)


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
    tile_rows: TileRows = None,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """:func:`gelu_ext.act_mul_mlp` with the form of GELU in ``approximate``, as in T5 v1.1 and Gemma.

    >>> wi_0, wi_1, wo = torch.randn(16, 4), torch.randn(16, 4), torch.randn(4, 16)
    >>> gelu_ext.gelu_mul_mlp(torch.randn(3, 4), wi_0, None, wi_1, None, wo, None, approximate="tanh").shape
    torch.Size([3, 4])
    """
    check_approximate("gelu_mul_mlp", approximate)
    branches = (w_activated, w_linear, b_activated, b_linear)
    settings = _Settings(recompute, tile_rows, dropout_p, training, generator)
    return _checked("gelu_mul_mlp", ACT_MUL, (GELUS[approximate],), settings, x, w2, b2, *branches)
