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

    def undo() -> None:
        for name, (original, ours) in replaced.items():
            if dict.get(ACT2FN, name) is ours:  # else somebody has replaced it since, or it is back already
                dict.__setitem__(ACT2FN, name, original)

    replaced = {}
    for name in [name for name in ACT2FN if "gelu" in name]:
        form = form_of(ACT2FN[name])
        original = dict.__getitem__(ACT2FN, name)  # the entry itself: ACT2FN[name] makes a module of it
        if form is not None and not _is_ours(original):
            replaced[name] = original, (GELU, {"approximate": form})
            dict.__setitem__(ACT2FN, name, replaced[name][1])
    return undo


def _is_ours(entry: object) -> bool:
    return isinstance(entry, tuple) and entry[0] is GELU
