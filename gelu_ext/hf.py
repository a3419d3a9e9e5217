"""Hugging Face's table of activations."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

    >>> from transformers.activations import ACT2FN
    >>> undo = gelu_ext.register_with_transformers()
    >>> type(ACT2FN["gelu"]) is gelu_ext.GELU
    True
    >>> undo()
    """
    from transformers.activations import ACT2FN

    from .patch.forms import activation_of, gains

    def undo() -> None:
        for name, (original, ours) in replaced.items():
            if dict.get(ACT2FN, name) is ours:  # else somebody has replaced it since, or it is back already
                dict.__setitem__(ACT2FN, name, original)

    replaced = {}
    with _without_warnings("transformers"):  # some entries warn when they are made, of an extension that they miss
        computes = {name: activation_of(ACT2FN[name]) for name, entry in dict.items(ACT2FN) if not _is_ours(entry)}
    for name, activation in computes.items():
        if activation is not None and gains(activation):
            # The entry itself: ACT2FN[name] makes a module of it.
            replaced[name] = dict.__getitem__(ACT2FN, name), _ours(activation)
            dict.__setitem__(ACT2FN, name, replaced[name][1])
    return undo


@contextmanager
def _without_warnings(logger: str) -> Iterator[None]:
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _ours(activation: str) -> tuple[type, dict[str, str]]:
    approximate = ACTIVATIONS[activation].approximate
    return (GELU, {"approximate": approximate}) if approximate else (BiasAct, {"activation": activation})


def _is_ours(entry: object) -> bool:
    return isinstance(entry, tuple) and entry[0] in (GELU, BiasAct)
