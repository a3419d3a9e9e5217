"""Fused bias+GELU and GeGLU for PyTorch: hand-written CUDA and CPU kernels, forward and backward."""

from . import _fake, _native, jit
from ._build import __version__
from ._info import build_info
from .functional import bias_gelu, geglu, gelu_mul
from .modules import GEGLU, BiasGELU

# Once the operators exist, at import or after jit.load().
_native.on_load(_fake.register)

__all__ = ["GEGLU", "BiasGELU", "__version__", "bias_gelu", "build_info", "geglu", "gelu_mul", "jit"]
