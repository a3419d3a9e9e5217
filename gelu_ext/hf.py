"""Hugging Face's table of activations."""

from __future__ import annotations

from collections.abc import Callable

from ._activations import ACTIVATIONS
from .modules import GELU, BiasAct


def register_with_transformers() -> Callable[[], None]:
    """Serves Hugging Face's ``ACT2FN`` with this package's activations, for every model built from now on.

    Each entry of the table is run, and replaced if it computes an activation of :func:`gelu_ext.activations`: a form of
    GELU by :class:`GELU`, another by :class:`BiasAct` without a bias. What is none of these stays (the clipped
    ``gelu_10``), and so does what torch computes back from its result (``relu``, ``sigmoid``, ``tanh``): alone, these
    would keep more for the backward than torch does.

    Returns:
        A function that puts the entries back.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers.activations import ACT2FN

    from .patch.forms import activation_of, gains

    def undo() -> None:
        for name, (original, ours) in replaced.items():
            if dict.get(ACT2FN, name) is ours:  # else somebody has replaced it since, or it is back already
                dict.__setitem__(ACT2FN, name, original)

    replaced = {}
    for name, original in list(dict.items(ACT2FN)):  # the entries themselves: ACT2FN[name] makes a module of one
        activation = None if _is_ours(original) else activation_of(ACT2FN[name])
        if activation is not None and gains(activation):
            replaced[name] = original, _ours(activation)
            dict.__setitem__(ACT2FN, name, replaced[name][1])
    return undo


def _ours(activation: str) -> tuple[type, dict[str, str]]:
    approximate = ACTIVATIONS[activation].approximate
    return (GELU, {"approximate": approximate}) if approximate else (BiasAct, {"activation": activation})


def _is_ours(entry: object) -> bool:
    return isinstance(entry, tuple) and entry[0] in (GELU, BiasAct)
