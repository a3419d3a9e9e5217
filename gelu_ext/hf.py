"""Hugging Face's table of activations."""

from __future__ import annotations

from collections.abc import Callable

from .modules import GELU


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
