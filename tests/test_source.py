"""What holds for the sources themselves: one home for each formula, torch-free kernels, portable builds, docstrings."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gelu_ext
from gelu_ext import _build, _native, _operations

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
CODE = (".h", ".cuh", ".cpp", ".cu")
C_FILES = sorted(p for p in CSRC.rglob("*") if p.suffix in CODE and CSRC / "fit" not in p.parents)


def without_comments(path: Path) -> str:
    """C++ code with its comments blanked; a string or character literal stays."""
    pattern = r"//[^\n]*|/\*.*?\*/|(\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])+')"
    return re.sub(pattern, lambda m: m[1] or " ", path.read_text(), flags=re.DOTALL)


def texts(path: Path) -> list[str]:
    """The string literals of a Python file, docstrings apart."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    strings = (n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return [node.value for node in strings if id(node) not in docstrings]


def test_the_files_are_found():
    assert {"activations.h", "operations.h", "scalar_math.h", "kernels.h", "ops.cpp"} <= {path.name for path in C_FILES}
    assert len(C_FILES) > 15


def test_comments_are_blanked_and_code_is_not(tmp_path):
    sample = tmp_path / "sample.h"
    sample.write_text('a = 0.5; // 0.25\n/* 0.125\n 0.75 */ b = "// kept" + \'"\';\n')
    assert without_comments(sample).split() == ["a", "=", "0.5;", "b", "=", '"//', 'kept"', "+", "'\"';"]


@pytest.mark.parametrize("constant", [r"0\.044715", r"1\.702\b"])
def test_a_constant_of_a_formula_has_one_home(constant):
    homes = [path.name for path in C_FILES for _ in re.findall(constant, without_comments(path))]
    assert homes == ["activations.h"]


def test_no_form_is_written_out_beside_its_home():
    for path in C_FILES:
        if path.name not in ("activations.h", "scalar_math.h"):
            calls = re.findall(r"\b(?:erff?|erfcf?|tanhf?|expf?|exp2f?|normcdff?)\s*\(", without_comments(path))
            assert not calls, f"{path.relative_to(ROOT)} computes {calls}"


@pytest.mark.parametrize(
    "flag", ["use_fast_math", "march=native", "mtune=native", "mcpu=native", "ffast-math", "Ofast"]
)
def test_a_build_is_exact_and_portable(flag):
    assert not any(flag in word for word in _build.host_flags() + _build.nvcc_flags())
    files = [ROOT / "setup.py", *sorted((ROOT / "gelu_ext").glob("*.py"))]
    for path in files:
        assert not any(flag in text for text in texts(path)), f"{path.name} says {flag}"
    for path in (ROOT / "Makefile", ROOT / "pyproject.toml"):
        lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not any(flag in line for line in lines), f"{path.name} says {flag}"
    for path in C_FILES:
        assert flag not in without_comments(path), f"{path.name} says {flag}"


def test_vectorised_loops_are_asked_for():
    flags = _build.host_flags()
    assert {"-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"} <= set(flags)


KERNEL_SIDE = [CSRC / name for name in ("kernels.h", "operations.h", "dropout.h", "activations.h", "scalar_math.h")]
KERNEL_SIDE += sorted(p for p in (CSRC / "cuda").rglob("*") if p.suffix in CODE)


def test_no_torch_below_the_waist():
    assert len(KERNEL_SIDE) > 3
    for path in KERNEL_SIDE:
        included = re.findall(r"#\s*include\s*[<\"]([^>\"]+)[>\"]", path.read_text())
        torch_headers = [name for name in included if re.match(r"(torch|ATen|c10|pybind11)\b", name)]
        assert not torch_headers, f"{path.relative_to(ROOT)} includes {torch_headers}"
        assert not re.search(r"\b(at|c10|torch|pybind11)::", without_comments(path)), f"{path.name} names torch"


def test_the_mathematics_includes_nothing_but_the_standard_library():
    for name, allowed in (
        ("pieces.h", set()),
        ("scalar_math.h", {"pieces.h"}),
        ("activations.h", {"scalar_math.h", "pieces.h"}),
        ("operations.h", {"activations.h"}),
        ("dropout.h", {"scalar_math.h"}),
        ("kernels.h", {"operations.h", "dropout.h"}),
    ):
        included = re.findall(r"#\s*include\s*\"([^\"]+)\"", (CSRC / name).read_text())
        assert set(included) == allowed


