"""bench/demo.py runs, compares the two trainings and says so in its exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

import gelu_ext

BENCH = Path(__file__).parent.parent / "bench"
SMALL = [
    "--quick",
    "--device",
    "cpu",
    "--steps",
    "4",
    "--layers",
    "1",
    "--width",
    "32",
    "--batch",
    "2",
    "--context",
    "32",
]


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    before, names = torch.get_num_threads(), set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("demo")
    torch.set_num_threads(before)
    for name in set(sys.modules) - names:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCH:
            del sys.modules[name]


def test_the_quick_demo_ends_well_and_prints_its_table(demo, capsys):
    assert demo.main(["--quick", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    (head,) = (line for line in printed.splitlines() if line.split()[:2] == ["variant", "measured"])
    assert head.split() == ["variant", "measured", "eager", "gelu_ext", "ratio"]
    for variant in ("bias+GELU", "GeGLU"):
        rows = [line for line in printed.splitlines() if line.split()[:1] == [variant] and line.count(".") >= 3]
        assert any("step time" in row for row in rows) and any("backward" in row for row in rows), printed
    assert printed.splitlines()[-1].startswith("OK: ")


def test_the_quick_demo_in_bfloat16(demo, capsys):
    assert demo.main([*SMALL, "--dtype", "bfloat16"]) == 0
    assert "bfloat16" in capsys.readouterr().out.splitlines()[0]


def test_the_demo_on_a_gpu(demo, capsys, cuda):
    assert demo.main(["--quick", "--device", cuda]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out


def test_losses_that_differ_fail_the_demo(demo, capsys):
    assert demo.main([*SMALL, "--tolerance", "-1"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED: ")


def test_a_wrong_activation_is_found_out(demo, capsys, monkeypatch):
    """The eager twin is exact GELU: the sigmoid form differs by two percent at -2."""
    right = gelu_ext.bias_gelu
    wrong = lambda x, bias=None, **_: right(x, bias, approximate="sigmoid")  # noqa: E731
    monkeypatch.setattr(gelu_ext, "bias_gelu", wrong)
    if hasattr(sys.modules["gpt"], "bias_gelu"):
        monkeypatch.setattr(sys.modules["gpt"], "bias_gelu", wrong)
    assert demo.main([*SMALL, "--tolerance", "1e-5"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("FAILED: ") and "bias+GELU" in last


def test_a_text_that_is_not_there_is_a_sentence_and_exit_code_2(demo, capsys, tmp_path):
    assert demo.main([*SMALL, "--text", str(tmp_path / "missing.txt")]) == 2
    assert capsys.readouterr().err.startswith("demo: ")
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert demo.main([*SMALL, "--text", str(short)]) == 2
    assert "text: expected at least" in capsys.readouterr().err
