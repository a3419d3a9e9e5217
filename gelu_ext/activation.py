"""The activation alone: a module to stand where nn.GELU stands, and the one that Hugging Face's table serves."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from . import _composite
from .functional import bias_gelu


def elementwise(x: Tensor, approximate: str) -> Tensor:
    """``gelu(x)`` in x's own order of memory (channels_last, a transposed sequence), as F.gelu keeps it."""
    for there, back in _ORDERS.get(x.dim(), ()):
        if not x.is_contiguous() and x.permute(there).is_contiguous():
            return bias_gelu(x.permute(there), approximate=approximate).permute(back)
    return bias_gelu(x, approximate=approximate)


# Orders of memory that models use: channels last, a transposed sequence. (No sorting of strides: they may be symbols.)
_ORDERS = {
    2: (((1, 0), (1, 0)),),
    3: (((0, 2, 1), (0, 2, 1)), ((1, 0, 2), (1, 0, 2))),
    4: (((0, 2, 3, 1), (0, 3, 1, 2)), ((0, 2, 1, 3), (0, 2, 1, 3))),
    5: (((0, 2, 3, 4, 1), (0, 4, 1, 2, 3)),),
}


class GELU(nn.Module):
    """``gelu(x)``: replaces ``nn.GELU``, with quick GELU as a third form.

    Args:
        approximate: ``"none"``, ``"tanh"`` or ``"sigmoid"``, see :func:`gelu_ext.bias_gelu`.

    Raises:
        ValueError: unknown ``approximate``.
    """

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        _composite.check_form("GELU", approximate)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return elementwise(x, self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


def register_with_transformers() -> Callable[[], None]:
    """Serves the GELU names of Hugging Face's ``ACT2FN`` with :class:`GELU`, for every model built from now on.

    Each entry of the table is run, and replaced if it computes one of the three forms; the clipped ``gelu_10`` and all
    other activations stay.

    Returns:
        A function that puts the entries back.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers.activations import ACT2FN

    from .patch.forms import form_of

    replaced = {}
    for name in [name for name in ACT2FN if "gelu" in name]:
        form = form_of(ACT2FN[name])
        if form is not None:
            replaced[name] = dict.__getitem__(ACT2FN, name)  # the entry itself: ACT2FN[name] makes a module of it
            ACT2FN[name] = (GELU, {"approximate": form})

    def undo() -> None:
        ACT2FN.update(replaced)

    return undo
