"""Linear -> fused activation -> linear as one autograd node that need not keep the activation.

The node computes through torch's own matrix products and the native activation. With ``recompute=True`` it keeps its
input and the pre-activation, and computes the activation once more in its backward: the same kernel on the same
numbers, so the gradients are equal to the bit. On a CPU its gradients take the memory of tensors of its own that it has
used up, which saves the page faults of fresh ones. Knows functional.py's neighbours and torch; nothing here knows a
kernel.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from . import _composite, _native
from .functional import _in_transform, bias_gelu, geglu, gelu_mul

_ops = torch.ops.gelu_ext
_is_compiling = torch.compiler.is_compiling
_has_torch_function = torch.overrides.has_torch_function
_Grads = tuple[Tensor | None, ...]


def _rows(t: Tensor) -> Tensor:
    """``[..., C]`` as ``[rows, C]``."""
    return t.flatten(0, -2) if t.dim() > 1 else t.unsqueeze(0)  # reshape(-1, 0) is ambiguous


def _weight_gradient(grad_out: Tensor, x: Tensor) -> Tensor:
    return _rows(grad_out).t() @ _rows(x)


def _grad_hidden(grad_out: Tensor, w2: Tensor, spare: Tensor | None) -> Tensor:
    """``grad_out @ w2``, in the memory of ``spare`` where there is one: a fresh tensor costs page faults."""
    if spare is None:
        return grad_out @ w2
    torch.mm(_rows(grad_out), w2, out=_rows(spare))
    return spare


def _activate(pre: Tensor, bias: Tensor | None, approximate: str, activated: str) -> Tensor:
    """gelu(pre + bias), or the GeGLU of it where ``activated`` names a half."""
    if _is_compiling():
        return _ops.geglu(pre, bias, approximate, activated) if activated else _ops.bias_gelu(pre, bias, approximate)
    with _native.node_memory():
        if activated:
            return _native.geglu_forward(pre, bias, approximate, activated)
        return _native.bias_gelu_forward(pre, bias, approximate)


def _multiply(activated: Tensor, linear: Tensor, approximate: str) -> Tensor:
    """gelu(activated) * linear"""
    if _is_compiling():
        return _ops.gelu_mul(activated, linear, approximate)
    with _native.node_memory():
        return _native.gelu_mul_forward(activated, linear, approximate)


# Not in the namespace of the native operators: their presence says that a native module is loaded.
@torch.library.custom_op("gelu_ext_python::activate_again", mutates_args=())
def _activate_again(grad_out: Tensor, pre: Tensor, other: Tensor | None, approximate: str, activated: str) -> Tensor:
    """The activation of a saved pre-activation, as an operator of its own for compiled graphs.

    There the backward's activation must not be recognised as the forward's: the compiler would make one of the two, and
    keep its result. It depends on grad_out, which it does not read, so that it cannot run before the backward.
    """
    if activated == "two":
        return _multiply(pre, other, approximate)
    return _activate(pre, other, approximate, activated)


@_activate_again.register_fake
def _(grad_out: Tensor, pre: Tensor, other: Tensor | None, approximate: str, activated: str) -> Tensor:
    halves = 2 if activated in ("first", "second") else 1
    return pre.new_empty((*pre.shape[:-1], pre.shape[-1] // halves))


def _activate_backward(
    grad_hidden: Tensor, pre: Tensor, bias: Tensor | None, approximate: str, activated: str, needs: tuple[bool, bool]
) -> _Grads:
    """Gradients of pre and bias. That of pre may be written over grad_hidden."""
    form = (approximate, activated) if activated else (approximate,)
    if _is_compiling():
        backward = _ops.geglu_backward if activated else _ops.bias_gelu_backward
        return backward(grad_hidden, pre, bias, *form, *needs)
    backward = _native.geglu_backward if activated else _native.bias_gelu_backward
    with _native.node_memory():
        return backward(grad_hidden, pre, bias, *form, *needs)


def _multiply_backward(
    grad_hidden: Tensor, activated: Tensor, linear: Tensor, approximate: str, needs: tuple[bool, bool]
) -> _Grads:
    """Gradients of activated and linear. That of activated may be written over grad_hidden."""
    if _is_compiling():
        return _ops.gelu_mul_backward(grad_hidden, activated, linear, approximate, *needs)
    with _native.node_memory():
        return _native.gelu_mul_backward(grad_hidden, activated, linear, approximate, *needs)


def _composite_mlp(x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, approximate: str, activated: str) -> Tensor:
    """The node without b2, in operations that can be differentiated again."""
    pre = F.linear(x, w1)
    if activated:
        return F.linear(_composite.geglu(pre, b1, approximate, activated), w2)
    return F.linear(_composite.bias_gelu(pre, b1, approximate), w2)


def _composite_gated_mlp(
    x: Tensor, wa: Tensor, ba: Tensor | None, wl: Tensor, bl: Tensor | None, w2: Tensor, approximate: str
) -> Tensor:
    return F.linear(_composite.gelu_mul(F.linear(x, wa, ba), F.linear(x, wl, bl), approximate), w2)


class _Mlp(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w1: Tensor,
        b1: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        approximate: str,
        activated: str,
        recompute: bool,
    ) -> Tensor:
        pre = F.linear(x, w1)
        hidden = _activate(pre, b1, approximate, activated)
        ctx.save_for_backward(x, w1, b1, w2, pre, None if recompute else hidden)
        ctx.forms = approximate, activated
        return F.linear(hidden, w2, b2)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> _Grads:
        x, w1, b1, w2, pre, hidden = ctx.saved_tensors
        needs_x, needs_w1, needs_b1, needs_w2, needs_b2 = ctx.needs_input_grad[:5]
        grad_x = grad_w1 = grad_b1 = grad_w2 = None
        grad_b2 = _rows(grad_out).sum(0) if needs_b2 else None
        if torch.is_grad_enabled() and not _is_compiling():
            needs = (needs_x, needs_w1, needs_b1, needs_w2)
            grads = _composite.vjp(_composite_mlp, (x, w1, b1, w2), ctx.forms, grad_out, needs) if any(needs) else needs
            grad_x, grad_w1, grad_b1, grad_w2 = (g if need else None for g, need in zip(grads, needs, strict=True))
        else:
            spare = None  # memory of the node's own, as large as grad_hidden
            if needs_w2:
                if hidden is None and _is_compiling():
                    hidden = _activate_again(grad_out, pre, b1, *ctx.forms)
                elif hidden is None:
                    hidden = spare = _activate(pre, b1, *ctx.forms)
                grad_w2 = _weight_gradient(grad_out, hidden)
            del hidden
            needs_pre = needs_x or needs_w1
            if needs_pre or needs_b1:
                grad_hidden = _grad_hidden(grad_out, w2, spare)
                del spare
                grad_pre, grad_b1 = _activate_backward(grad_hidden, pre, b1, *ctx.forms, (needs_pre, needs_b1))
                del grad_hidden  # before the next large tensors
                grad_b1 = grad_b1 if needs_b1 else None
                grad_x = grad_pre @ w1 if needs_x else None
                grad_w1 = _weight_gradient(grad_pre, x) if needs_w1 else None
        return grad_x, grad_w1, grad_b1, grad_w2, grad_b2, None, None, None


class _GatedMlp(Function):
    """linear(gelu(linear(x, wa, ba)) * linear(x, wl, bl), w2, b2), for the blocks whose halves have a Linear each."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        wa: Tensor,
        ba: Tensor | None,
        wl: Tensor,
        bl: Tensor | None,
        w2: Tensor,
        b2: Tensor | None,
        approximate: str,
        recompute: bool,
    ) -> Tensor:
        activated, linear = F.linear(x, wa, ba), F.linear(x, wl, bl)
        hidden = _multiply(activated, linear, approximate)
        ctx.save_for_backward(x, wa, ba, wl, bl, w2, activated, linear, None if recompute else hidden)
        ctx.approximate = approximate
        return F.linear(hidden, w2, b2)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> _Grads:
        x, wa, ba, wl, bl, w2, activated, linear, hidden = ctx.saved_tensors
        form, needs = ctx.approximate, ctx.needs_input_grad[:7]
        needs_x, needs_wa, needs_ba, needs_wl, needs_bl, needs_w2, needs_b2 = needs
        grad_x = grad_wa = grad_ba = grad_wl = grad_bl = grad_w2 = None
        grad_b2 = _rows(grad_out).sum(0) if needs_b2 else None
        if torch.is_grad_enabled() and not _is_compiling():
            if any(needs[:6]):
                inputs = (x, wa, ba, wl, bl, w2)
                grads = _composite.vjp(_composite_gated_mlp, inputs, (form,), grad_out, needs[:6])
                grad_x, grad_wa, grad_ba, grad_wl, grad_bl, grad_w2 = grads
        else:
            spare = None  # as in _Mlp
            if needs_w2:
                if hidden is None and _is_compiling():
                    hidden = _activate_again(grad_out, activated, linear, form, "two")
                elif hidden is None:
                    hidden = spare = _multiply(activated, linear, form)
                grad_w2 = _weight_gradient(grad_out, hidden)
            del hidden
            needs_activated, needs_linear = needs_x or needs_wa or needs_ba, needs_x or needs_wl or needs_bl
            if needs_activated or needs_linear:
                grad_hidden = _grad_hidden(grad_out, w2, spare)
                del spare
                needs_both = needs_activated, needs_linear
                grad_a, grad_l = _multiply_backward(grad_hidden, activated, linear, form, needs_both)
                del grad_hidden
                grad_x = grad_a @ wa + grad_l @ wl if needs_x else None
                grad_wa = _weight_gradient(grad_a, x) if needs_wa else None
                grad_wl = _weight_gradient(grad_l, x) if needs_wl else None
                grad_ba = _rows(grad_a).sum(0) if needs_ba else None
                grad_bl = _rows(grad_l).sum(0) if needs_bl else None
        return grad_x, grad_wa, grad_ba, grad_wl, grad_bl, grad_w2, grad_b2, None, None


