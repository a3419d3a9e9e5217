"""The package is typed: a strict user's script passes mypy and runs, wrong uses are rejected, and the stub is true."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import gelu_ext
from gelu_ext import _native

ROOT = Path(__file__).parent.parent
SCRIPTS = Path("tests", "typing")
STUB = ast.parse((ROOT / "gelu_ext" / "_C.pyi").read_text())


def rejected(script: Path) -> set[tuple[str, int, str]]:
    """(file, line, code) of what is marked ``# rejected: code, code``."""
    lines = enumerate((ROOT / script).read_text().splitlines(), 1)
    marked = ((i, line.split("# rejected: ")[1]) for i, line in lines if "# rejected: " in line)
    return {(str(script), i, code) for i, codes in marked for code in codes.split(", ")}


def test_mypy_passes_the_users_script_and_rejects_wrong_uses():
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("needs mypy")
    scripts = [SCRIPTS / "user.py", SCRIPTS / "wrong.py"]
    command = [sys.executable, "-m", "mypy", "--strict", *map(str, scripts)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    errors = re.findall(r"^(\S+):(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)
    expected = rejected(scripts[1])
    assert len(expected) >= 3 and not rejected(scripts[0])
    assert {(file, int(line), code) for file, line, code in errors} == expected, done.stdout + done.stderr


def test_the_users_script_runs():
    runpy.run_path(str(ROOT / SCRIPTS / "user.py"), run_name="__main__")


def test_the_users_script_uses_every_public_name():
    tree = ast.parse((ROOT / SCRIPTS / "user.py").read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gelu_ext"
    }
    assert sorted(set(gelu_ext.__all__) - used) == []


def test_a_package_carries_what_type_checkers_read(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert {"py.typed", "_C.pyi"} <= {path.name for path in (tmp_path / "gelu_ext").iterdir()}


def test_the_stub_has_every_attribute_of_the_native_module():
    stubbed = {node.name for node in STUB.body if isinstance(node, ast.FunctionDef)}
    stubbed |= {node.target.id for node in STUB.body if isinstance(node, ast.AnnAssign)}
    there = [name for name in vars(_native.require()) if not name.startswith("_")]
    assert [name for name in there if name not in stubbed] == []


@pytest.mark.parametrize(
    "function", [node for node in STUB.body if isinstance(node, ast.FunctionDef)], ids=lambda function: function.name
)
def test_a_signature_of_the_stub_is_that_of_the_native_function(function):
    """As pybind11 writes it into the docstring: so many arguments, and a Tensor, or None, where it says so."""
    native = getattr(_native.require(), function.name, None)
    if native is None:
        assert function.name == "cuda_architectures" and not _native.with_cuda
        return
    (real,) = ast.parse(f"{native.__doc__.splitlines()[0]}: ...".replace(function.name, f"def {function.name}", 1)).body
    ours, theirs = ([ast.unparse(arg.annotation) for arg in node.args.args] for node in (function, real))
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        if their != "object":
            assert ("Tensor" in our, "None" in our) == ("Tensor" in their, "None" in their or "Optional" in their)
            assert ("str" in our, "float" in our) == ("str" in their, "float" in their.lower())
