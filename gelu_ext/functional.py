"""The public functions and their ``torch.autograd.Function``s.

Each public function takes the first path that is right for the call:

1. ``torch.compile`` / ``torch.export`` are tracing: the Function over the registered ``torch.ops.gelu_ext`` operators.
2. Nothing needs a gradient: straight to the native function, no autograd node. The native function itself decides this
   after checking its arguments, and declines by returning None (the same decision in Python costs as much as the call).
3. A functorch transform (grad, vmap, jvp) or forward-mode differentiation is active: the composite of torch's own
   operations in ``_composite.py``, which every transform understands.
4. Otherwise the Function. It saves its inputs and nothing else, and honours ``needs_input_grad``. Its backward is one
   native call, except where the backward itself must be differentiable (double backward): there it is the composite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _composite, _native

_ops = torch.ops.gelu_ext
_is_compiling = torch.compiler.is_compiling
_in_functorch = torch._C._functorch.peek_interpreter_stack


def _in_transform() -> bool:
    return _in_functorch() is not None or forward_ad._current_level >= 0


def _gradients(pair: tuple[Tensor, Tensor], needed: tuple[bool, bool]) -> tuple[Tensor | None, Tensor | None]:
    """The registered operators return a placeholder for a gradient that is not needed; autograd wants None."""
    return pair[0] if needed[0] else None, pair[1] if needed[1] else None


class _BiasGelu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, approximate: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.approximate = approximate
        if _is_compiling():
            return _ops.bias_gelu(x, bias, approximate)
        return _native.bias_gelu_forward(x, bias, approximate)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        form, needs = ctx.approximate, ctx.needs_input_grad[:2]
        if _is_compiling():
            grads = _gradients(_ops.bias_gelu_backward(grad_out, x, bias, form, *needs), needs)
        elif torch.is_grad_enabled():
            grads = _composite.vjp(_composite.bias_gelu, (x, bias), (form,), grad_out, needs)
        else:
            grads = _native.bias_gelu_backward(grad_out, x, bias, form, *needs)
        return *grads, None


class _Geglu(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, approximate: str, activated: str) -> Tensor:
        ctx.save_for_backward(x, bias)
        ctx.forms = approximate, activated
        if _is_compiling():
            return _ops.geglu(x, bias, approximate, activated)
        return _native.geglu_forward(x, bias, approximate, activated)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        forms, needs = ctx.forms, ctx.needs_input_grad[:2]
        if _is_compiling():
            grads = _gradients(_ops.geglu_backward(grad_out, x, bias, *forms, *needs), needs)
        elif torch.is_grad_enabled():
            grads = _composite.vjp(_composite.geglu, (x, bias), forms, grad_out, needs)
        else:
            grads = _native.geglu_backward(grad_out, x, bias, *forms, *needs)
        return *grads, None, None


class _GeluMul(Function):
    @staticmethod
    def forward(ctx: Any, activated: Tensor, linear: Tensor, approximate: str) -> Tensor:
        ctx.save_for_backward(activated, linear)
        ctx.approximate = approximate
        if _is_compiling():
            return _ops.gelu_mul(activated, linear, approximate)
        return _native.gelu_mul_forward(activated, linear, approximate)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        activated, linear = ctx.saved_tensors
        form, needs = ctx.approximate, ctx.needs_input_grad[:2]
        if _is_compiling():
            grads = _gradients(_ops.gelu_mul_backward(grad_out, activated, linear, form, *needs), needs)
        elif torch.is_grad_enabled():
            grads = _composite.vjp(_composite.gelu_mul, (activated, linear), (form,), grad_out, needs)
        else:
            grads = _native.gelu_mul_backward(grad_out, activated, linear, form, *needs)
        return *grads, None


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
        A new contiguous tensor of x's shape and dtype. Gradients of x and bias come from one pass over the data; the sum
        for the bias runs in float32 (float64) in a fixed order and has the bias's dtype.

    Raises:
        ValueError: unknown ``approximate``, or a bias whose shape is not ``[C]``.
        TypeError: not a tensor, or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.
    """
    if _is_compiling():
        return _BiasGelu.apply(x, bias, approximate)
    out = _native.bias_gelu(x, bias, approximate)
    if out is not None:
        return out
    if _in_transform():
        return _composite.bias_gelu(x, bias, approximate)
    return _BiasGelu.apply(x, bias, approximate)


def geglu(
    x: Tensor, bias: Tensor | None = None, *, approximate: str = "none", activated: str = "second"
) -> Tensor:
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
        return _Geglu.apply(x, bias, approximate, activated)
    out = _native.geglu(x, bias, approximate, activated)
    if out is not None:
        return out
    if _in_transform():
        return _composite.geglu(x, bias, approximate, activated)
    return _Geglu.apply(x, bias, approximate, activated)


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
        return _GeluMul.apply(activated, linear, approximate)
    out = _native.gelu_mul(activated, linear, approximate)
    if out is not None:
        return out
    if _in_transform():
        return _composite.gelu_mul(activated, linear, approximate)
    return _GeluMul.apply(activated, linear, approximate)
