"""An MLP in tiles of rows: the same numbers, as exact gradients, its input alone kept, and a fraction of the peak."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from reference import DTYPES, leaf, randn
from test_mlp import C, D, H, every_kind, inputs, results, truth
from torch import nn
from torch.utils.checkpoint import checkpoint

import gelu_ext
from gelu_ext import GEGLUMLP, GLUMLP, MLP, act_mul_mlp, glu_mlp, mlp
from gelu_ext._tiles import rows_of_a_tile
from gelu_ext.memory import peak_bytes, saved_bytes
from gelu_ext.patch import patch, patched

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")

both = pytest.mark.parametrize("recompute", [True, False], ids=["recompute", "keep"])


def fused(kind, tensors, tile_rows, recompute=True, activation="gelu"):
    options = {"activation": activation, "tile_rows": tile_rows, "recompute": recompute}
    if kind == "mlp":
        return mlp(*tensors, **options)
    return act_mul_mlp(*tensors, **options) if kind == "two" else glu_mlp(*tensors, activated=kind, **options)


def assert_agree(found, wanted, rtol=1e-9):
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol)


# --- values and gradients ---------------------------------------------------------------------------------------------


@both
@every_kind
def test_values_and_gradients_are_those_of_all_rows(kind, recompute, device):
    for bias, tile_rows in itertools.product((True, False), (1, 2, 4, 15, 100, "auto")):
        tensors = inputs(kind, torch.float64, device, bias)
        wanted = results(fused(kind, tensors, None), tensors)
        assert_agree(results(fused(kind, tensors, tile_rows, recompute), tensors), wanted)


def relative_errors(found, exact):
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]


def wide(kind, dtype, rows, seed=0):
    """Of a size where roundings average."""
    c, h, d = 32, 48, 24
    packed = 2 * h if kind in ("first", "second") else h
    shapes = [(rows, c), (packed, c), (packed,)] + ([(h, c), (h,)] if kind == "two" else []) + [(d, h), (d,)]
    drawn = [randn(shape, torch.float64, seed=100 * seed + i) for i, shape in enumerate(shapes)]
    return [leaf((t * (0.3 if i else 1)).to(dtype)) for i, t in enumerate(drawn)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_kind
def test_gradients_are_as_exact_as_those_of_all_rows(kind, dtype):
    """Added up in float32 and rounded once. (A sum of products that were rounded to 16 bits errs a seventh more.)"""
    errors = {None: [], 128: [], 500: []}
    for seed in range(8):
        tensors = wide(kind, dtype, 2048, seed)
        exact = [leaf(t.detach().double()) for t in tensors]
        wanted = results(truth(kind, exact), exact)
        for tile_rows, found in errors.items():
            found.append(relative_errors(results(fused(kind, tensors, tile_rows), tensors), wanted))
    of_all, *tiled = (torch.tensor(found, dtype=torch.float64).mean(0) for found in errors.values())
    for found in tiled:
        assert (found <= 1.05 * of_all + torch.finfo(torch.float64).eps).all(), found / of_all


@both
def test_a_float32_bias_beside_16_bits(recompute):
    x, w1, b1, w2, b2 = wide("mlp", torch.bfloat16, 64)
    b1 = leaf(b1.detach().float())
    tensors = [x, w1, b1, w2, b2]
    assert_agree(
        results(fused("mlp", tensors, 16, recompute), tensors), results(fused("mlp", tensors, None), tensors), 2e-2
    )


@every_kind
def test_a_bias_in_float32_changes_no_bit_of_the_backward(kind):
    """The sums of 16-bit gradients need it in float32: one tile gives what all rows give."""
    tensors = wide(kind, torch.bfloat16, 64)
    found, wanted = (results(fused(kind, tensors, rows), tensors) for rows in (64, None))
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])  # the output, and the gradient of x
    biases = [i for i, t in enumerate(tensors) if t.dim() == 1]
    assert all(torch.equal(found[i + 1], wanted[i + 1]) for i in biases)


@both
@every_kind
def test_first_and_second_derivatives(kind, recompute):
    tensors = inputs(kind, torch.float64, rows=(3,))

    def call(*ts):
        return fused(kind, ts, 2, recompute, "gelu_tanh")

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@every_kind
def test_only_the_gradients_that_are_wanted(kind):
    tensors = inputs(kind, torch.float64)
    wanted = results(fused(kind, tensors, None), tensors)[1:]
    for i, t in enumerate(tensors):
        alone = [other.detach() for other in tensors]
        alone[i] = leaf(t.detach())  # beside tensors that are frozen
        assert_agree(results(fused(kind, alone, 4), [alone[i]])[1:], [wanted[i]])
        out = fused(kind, tensors, 4)  # of a node that could compute all
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert_agree(torch.autograd.grad(out, t, grad), [wanted[i]])


@both
@every_kind
def test_any_leading_shape_and_any_strides(kind, recompute):
    _, *rest = inputs(kind, torch.float64)
    for x in (
        torch.randn(C, dtype=torch.float64),
        torch.randn(0, C, dtype=torch.float64),
        torch.randn(1, C, dtype=torch.float64),
        torch.randn(2, 3, 5, C, dtype=torch.float64),
        torch.randn(C, 7, dtype=torch.float64).t(),
        torch.randn(7, 2 * C, dtype=torch.float64)[:, ::2],
        torch.randn(C, dtype=torch.float64).expand(5, C),
    ):
        tensors = [leaf(x), *rest]
        assert_agree(results(fused(kind, tensors, 2, recompute), tensors), results(fused(kind, tensors, None), tensors))
    tensors = [leaf(torch.randn(7, C, dtype=torch.float64)), *rest]
    (grad,) = torch.autograd.grad(fused(kind, tensors, 2, recompute).sum(), rest[0])  # an expanded gradient
    assert_agree([grad], torch.autograd.grad(fused(kind, tensors, None).sum(), rest[0]))


@both
@every_kind
def test_a_second_backward_sees_what_the_first_saw(kind, recompute):
    tensors = inputs(kind, torch.float32)
    out = fused(kind, tensors, 4, recompute)
    first = torch.autograd.grad(out.square().sum(), tensors, retain_graph=True)
    kept = [grad.clone() for grad in first]
    again = torch.autograd.grad(out.square().sum(), tensors)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, kept, again, strict=True))


def test_no_node_where_no_gradient_is_wanted():
    tensors = inputs("mlp", torch.float64)
    wanted = fused("mlp", tensors, None).detach()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = fused("mlp", tensors, 4)
        assert out.grad_fn is None
        torch.testing.assert_close(out.clone(), wanted)


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kind
def test_it_keeps_its_input_only(kind, dtype, device):
    tensors = inputs(kind, dtype, device, rows=(64,))
    biases = sum(t.nbytes for t in tensors[1:-1] if t.dim() == 1)
    for tile_rows in (7, 64, 100, "auto"):
        assert saved_bytes(lambda t=tile_rows: fused(kind, tensors, t), exclude=tensors) == biases
    pre = (1 if kind == "mlp" else 2) * 64 * H * dtype.itemsize
    assert saved_bytes(lambda: fused(kind, tensors, 7, recompute=False), exclude=tensors) == biases + pre


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@every_kind
def test_the_peak_is_a_fraction(kind, dtype):
    tensors = wide(kind, dtype, 1 << 13)
    grad = torch.randn(1 << 13, 24).to(dtype)

    def train(tile_rows):
        torch.autograd.grad(fused(kind, tensors, tile_rows), tensors, grad)

    def infer(tile_rows):
        with torch.no_grad():
            fused(kind, tensors, tile_rows)

    hidden = (1 << 13) * 48 * dtype.itemsize
    results = (1 << 13) * (24 + 32) * dtype.itemsize  # the output and the gradient of x
    assert peak_bytes(train, None) > 2 * hidden
    assert peak_bytes(train, 64) <= results + hidden // 2
    assert peak_bytes(infer, None) > hidden
    assert peak_bytes(infer, 64) <= (1 << 13) * 24 * dtype.itemsize + hidden // 2


def test_peak_bytes_counts_what_is_alive_at_once():
    x, size = torch.randn(1 << 10), 1 << 12

    def in_turn():
        a, b = torch.empty(1 << 10), torch.empty(1 << 10)
        del a
        return b, torch.empty(1 << 10)

    assert peak_bytes(in_turn) == 2 * size
    assert peak_bytes(torch.exp, x, out=torch.empty(1 << 10)) == 0
    assert peak_bytes(lambda: torch.exp(x).neg_()) == size
    assert peak_bytes(gelu_ext.bias_gelu, x.view(4, -1)) == size  # allocated in C++
    assert peak_bytes(nn.Linear(4, 6), torch.randn(8, 4)) == 8 * 6 * 4
    x.requires_grad_()
    assert peak_bytes(lambda: x.exp().exp().sum().backward()) >= 3 * size
    assert peak_bytes(lambda: None) == 0


def test_auto_depends_on_shapes_only():
    x = torch.empty(2, 8, 100, 16)
    assert rows_of_a_tile("auto", x, 64) == 534  # 1600 rows in three tiles, none smaller than 512
    assert rows_of_a_tile("auto", x[0, :1], 64) == 100
    assert rows_of_a_tile("auto", x[:0], 64) == 1
    assert rows_of_a_tile("auto", torch.empty(1 << 20, 4, device="meta", dtype=torch.bfloat16), 16384) == 8192
    assert rows_of_a_tile(7, x, 64) == 7


# --- surroundings (those of tests/test_surroundings.py run in tiles too) ----------------------------------------------


@both
@every_kind
def test_autocast(kind, recompute, device):
    tensors = inputs(kind, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        found, wanted = fused(kind, tensors, 4, recompute), fused(kind, tensors, None)
    assert found.dtype == torch.bfloat16
    assert_agree(results(found, tensors), results(wanted, tensors), 5e-2)


@every_kind
def test_checkpoint_outside_and_inside(kind):
    tensors = inputs(kind, torch.float64)
    wanted = results(fused(kind, tensors, None), tensors)
    for reentrant in (False, True):
        leaves = [leaf(t.detach()) for t in tensors]
        out = checkpoint(lambda *ts: fused(kind, ts, 4), *leaves, use_reentrant=reentrant)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
        assert_agree([out.detach(), *(t.grad for t in leaves)], wanted)


@every_kind
def test_a_change_of_the_input_before_the_backward_is_noticed(kind):
    tensors = inputs(kind, torch.float64)
    x = tensors[0] * 1
    out = fused(kind, [x, *tensors[1:]], 4)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@both
@every_kind
def test_a_compiled_graph_takes_all_rows(kind, recompute):
    tensors = inputs(kind, torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(lambda *ts: fused(kind, ts, 4, recompute), fullgraph=True, backend="aot_eager")
    assert_agree(results(compiled(*tensors), tensors), results(fused(kind, tensors, None), tensors))


@every_kind
def test_transforms_take_all_rows(kind):
    tensors = [t.detach() for t in inputs(kind, torch.float64)]
    found = torch.func.grad(lambda *ts: fused(kind, ts, 4).sum(), tuple(range(len(tensors))))(*tensors)
    leaves = [leaf(t) for t in tensors]
    assert_agree(found, torch.autograd.grad(fused(kind, leaves, None).sum(), leaves))
    mapped = torch.func.vmap(lambda x: fused(kind, [x, *tensors[1:]], 2))(tensors[0])
    torch.testing.assert_close(mapped, fused(kind, tensors, None))


def test_fully_sharded_and_resharded_after_the_forward(mesh):
    from torch.distributed.fsdp import fully_shard

    for recompute in (True, False):
        plain = MLP(C, H, tile_rows=2, recompute=recompute)
        sharded = fully_shard(copy.deepcopy(plain), mesh=mesh, reshard_after_forward=True)
        x = torch.randn(5, C)
        for module in (plain, sharded):
            module(x).square().sum().backward()
        for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad.full_tensor())
    parallel = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
    plain.zero_grad()
    for module in (plain, parallel):
        module(x).square().sum().backward()
    assert_agree([p.grad for p in parallel.parameters()], [p.grad for p in plain.parameters()], 1e-6)
    distributed_tensors(mesh)


def distributed_tensors(mesh):
    """They take all rows at once."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    tensors = inputs("mlp", torch.float64)
    sharded = [leaf(distribute_tensor(t.detach(), mesh, [Replicate()])) for t in tensors]
    found = fused("mlp", sharded, 2)
    torch.testing.assert_close(found.full_tensor(), fused("mlp", tensors, None))
    found.sum().backward()
    wanted = torch.autograd.grad(fused("mlp", tensors, None).sum(), tensors)
    assert_agree([t.grad.full_tensor() for t in sharded], wanted)


