"""Docstrings of what is public: their examples run, their sections name every argument, what they refer to is there."""

from __future__ import annotations

import builtins
import doctest
import importlib.util
import inspect
import re
from typing import Any

import pytest
import torch
from torch import nn

import gelu_ext
from gelu_ext import jit, memory

PUBLIC: dict[str, Any] = {name: getattr(gelu_ext, name) for name in gelu_ext.__all__}
PUBLIC = {name: public for name, public in PUBLIC.items() if callable(public)}
PUBLIC |= {"jit.load": jit.load, "memory.saved_bytes": memory.saved_bytes, "memory.peak_bytes": memory.peak_bytes}
FUNCTIONS = [name for name, public in PUBLIC.items() if inspect.isfunction(public)]
MODULES = [name for name, public in PUBLIC.items() if inspect.isclass(public)]
SHORT = ["patched", "unpatch", "jit.load"]  # without sections: as patch(), of one argument, a list of its own
RAISE_NOTHING = ["activations", "decompositions", "memory.saved_bytes"]
NO_FORMULA = ["interleave_halves"]

every = pytest.mark.parametrize("name", PUBLIC)


def doc(name: str) -> str:
    return inspect.getdoc(PUBLIC[name]) or ""


def sections(name: str) -> list[str]:
    return re.findall(r"^(Args|Returns|Raises):$", doc(name), re.MULTILINE)


def section(name: str, title: str) -> str:
    """The text under ``title:``, empty if there is none."""
    found = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", doc(name) + "\n", re.MULTILINE)
    return found[1] if found else ""


def references(text: str) -> list[str]:
    return re.findall(r":(?:func|class):`(?:gelu_ext\.)?([\w.]+)`", text)


def described_by(name: str) -> str:
    """Who has its sections: itself, or a function that it refers to, which may refer to another. Empty if nobody."""
    if sections(name):
        return name
    return next(filter(None, (described_by(target) for target in references(doc(name)) if target in FUNCTIONS)), "")


# --- examples ---------------------------------------------------------------------------------------------------------


def failures(documented: Any) -> str | None:
    """What doctest reports: nothing if every example prints what it says. None if there is no example."""
    names = {"torch": torch, "nn": nn, "gelu_ext": gelu_ext}
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(documented) or "", names, documented.__name__, None, 0)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    return "".join(report) if test.examples else None


@every
def test_the_examples_run(name):
    if name == "register_with_transformers" and importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    assert failures(PUBLIC[name]) == "", "or it has no example"


def test_an_example_that_is_wrong_is_reported():
    def wrong() -> None:
        """
        >>> gelu_ext.bias_gelu(torch.zeros(2))
        tensor([0., 1.])
        """

    assert "Expected:\n    tensor([0., 1.])\nGot:\n    tensor([0., 0.])" in (failures(wrong) or "")


# --- sections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in SHORT])
def test_a_function_has_every_section_or_refers_to_one_that_has(name):
    takes = bool(inspect.signature(PUBLIC[name]).parameters)
    if sections(name):
        assert sections(name) == ["Args"] * takes + ["Returns"] + ["Raises"] * (name not in RAISE_NOTHING)
    elif takes:
        assert described_by(name), "has no sections, and refers to no function that has them"
    else:
        assert "Never raises" in doc(name)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_has_arguments_and_errors(name):
    assert sections(name) == ["Args", "Raises"]


@pytest.mark.parametrize("name", [name for name in PUBLIC if section(name, "Args")])
def test_the_arguments_are_those_of_the_signature(name):
    lines = re.findall(r"^    (\w+(?:, \w+)*): \S", section(name, "Args"), re.MULTILINE)
    arguments = [argument for line in lines for argument in line.split(", ")]
    assert sorted(arguments) == sorted(inspect.signature(PUBLIC[name]).parameters)


@pytest.mark.parametrize("name", [name for name in PUBLIC if section(name, "Raises")])
def test_what_is_raised_is_an_exception(name):
    lines = re.findall(r"^    (\w+)\b(.*)", section(name, "Raises"), re.MULTILINE)
    assert lines
    for error, rest in lines:
        if error == "As":
            assert described_by(references(rest)[0])
        else:
            assert rest.startswith(": ") and issubclass(getattr(builtins, error), Exception)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in NO_FORMULA])
def test_what_computes_a_tensor_says_its_formula_first(name):
    if inspect.signature(PUBLIC[name]).return_annotation == "Tensor":
        first = doc(name).split("\n\nArgs:")[0]
        assert re.search(r"``[^`]*[(*][^`]*``|:math:`", first) or described_by(name) not in ("", name)


@every
def test_every_reference_is_there(name):
    for target in references(doc(name)):
        found: Any = gelu_ext
        for part in target.split("."):
            assert hasattr(found, part), f"{name} refers to {target}"
            found = getattr(found, part)