def test_every_file_opens_with_what_it_is():
    for path in C_FILES:
        says, header = path.read_text(), path.with_suffix(".h")
        by_its_header = header.exists() and says.startswith(f'#include "{header.name}"')
        assert says.startswith("//") or by_its_header, f"{path.relative_to(ROOT)} opens without a comment"
    for path in (ROOT / "gelu_ext").glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path.name} opens without a docstring"


PUBLIC = [getattr(gelu_ext, name) for name in gelu_ext.__all__ if not name.startswith("_")]
OPERATIONS = [getattr(gelu_ext, name) for op in _operations.OPERATIONS.values() for name in op.functions]


@pytest.mark.parametrize("public", PUBLIC, ids=lambda p: p.__name__)
def test_everything_public_is_documented(public):
    assert (public.__doc__ or "").strip()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_an_operation_documents_its_arguments_result_and_errors(operation):
    doc = inspect.getdoc(operation)
    sections = re.findall(r"^(Args|Returns|Raises):$", doc, flags=re.MULTILINE)
    assert sections == ["Args", "Returns", "Raises"]
    arguments = doc[doc.index("Args:") : doc.index("Returns:")]
    for name in inspect.signature(operation).parameters:
        assert re.search(rf"^    {name}: \S", arguments, flags=re.MULTILINE), f"{operation.__name__}: {name}"
    for error in ("ValueError", "TypeError", "RuntimeError"):
        assert f"    {error}: " in doc[doc.index("Raises:") :]
    assert "arXiv:" in doc, "where the formula comes from"


@pytest.mark.parametrize(
    "module",
    [getattr(gelu_ext, name) for name in ("BiasAct", "BiasGELU", "GLU", "GEGLU", "GELU", "MLP")],
    ids=lambda c: c.__name__,
)
def test_a_module_documents_its_arguments(module):
    doc = inspect.getdoc(module)
    for name in inspect.signature(module).parameters:
        assert re.search(rf"^    (?:\w+, )*{name}(?:, \w+)*: \S", doc, flags=re.MULTILINE), f"{module.__name__}: {name}"


@pytest.mark.parametrize("operation", [*OPERATIONS, gelu_ext.build_info], ids=lambda f: f.__name__)
def test_a_public_function_is_typed(operation):
    signature = inspect.signature(operation)
    kinds = [*(p.annotation for p in signature.parameters.values()), signature.return_annotation]
    assert inspect.Signature.empty not in kinds


def test_the_map_names_every_file():
    plan = (ROOT / "CONTRIBUTING.md").read_text().split("## The map")[1].split("## Recipes")[0]
    files = [*ROOT.glob("csrc/*.*"), *ROOT.glob("gelu_ext/*.py"), *ROOT.glob("bench/*.py")]
    folders = [
        path for top in ("csrc", "gelu_ext", "tests", "bench") for path in (ROOT / top).iterdir() if path.is_dir()
    ]
    named = [path.stem if path.suffix in (".h", ".cpp") else path.name for path in files if path.name != "__init__.py"]
    named += [f"{path.name}/" for path in folders if not path.name.startswith(("__", "."))]
    assert [name for name in named if name not in plan] == []


def test_the_stub_of_the_native_module_names_all_of_it():
    stub = ast.parse((ROOT / "gelu_ext" / "_C.pyi").read_text())
    named = {n.name for n in stub.body if isinstance(n, ast.FunctionDef)}
    named |= {n.target.id for n in stub.body if isinstance(n, ast.AnnAssign)}
    there = {name for name in vars(_native.require()) if not name.startswith("_")}
    assert there | {"cuda_architectures"} == named


def test_the_contributors_table_names_every_environment_variable():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("## Environment variables")[1].split("\n## ")[0]
    code = [*C_FILES, *ROOT.glob("gelu_ext/**/*.py"), *ROOT.glob("tests/**/*.py"), ROOT / "setup.py"]
    read = {
        name
        for path in code
        for name in re.findall(r"(?:getenv\(|environ\.get\(|environ\[)\"(GELU_EXT_\w+)", path.read_text())
    }
    assert read and not [name for name in read if f"`{name}" not in table]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 140


def test_the_report_in_the_readme_is_what_the_example_prints():
    command = [sys.executable, str(ROOT / "examples" / "patch_report.py")]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout
    assert printed in (ROOT / "README.md").read_text()