# --- modules, patch ---------------------------------------------------------------------------------------------------


def test_modules():
    x = torch.randn(5, C)
    for kind, options in ((MLP, {}), (MLP, {"activation": "silu"}), (GLUMLP, {"activation": "silu"}), (GEGLUMLP, {})):
        for tile_rows in (2, "auto"):
            module = kind(C, H, D, tile_rows=tile_rows, **options)
            assert f"recompute=True, tile_rows={tile_rows!r}" in repr(module)
            plain = kind(C, H, D, **options)
            plain.load_state_dict(module.state_dict())
            torch.testing.assert_close(module(x), plain(x))
            assert saved_bytes(module, x) < saved_bytes(plain, x)


def test_patch():
    model = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Linear(H, C)).double()
    x = leaf(torch.randn(9, C, dtype=torch.float64))
    wanted = results(model(x), [x, *model.parameters()])
    for recompute, tile_rows in itertools.product((True, False), (4, "auto")):
        with patched(model, recompute=recompute, tile_rows=tile_rows) as report:
            (row,) = report.fused
            assert (row.op, row.note) == ("mlp", "runs in tiles") and "runs in tiles" in str(report)
            assert row.bytes_after == C * 8 + (0 if recompute else H * 8)
            assert_agree(results(model(x), [x, *model.parameters()]), wanted)
            if tile_rows == 4:
                pieces = copy.deepcopy(model)
                assert_agree(results(pieces(x), [x, *pieces.parameters()]), wanted)
    with_dropout = nn.Sequential(nn.Linear(C, H), nn.GELU(), nn.Dropout(0.1), nn.Linear(H, C))
    assert patch(with_dropout, tile_rows=4).fused[0].note == "runs in tiles where no dropout is active"
    assert (
        patch(with_dropout, recompute=True, tile_rows=4).fused[0].note
        == "recomputes and runs in tiles where no dropout is active"
    )


