"""The zero-one map that GELU is the expectation of."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_bool, check_generator
from .functional import CALLS


def stochastic_gelu(
    x: Tensor, bias: Tensor | None = None, *, training: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    r"""``z * m`` with ``m`` 1 with probability :math:`\Phi(z)`, else 0; GELU, its expectation, in evaluation.

    ``z = x + bias``, and Phi is the distribution function of the standard normal distribution: the larger an input
    among others, the likelier it is kept. (Hendrycks and Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415,
    section 2.) The gradient is the map's, ``grad * m``: the derivative of the probability is no part of it.

    Args:
        x: ``[..., C]``, float64, float32, float16 or bfloat16, of any strides.
        bias: ``[C]`` or None, of x's dtype or float32, on x's device.
        training: False for ``bias_gelu(x, bias)``.
        generator: of x's device; torch's own of that device if None.

    Returns:
        A new tensor of x's shape and dtype. In training autograd keeps one byte of each element.

    Raises:
        ValueError: a bias whose shape is not ``[C]``.
        TypeError: not a tensor, a dtype other than the above, or ``training`` not a bool.
        RuntimeError: tensors, or a generator, on different devices, or on one that this build has no kernels for.

    >>> x = torch.tensor([-9.0, 9.0])  # dropped and kept, almost surely
    >>> gelu_ext.stochastic_gelu(x)
    tensor([0., 9.])
    >>> gelu_ext.stochastic_gelu(torch.tensor([1.0]), training=False)
    tensor([0.8413])
    """
    check_bool("stochastic_gelu", "training", training)
    bias_act = CALLS["bias_act"]
    if not training:
        return bias_act("stochastic_gelu", x, bias, "gelu")
    z = bias_act("stochastic_gelu", x, bias, "identity")
    check_generator("stochastic_gelu", generator, z.device)
    wide = z.detach().to(torch.float64 if z.dtype == torch.float64 else torch.float32)
    draws = torch.rand(z.shape, generator=generator, device=z.device, dtype=wide.dtype)
    return z.masked_fill(draws >= torch.special.ndtr(wide), 0.0)
