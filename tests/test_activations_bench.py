"""bench/activations.py: its variants differ in what they say, and what is written counts what was seen."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, threads: None) -> Iterator[ModuleType]:
    names = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("activations")
    for name in set(sys.modules) - names:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCH:
            del sys.modules[name]


@pytest.fixture
def digits(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins, where scikit-learn is not installed."""
    random = torch.Generator().manual_seed(0)
    images, targets = torch.rand(300, 64, generator=random), torch.randint(10, (300,), generator=random)
    monkeypatch.setattr(bench, "digits", lambda: (images, targets))


def test_the_quick_run_writes_its_tables(bench, digits, tmp_path, capsys):
    assert bench.main(["--quick", "--seeds", "2", "--output", str(tmp_path)]) == 0
    written = (tmp_path / "activations.md").read_text()
    rows = [name for experiment in bench.experiments(True).values() for name in experiment.variants]
    named = [line.split("|")[1].strip() for line in written.splitlines() if line.startswith("| ") and "±" in line]
    assert named == rows
    assert written.count("By intervals that leave out zero") == 3 and "## What cannot be concluded" in written
    assert f"`python bench/activations.py --quick --seeds 2 --output {tmp_path}`" in written
    assert "gelu(x W) * (x V)" in written and "left out" not in capsys.readouterr().out


def test_the_quick_run_writes_nothing_by_itself(bench, capsys):
    before = {path: path.stat().st_mtime_ns for path in (BENCH / "results").iterdir()}
    assert bench.main(["--quick", "--only", "gates"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (BENCH / "results").iterdir()} == before
    assert "One seed shows nothing" in capsys.readouterr().out


def test_without_scikit_learn_it_says_so(bench, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert bench.main(["--quick", "--only", "digits"]) == 0
    assert "left out, it needs scikit-learn" in capsys.readouterr().out


def test_the_control_learns_alike(bench, digits):
    """torch's own GELU, from the same weights and batches."""
    found = bench.measured(bench.experiments(True)["digits"], 1)
    (ours,), (control,) = found["GELU"], found[bench.CONTROL]
    assert ours.losses == pytest.approx(control.losses, abs=1e-5)
    assert all(found[name][0].losses != ours.losses for name in ("ReLU", "ELU", "SiLU", "Mish", "GaussianGELU"))


def test_every_variant_starts_from_the_same_weights(bench, digits):
    for experiment in bench.experiments(True).values():
        models = [bench.Trained(experiment, make, seed=3).model for make in experiment.variants.values()]
        layers = [[m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)] for model in models]
        for weights in zip(*layers, strict=True):
            equal = [torch.equal(weights[0], w) for w in weights if w.shape == weights[0].shape]
            assert len(equal) > 1 or len(weights) == 5  # a gated MLP is of another shape than the plain one
            assert all(equal)


def test_the_gates_have_as_many_parameters_as_the_plain_mlp(bench, monkeypatch):
    for quick in (True, False):
        counts = {bench.parameters(make) for make in bench.experiments(quick)["gates"].variants.values()}
        assert len(counts) == 1
    uneven = bench.gates(32, 1, 1)  # no multiple of 3
    with pytest.raises(AssertionError, match="expected equal parameters"):
        bench.measured(uneven, 1)


def test_a_difference_is_that_of_the_seeds(bench):
    mean, half = bench.difference([1.0, 2.0, 3.0], [0.5, 1.0, 2.5])
    assert mean == pytest.approx(2 / 3) and half == pytest.approx(4.303 * 0.288675 / math.sqrt(3), rel=1e-4)


def test_the_verdict_names_what_is_apart_and_leaves_out_the_control(bench):
    def runs(*errors):
        return [bench.Run(losses=[error], errors=[error]) for error in errors]

    said = bench.verdict(
        {
            "GELU": runs(0.10, 0.11, 0.12),
            "better": runs(0.05, 0.0601, 0.07),
            "like it": runs(0.11, 0.10, 0.12),
            bench.CONTROL: runs(0.01, 0.02, 0.0301),
        }
    )
    assert "better has fewer errors; none has more errors; better has a lower loss; none has a higher loss" in said
    assert "of 4 such intervals 0.2 " in said and "1 of 2 overlap" in said and "Of the 1 pairs of others, 1 are" in said


def test_the_digits_are_scikit_learns(bench):
    pytest.importorskip("sklearn")
    images, targets = bench.digits()
    assert images.shape == (1797, 64) and images.max() == 1 and targets.unique().tolist() == list(range(10))
