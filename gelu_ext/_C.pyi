"""What csrc/bindings.cpp defines. Read it as `_native.<name>`, which is there also where the module is built by JIT."""

from collections.abc import Sequence

from torch import Tensor

# <operation>(op, ...): checks, in the name of `op`; None where autograd must see the call, NotImplemented where a
# transform, forward-mode differentiation or torch.jit.trace must.
# <operation>_forward(...): for the autograd functions. <operation>_backward(...): None for a gradient not needed.

# philox: see csrc/dropout.h.

def bias_act(
    op: str, x: Tensor, bias: Tensor | None, activation: str, dropout_p: float, philox: Tensor | None
) -> Tensor | None: ...
def bias_act_forward(
    x: Tensor, bias: Tensor | None, activation: str, dropout_p: float, philox: Tensor | None
) -> Tensor: ...
def bias_act_backward(
    grad_out: Tensor,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    needs: Sequence[bool],
    dropout_p: float,
    philox: Tensor | None,
) -> tuple[Tensor | None, ...]: ...
def glu(
    op: str,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    activated: str,
    dropout_p: float,
    philox: Tensor | None,
) -> Tensor | None: ...
def glu_forward(
    x: Tensor, bias: Tensor | None, activation: str, activated: str, dropout_p: float, philox: Tensor | None
) -> Tensor: ...
def glu_backward(
    grad_out: Tensor,
    x: Tensor,
    bias: Tensor | None,
    activation: str,
    activated: str,
    needs: Sequence[bool],
    dropout_p: float,
    philox: Tensor | None,
) -> tuple[Tensor | None, ...]: ...
def act_mul(
    op: str,
    activated: Tensor,
    linear: Tensor,
    activated_bias: Tensor | None,
    linear_bias: Tensor | None,
    activation: str,
    dropout_p: float,
    philox: Tensor | None,
) -> Tensor | None: ...
def act_mul_forward(
    activated: Tensor,
    linear: Tensor,
    activated_bias: Tensor | None,
    linear_bias: Tensor | None,
    activation: str,
    dropout_p: float,
    philox: Tensor | None,
) -> Tensor: ...
def act_mul_backward(
    grad_out: Tensor,
    activated: Tensor,
    linear: Tensor,
    activated_bias: Tensor | None,
    linear_bias: Tensor | None,
    activation: str,
    needs: Sequence[bool],
    dropout_p: float,
    philox: Tensor | None,
) -> tuple[Tensor | None, ...]: ...
def clamped_swiglu(
    op: str, x: Tensor, bias: Tensor | None, alpha: float, limit: float, offset: float, layout: str
) -> Tensor | None: ...
def clamped_swiglu_forward(
    x: Tensor, bias: Tensor | None, alpha: float, limit: float, offset: float, layout: str
) -> Tensor: ...
def clamped_swiglu_backward(
    grad_out: Tensor,
    x: Tensor,
    bias: Tensor | None,
    alpha: float,
    limit: float,
    offset: float,
    layout: str,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]: ...
def gaussian_gelu(op: str, x: Tensor, mu: Tensor, sigma: Tensor, bias: Tensor | None) -> Tensor | None: ...
def gaussian_gelu_forward(x: Tensor, mu: Tensor, sigma: Tensor, bias: Tensor | None) -> Tensor: ...
def gaussian_gelu_backward(
    grad_out: Tensor, x: Tensor, mu: Tensor, sigma: Tensor, bias: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]: ...
def copy_of_vector(vector: Tensor | None) -> Tensor | None: ...  # Tensor.clone, sooner
def activations() -> list[str]: ...
def instruction_sets() -> str: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str) -> bool: ...
def cuda_architectures() -> str: ...  # only with_cuda

build_facts: str
with_cuda: bool
