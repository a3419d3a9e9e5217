"""Fused bias+GELU and GeGLU for PyTorch: hand-written CUDA and CPU kernels, forward and backward."""

from . import _fake, _native, jit, memory
from ._build import __version__
from ._info import build_info
from .activation import GELU, register_with_transformers
from .functional import bias_gelu, geglu, gelu_mul
from .mlp import GEGLUMLP, MLP, geglu_mlp, gelu_mul_mlp, mlp
from .modules import GEGLU, BiasGELU
from .patch import patch, patched, unpatch

# Once the operators exist, at import or after jit.load().
_native.on_load(_fake.register)

__all__ = [
    "GEGLU",
    "GEGLUMLP",
    "GELU",
    "MLP",
    "BiasGELU",
    "__version__",
    "bias_gelu",
    "build_info",
    "geglu",
    "geglu_mlp",
    "gelu_mul",
    "gelu_mul_mlp",
    "jit",
    "memory",
    "mlp",
    "patch",
    "patched",
    "register_with_transformers",
    "unpatch",
]
