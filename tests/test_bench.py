"""The benchmarks check before they time, write what they measured, and go on where they stopped."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gelu_ext

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, threads: None) -> Iterator:
    names = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))

    def load_module(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield load_module
    for name in set(sys.modules) - names:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCH:
            del sys.modules[name]


ONE_CASE = ["--device", "cpu", "--ops", "glu", "--activations", "gelu_tanh", "--dtypes", "bfloat16", "--shapes", "8x32"]


def test_the_microbenchmark_prints_and_writes_each_case(load, tmp_path, capsys):
    output = tmp_path / "results.json"
    assert load("bench").main([*ONE_CASE, "--rounds", "2", "--seconds", "0.001", "--output", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [row["pass"] for row in rows] == ["forward", "training"]
    assert all(row["seconds"]["gelu_ext"]["median"] > 0 and row["x"]["eager"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\nglu ") == 2


def test_the_microbenchmark_takes_dropout(load, capsys, monkeypatch):
    bench = load("bench")
    assert bench.main([*ONE_CASE, "--dropout", "0.25", "--rounds", "2", "--seconds", "0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == 2 and all("dropout 0.25" in line and "without dropout" in line for line in lines)
    right = gelu_ext.glu
    monkeypatch.setattr(
        gelu_ext, "glu", lambda x, y, dropout_p=0.0, **given: right(x, y, dropout_p=dropout_p / 2, **given)
    )
    with pytest.raises(SystemExit, match=r"to drop 0.25|to agree with float64"):
        bench.main([*ONE_CASE, "--dropout", "0.25", "--rounds", "2", "--seconds", "0.001"])


def test_each_shape_is_timed_in_a_process_of_its_own(load, tmp_path, monkeypatch):
    bench, output = load("bench"), tmp_path / "results.json"
    monkeypatch.setattr(bench, "passes", None)  # here, not there
    two_shapes = [*ONE_CASE, "--shapes", "8x32,4x64", "--rounds", "2", "--seconds", "0.001", "--output", str(output)]
    assert bench.main(two_shapes) == 0
    rows = json.loads(output.read_text())["rows"]
    assert [(row["rows"], row["cols"], row["pass"]) for row in rows] == [
        (8, 32, "forward"), (8, 32, "training"), (4, 64, "forward"), (4, 64, "training")
    ]  # fmt: skip
    with pytest.raises(SystemExit) as failed:
        bench.main([*two_shapes, "--ops", "no_op"])
    assert failed.value.code == 1


def test_the_microbenchmark_takes_one_value_everywhere(load, capsys):
    assert load("bench").main([*ONE_CASE, "--values", "random,-13", "--rounds", "2", "--seconds", "0.001"]) == 0
    assert [("x = -13" in line) for line in capsys.readouterr().out.splitlines()[1:]] == [False, False, True, True]


def test_torch_is_held_to_the_instruction_set_too(load, monkeypatch):
    """By starting again with the limits that it reads when it is loaded, and only where they are not set yet."""
    bench, started = load("bench"), []
    monkeypatch.setattr(bench.os, "execve", lambda program, arguments, environment: started.append(environment))
    bench.run_with({})
    assert not started
    bench.run_with(bench.TORCH_LIMITS["avx2"])
    assert started[0]["ONEDNN_MAX_CPU_ISA"] == "AVX2" and started[0]["ATEN_CPU_CAPABILITY"] == "avx2"
    for name, value in bench.TORCH_LIMITS["avx2"].items():
        monkeypatch.setenv(name, value)
    bench.run_with(bench.TORCH_LIMITS["avx2"])
    assert len(started) == 1


def test_a_contender_that_computes_something_else_is_not_timed(load, monkeypatch):
    bench = load("bench")

    def wrong(x, bias, activation):
        return 1.5 * bench.eager_glu(x, bias, activation)

    monkeypatch.setitem(bench.OPS, "glu", dataclasses.replace(bench.OPS["glu"], fused=wrong))
    with pytest.raises(SystemExit, match=r"expected gelu_ext of .* to agree with float64"):
        bench.main(ONE_CASE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_gpu_run_says_so(load, capsys):
    assert load("gpu").main([]) == 2
    assert capsys.readouterr().out.startswith("gpu: expected a CUDA device, got none (torch ")


@pytest.fixture
def gpu(load, tmp_path, monkeypatch):
    """The module of the command, which builds nothing here, and writes its results where they are looked for."""
    module = load("gpu")
    monkeypatch.setattr(module, "build", lambda run: "nothing")
    monkeypatch.setenv("OUT", str(tmp_path / "results"))
    return module


def written(tmp_path: Path) -> dict:
    (found,) = (tmp_path / "results").glob("*.json")
    return json.loads(found.read_text()) | {"table": found.with_suffix(".md").read_text()}


def test_the_gpu_run_goes_through_its_steps_on_the_cpu_and_resumes(gpu, tmp_path, capsys):
    command = ["--device", "cpu", "--tests"]
    assert gpu.main(command) == 0
    results = written(tmp_path)
    assert list(results["steps"]) == [
        "build", "more than 2^31 elements", "repeatable bias gradients", "first use in a CUDA graph",
        "compute-sanitizer",
    ]  # fmt: skip
    assert all(result.startswith("ok") for result in results["steps"].values())
    assert [row["pass"] for row in results["rows"]] == ["forward", "training", "backward"]
    assert "| bias_act | gelu | bfloat16 | 64 x 256 | forward |" in results["table"]
    capsys.readouterr()
    assert gpu.main(command) == 0
    assert capsys.readouterr().out.count("passed before") == 4
    assert written(tmp_path)["rows"] == results["rows"]


WORKER = """
import os, sys, time
sys.path.insert(0, {bench!r})
import gpu_cells