@pytest.mark.parametrize(
    ("tile_rows", "error"),
    [(0, ValueError), (-1, ValueError), ("all", ValueError), (True, TypeError), (2.0, TypeError)],
)
def test_tile_rows_that_are_none(tile_rows, error):
    x, w = torch.randn(4, 8), torch.randn(8, 8)
    options = {"tile_rows": tile_rows}
    calls = {
        "mlp": lambda: mlp(x, w, None, w, None, **options),
        "glu_mlp": lambda: glu_mlp(x, w, None, w[:, :4], None, activation="silu", **options),
        "geglu_mlp": lambda: gelu_ext.geglu_mlp(x, w, None, w[:, :4], None, **options),
        "act_mul_mlp": lambda: act_mul_mlp(x, w, None, w, None, w, None, activation="silu", **options),
        "gelu_mul_mlp": lambda: gelu_ext.gelu_mul_mlp(x, w, None, w, None, w, None, **options),
        "MLP": lambda: MLP(8, 8, **options),
        "GLUMLP": lambda: GLUMLP(8, 8, activation="silu", **options),
        "GEGLUMLP": lambda: GEGLUMLP(8, 8, **options),
        "patch": lambda: patch(nn.GELU(), **options),
    }
    for name, call in calls.items():
        with pytest.raises(error) as caught:
            call()
        expected = f"{name}: expected tile_rows to be None, 'auto' or an int above 0, got {tile_rows!r}"
        assert str(caught.value) == expected
