"""The benchmarks check before they time, write what they measured, and go on where they stopped."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

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
    assert capsys.readouterr().out.count("glu ") == 2


def test_each_shape_is_timed_in_a_process_of_its_own(load, tmp_path, monkeypatch):
    bench, output = load("bench"), tmp_path / "results.json"
    monkeypatch.setattr(bench, "contenders", None)  # here, not there
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


def test_the_gpu_run_goes_through_its_steps_on_the_cpu_and_resumes(load, tmp_path, monkeypatch, capsys):
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    command = ["--device", "cpu", "--skip-tests"]
    assert gpu.main(command) == 0
    (written,) = tmp_path.glob("*.json")
    results = json.loads(written.read_text())
    assert set(results["steps"]) == {"more than 2^31 elements", "repeatable bias gradients", "compute-sanitizer"}
    assert all(result.startswith("ok") for result in results["steps"].values())
    assert len(results["cells"]) == 2
    assert "| bias_act | gelu | bfloat16 | 64 x 256 | forward |" in written.with_suffix(".md").read_text()
    capsys.readouterr()
    assert gpu.main(command) == 0
    assert capsys.readouterr().out.count("passed before") == 3
    assert json.loads(written.read_text())["cells"] == results["cells"]


def test_a_step_that_fails_fails_the_gpu_run(load, tmp_path, monkeypatch):
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)

    def fails(report):
        raise AssertionError("planted")

    monkeypatch.setattr(gpu, "huge", fails)
    assert gpu.main(["--device", "cpu", "--skip-tests"]) == 1


def test_the_sanitizer_script_runs_every_op(load, capsys):
    assert load("sanitize").main(["--device", "cpu"]) == 0
    assert capsys.readouterr().out == "every op ran\n"
