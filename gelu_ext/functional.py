"""The public functions and their ``torch.autograd.Function``s.

Each call takes the first path that is right for it:

1. ``torch.compile`` or ``torch.export`` is tracing: the registered ``torch.ops.gelu_ext`` operator, one graph node.
   The same for ``torch.jit.trace``; torch's ONNX exporter built on that gets torch's own functions.
2. A tensor (a subclass, the proxy of ``torch.fx``) or a mode overrides ``__torch_function__``: that takes the call.
3. Nothing needs a gradient: straight to the native function, no autograd node. The native function itself decides this
   after checking its arguments, and declines for one of the next two (deciding in Python costs as much as the call).
4. A functorch transform (grad, vmap, jvp) or forward-mode differentiation is active: the composite of torch's own
   operations in ``_composite.py``, which every transform understands.
5. Otherwise the Function. It saves its matrices and a copy of its biases, nothing else, and honours
   ``needs_input_grad``. Its backward is one native call, except where the backward itself must be differentiable
   (double backward): there it is the composite.

What the kernels refuse and torch's own functions take (nested, quantised, mkldnn tensors, tensors of inference mode
where a gradient is wanted, another 16-bit dtype under autocast) is looked at only after the refusal.

All of it is made from the table of operations. Steps 3 to 5 are also what the registered operators do under autograd,
so calling ``torch.ops.gelu_ext`` directly, or through a compiled or an exported graph, is the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._prims_common import is_contiguous_or_false
from torch.autograd import Function
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import handle_torch_function

from . import _composite, _dropout, _native
from ._activations import ACTIVATIONS
from ._checks import gelu_named
from ._operations import ACT_MUL, BIAS_ACT, GLU, OPERATIONS, Operation
from ._surroundings import as_it_was, autocasts, functorch_depth, in_transform, plain_apply

_ops = torch.ops.gelu_ext
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_has_torch_function = torch.overrides.has_torch_function_variadic


# The steps of one operation, written out for its arguments: passing them on as *args would cost as much as the kernel.
_STEPS_3_TO_5 = """
    try:
        out = _native.{name}(public, {args})
        if out is None:
            return apply({args})
        if out is not NotImplemented:
            return out
        return composite({args}) if in_transform() else _traced(op, {args})
    except (TypeError, RuntimeError) as refusal:
        return _refused(op, steps_3_to_5, public, ({args}), refusal)
"""
_STEPS = (
    """
def forward(ctx, {args}):
    ctx.save_for_backward({matrices} {kept} {philox})
    ctx.rest = ({vectors}), ({names}), {dropout_p}
    return _native.{name}_forward({args})

def backward(ctx, grad_out):
    {tensors} {philox} = ctx.saved_tensors
    vectors, ({names}), {dropout_p} = ctx.rest
    if _is_grad_enabled():
        needs = ctx.needs_input_grad[:{count}]
        tensors = {matrices} *map(as_it_was, vectors, ({vectors}))
        grads = _composite.vjp(lambda *views: composite(*views, {names} {dropout}), tensors, grad_out, needs)
    else:
        grads = _native.{name}_backward(grad_out, {tensors} {names} ctx.needs_input_grad, {dropout})
    return grads + of_others

def all_steps(public, {tensors} {names} {defaults}):
    if _is_compiling():
        return _ops.{name}({args})
    if _has_torch_function({tensors}):
        return _overridden(op, public, ({args}))"""
    + _STEPS_3_TO_5
    + """
