"""Fused bias+GELU and GeGLU for PyTorch: hand-written CUDA and CPU kernels, forward and backward."""

from . import _fake, _native, jit, memory
from ._activations import activations
from ._build import __version__
from ._info import build_info
from .functional import (
    act_mul,
    bias_act,
    bias_gelu,
    clamped_swiglu,
    decompositions,
    gaussian_gelu,
    geglu,
    gelu_mul,
    glu,
    silu_mul,
    swiglu,
)
from .hf import register_with_transformers
from .linear import interleave_halves
from .mlp import act_mul_mlp, geglu_mlp, gelu_mul_mlp, glu_mlp, mlp
from .modules import GEGLU, GEGLUMLP, GELU, GLU, GLUMLP, MLP, BiasAct, BiasGELU, GaussianGELU
from .patch import patch, patched, unpatch
from .stochastic import stochastic_gelu

# Once the operators exist, at import or after jit.load().
_native.on_load(_fake.register)

__all__ = [
    "GEGLU",
    "GEGLUMLP",
    "GELU",
    "GLU",
    "GLUMLP",
    "MLP",
    "BiasAct",
    "BiasGELU",
    "GaussianGELU",
    "__version__",
    "act_mul",
    "act_mul_mlp",
    "activations",
    "bias_act",
    "bias_gelu",
    "build_info",
    "clamped_swiglu",
    "decompositions",
    "gaussian_gelu",
    "geglu",
    "geglu_mlp",
    "gelu_mul",
    "gelu_mul_mlp",
    "glu",
    "glu_mlp",
    "interleave_halves",
    "jit",
    "memory",
    "mlp",
    "patch",
    "patched",
    "register_with_transformers",
    "silu_mul",
    "stochastic_gelu",
    "swiglu",
    "unpatch",
]