def _takes_node(*tensors: Tensor | None) -> bool:
    """Whether autograd must record the call, and nothing (transform, mode, subclass) needs to see each operation."""
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in tensors):
        return False
    return _is_compiling() or not (_in_transform() or _has_torch_function(tensors))


def _apply(function: type[Function], tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]) -> Tensor:
    """function.apply; under autocast with the tensors cast as F.linear would, since nothing inside the node is cast."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return function.apply(*tensors, *options)
    dtype = torch.get_autocast_dtype(device)
    cast = (t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in tensors)
    with torch.autocast(device, enabled=False):
        return function.apply(*cast, *options)


def _check_tensor(op: str, name: str, t: Any, like: Tensor | None, shape: tuple[int | None, ...] | None) -> None:
    """None in ``shape`` is any size."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{op}: expected {name} to be a Tensor, got {type(t).__name__}")
    if like is not None and t.device != like.device:
        raise RuntimeError(f"{op}: expected {name} on device {like.device}, got {t.device}")
    if like is not None and t.dtype != like.dtype and not torch.is_autocast_enabled(t.device.type):
        raise TypeError(f"{op}: expected {name} of the dtype of x, {like.dtype}, got {t.dtype}")
    if shape is not None and (
        t.dim() != len(shape) or any(n is not None and n != m for n, m in zip(shape, t.shape, strict=True))
    ):
        text = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{op}: expected {name} of shape [{text}], got {list(t.shape)}")