def steps_3_to_5(public, {tensors} {names} {defaults}):"""
    + _STEPS_3_TO_5
)


def _written_out(op: Operation) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(all steps, steps 3 to 5): called with the name of the public function, the tensors and the names."""
    parts = {"matrices": op.matrices, "vectors": op.vectors, "tensors": op.tensors, "names": op.names}
    parts |= {"args": op.tensors + op.names + op.dropout, "dropout": op.dropout}
    parts |= {"dropout_p": op.dropout[:1], "philox": op.dropout[1:]}
    parts |= {"defaults": ("dropout_p=0.0", "philox=None") * op.drops}
    parts |= {"kept": tuple(f"_native.copy_of_vector({vector})" for vector in op.vectors)}
    written = {name: ", ".join(part) + "," * (name != "args" and len(part) > 0) for name, part in parts.items()}
    source = _STEPS.format(name=op.name, count=len(op.tensors), **written)
    called = {
        "as_it_was": as_it_was,
        "op": op,
        "composite": op.composite,
        "of_others": (None,) * len(op.names + op.dropout),
    }
    home = {**globals(), **called}
    exec(compile(source, f"<the steps of {op.name}, from {__file__}>", "exec"), home)
    members = {name: staticmethod(home[name]) for name in ("forward", "backward")}
    home["apply"] = plain_apply(type(Function)(op.name, (Function,), members))
    return home["all_steps"], home["steps_3_to_5"]


def _overridden(op: Operation, public: str, args: tuple[Any, ...], **dropout: Any) -> Any:
    """Step 2: who overrides it sees the public function, called as its signature says.

    Or the operator, where dropout's numbers have been drawn: the public function would draw others.
    """
    count = len(op.tensors)
    if len(args) > count + len(op.names) and args[-1] is not None:
        return handle_torch_function(getattr(_ops, op.name), args[:count], *args)
    tensors, names = args[:count], dict(zip(op.names, args[count:], strict=False))
    names |= dropout
    if public != op.name:  # the function of one activation, of two tensors
        activation, tensors = names.pop("activation"), tensors[:2]
        if public == op.gelu:
            names = {"approximate": ACTIVATIONS[activation].approximate, **names}
    return handle_torch_function(globals()[public], tensors, *tensors, **names)


def with_dropout(
    op: Operation,
    public: str,
    args: tuple[Any, ...],
    dropout_p: float,
    training: bool,
    generator: torch.Generator | None,
) -> Tensor:
    """The call of an operation that is to drop elements of its value: ``args`` are those before dropout_p."""
    tensors = args[: len(op.tensors)]
    if not _is_compiling() and _has_torch_function(*tensors):
        settings = {"dropout_p": dropout_p, "training": training, "generator": generator}
        return _overridden(op, public, args, **settings)
    dropout_p, philox = _dropout.drawn(public, tensors[0], dropout_p, training, generator)
    if philox is not None:
        return CALLS[op.name](public, *args, dropout_p, philox)
    out = CALLS[op.name](public, *args)
    return _dropout.by_torch(out, dropout_p, generator) if dropout_p else out


def _traced(op: Operation, *args: Any) -> Tensor:
    """For torch.jit.trace, which records operators; ONNX knows torch's only."""
    return op.eager(*args) if torch.onnx.is_in_onnx_export() else getattr(_ops, op.name)(*args)


def _refused(
    op: Operation, again: Callable[..., Tensor], public: str, args: tuple[Any, ...], refusal: Exception
) -> Tensor:
    """What torch's own functions take and the kernels do not; raises the refusal where it is right."""
    count = len(op.tensors)
    tensors, names = args[:count], args[count:]
    given = [t for t in tensors if isinstance(t, Tensor)]
    if given and (all(map(_is_foreign, given)) or given[0].layout is torch.jagged):
        return op.eager(*args)
    if torch.is_grad_enabled() and any(t.is_inference() for t in given):
        return again(public, *(t.clone() if isinstance(t, Tensor) and t.is_inference() else t for t in tensors), *names)
    if given and given[0] is tensors[0] and autocasts(given[0].device.type):
        cast = _in_dtype_of_first(op, tensors)
        if any(a is not b for a, b in zip(cast, tensors, strict=True)):
            return again(public, *cast, *names)
    raise refusal


def _is_foreign(t: Tensor) -> bool:
    """Of a kind that nn.GELU takes and no kernel. (Beside a dense bias, torch takes the jagged ones only.)"""
    return t.is_nested or t.is_quantized or t.layout is torch._mkldnn


