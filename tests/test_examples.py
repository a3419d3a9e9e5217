"""Each example runs alone and says that its claim holds; a fault that is planted into it makes it fail."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gelu_ext import _native

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

pytestmark = pytest.mark.skipif(_native.module is None, reason="needs the compiled module")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


with_transformers, with_onnx = needs("transformers"), needs("onnxscript", "onnxruntime")


def run(name: str, *arguments: str, first: str = "") -> tuple[int, str]:
    """(exit code, what is printed); ``first`` is code that runs before the example."""
    command = [str(EXAMPLES / f"{name}.py"), *arguments]
    if first:
        last = f"import runpy, sys\nsys.argv = {command!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
        command = ["-c", f"{first}\n{last}"]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # small tensors only wait for threads
    ran = subprocess.run([sys.executable, *command], env=variables, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0 or "FAILED" in ran.stdout, ran.stderr
    return ran.returncode, ran.stdout


def test_every_example_is_tested():
    tested = {"finetune_bert", "write_your_own_mlp", "export_onnx", "long_context"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == tested | {"patch_report"}  # that one in test_source.py


def test_write_your_own_mlp():
    code, printed = run("write_your_own_mlp")
    assert code == 0 and "OK: the same gradients" in printed
    kept = [int(line.split()[-1]) for line in printed.splitlines()[1:-1]]
    assert len(kept) == 8 and kept[2] < 0.6 * kept[0] and kept[6] < 0.6 * kept[4]  # one node, and eager


@pytest.mark.slow
@with_transformers
def test_finetune_bert():
    code, printed = run("finetune_bert")
    assert code == 0 and "OK: patched and unpatched train alike" in printed
    assert "2 of 3 activations fused" in printed  # the third is a Tanh
    assert printed.count("from unpatched") == 2


@pytest.mark.slow
@with_onnx
def test_export_onnx():
    code, printed = run("export_onnx")
    assert code == 0 and "OK: the same numbers" in printed
    assert "2 Gelu" in printed and printed.count("rows: onnxruntime is") == 3


@pytest.mark.slow
def test_long_context():
    """At its default: 32768 tokens."""
    code, printed = run("long_context")
    assert code == 0 and "OK: the same losses in less memory" in printed
    peaks = [int(n) for n in re.findall(r"peak +(\d+) MiB", printed)]
    assert len(peaks) == 3 and peaks[2] < peaks[1] < peaks[0]


# Of each example: what makes it wrong, and the words of its complaint.
WRONG_FORM = """
import functools, gelu_ext
gelu_ext.geglu = functools.partial(gelu_ext.geglu, approximate="tanh")
"""
WRONG_AFTER_PATCH = """
import gelu_ext
from gelu_ext import _native

right, forward = gelu_ext.patch, _native.bias_act_forward

def patch(model):
    report = right(model)
    _native.bias_act_forward = lambda x, bias, name, *dropout: forward(x, bias, "gelu_sigmoid", *dropout)
    return report

gelu_ext.patch = patch
"""
WRONG_RUNTIME = """
import onnxruntime

run = onnxruntime.InferenceSession.run
onnxruntime.InferenceSession.run = lambda *given: [out + 1e-4 for out in run(*given)]
"""
NO_TILES = """
import gelu_ext

right = gelu_ext.patch
gelu_ext.patch = lambda model, recompute, tile_rows=None: right(model, recompute=recompute)
"""
FAULTS = {
    "write_your_own_mlp": (WRONG_FORM, (), "GeGLU MLP, geglu(): an error of"),
    "finetune_bert": (WRONG_AFTER_PATCH, (), "with dropout 0.0 the losses differ by"),
    "export_onnx": (WRONG_RUNTIME, (), "33 rows differ by 1.0e-04"),
    "long_context": (NO_TILES, ("--tokens", "2048"), "in tiles the peak is 0.7"),
}
SLOW = {
    "finetune_bert": [pytest.mark.slow, with_transformers],
    "export_onnx": [pytest.mark.slow, with_onnx],
    "long_context": [pytest.mark.slow],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, [])) for name in FAULTS])
def test_a_planted_fault_is_found(name):
    fault, arguments, complaint = FAULTS[name]
    code, printed = run(name, *arguments, first=fault)
    last = printed.splitlines()[-1]
    assert code == 1 and last.startswith("FAILED: ") and complaint in last, printed


@pytest.mark.parametrize("name, package", [("finetune_bert", "transformers"), ("export_onnx", "onnxruntime")])
def test_without_a_library_an_example_says_so_and_ends_well(name, package):
    code, printed = run(name, first=f"import sys; sys.modules[{package!r}] = None")
    assert code == 0 and printed.startswith(f"{name}: skipped, it needs ") and printed.count("\n") == 1