def _check_options(op: str, approximate: str, recompute: bool, activated: str = "second") -> None:
    _composite.check_form(op, approximate)
    _composite.check_half(op, activated)
    if not isinstance(recompute, bool):
        raise TypeError(f"{op}: expected recompute to be a bool, got {recompute!r}")


def _check(op: str, x: Any, w1: Any, b1: Any, w2: Any, b2: Any, halves: int = 1) -> None:
    _check_tensor(op, "x", x, None, None)
    if x.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        raise TypeError(f"{op}: expected x of dtype float64, float32, float16 or bfloat16, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{op}: expected x of at least 1 dimension, got a scalar")
    _check_tensor(op, "w1", w1, x, (None, x.shape[-1]))
    hidden = w1.shape[0]
    if hidden % halves:
        raise ValueError(f"{op}: expected w1 with an even number of rows (two halves), got {hidden}")
    if b1 is not None:
        half_width_may_be_float = isinstance(b1, Tensor) and b1.dtype == torch.float32
        _check_tensor(op, "b1", b1, None if half_width_may_be_float and b1.device == x.device else x, (hidden,))
    _check_tensor(op, "w2", w2, x, (None, hidden // halves))
    if b2 is not None:
        _check_tensor(op, "b2", b2, x, (w2.shape[0],))


def mlp(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    approximate: str = "none",
    recompute: bool = True,
) -> Tensor:
    """``linear(gelu(linear(x, w1) + b1), w2, b2)`` as one autograd node.

    With ``recompute=True`` the node keeps ``x`` and the pre-activation ``linear(x, w1)``, half of what an unfused MLP
    keeps per hidden element (2 bytes instead of 4 in bfloat16), and computes the activation once more in the backward.
    The gradients are equal to the bit with and without. The backward can itself be differentiated, in eager mode; that
    pass computes everything again.

    Args:
        x: ``[..., C]``, float64, float32, float16 or bfloat16. Under autocast everything is cast as F.linear does.
        w1: ``[H, C]``, as ``nn.Linear(C, H).weight``, of x's dtype.
        b1: ``[H]`` or None, of x's dtype or float32.
        w2: ``[D, H]``, of x's dtype.
        b2: ``[D]`` or None, of x's dtype.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        recompute: keep the pre-activation only.

    Returns:
        ``[..., D]`` of x's dtype.

    Raises:
        ValueError: unknown ``approximate``, or shapes that do not fit.
        TypeError: not a tensor, dtypes other than the above, or ``recompute`` not a bool.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.
    """
    _check_options("mlp", approximate, recompute)
    _check("mlp", x, w1, b1, w2, b2)
    tensors = (x, w1, b1, w2, b2)
    if _takes_node(*tensors):
        return _apply(_Mlp, tensors, (approximate, "", recompute))
    return F.linear(bias_gelu(F.linear(x, w1), b1, approximate=approximate), w2, b2)


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
    """``linear(geglu(linear(x, w1) + b1), w2, b2)`` as one autograd node: the gated twin of :func:`gelu_ext.mlp`.

    With ``recompute=True`` it keeps 4 bytes per output element of the GeGLU in bfloat16; an unfused block keeps 8.

    Args:
        x: ``[..., C]``, see :func:`gelu_ext.mlp`.
        w1: ``[2H, C]``, both halves packed.
        b1: ``[2H]`` or None.
        w2: ``[D, H]``.
        b2: ``[D]`` or None.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``.
        activated: which half goes through GELU, ``"second"`` or ``"first"``, see :func:`gelu_ext.geglu`.
        recompute: keep the pre-activation only.

    Returns:
        ``[..., D]`` of x's dtype.

    Raises:
        As :func:`gelu_ext.mlp`; ValueError also for an unknown ``activated`` or an odd number of rows in ``w1``.
    """
    _check_options("geglu_mlp", approximate, recompute, activated)
    _check("geglu_mlp", x, w1, b1, w2, b2, halves=2)
    tensors = (x, w1, b1, w2, b2)
    if _takes_node(*tensors):
        return _apply(_Mlp, tensors, (approximate, activated, recompute))
    return F.linear(geglu(F.linear(x, w1), b1, approximate=approximate, activated=activated), w2, b2)


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
    """``linear(gelu(linear(x, wa, ba)) * linear(x, wl, bl), w2, b2)`` as one autograd node, as in T5 v1.1 and Gemma.

    Arguments, result and errors as of :func:`gelu_ext.geglu_mlp`; each half has its weight ``[H, C]`` and bias ``[H]``.
    """
    _check_options("gelu_mul_mlp", approximate, recompute)
    _check("gelu_mul_mlp", x, w_activated, b_activated, w2, b2)
    _check_tensor("gelu_mul_mlp", "w_linear", w_linear, x, tuple(w_activated.shape))
    if b_linear is not None:
        _check_tensor("gelu_mul_mlp", "b_linear", b_linear, x, (w_linear.shape[0],))
    tensors = (x, w_activated, b_activated, w_linear, b_linear, w2, b2)
    if _takes_node(*tensors):
        return _apply(_GatedMlp, tensors, (approximate, recompute))
    hidden = gelu_mul(F.linear(x, w_activated, b_activated), F.linear(x, w_linear, b_linear), approximate=approximate)
    return F.linear(hidden, w2, b2)


def has_hooks(module: nn.Module) -> bool:
    """Whether someone watches the calls of this module: then it must be called, not bypassed."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_plain_linear(module: Any) -> bool:
    """An nn.Linear itself (no subclass, wrapper, hook, parametrization, tensor subclass): F.linear may replace it."""
    return (
        type(module) is nn.Linear
        and type(module.weight) in (nn.Parameter, Tensor)
        and "forward" not in module.__dict__
        and not has_hooks(module)
    )


class _TwoLinears(nn.Module):
    """fc1 and fc2, so that the state_dict has the names of a plain stack of Linears."""

    def __init__(
        self,
        in_features: int,
        fc1_features: int,
        hidden_features: int,
        out_features: int | None,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, fc1_features, bias=bias, device=device, dtype=dtype)
        out_features = in_features if out_features is None else out_features
        self.fc2 = nn.Linear(hidden_features, out_features, bias=bias, device=device, dtype=dtype)

    def _is_plain(self) -> bool:
        return is_plain_linear(self.fc1) and is_plain_linear(self.fc2)

    def _tensors(self) -> tuple[Tensor | None, ...]:
        return self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias


class MLP(_TwoLinears):
    """``fc2(gelu(fc1(x)))`` through :func:`gelu_ext.mlp`; parameters ``fc1.weight``, ``fc1.bias``, ``fc2.weight``, ...

    Where fc1 or fc2 has been wrapped, hooked or quantised, it is called as a module and the activation alone is fused.

    Args:
        in_features: C.
        hidden_features: H.
        out_features: D; C if None.
        bias: whether both layers have a bias.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.
        recompute: keep the pre-activation only, see :func:`gelu_ext.mlp`.
        device, dtype: of the parameters, initialised as nn.Linear's.

    Raises:
        ValueError: unknown ``approximate``.
        TypeError: ``recompute`` not a bool.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        bias: bool = True,
        approximate: str = "none",
        recompute: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_options("MLP", approximate, recompute)
        super().__init__(in_features, hidden_features, hidden_features, out_features, bias, device, dtype)
        self.approximate = approximate
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        if self._is_plain():
            return mlp(x, *self._tensors(), approximate=self.approximate, recompute=self.recompute)
        return self.fc2(bias_gelu(self.fc1(x), approximate=self.approximate))

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, recompute={self.recompute}"


class GEGLUMLP(_TwoLinears):
    """``fc2(geglu(fc1(x)))`` through :func:`gelu_ext.geglu_mlp`, with fc1 of ``2 * hidden_features`` rows.

    Args:
        in_features, hidden_features, out_features, bias, approximate, recompute, device, dtype: as of :class:`MLP`.
        activated: which half goes through GELU, ``"second"`` or ``"first"``, see :func:`gelu_ext.geglu`.

    Raises:
        ValueError: unknown ``approximate`` or ``activated``.
        TypeError: ``recompute`` not a bool.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        out_features: int | None = None,
        *,
        bias: bool = True,
        approximate: str = "none",
        activated: str = "second",
        recompute: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_options("GEGLUMLP", approximate, recompute, activated)
        super().__init__(in_features, 2 * hidden_features, hidden_features, out_features, bias, device, dtype)
        self.approximate = approximate
        self.activated = activated
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        forms = {"approximate": self.approximate, "activated": self.activated}
        if self._is_plain():
            return geglu_mlp(x, *self._tensors(), **forms, recompute=self.recompute)
        return self.fc2(geglu(self.fc1(x), **forms))

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}, activated={self.activated!r}, recompute={self.recompute}"