measured = gpu_cells.measured

def planted(cell, device):
    if cell["rows"] == 13:
        os.abort()
    if cell["rows"] == 14:
        time.sleep(600)
    if cell["rows"] == 15:
        raise ValueError("planted")
    return measured(cell, device)

def cells(kind, device):
    for rows in (12, 13, 14, 15, 16):
        yield {{"op": "glu", "activation": "gelu", "dtype": "float32", "rows": rows, "cols": 8, "compile": False}}

gpu_cells.measured, gpu_cells.cells = planted, cells
sys.exit(gpu_cells.main())
"""


def test_nothing_that_fails_stops_the_gpu_run(gpu, tmp_path, monkeypatch, capsys):
    """A test that fails, a cell that crashes its process, one that hangs and one that raises: all else is measured."""
    (tmp_path / "worker.py").write_text(WORKER.format(bench=str(BENCH)))
    (tmp_path / "test_planted.py").write_text(
        "import pytest\n\n@pytest.mark.parametrize('device', ['cpu'])\n@pytest.mark.parametrize('n', range(3))\n"
        "def test_planted(device, n):\n    assert n != 1\n"
    )
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    monkeypatch.setattr(gpu, "check", lambda run, name: run.command(10, sys.executable, "-c", "import absent"))
    options = ["--worker", str(tmp_path / "worker.py"), "--cell-seconds", "20", "--tests", str(tmp_path)]
    assert gpu.main(["--device", "cpu", *options]) == 1
    results = written(tmp_path)
    assert [row["rows"] for row in results["rows"]] == [12] * 3 + [16] * 3
    errors = {failure["cell"]["rows"]: failure["error"] for failure in results["failed"]}
    assert errors == {13: "the process ended with code -6", 14: "took more than 20 s", 15: "ValueError: planted"}
    assert results["steps"]["tests"].startswith("FAILED, RuntimeError: 2 passed, 1 failed: ")
    assert "test_planted[1-cpu]" in results["steps"]["tests"]
    assert "No module named 'absent'" in results["steps"]["repeatable bias gradients"]
    for named in ("test_planted[1-cpu]", "took more than 20 s", "code -6", "ValueError: planted"):
        assert named in results["table"]


def test_tests_that_take_too_long_say_how_far_they_came(gpu, tmp_path, capsys):
    (tmp_path / "test_planted.py").write_text(
        "import time, pytest\n\n@pytest.mark.parametrize('device', ['cpu'] * 4)\n"
        "def test_planted(device, request):\n    time.sleep(600 * ('3' in request.node.name))\n"
    )
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    assert gpu.main(["--device", "cpu", "--quick", "--minutes", "0.4", "--tests", str(tmp_path)]) == 0
    assert "3 passed, stopped at 75 %" in written(tmp_path)["steps"]["tests"]


def test_other_tunings_and_launch_shapes_are_timed(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "TUNINGS", ())
    monkeypatch.setattr(gpu, "LAUNCHES", ("waves=2", "lanes=8"))
    assert gpu.main(["--device", "cpu", "--tune"]) == 0
    assert {row["variant"] for row in written(tmp_path)["rows"]} == {"by the rule", "waves=2", "lanes=8"}


def test_the_sanitizer_script_runs_every_op(load, capsys):
    assert load("sanitize").main(["--device", "cpu"]) == 0
    assert capsys.readouterr().out == "every op ran\n"