def _in_dtype_of_first(op: Operation, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Under autocast: the others in the first matrix's dtype, and biases in float32 as they are."""
    dtype = tensors[0].dtype
    kept = [(dtype,)] * len(op.matrices) + [(dtype, torch.float32)] * len(op.vectors)
    return [
        t if not isinstance(t, Tensor) or t.dtype in may_stay or not t.is_floating_point() else t.to(dtype)
        for t, may_stay in zip(tensors, kept, strict=True)
    ]


_WRITTEN_OUT = {op.name: _written_out(op) for op in OPERATIONS.values()}
CALLS = {name: all_steps for name, (all_steps, _) in _WRITTEN_OUT.items()}
_bias_act, _glu, _act_mul = CALLS["bias_act"], CALLS["glu"], CALLS["act_mul"]
_clamped_swiglu, _gaussian_gelu = CALLS["clamped_swiglu"], CALLS["gaussian_gelu"]


def bias_act(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""``act(x + bias)`` for any activation of :func:`gelu_ext.activations`.

    ``x + bias`` is formed and the activation computed in float32 (float64 for float64 tensors) and rounded once, at the
    end. Formulas and sources: ``print(gelu_ext.activations())`` (GELU: arXiv:1606.08415).

    Args:
        x: ``[..., C]``, float64, float32, float16 or bfloat16, of any strides.
        bias: ``[C]`` or None, of x's dtype or float32, on x's device.
        activation: its name.
        dropout_p: the probability with which an element of the result is dropped, in the same pass; what is kept is
            multiplied by ``1 / (1 - dropout_p)``, as ``F.dropout`` does. Autograd keeps two integers and no mask: which
            elements are dropped depends on these and on an element's index alone. It is taken in steps of 2^-16. (On
            other devices than the CPU, and for DTensor and the like, ``F.dropout`` follows in a pass of its own.)
        training: False drops nothing.
        generator: that draws the two integers, of x's device; torch's own of that device if None.

    Returns:
        A new contiguous tensor of x's shape and dtype. Gradients of x and bias come from one pass over the data; the
        sum for the bias runs in float32 (float64) in a fixed order and has the bias's dtype. The backward needs x as it
        was (torch says so if x has been written to: a copy would cost what is saved here), of the bias it has a copy.

    Raises:
        ValueError: unknown ``activation``, a bias whose shape is not ``[C]``, or ``dropout_p`` not in [0, 1).
        TypeError: not a tensor, a dtype other than the above, or ``dropout_p`` not a number.
        RuntimeError: tensors, or a generator, on different devices, or on one that this build has no kernels for.

    >>> x, bias = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])
    >>> gelu_ext.bias_act(x, bias, activation="silu")
    tensor([-0.2689,  0.7311,  1.7616])
    >>> gelu_ext.bias_act(x, activation="relu2")
    tensor([0., 0., 1.])
    """
    if dropout_p != 0.0:
        return with_dropout(BIAS_ACT, "bias_act", (x, bias, activation), dropout_p, training, generator)
    return _bias_act("bias_act", x, bias, activation)


def glu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str,
    activated: str = "second",
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""A gated linear unit of a packed tensor: with ``a, b = (x + bias).chunk(2, -1)``,

    - ``activated="second"``: ``a * act(b)``, as ``torch.nn.functional.glu`` and diffusers order their halves;
    - ``activated="first"``: ``act(a) * b``, as Megatron, ModernBERT and vLLM do.

    (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.)

    Args:
        x: ``[..., 2H]``, float64, float32, float16 or bfloat16, of any strides.
        bias: ``[2H]`` or None, of x's dtype or float32, on x's device.
        activation: the name of any of :func:`gelu_ext.activations`.
        activated: which half it is applied to, ``"second"`` or ``"first"``.
        dropout_p: dropout of the result in the same pass, see :func:`gelu_ext.bias_act`.
        training: False drops nothing.
        generator: that dropout draws from.

    Returns:
        A new contiguous tensor ``[..., H]`` of x's dtype.

    Raises:
        ValueError: unknown ``activation`` or ``activated``, an odd width, or a bias whose shape is not ``[2H]``.
        TypeError: not a tensor, or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> x = torch.tensor([2.0, 3.0, -1.0, 1.0])
    >>> torch.equal(gelu_ext.glu(x, activation="sigmoid"), torch.nn.functional.glu(x))
    True
    >>> gelu_ext.glu(x, activation="mish", activated="first")
    tensor([-1.9440,  2.9865])
    """
    if dropout_p != 0.0:
        return with_dropout(GLU, "glu", (x, bias, activation, activated), dropout_p, training, generator)
    return _glu("glu", x, bias, activation, activated)


