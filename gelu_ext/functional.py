"""The public functions and their ``torch.autograd.Function``s.

Each call takes the first path that is right for it:

1. ``torch.compile`` or ``torch.export`` is tracing: the registered ``torch.ops.gelu_ext`` operator, one graph node.
2. A tensor (a subclass, the proxy of ``torch.fx``) or a mode overrides ``__torch_function__``: that takes the call.
3. Nothing needs a gradient: straight to the native function, no autograd node. The native function itself decides this
   after checking its arguments, and declines by returning None (the same decision in Python costs as much as the call).
4. A functorch transform (grad, vmap, jvp) or forward-mode differentiation is active: the composite of torch's own
   operations in ``_composite.py``, which every transform understands.
5. Otherwise the Function. It saves its inputs and nothing else, and honours ``needs_input_grad``. Its backward is one
   native call, except where the backward itself must be differentiable (double backward): there it is the composite.

Steps 3 to 5 are also what the registered operators do under autograd, so calling ``torch.ops.gelu_ext`` directly, or
through a compiled or an exported graph, is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.overrides import handle_torch_function

from . import _composite, _native

_ops = torch.ops.gelu_ext
_is_compiling = torch.compiler.is_compiling
_has_torch_function = torch.overrides.has_torch_function_variadic
_in_functorch = torch._C._functorch.peek_interpreter_stack


def _in_transform() -> bool:
    return _in_functorch() is not None or forward_ad._current_level >= 0


def _apply(function: type[Function]) -> Callable[..., Any]:
    """``function.apply`` without its Python part (1.3 us of 5), whose questions are about functorch transforms."""
    return super(Function, function).apply


class _BiasGelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        return _native.bias_gelu_forward(x, bias, approximate)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        form, (needs_x, needs_bias, _) = ctx.approximate, ctx.needs_input_grad
        if torch.is_grad_enabled():
            grads = _composite.vjp(_composite.bias_gelu, (x, bias), (form,), grad_out, (needs_x, needs_bias))
        else:
            grads = _native.bias_gelu_backward(grad_out, x, bias, form, needs_x, needs_bias)
        return *grads, None


class _Geglu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, approximate: str, activated: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.forms = approximate, activated
        return _native.geglu_forward(x, bias, approximate, activated)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        forms, (needs_x, needs_bias, *_) = ctx.forms, ctx.needs_input_grad
        if torch.is_grad_enabled():
            grads = _composite.vjp(_composite.geglu, (x, bias), forms, grad_out, (needs_x, needs_bias))
        else:
            grads = _native.geglu_backward(grad_out, x, bias, *forms, needs_x, needs_bias)
        return *grads, None, None


class _GeluMul(Function):
    @staticmethod
    def forward(ctx: Any, activated: Tensor, linear: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(activated, linear)
        ctx.approximate = approximate
        return _native.gelu_mul_forward(activated, linear, approximate)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        activated, linear = ctx.saved_tensors
        form, (needs_activated, needs_linear, _) = ctx.approximate, ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs, needs = (activated, linear), (needs_activated, needs_linear)
            grads = _composite.vjp(_composite.gelu_mul, inputs, (form,), grad_out, needs)
        else:
            grads = _native.gelu_mul_backward(grad_out, activated, linear, form, needs_activated, needs_linear)
        return *grads, None


_apply_bias_gelu, _apply_geglu, _apply_gelu_mul = _apply(_BiasGelu), _apply(_Geglu), _apply(_GeluMul)


# Steps 3 to 5.


def _bias_gelu(x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
    out = _native.bias_gelu(x, bias, approximate)
    if out is not None:
        return out
    if _in_transform():
        return _composite.bias_gelu(x, bias, approximate)
    return _apply_bias_gelu(x, bias, approximate)


def _geglu(x: Tensor, bias: Tensor | None, approximate: str, activated: str) -> Tensor:
    out = _native.geglu(x, bias, approximate, activated)
    if out is not None:
        return out
    if _in_transform():
        return _composite.geglu(x, bias, approximate, activated)
    return _apply_geglu(x, bias, approximate, activated)


def _gelu_mul(activated: Tensor, linear: Tensor, approximate: str) -> Tensor:
    out = _native.gelu_mul(activated, linear, approximate)
    if out is not None:
        return out
    if _in_transform():
        return _composite.gelu_mul(activated, linear, approximate)
    return _apply_gelu_mul(activated, linear, approximate)


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none") -> Tensor:
    r"""``gelu(x + bias)``.

    With ``z = x + bias``, ``approximate`` selects

    - ``"none"``: :math:`z \Phi(z)`, exact, by erf;
    - ``"tanh"``: :math:`\tfrac12 z (1 + \tanh(\sqrt{2/\pi}\,(z + 0.044715 z^3)))`;
    - ``"sigmoid"``: :math:`z\,\sigma(1.702 z)`, also called quick GELU.

    (Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.) ``z`` is formed and the activation computed
    in float32 (float64 for float64 tensors) and rounded once, at the end.

    Args:
        x: ``[..., C]``, float64, float32, float16 or bfloat16, of any strides.
        bias: ``[C]`` or None, of x's dtype or float32, on x's device.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``.

    Returns:
        A new contiguous tensor of x's shape and dtype. Gradients of x and bias come from one pass over the data; the
        sum for the bias runs in float32 (float64) in a fixed order and has the bias's dtype.

    Raises:
        ValueError: unknown ``approximate``, or a bias whose shape is not ``[C]``.
        TypeError: not a tensor, or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.
    """
    if _is_compiling():
        return _ops.bias_gelu(x, bias, approximate)
    if _has_torch_function(x, bias):
        return handle_torch_function(bias_gelu, (x, bias), x, bias, approximate=approximate)
    return _bias_gelu(x, bias, approximate)


def geglu(x: Tensor, bias: Tensor | None = None, *, approximate: str = "none", activated: str = "second") -> Tensor:
    r"""GeGLU of a packed tensor: with ``a, b = (x + bias).chunk(2, -1)``,

    - ``activated="second"``: ``a * gelu(b)``, as ``torch.nn.functional.glu`` and diffusers order their halves;
    - ``activated="first"``: ``gelu(a) * b``, as Megatron, ModernBERT and vLLM do.

    (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202; for the forms of ``approximate`` see
    :func:`bias_gelu`.)

    Args:
        x: ``[..., 2H]``, float64, float32, float16 or bfloat16, of any strides.
        bias: ``[2H]`` or None, of x's dtype or float32, on x's device.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``.
        activated: ``"second"`` or ``"first"``.

    Returns:
        A new contiguous tensor ``[..., H]`` of x's dtype.

    Raises:
        ValueError: unknown ``approximate`` or ``activated``, an odd width, or a bias whose shape is not ``[2H]``.
        TypeError: not a tensor, or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.
    """
    if _is_compiling():
        return _ops.geglu(x, bias, approximate, activated)
    if _has_torch_function(x, bias):
        return handle_torch_function(geglu, (x, bias), x, bias, approximate=approximate, activated=activated)
    return _geglu(x, bias, approximate, activated)


def gelu_mul(activated: Tensor, linear: Tensor, *, approximate: str = "none") -> Tensor:
    r"""``gelu(activated) * linear``: GeGLU of two tensors, as in T5 v1.1 and Gemma.

    (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202; for the forms of ``approximate`` see
    :func:`bias_gelu`.)

    Args:
        activated: ``[..., H]``, float64, float32, float16 or bfloat16, of any strides.
        linear: of the same shape, dtype and device, of any strides.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``.

    Returns:
        A new contiguous tensor of the same shape and dtype.

    Raises:
        ValueError: unknown ``approximate``, or shapes that differ.
        TypeError: not tensors, a dtype other than the above, or dtypes that differ.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.
    """
    if _is_compiling():
        return _ops.gelu_mul(activated, linear, approximate)
    if _has_torch_function(activated, linear):
        return handle_torch_function(gelu_mul, (activated, linear), activated, linear, approximate=approximate)
    return _gelu_mul(activated, linear, approximate)


# What the operators of torch.ops.gelu_ext do for autograd and vmap. The public functions do not come by here: their
# calls enter below these dispatch keys.


def _backward_operator(name: str, composite: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Autograd for ``<name>_backward``: differentiable where it must be."""
    operator = getattr(_ops, f"{name}_backward").default

    def kernel(grad_out: Tensor, a: Tensor, b: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
        *options, needs_a, needs_b = rest
        tracked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (grad_out, a, b))
        if not (tracked or _in_transform()):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(grad_out, a, b, *rest)
        if _in_functorch() is not None:
            raise RuntimeError(
                f"gelu_ext.{name}_backward: expected a call outside of functorch transforms, differentiate "
                f"gelu_ext.{name} instead"
            )
        needs = needs_a, needs_b and b is not None
        grads = _composite.vjp(composite, (a, b), tuple(options), grad_out, needs)
        return tuple(a.new_empty((0,)) if grad is None else grad for grad in grads)

    return kernel


def _register_operators() -> None:
    # The registrations live as long as their Library, and that with the native module. A second import of this package,
    # which has the same native module, replaces them.
    native: Any = _native.module
    native._registrations = None
    native._registrations = library = torch.library.Library("gelu_ext", "FRAGMENT")
    for function, composite in (
        (_bias_gelu, _composite.bias_gelu),
        (_geglu, _composite.geglu),
        (_gelu_mul, _composite.gelu_mul),
    ):
        name = composite.__name__
        library.impl(name, function, "Autograd")
        library.impl(name, composite, "FuncTorchBatched")
        library.impl(f"{name}_backward", _backward_operator(name, composite), "Autograd")


_native.on_load(_register_operators)
