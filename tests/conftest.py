"""Fixtures of all tests: the devices and instruction sets that they run on. Works without a compiled module."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from gelu_ext import _native
from gelu_ext._operations import OPERATIONS

HAS_CUDA = torch.cuda.is_available() and getattr(_native.module, "with_cuda", False)
DEVICES = ["cpu", "cuda"] if HAS_CUDA else ["cpu"]
INSTRUCTION_SETS = _native.instruction_sets().split(",") if _native.module else []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--uses", metavar="DEVICE", help="only the tests that run on this device: cpu or cuda")
    parser.addoption("--at-most", type=int, metavar="N", help="only N tests, from all over")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    uses, most = config.getoption("--uses"), config.getoption("--at-most")
    if uses:
        items[:] = [item for item in items if uses in (*item.fixturenames, _device_of(item))]
    if most and len(items) > most:
        items[:] = [items[i * len(items) // most] for i in range(most)]
    marked = config.getoption("-m") or ""
    slow = os.environ.get("GELU_EXT_SLOW_TESTS") == "1" or "slow" in marked
    for item in items:
        if item.get_closest_marker("slow") and not slow:
            item.add_marker(pytest.mark.skip(reason="slow: set GELU_EXT_SLOW_TESTS=1"))
        if item.get_closest_marker("sweep") and "sweep" not in marked:
            item.add_marker(pytest.mark.skip(reason="takes long: make sweep"))


def _device_of(item: pytest.Item) -> object:
    return item.callspec.params.get("device") if hasattr(item, "callspec") else None


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Every device that this build has kernels for and this machine has."""
    return request.param


@pytest.fixture
def cuda() -> str:
    """For what only a GPU can show."""
    if not HAS_CUDA:
        pytest.skip("needs a GPU and a build with CUDA")
    return "cuda"


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set of the CPU kernels that this processor can run, in use during the test."""
    before = _native.instruction_set()
    assert _native.set_instruction_set(request.param)
    yield request.param
    assert _native.set_instruction_set(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """The test may change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread_one_seed(threads: None) -> None:
    """For small models, whose tensors only wait for each other's threads."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Of this process alone, for what is sharded."""
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available() or distributed.is_initialized():
        pytest.skip("needs torch.distributed with gloo, not initialised yet")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each native forward was called and did not decline, by the function of GELU that it is."""
    counted = Counter()
    for op in OPERATIONS.values():
        for name in (op.name, f"{op.name}_forward"):
            original = getattr(_native, name)

            def call(*args, op=op, original=original):
                out = original(*args)
                counted[op.gelu] += isinstance(out, torch.Tensor)
                return out

            monkeypatch.setattr(_native, name, call)
    return counted