def act_mul(
    activated: Tensor,
    linear: Tensor,
    activated_bias: Tensor | None = None,
    linear_bias: Tensor | None = None,
    *,
    activation: str,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""``act(activated + activated_bias) * (linear + linear_bias)``: a gated linear unit of two tensors.

    (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202.)

    Args:
        activated: ``[..., H]``, float64, float32, float16 or bfloat16, of any strides.
        linear: of the same shape, dtype and device, of any strides.
        activated_bias: ``[H]`` or None, of the tensors' dtype or float32.
        linear_bias: likewise.
        activation: the name of any of :func:`gelu_ext.activations`.
        dropout_p: dropout of the result in the same pass, see :func:`gelu_ext.bias_act`.
        training: False drops nothing.
        generator: that dropout draws from.

    Returns:
        A new contiguous tensor of the same shape and dtype.

    Raises:
        ValueError: unknown ``activation``, shapes that differ, or a bias whose shape is not ``[H]``.
        TypeError: not tensors, a dtype other than the above, or dtypes that differ.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> activated, linear = torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 3.0])
    >>> gelu_ext.act_mul(activated, linear, linear_bias=torch.ones(2), activation="tanh")
    tensor([-2.2848,  3.0464])
    """
    if dropout_p != 0.0:
        return with_dropout(
            ACT_MUL,
            "act_mul",
            (activated, linear, activated_bias, linear_bias, activation),
            dropout_p,
            training,
            generator,
        )
    return _act_mul("act_mul", activated, linear, activated_bias, linear_bias, activation)


def bias_gelu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    approximate: str = "none",
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
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
        dropout_p: dropout of the result in the same pass, see :func:`gelu_ext.bias_act`.
        training: False drops nothing.
        generator: that dropout draws from.

    Returns:
        A new contiguous tensor of x's shape and dtype. Gradients of x and bias come from one pass over the data; the
        sum for the bias runs in float32 (float64) in a fixed order and has the bias's dtype. The backward needs x as it
        was (torch says so if x has been written to: a copy would cost what is saved here), of the bias it has a copy.

    Raises:
        ValueError: unknown ``approximate``, or a bias whose shape is not ``[C]``.
        TypeError: not a tensor, or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> x, bias = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0.0, 0.5, 1.0])
    >>> gelu_ext.bias_gelu(x, bias)
    tensor([-0.1587,  0.3457,  1.9545])
    >>> gelu_ext.bias_gelu(torch.tensor([-6.0]))  # to every digit, in the tail too
    tensor([-5.9195e-09])
    """
    activation = gelu_named("bias_gelu", approximate)
    if dropout_p != 0.0:
        return with_dropout(BIAS_ACT, "bias_gelu", (x, bias, activation), dropout_p, training, generator)
    return _bias_act("bias_gelu", x, bias, activation)


