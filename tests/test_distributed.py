"""Two processes compute what one does: DDP, FSDP2, tensor parallel, and DTensors of every placement.

Gradients are compared with one process in float64. A packed geglu cut between its halves must never be silently wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import traceback

import pytest
import torch
import torch.distributed as dist
from reference import Call, ClampedCall, randn
from torch import Tensor, nn

import gelu_ext

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("torch.distributed with gloo is not available", allow_module_level=True)

from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
    init_device_mesh,
)
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from gelu_ext import interleave_halves

WORLD = 2
F64 = torch.float64


def in_a_process(rank: int, folder: str) -> None:
    """Runs every check, and leaves what went wrong in a file named after it: one start for all of them."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD)
    mesh = init_device_mesh("cpu", (WORLD,))
    for name, check in CHECKS.items():
        outcome = ""
        try:
            check(mesh)
        except Exception:
            outcome = traceback.format_exc()
        with open(os.path.join(folder, f"{name}.{rank}"), "w") as file:
            file.write(outcome)
        dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        try:
            torch.multiprocessing.spawn(in_a_process, (folder,), nprocs=WORLD)
        except torch.multiprocessing.ProcessExitedException:
            # gloo's threads sometimes outlive the group and abort a process that has done its work.
            if len(os.listdir(folder)) < WORLD * len(CHECKS):
                raise
        return {
            name: "\n".join(open(os.path.join(folder, f"{name}.{rank}")).read() for rank in range(WORLD)).strip()
            for name in CHECKS
        }


# --- models -----------------------------------------------------------------------------------------------------------


class BiasMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 16, bias=False)
        self.act = gelu_ext.BiasGELU(16)
        self.down = nn.Linear(16, 8)
        nn.init.normal_(self.act.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class TwoTensorMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(gelu_ext.gelu_mul(self.gate(x), self.up(x), approximate="tanh"))


class PackedMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 32), gelu_ext.GEGLU(activated="first"), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


