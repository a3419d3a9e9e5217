"""python -m gelu_ext: tests everything, reports a wrong kernel whatever is wrong with it, and says what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gelu_ext import _build, _info, _native, _selftest, activations, build_info, functional
from gelu_ext.__main__ import main
from gelu_ext._operations import BIAS_ACT, OPERATIONS, Operation

ROOT = Path(__file__).parent.parent


def run(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    """The program, in a process of its own."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("GELU_EXT_")} | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "gelu_ext", *arguments]
    return subprocess.run(command, env=variables | changes, capture_output=True, text=True, timeout=300)


def test_the_program_prints_json_and_nothing_else():
    done = run("--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert list(printed) == ["passed", "build_info", "self_test", "advice"]
    assert printed["passed"] is True
    assert printed["build_info"]["native_module"] == build_info()["native_module"]
    tested = printed["self_test"]
    assert [result["device"] for result in tested] == _selftest.devices()
    for result in tested:
        assert result["cases"] == len(list(_selftest.cases())) and result["failed"] == 0
        for dtype, (value, gradient) in _selftest.BARS.items():
            assert 0 < result["largest_error_in_ulp"][_selftest.name_of(dtype)] <= max(value, gradient)


def test_without_a_native_module_it_says_what_to_do(monkeypatch, capsys):
    done = run(GELU_EXT_JIT="1")
    sentence = "GELU_EXT_JIT=1 leaves the compiled module to gelu_ext.jit.load(): call that first."
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == f"problem: {sentence}"
    assert "self-test" not in done.stdout
    monkeypatch.setattr(_native, "module", None)
    monkeypatch.setattr(_native, "problem", sentence)
    assert main(["--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert (printed["passed"], printed["self_test"], printed["advice"]) == (False, [], [sentence])


def test_an_unknown_instruction_set_is_one_problem():
    done = run(GELU_EXT_CPU_ISA="sse9")
    assert done.returncode == 1
    (problem,) = [line for line in done.stdout.splitlines() if line.startswith("problem: ") and "sse9" in line]
    assert problem.startswith("problem: GELU_EXT_CPU_ISA: expected one of ") and "got 'sse9': unset it" in problem
    assert "self-test of cpu: 0 of " in done.stdout


def test_it_prints_what_was_built_and_a_line_for_each_device(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{build_info()}\n")
    lines = [line for line in printed.splitlines() if line.startswith("self-test of ")]
    count = len(list(_selftest.cases()))
    assert len(lines) == len(_selftest.devices())
    for line, device in zip(lines, _selftest.devices(), strict=True):
        assert line.startswith(f"self-test of {device}: {count} of {count} cases pass, largest error in ulp: ")
        assert all(f" in {dtype}" in line for dtype in ("float64", "float32", "float16", "bfloat16"))


def test_arguments(capsys):
    with pytest.raises(SystemExit) as wrong:
        main(["--nope"])
    assert wrong.value.code == 2 and "unrecognized arguments: --nope" in capsys.readouterr().err
    with pytest.raises(SystemExit) as helped:
        main(["--help"])
    assert helped.value.code == 0 and "one JSON object" in capsys.readouterr().out


def test_the_cases_are_every_operation_activation_option_and_dtype():
    cases = list(_selftest.cases())
    for op in OPERATIONS.values():
        of_op = [case for case in cases if case.op is op]
        assert {case.dtype for case in of_op} == set(_selftest.BARS)
        if "activation" in op.names:
            assert {case.options["activation"] for case in of_op} == set(activations())
        for option, values in (("activated", {"first", "second"}), ("layout", {"first", "interleaved"})):
            assert option not in op.names or {case.options[option] for case in of_op} == values
        kinds = {tuple(None if t is None else t.dtype for t in case.tensors) for case in of_op}
        for dtype in _selftest.BARS:
            matrices = (dtype,) * len(op.matrices)
            vectors = {kind[len(matrices) :] for kind in kinds if kind[: len(matrices)] == matrices}
            wide = torch.promote_types(dtype, torch.float32)
            assert {(dtype,) * len(op.vectors), (wide,) * len(op.vectors)} <= vectors
            assert any(None in kind for kind in vectors)


def test_it_leaves_torchs_generator_alone():
    before = torch.get_rng_state()
    _selftest.run()
    assert torch.equal(torch.get_rng_state(), before)


# --- what is wrong is reported ----------------------------------------------------------------------------------------


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Operation], None]:
    """Tests this operation alone, on the CPU."""

    def set_to(op: Operation) -> None:
        monkeypatch.setattr(_selftest, "OPERATIONS", {op.name: op})
        monkeypatch.setattr(_selftest, "devices", lambda: ["cpu"])

    return set_to


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> None:
    """Makes the native function return what `change` makes of its result."""
    original = getattr(_native, name)

    def spoiled(*args: Any) -> Any:
        out = original(*args)
        if isinstance(out, Tensor):
            return change(out, *args)
        return tuple(t if t is None else change(t, *args) for t in out) if isinstance(out, tuple) else out

    monkeypatch.setattr(_native, name, spoiled)


def problems(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Of the self-test, in a run that fails."""
    assert main([]) == 1
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: On ")]


@pytest.mark.parametrize("part", ["", "_forward", "_backward"])
@pytest.mark.parametrize("op", OPERATIONS.values(), ids=lambda op: op.name)
def test_a_kernel_that_is_one_percent_off_is_reported(op, part, only, monkeypatch, capsys):
    only(op)
    spoil(monkeypatch, op.name + part, lambda out, *args: out * 1.01)
    (problem,) = problems(capsys)
    cases = len(list(_selftest.cases()))
    assert problem.startswith(f"problem: On cpu {op.name} is wrong in {cases} of {cases} cases (the ")
    assert ("the gradient of " if part == "_backward" else "the value with ") in problem
    assert " ulp off, expected at most " in problem
    assert problem.endswith(f"): {_native.how_to_build()}, and report it if it stays.")


def test_one_wrong_column_of_one_activation_in_one_dtype_is_reported(only, monkeypatch, capsys):
    def change(out: Tensor, op: str, x: Tensor, bias: Tensor | None, activation: str, *dropout: Any) -> Tensor:
        if activation == "mish" and x.dtype == torch.bfloat16:
            out[:, -1] *= 1.01
        return out

    only(BIAS_ACT)
    spoil(monkeypatch, "bias_act", change)
    (problem,) = problems(capsys)
    assert "bias_act is wrong in 3 of " in problem and "activation='mish', bfloat16" in problem


@pytest.mark.parametrize("i, name", list(enumerate(OPERATIONS["gaussian_gelu"].tensors)))
def test_a_wrong_gradient_is_reported_by_name(i, name, only, monkeypatch, capsys):
    original = _native.gaussian_gelu_backward

    def backward(*args: Any) -> tuple[Tensor | None, ...]:
        grads = list(original(*args))
        grads[i] = None if grads[i] is None else grads[i] * 1.01
        return tuple(grads)

    only(OPERATIONS["gaussian_gelu"])
    monkeypatch.setattr(_native, "gaussian_gelu_backward", backward)
    (problem,) = problems(capsys)
    assert f"(the gradient of {name} with " in problem


@pytest.mark.parametrize(
    "change",
    [lambda out, *args: out * torch.nan, lambda out, *args: out.double().float(), lambda out, *args: out[:1]],
    ids=["nan", "dtype", "shape"],
)
def test_what_is_no_number_or_of_another_kind_is_infinitely_wrong(change, only, monkeypatch, capsys):
    only(OPERATIONS["gaussian_gelu"])
    spoil(monkeypatch, "gaussian_gelu", change)
    (problem,) = problems(capsys)
    assert "the value with " in problem and " is inf ulp off" in problem
    assert main(["--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)["self_test"]
    assert None in result["largest_error_in_ulp"].values() and result["failed"] > 0


def test_an_exception_is_one_problem_of_all_operations(monkeypatch, capsys):
    def broken(*args: Any) -> Tensor:
        raise RuntimeError("no kernel image is available for this device\nat line 3")

    monkeypatch.setattr(_selftest, "devices", lambda: ["cpu"])
    for name in OPERATIONS:
        monkeypatch.setattr(_native, name, broken)
    (problem,) = problems(capsys)
    names = ", ".join(OPERATIONS)
    assert problem.startswith(f"problem: On cpu {names} raised RuntimeError (no kernel image is available for this d")
    assert "line 3" not in problem and _native.how_to_build() in problem


def test_one_of_two_devices_fails(only, monkeypatch, capsys):
    only(BIAS_ACT)
    monkeypatch.setattr(_selftest, "devices", lambda: ["cpu", "meta"])  # from which no number can be read
    (problem,) = problems(capsys)
    assert problem.startswith("problem: On meta bias_act raised NotImplementedError (")
    cpu, meta = _selftest.run()
    assert (cpu.failed, meta.failed) == (0, meta.cases) and cpu.cases == meta.cases
    assert str(meta).startswith(f"meta: 0 of {meta.cases} cases pass") and str(meta).endswith("unknown")


def test_the_truth_is_not_torchs_gelu(only, monkeypatch):
    """Which is wrong in the tail, by more than a hundred ulp in 16 bits; so would be a kernel like it."""
    only(BIAS_ACT)
    monkeypatch.setattr(functional, "bias_act", _in_torch)
    (result,) = _selftest.run()
    (problem,) = result.problems
    assert problem.what.startswith("bias_act is wrong in ") and "the value with activation='gelu'" in problem.why
    assert result.largest["bfloat16"] > 100


def _in_torch(x: Tensor, bias: Tensor | None = None, *, activation: str) -> Tensor:
    return BIAS_ACT.eager(x.float(), bias, activation).to(x.dtype)


# --- an operation more ------------------------------------------------------------------------------------------------


def scaled_power(x: Tensor, scale: Tensor, bias: Tensor | None, activation: str, power: float) -> Tensor:
    z = x if bias is None else x + bias
    return activations()[activation].composite(z) * scale**power


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_an_operation_is_tested_by_its_row_and_its_function(factor, only, monkeypatch):
    row = Operation(
        "scaled_power", ("x",), ("scale", "bias"), ("activation", "power"), scaled_power, eager=scaled_power
    )

    def public(x: Tensor, scale: Tensor, bias: Tensor | None = None, *, activation: str, power: float = 2.0) -> Tensor:
        wide = [None if t is None else t.double() for t in (x, scale, bias)]
        return (factor * scaled_power(*wide, activation, power)).to(x.dtype)

    monkeypatch.setattr(functional, "scaled_power", public, raising=False)
    only(row)
    (result,) = _selftest.run()
    assert result.cases == len(activations()) * 10  # no bias, of the dtype, and of float32 beside 16 bits
    assert [problem.what for problem in result.problems] == (
        [f"scaled_power is wrong in {result.cases} of {result.cases} cases"] if factor != 1 else []
    )


# --- advice -----------------------------------------------------------------------------------------------------------


def test_there_is_no_advice_where_nothing_is_wrong(monkeypatch):
    monkeypatch.setattr(_info, "_has_gpu", lambda: False)
    monkeypatch.setattr(_build, "source_hash", lambda: _native.facts["sources"])
    monkeypatch.setattr(torch, "__version__", _native.facts["torch"])
    assert _info.advice() == []


@pytest.mark.parametrize(
    "facts, words",
    [
        ({"sources": "other"}, "The sources have changed since the compiled module was built: {build}."),
        (
            {"torch": "2.12.1"},
            f"The compiled module was built for torch 2.12.1 and this is torch {torch.__version__}: {{build}}.",
        ),
        (
            {"cuda": None, "why_no_cuda": "there is no nvcc"},
            "There is a GPU, and the compiled module has no CUDA kernels (there is no nvcc): change that and {build}.",
        ),
    ],
    ids=["sources", "torch", "cuda"],
)
def test_advice_by_what_the_build_recorded(facts, words, monkeypatch, capsys):
    """It is said, and is no failure: what runs is what counts."""
    fine = {"sources": _build.source_hash(), "torch": str(torch.__version__), "cuda": "13.0"}
    monkeypatch.setattr(_native, "facts", _native.facts | fine | facts)
    monkeypatch.setattr(_info, "_has_gpu", lambda: True)
    expected = words.format(build=_native.how_to_build())
    assert _info.advice() == [expected]
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"problem: {expected}"


def test_the_devices_are_those_of_the_build_and_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for with_cuda, devices in ((True, ["cpu", "cuda:0", "cuda:1"]), (False, ["cpu"])):
        monkeypatch.setattr(_native, "with_cuda", with_cuda)
        assert _selftest.devices() == devices
    assert _info._has_gpu()


def test_the_largest_errors_are_in_ulp():
    """Of a float32 at 1.0 the next number is 2^-23 away; of a bfloat16, 2^-7; below 1.0 half of that."""
    for truth, dtype, distance in (
        (1.0, torch.float32, 2.0**-23),
        (1.0, torch.bfloat16, 2.0**-7),
        (-0.9, torch.float16, 2.0**-11),
        (0.0, torch.float16, 2.0**-24),
        (1e-7, torch.float16, 2.0**-24),
        (F.gelu(torch.tensor(3.0)).item(), torch.float64, 2.0**-51),
    ):
        assert _selftest._ulp(torch.tensor(truth, dtype=torch.float64), dtype).item() == distance