def geglu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    approximate: str = "none",
    activated: str = "second",
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
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
        dropout_p: dropout of the result in the same pass, see :func:`gelu_ext.bias_act`.
        training: False drops nothing.
        generator: that dropout draws from.

    Returns:
        A new contiguous tensor ``[..., H]`` of x's dtype.

    Raises:
        ValueError: unknown ``approximate`` or ``activated``, an odd width, or a bias whose shape is not ``[2H]``.
        TypeError: not a tensor, or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> x = torch.tensor([2.0, 3.0, -1.0, 1.0])  # the halves [2, 3] and [-1, 1]
    >>> gelu_ext.geglu(x)
    tensor([-0.3173,  2.5240])
    >>> gelu_ext.geglu(x, activated="first", approximate="tanh")
    tensor([-1.9546,  2.9964])
    """
    activation = gelu_named("geglu", approximate)
    if dropout_p != 0.0:
        return with_dropout(GLU, "geglu", (x, bias, activation, activated), dropout_p, training, generator)
    return _glu("geglu", x, bias, activation, activated)


def gelu_mul(
    activated: Tensor,
    linear: Tensor,
    *,
    approximate: str = "none",
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""``gelu(activated) * linear``: GeGLU of two tensors, as in T5 v1.1 and Gemma.

    (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202; for the forms of ``approximate`` see
    :func:`bias_gelu`.)

    Args:
        activated: ``[..., H]``, float64, float32, float16 or bfloat16, of any strides.
        linear: of the same shape, dtype and device, of any strides.
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``.
        dropout_p: dropout of the result in the same pass, see :func:`gelu_ext.bias_act`.
        training: False drops nothing.
        generator: that dropout draws from.

    Returns:
        A new contiguous tensor of the same shape and dtype.

    Raises:
        ValueError: unknown ``approximate``, or shapes that differ.
        TypeError: not tensors, a dtype other than the above, or dtypes that differ.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> activated, linear = torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 3.0])
    >>> gelu_ext.gelu_mul(activated, linear)
    tensor([-0.3173,  2.5240])
    """
    activation = gelu_named("gelu_mul", approximate)
    if dropout_p != 0.0:
        return with_dropout(
            ACT_MUL, "gelu_mul", (activated, linear, None, None, activation), dropout_p, training, generator
        )
    return _act_mul("gelu_mul", activated, linear, None, None, activation)


def swiglu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    activated: str = "first",
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""SwiGLU of a packed tensor: with ``a, b = (x + bias).chunk(2, -1)``,

    - ``activated="first"``: ``silu(a) * b``, as Llama's packed ``gate_up_proj``, Phi-3, xformers and vLLM order them;
    - ``activated="second"``: ``a * silu(b)``, as diffusers does.

    (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202; ``silu(z) = z sigmoid(z)``.)

    Args:
        x: ``[..., 2H]``, float64, float32, float16 or bfloat16, of any strides.
        bias: ``[2H]`` or None, of x's dtype or float32, on x's device.
        activated: which half goes through SiLU, ``"first"`` or ``"second"``.
        dropout_p: dropout of the result in the same pass, see :func:`gelu_ext.bias_act`.
        training: False drops nothing.
        generator: that dropout draws from.

    Returns:
        A new contiguous tensor ``[..., H]`` of x's dtype.

    Raises:
        ValueError: unknown ``activated``, an odd width, or a bias whose shape is not ``[2H]``.
        TypeError: not a tensor, or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> x = torch.tensor([-1.0, 1.0, 2.0, 3.0])  # what is activated, and what is linear
    >>> gelu_ext.swiglu(x)
    tensor([-0.5379,  2.1932])
    """
    if dropout_p != 0.0:
        return with_dropout(GLU, "swiglu", (x, bias, "silu", activated), dropout_p, training, generator)
    return _glu("swiglu", x, bias, "silu", activated)


def silu_mul(
    activated: Tensor,
    linear: Tensor,
    *,
    dropout_p: float = 0.0,
    training: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""``silu(activated) * linear``: SwiGLU of two tensors, as in Llama, Mistral and Qwen.

    (Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202; ``silu(z) = z sigmoid(z)``.)

    Args:
        activated: ``[..., H]``, float64, float32, float16 or bfloat16, of any strides.
        linear: of the same shape, dtype and device, of any strides.
        dropout_p: dropout of the result in the same pass, see :func:`gelu_ext.bias_act`.
        training: False drops nothing.
        generator: that dropout draws from.

    Returns:
        A new contiguous tensor of the same shape and dtype.

    Raises:
        ValueError: shapes that differ.
        TypeError: not tensors, a dtype other than the above, or dtypes that differ.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> gelu_ext.silu_mul(torch.tensor([-1.0, 1.0]), torch.tensor([2.0, 3.0]))
    tensor([-0.5379,  2.1932])
    """
    if dropout_p != 0.0:
        return with_dropout(
            ACT_MUL, "silu_mul", (activated, linear, None, None, "silu"), dropout_p, training, generator
        )
    return _act_mul("silu_mul", activated, linear, None, None, "silu")