def make(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().double()


def batch() -> Tensor:
    return randn((6, 8), F64, seed=3)


def loss_of(out: Tensor) -> Tensor:
    return out.sin().sum()


def gradients_of_one_process(kind: type[nn.Module]) -> dict[str, Tensor]:
    model = make(kind)
    loss_of(model(batch())).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def full(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


def assert_close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def assert_gradients(model: nn.Module, expected: dict[str, Tensor], scale: float = 1) -> None:
    got = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    assert got.keys() == expected.keys()
    for name, grad in got.items():
        assert_close(full(grad) * scale, expected[name])


MODELS = [BiasMLP, TwoTensorMLP, PackedMLP]

# --- checks -----------------------------------------------------------------------------------------------------------


def check_ddp(mesh) -> None:
    for kind in MODELS:
        model = nn.parallel.DistributedDataParallel(make(kind))
        loss_of(model(batch().chunk(WORLD)[dist.get_rank()])).backward()
        assert_gradients(model, gradients_of_one_process(kind), WORLD)  # DDP averages, the loss is a sum


def check_fsdp2(mesh) -> None:
    for kind in MODELS:
        model = make(kind)
        for child in model.children():
            if any(True for _ in child.parameters()):
                fully_shard(child, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
        loss_of(model(batch().chunk(WORLD)[dist.get_rank()])).backward()
        assert_gradients(model, gradients_of_one_process(kind), WORLD)


def check_tensor_parallel_bias_gelu(mesh) -> None:
    for local in (True, False):  # as plain local tensors, and as DTensors all the way
        model = make(BiasMLP)
        plan = {"up": ColwiseParallel(use_local_output=local), "down": RowwiseParallel()}
        parallelize_module(model, mesh, plan)
        sharded = distribute_tensor(model.act.bias.detach(), mesh, [Shard(0)])
        model.act.bias = nn.Parameter(sharded.to_local() if local else sharded)
        loss_of(model(batch())).backward()
        expected = gradients_of_one_process(BiasMLP)
        if local:
            expected["act.bias"] = expected["act.bias"].chunk(WORLD)[dist.get_rank()]
        assert_gradients(model, expected)


def check_tensor_parallel_two_tensors(mesh) -> None:
    for local in (True, False):
        model = make(TwoTensorMLP)
        column = ColwiseParallel(use_local_output=local)
        parallelize_module(model, mesh, {"gate": column, "up": column, "down": RowwiseParallel()})
        loss_of(model(batch())).backward()
        assert_gradients(model, gradients_of_one_process(TwoTensorMLP))


def check_tensor_parallel_packed_dtensor(mesh) -> None:
    """[a, b] cut in the middle, as DTensors: right, at the price of a redistribution."""
    model = make(PackedMLP)
    plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    parallelize_module(model, mesh, plan)
    h = model.up(batch())
    assert h.placements == (Shard(1),) and model.act(h).placements != (Shard(1),)
    loss_of(model(batch())).backward()
    assert_gradients(model, gradients_of_one_process(PackedMLP))


def check_tensor_parallel_packed_interleaved(mesh) -> None:
    """[a_0, b_0, a_1, b_1]: every piece is a pair, no communication inside."""
    model = make(PackedMLP)
    with torch.no_grad():
        for p in (model.up.weight, model.up.bias):
            p.copy_(interleave_halves(p, WORLD))
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    out = model(batch())
    assert_close(out, make(PackedMLP)(batch()))
    loss_of(out).backward()
    expected = gradients_of_one_process(PackedMLP)
    for name in ("up.weight", "up.bias"):
        expected[name] = interleave_halves(expected[name], WORLD)
    assert_gradients(model, expected)


def check_every_placement(mesh) -> None:
    calls = [Call("bias_gelu", "none"), Call("geglu", "tanh", "second"), Call("geglu", "none", "first")]
    for call in [*calls, Call("gelu_mul", "sigmoid"), ClampedCall("interleaved")]:
        x = randn((4, 3, call.width(4)), F64)
        for other in [call.other(x, F64), None] if call.has_bias else [call.other(x, F64)]:
            for p in (Replicate(), Shard(0), Shard(1), Shard(2)):
                for q in (Replicate(), Shard(0)):
                    compare_with_plain(mesh, call, x, other, p, q)


def compare_with_plain(mesh, call: Call, x: Tensor, other: Tensor | None, p, q) -> None:
    def leaves(distribute) -> list[Tensor]:
        both = [distribute(x, p), None if other is None else distribute(other, q)]
        return [t if t is None else t.detach().requires_grad_() for t in both]

    plain, sharded = leaves(lambda t, _: t.clone()), leaves(lambda t, p: distribute_tensor(t, mesh, [p]))
    expected, out = call(*plain), call(*sharded)
    assert isinstance(out, DTensor)
    assert_close(full(out), expected)
    with torch.no_grad():
        assert_close(full(call(*sharded)), expected)
    if p == Shard(2):
        assert out.placements == ((Replicate(),) if call.width(1) == 2 else out.placements)
    grad_out = randn(expected.shape, F64, seed=2)
    sharded_grad_out = distribute_tensor(grad_out, mesh, out.placements)
    for wanted in ([0], [1], [0, 1]):  # in an order in which a result remembered too long would show
        wanted = [i for i in wanted if plain[i] is not None]
        if not wanted:
            continue
        again = [t if i in wanted or t is None else t.detach() for i, t in enumerate(sharded)]
        truth = torch.autograd.grad(expected, [plain[i] for i in wanted], grad_out, retain_graph=True)
        got = torch.autograd.grad(call(*again), [again[i] for i in wanted], sharded_grad_out)
        for a, b in zip(got, truth, strict=True):
            assert_close(full(a), b)


def check_gaussian_gelu_in_every_placement(mesh) -> None:
    """Its vectors lie as a bias does."""
    x, (mu, sigma, bias) = randn((4, 3, 4), F64), (randn((4,), F64, seed=i) for i in (1, 2, 3))
    plain = [t.requires_grad_() for t in (x, mu, sigma.abs() + 0.3, bias)]
    expected = gelu_ext.gaussian_gelu(*plain)
    grad_out = randn(expected.shape, F64, seed=4)
    truth = torch.autograd.grad(expected, plain, grad_out)
    for p in (Replicate(), Shard(0), Shard(1), Shard(2)):
        for q in (Replicate(), Shard(0)):
            sharded = [distribute_tensor(t.detach(), mesh, [q if i else p]) for i, t in enumerate(plain)]
            sharded = [t.requires_grad_() for t in sharded]
            out = gelu_ext.gaussian_gelu(*sharded)
            assert_close(full(out), expected)
            got = torch.autograd.grad(out, sharded, distribute_tensor(grad_out, mesh, out.placements))
            for a, b in zip(got, truth, strict=True):
                assert_close(full(a), b)


def check_partial_sums_are_reduced_first(mesh) -> None:
    x = randn((4, 8), F64)
    partial = DTensor.from_local(x, mesh, [Partial()])
    for call in (Call("bias_gelu", "none"), Call("geglu", "none", "first")):
        assert_close(full(call(partial)), call(x * WORLD))
    assert_close(full(gelu_ext.gelu_mul(partial, partial)), gelu_ext.gelu_mul(x * WORLD, x * WORLD))


def check_double_backward_of_dtensors(mesh) -> None:
    x, bias = randn((4, 8), F64), randn((8,), F64, seed=1)
    results = []
    for distribute in (lambda t, p: t.clone(), lambda t, p: distribute_tensor(t, mesh, [p])):
        leaves = distribute(x, Shard(0)).requires_grad_(), distribute(bias, Replicate()).requires_grad_()
        first = torch.autograd.grad(gelu_ext.bias_gelu(*leaves).sum(), leaves, create_graph=True)
        results.append([*first, *torch.autograd.grad(first[0].sum() + first[1].sum(), leaves)])
    for a, b in zip(*results, strict=True):
        assert_close(full(b), a)


def check_mlps_of_dtensors_compiled_and_not(mesh) -> None:
    """Compiled with recompute, the backward holds an operator of its own."""
    x = randn((4, 8), F64)
    for kind in (gelu_ext.MLP, gelu_ext.GEGLUMLP):
        for recompute in (True, False):
            torch.manual_seed(0)
            module = kind(8, 16, recompute=recompute, dtype=F64)
            expected = module(x)
            grads = torch.autograd.grad(expected.square().sum(), list(module.parameters()))
            place = Shard(0) if kind is gelu_ext.MLP else Replicate()
            for child in module.children():
                for name, p in list(child.named_parameters()):
                    child.register_parameter(name, nn.Parameter(distribute_tensor(p.detach(), mesh, [place])))
            rows = distribute_tensor(x, mesh, [Shard(0)])
            for call in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
                torch._dynamo.reset()
                out = call(rows)
                assert_close(full(out), expected)
                found = torch.autograd.grad(out.full_tensor().square().sum(), list(module.parameters()))
                for a, b in zip(found, grads, strict=True):
                    assert_close(full(a), b)


def check_a_plain_tensor_beside_a_dtensor_is_an_error(mesh) -> None:
    x = distribute_tensor(randn((4, 8), F64), mesh, [Shard(0)])
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        gelu_ext.bias_gelu(x, randn((8,), F64))


CHECKS = {name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")}


@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(name, outcomes):
    if outcomes[name]:
        pytest.fail(outcomes[name], pytrace=False)


@pytest.mark.parametrize("dim", [0, -1])
def test_interleaved_halves(dim):
    packed = torch.arange(8).reshape((8, 1) if dim == 0 else (1, 8))
    assert interleave_halves(packed, 2, dim).flatten().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    with pytest.raises(ValueError, match=r"interleave_halves: expected a size divisible by 2 \* 3 along 0, got 8"):
        interleave_halves(torch.zeros(8), 3)


def test_import_leaves_distributed_tensors_alone():
    """They take longer to import than all of gelu_ext."""
    code = "import gelu_ext, torch, sys; gelu_ext.bias_gelu(torch.ones(2)); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = out.stdout.split()
    assert "gelu_ext" in modules and "torch.distributed.tensor" not in modules