def clamped_swiglu(
    x: Tensor,
    bias: Tensor | None = None,
    *,
    alpha: float = 1.702,
    limit: float = 7.0,
    offset: float = 1.0,
    layout: str = "interleaved",
) -> Tensor:
    r"""SwiGLU between limits: ``g * sigmoid(alpha * g) * (u + offset)`` of the gate and linear part of ``x + bias``,

    where ``g = gate.clamp(max=limit)`` and ``u = linear.clamp(-limit, limit)``, and ``layout`` says where they lie:

    - ``"interleaved"``: in turn, ``gate, linear = z[..., ::2], z[..., 1::2]``, as in gpt-oss;
    - ``"first"``: as halves, ``gate, linear = z.chunk(2, -1)``, as in MiniMax-M3.

    DeepSeek-V4's experts clamp likewise, with ``alpha=1.0, offset=0.0``. Both layouts are read in place. The gradient
    of what lies beyond a limit is zero. (OpenAI, "gpt-oss-120b & gpt-oss-20b Model Card", arXiv:2508.10925.)

    Args:
        x: ``[..., 2H]``, float64, float32, float16 or bfloat16, of any strides.
        bias: ``[2H]`` or None, laid out as x, of x's dtype or float32, on x's device.
        alpha: of the sigmoid, above 0.
        limit: above 0.
        offset: what is added to the linear part.
        layout: ``"interleaved"`` or ``"first"``.

    Returns:
        A new contiguous tensor ``[..., H]`` of x's dtype.

    Raises:
        ValueError: ``alpha`` or ``limit`` not a finite number above 0, ``offset`` not finite, unknown ``layout``, an
            odd width, or a bias whose shape is not ``[2H]``.
        TypeError: not a tensor, a dtype other than the above, or not a number.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> x = torch.tensor([1.0, 2.0, 9.0, -8.0])  # gate, linear, gate, linear
    >>> gelu_ext.clamped_swiglu(x)
    tensor([  2.5374, -41.9997])
    >>> gelu_ext.clamped_swiglu(x[[0, 2, 1, 3]], layout="first")
    tensor([  2.5374, -41.9997])
    """
    return _clamped_swiglu("clamped_swiglu", x, bias, alpha, limit, offset, layout)


def gaussian_gelu(x: Tensor, mu: Tensor | float, sigma: Tensor | float, bias: Tensor | None = None) -> Tensor:
    r"""GELU of a normal distribution with mean ``mu`` and deviation ``sigma``: ``z * Phi((z - mu) / sigma)``,

    where ``z = x + bias`` and Phi is the distribution function of the standard normal distribution. With ``mu`` 0 and
    ``sigma`` 1 the result and the gradient of x are those of :func:`gelu_ext.bias_gelu` to the bit.
    (Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415, section 2.)

    Args:
        x: ``[..., C]``, float64, float32, float16 or bfloat16, of any strides.
        mu: a number, or a tensor of one element or ``[C]``, of x's dtype or float32, on x's device.
        sigma: likewise, above 0.
        bias: ``[C]`` or None, of x's dtype or float32.

    Returns:
        A new contiguous tensor of x's shape and dtype. The gradients of x, mu, sigma and bias come from one pass over
        the data; the sums run in float32 (float64) in a fixed order.

    Raises:
        ValueError: a shape other than the above, or ``sigma`` not above 0. That is looked for where it can be seen at
            once: on CUDA, and in compiled graphs, columns whose sigma is not above 0 are NaN.
        TypeError: not a tensor (or number), or a dtype other than the above.
        RuntimeError: tensors on different devices, or on one that this build has no kernels for.

    >>> x = torch.tensor([-1.0, 0.5, 1.0])
    >>> gelu_ext.gaussian_gelu(x, mu=0.5, sigma=2.0)
    tensor([-0.2266,  0.2500,  0.5987])
    >>> torch.equal(gelu_ext.gaussian_gelu(x, 0.0, 1.0), gelu_ext.bias_gelu(x))
    True
    """
    return _gaussian_gelu("gaussian_gelu", x, _per_column("mu", mu, x), _per_column("sigma", sigma, x), bias)


def _per_column(name: str, number: Any, x: Any) -> Any:
    """One number for all columns as a vector of the operation: ``[C]``."""
    if not isinstance(x, Tensor) or x.dim() == 0:  # which the operation refuses
        return number
    if isinstance(number, Tensor):
        return number.expand(x.shape[-1]) if number.dim() == 0 or number.shape == (1,) else number
    if not isinstance(number, (int, float)) or isinstance(number, bool):
        raise TypeError(f"gaussian_gelu: expected {name} to be a number or a Tensor, got {type(number).__name__}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    return torch.full((x.shape[-1],), number, dtype=wide, device=x.device)


def elementwise(x: Tensor, activation: str) -> Tensor:
    """``act(x)`` in x's own order of memory (channels_last, a transposed sequence), as F.gelu keeps it."""
    if _is_compiling():  # strides may be symbols, and a size that depends on data is in no order that is known
        for there, back in _ORDERS.get(x.dim(), ()):
            if not _is_contiguous(x) and _is_contiguous(x.permute(there)):
                return bias_act(x.permute(there), activation=activation).permute(back)
    elif type(x) is Tensor and x.layout is torch.strided and not (x.is_nested or x.is_contiguous()):
        there = sorted(range(x.dim()), key=x.stride, reverse=True)
        if x.permute(there).is_contiguous():
            back = sorted(range(x.dim()), key=there.__getitem__)
            return bias_act(x.permute(there), activation=activation).permute(back)
    return bias_act(x, activation=activation)


# Torch 2.11's compiler cannot follow the question that sizes from data are safe for.
_is_contiguous = is_contiguous_or_false if torch.__version__ >= (2, 13) else Tensor.is_contiguous

# Orders of memory that models use: channels last, a transposed sequence.
_ORDERS = {
    2: (((1, 0), (1, 0)),),
    3: (((0, 2, 1), (0, 2, 1)), ((1, 0, 2), (1, 0, 2))),
    4: (((0, 2, 3, 1), (0, 3, 1, 2)), ((0, 2, 1, 3), (0, 2, 1, 3))),
    5: (((0, 2, 3, 4, 1), (0, 4, 1, 2, 3)),),
}


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """Every operator of the package in torch's own, for graphs that leave it.

    ``torch.export.export(model, args).run_decompositions(gelu_ext.decompositions())`` holds no operator of gelu_ext;
    ``torch.onnx.export`` needs no help.

    Returns:
        ``{operator: function}``.

    >>> x = torch.randn(3, 4)
    >>> exported = torch.export.export(gelu_ext.GELU(), (x,))
    >>> exported = exported.run_decompositions(gelu_ext.decompositions())
    >>> [node.name for node in exported.graph.nodes if "gelu_ext" in str(node.target)]
    []
    """
    return {getattr(_ops, op.name).default: op.eager for op in OPERATIONS.values()}


# --- what the operators of torch.ops.gelu_ext do for autograd and vmap ------------------------------------------------
#
# The public functions do not come by here: their calls enter below these dispatch keys.


def _backward_operator(op: Operation) -> Callable[..., tuple[Tensor, ...]]:
    """Autograd for ``<name>_backward``: differentiable where it must be."""
    operator = getattr(_ops, f"{op.name}_backward").default
    count, last = len(op.tensors), op.place_of_needs

    def kernel(grad_out: Tensor, *args: Any) -> tuple[Tensor, ...]:
        tensors, names, needs, dropout = args[:count], args[count:last], args[last], args[last + 1 :]
        tracked = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (grad_out, *tensors))
        if not (tracked or in_transform()):
            with torch._C._AutoDispatchBelowAutograd():
                return operator(grad_out, *args)
        if functorch_depth() > 0:
            raise RuntimeError(
                f"gelu_ext.{op.name}_backward: expected a call outside of functorch transforms, differentiate "
                f"gelu_ext.{op.name} instead"
            )
        needs = [need and t is not None for t, need in zip(tensors, needs, strict=True)]
        grads = _composite.vjp(lambda *views: op.composite(*views, *names, *dropout), tensors, grad_out, needs)
        return tuple(tensors[0].new_empty((0,)) if grad is None else grad for grad in grads)

    return kernel


def _recorded(op: Operation) -> Callable[..., Any]:
    """What a graph of operators holds for a call: torch's own in torch.onnx.export, which knows no other."""

    def rule(mode: Any, operator: Any, types: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.onnx.is_in_onnx_export():
            with mode:
                return op.eager(*args, **kwargs)
        return mode.__torch_dispatch__(operator, types, args, kwargs)

    return rule


def _again(op: Operation) -> tuple[str, Callable[..., Tensor]]:
    """(schema, kernel) of the activation of what an MLP's node has saved, for the backward in compiled graphs.

    There it must not be recognised as the forward's: the compiler would make one of the two, and keep its result. It
    depends on grad_out, which it does not read, so that it cannot run before the backward.
    """
    forward = str(getattr(_ops, op.name).default._schema)  # gelu_ext::<name>(<arguments>) -> Tensor
    schema = f"{op.name}_again(Tensor grad_out, {forward.split('(', 1)[1]}"
    return schema, lambda grad_out, *args: getattr(_native, f"{op.name}_forward")(*args)


# The operators of the first release, for graphs that were exported with it.
_GELU_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "bias_gelu(Tensor x, Tensor? bias, str approximate) -> Tensor": lambda x, bias, approximate: _ops.bias_act(
        x, bias, gelu_named("bias_gelu", approximate)
    ),
    "geglu(Tensor x, Tensor? bias, str approximate, str activated) -> Tensor": (
        lambda x, bias, approximate, activated: _ops.glu(x, bias, gelu_named("geglu", approximate), activated)
    ),
    "gelu_mul(Tensor activated, Tensor linear, str approximate) -> Tensor": lambda activated, linear, approximate: (
        _ops.act_mul(activated, linear, None, None, gelu_named("gelu_mul", approximate))
    ),
}


def _register_operators() -> None:
    # The registrations live as long as their Library, and that with the native module. A second import of this package,
    # which has the same native module, replaces them.
    native: Any = _native.module
    native._registrations = None
    native._registrations = library = torch.library.Library("gelu_ext", "FRAGMENT")
    for op in OPERATIONS.values():
        library.impl(op.name, functools.partial(_WRITTEN_OUT[op.name][1], op.name), "Autograd")
        library.impl(op.name, op.composite, "FuncTorchBatched")
        library.impl(f"{op.name}_backward", _backward_operator(op), "Autograd")
        torch.library.register_torch_dispatch(
            f"gelu_ext::{op.name}", ProxyTorchDispatchMode, _recorded(op), lib=library
        )
        schema, kernel = _again(op)
        library.impl(library.define(schema), kernel, "CompositeExplicitAutograd")
    for schema, body in _GELU_OPERATORS.items():
        library.impl(library.define(schema), body, "CompositeImplicitAutograd")


_native.on_load(_register_operators)
