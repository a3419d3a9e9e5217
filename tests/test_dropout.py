"""Dropout in the pass: which elements are dropped, from Philox as its authors define it, and all that replays it."""

from __future__ import annotations

import contextlib
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import EXACT_CALLS, Bound, assert_within, randn
from torch import nn

import gelu_ext
from gelu_ext import _dropout, _native, patch
from gelu_ext._operations import OPERATIONS
from gelu_ext.memory import saved_bytes

CALLS = [call for call in EXACT_CALLS if OPERATIONS[call.operator].drops]
every_call = pytest.mark.parametrize("call", CALLS, ids=str)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox 4x32-10 of counters ``[n, 4]`` of 32 bits (Salmon, Moraes, Dror and Shaw, SC 2011, section 4.2)."""
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & low
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], -1)


def numbers(seed: torch.Tensor, count: int) -> np.ndarray:
    """The number of 16 bits of each element."""
    key, first = (int(n) & (2**64 - 1) for n in seed)
    counters = [(first + block) & (2**64 - 1) for block in range(-(-count // 8))]
    words = philox(np.array([[c & 0xFFFFFFFF, c >> 32, 0, 0] for c in counters]), (key & 0xFFFFFFFF, key >> 32))
    return np.stack([words & np.uint64(0xFFFF), words >> np.uint64(16)], -1).reshape(-1)[:count].astype(np.int64)


def factors(seed: torch.Tensor, p: float, shape: tuple[int, ...]) -> torch.Tensor:
    kept = torch.from_numpy(numbers(seed, math.prod(shape)) + 0.5 < (1 - p) * 2**16)
    return kept.reshape(shape).double() / (1 - p)


def drawn(seed: int) -> torch.Tensor:
    """The two integers of a call right after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    return torch.randint(2**63 - 1, (2,))


def with_dropout(call, x, other, p, **more):
    return getattr(gelu_ext, call.op)(x, other, **call.options, dropout_p=p, **more)


def mask(count: int, p: float, **more) -> torch.Tensor:
    """1 where an element is kept."""
    return gelu_ext.bias_act(torch.ones(count), activation="identity", dropout_p=p, **more) != 0


# --- the numbers ------------------------------------------------------------------------------------------------------


def test_philox_of_the_tests_gives_the_published_vectors():
    """Those of Random123, kat_vectors: philox4x32 10."""
    ones, pi = [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    for counter, key, expected in (
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (ones, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (pi, (0xA4093822, 0x299F31D0), [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]),
    ):
        assert philox(np.array([counter]), key)[0].tolist() == expected


SEEDS = [(0, 0), (0x299F31D0A4093822, 0x85A308D3243F6A88 - 2**64), (2**63 - 2, -3), (5, 2**32 - 3)]


@pytest.mark.parametrize("seed", SEEDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_kernels_and_composite_drop_by_these_numbers(instruction_set, seed, dtype):
    """At every size and place in a row, with counters whose halves overflow and p as small and as large as can be."""
    seed = torch.tensor(seed)
    for rows, cols in ((1, 1), (1, 2065), (3, 1024), (7, 13), (2, 20000), (129, 40)):
        x = torch.ones(rows, cols, dtype=dtype)
        for p in (0.1, 0.5, 2.0**-16, 1 - 2.0**-16):
            want = factors(seed, p, (rows, cols))
            got = torch.ops.gelu_ext.bias_act(x, None, "identity", p, seed)
            assert torch.equal(got.double(), want.to(dtype).double())
            assert torch.equal(_dropout.dropped(x, p, seed).double(), want.to(dtype).double())


@every_call
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradients_are_those_of_the_replayed_mask(instruction_set, call, dtype, threads):
    p = 0.3
    for shape in ((5, 24), (2, 3, 100), (300, 8), (4, 1500)):
        x = randn((*shape[:-1], call.width(shape[-1])), dtype)
        other, grad_out = call.other(x, dtype), randn(shape, dtype, seed=3)
        keep = factors(drawn(7), p, shape)
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(7)
            a, b = (t.clone().requires_grad_() for t in (x, other))
            out = with_dropout(call, a, b, p)
            results.append([out.detach(), *torch.autograd.grad(out, (a, b), grad_out)])
        assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
        out, *grads = results[0]
        large = call(x, other).abs() > 1e-3
        assert torch.equal((out == 0)[large], (keep == 0)[large])
        bound = call.forward_bound(x, other)
        spare = 4 * torch.finfo(dtype).eps if dtype != torch.float64 else 1e-15
        assert_within(out, scaled(bound, keep, spare), "value")
        for got, bound in zip(grads, call.backward_bounds(grad_out.double() * keep, x, other), strict=True):
            assert_within(got, scaled(bound, torch.tensor(1.0), spare), "gradient")


def scaled(bound, factor, spare):
    """A bound of what is multiplied by the factor, rounded once or twice more than before."""
    truth = bound.truth * factor
    return Bound(truth, bound.tolerance * factor.clamp(min=1) + spare * truth.abs().clamp(min=1e-4))


def test_layouts_do_not_matter():
    """The index is that in the result: of strided, transposed and broadcast inputs too."""
    seed, base = torch.tensor([3, 4]), torch.randn(6, 10, 32)
    want = factors(seed, 0.4, (6, 10, 32)) == 0
    for x in (base, base.repeat(1, 1, 2)[..., :32], base.transpose(0, 1).contiguous().transpose(0, 1), base.double()):
        got = torch.ops.gelu_ext.bias_act(x, None, "gelu", 0.4, seed)
        assert torch.equal(got == 0, want)


def test_special_values_are_multiplied_as_torch_multiplies_them():
    x = torch.tensor([math.inf, -math.inf, math.nan, -1.0]).repeat(200)
    torch.manual_seed(1)
    out = gelu_ext.bias_act(x, activation="identity", dropout_p=0.5)
    kept = factors(drawn(1), 0.5, (800,))
    assert torch.equal(out.isnan(), (x.double() * kept).isnan())
    assert torch.equal(out.nan_to_num(), (x.double() * kept).float().nan_to_num())


# --- how random they are ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_statistics(p):
    """Over 10^7 elements, each within 5 deviations: mean, chi-squared of counts, runs, correlations.

    (The variance is that of zeros and ones: it says what the mean says. That of counts of a hundred says more.)
    """
    torch.manual_seed(11)
    count = 10_000_000
    kept = mask(count, p).double()
    q, variance = 1 - p, p * (1 - p)
    assert abs(kept.mean() - q) < 5 * math.sqrt(variance / count)
    assert abs(kept.var() - variance) < 5 * abs(1 - 2 * p) * math.sqrt(variance / count) + 1e-6
    in_hundreds = kept.reshape(-1, 100).sum(1)
    chi = (in_hundreds - 100 * q).square().sum() / (100 * variance)
    assert abs(chi - len(in_hundreds)) < 5 * math.sqrt(2 * len(in_hundreds))
    runs = (kept[1:] != kept[:-1]).sum() + 1
    assert abs(runs - 2 * count * variance) < 5 * math.sqrt(2 * count * variance)
    centred = (kept - q) / math.sqrt(variance)
    other = (mask(count, p).double() - q) / math.sqrt(variance)  # of the next call
    for distance in (1, 2, 3, 7, 8, 9, 64, 1024, 4096):  # neighbours, blocks, rows
        assert abs((centred[distance:] * centred[:-distance]).mean()) < 5 / math.sqrt(count - distance)
        assert abs((centred[distance:] * other[:-distance]).mean()) < 5 / math.sqrt(count - distance)
    assert abs((centred * other).mean()) < 5 / math.sqrt(count)


def test_positions_in_a_block_are_alike():
    torch.manual_seed(12)
    kept = mask(8 * 400_000, 0.3).double().reshape(-1, 8)
    assert ((kept.mean(0) - 0.7).abs() < 5 * math.sqrt(0.21 / len(kept))).all()
    correlation = torch.corrcoef(kept.T) - torch.eye(8, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(len(kept))


# --- who draws them ---------------------------------------------------------------------------------------------------


def test_torchs_generator_draws():
    torch.manual_seed(5)
    first, second = mask(1000, 0.5), mask(1000, 0.5)
    assert not torch.equal(first, second)
    torch.manual_seed(5)
    assert torch.equal(mask(1000, 0.5), first) and torch.equal(mask(1000, 0.5), second)
    torch.manual_seed(5)
    with torch.random.fork_rng():
        mask(1000, 0.5)
    assert torch.equal(mask(1000, 0.5), first)
    state = torch.get_rng_state()
    mine = torch.Generator().manual_seed(5)
    assert torch.equal(mask(1000, 0.5, generator=mine), first) and torch.equal(torch.get_rng_state(), state)
    assert mask(1000, 0.5, training=False).all() and torch.equal(torch.get_rng_state(), state)
    assert mask(1000, 0.0).all() and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_replays_it(reentrant):
    x, bias = torch.randn(20, 64, requires_grad=True), torch.randn(64, requires_grad=True)

    def grads(run):
        torch.manual_seed(3)
        x.grad = bias.grad = None
        run().square().sum().backward()
        return x.grad, bias.grad

    def function(x, bias):
        return gelu_ext.bias_gelu(x, bias, dropout_p=0.4)

    again = grads(lambda: torch.utils.checkpoint.checkpoint(function, x, bias, use_reentrant=reentrant))
    assert all(torch.equal(a, b) for a, b in zip(again, grads(lambda: function(x, bias)), strict=True))


@every_call
def test_what_autograd_keeps_is_two_integers_more(call):
    x = randn((64, call.width(256)), torch.bfloat16).requires_grad_()
    other = call.other(x, torch.bfloat16).requires_grad_()
    without = saved_bytes(call, x, other)
    assert saved_bytes(lambda a, b: with_dropout(call, a, b, 0.2), x, other) == without + 16
    eager = saved_bytes(lambda a, b: F.dropout(call(a, b), 0.2), x, other)
    assert eager >= without + 64 * 256  # a mask


# --- derivatives and transforms ---------------------------------------------------------------------------------------


@every_call
def test_gradcheck_and_gradgradcheck(call):
    x = randn((3, call.width(5)), torch.float64).requires_grad_()
    other = call.other(x, torch.float64).requires_grad_()

    def function(x, other):
        torch.manual_seed(2)
        return with_dropout(call, x, other, 0.4)

    assert torch.autograd.gradcheck(function, (x, other))
    assert torch.autograd.gradgradcheck(function, (x, other))


@every_call
def test_transforms_replay_it(call):
    x = randn((6, call.width(20)), torch.float64)
    other = call.other(x, torch.float64)

    def loss(x, other):
        torch.manual_seed(4)
        return with_dropout(call, x, other, 0.3).square().sum()

    a, b = x.clone().requires_grad_(), other.clone().requires_grad_()
    wanted = torch.autograd.grad(loss(a, b), (a, b))
    found = torch.func.grad(loss, (0, 1))(x, other)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_vmap_asks_how_to_draw_as_torchs_dropout_does():
    x = torch.ones(50, 400)

    def function(x):
        return gelu_ext.bias_act(x, activation="identity", dropout_p=0.5)

    with pytest.raises(RuntimeError, match="randomness"):
        torch.vmap(function)(x)
    same = torch.vmap(function, randomness="same")(x)
    assert torch.equal(same, same[:1].expand(50, -1)) and (same == 0).any() and (same == 2).any()
    different = torch.vmap(function, randomness="different")(x)
    assert len({tuple(row.tolist()) for row in different}) == 50


def test_compiled_graphs_draw_anew_and_replay():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: gelu_ext.bias_act(x, activation="identity", dropout_p=0.5), fullgraph=True)
    x, grad_out = torch.ones(40, 50, requires_grad=True), torch.randn(40, 50)
    first, second = compiled(x), compiled(x)
    assert not torch.equal(first, second) and 0.4 < (first == 0).float().mean() < 0.6
    (grad,) = torch.autograd.grad(first, x, grad_out)
    assert torch.equal(grad, grad_out * first)  # which is the factor, of ones


def test_a_compiled_mlp_replays_its_dropout():
    torch._dynamo.reset()
    torch.manual_seed(0)
    module = gelu_ext.MLP(16, 32, dropout_p=0.5, dtype=torch.float64)
    x = torch.randn(6, 16, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for model in (module, compiled):
        torch.manual_seed(1)
        module.zero_grad()
        out = model(x)
        out.square().sum().backward()
        grad, value = module.fc1.weight.grad.clone(), out.detach()
        if model is module:
            wanted = grad, value
    torch.testing.assert_close((grad, value), wanted)


@every_call
def test_decompositions_replay_it(call):
    x = randn((6, call.width(20)), torch.float32)
    args = (*call.arguments(x, call.other(x, torch.float32)), 0.4, torch.tensor([8, 9]))
    operator = getattr(torch.ops.gelu_ext, call.operator).default
    replayed = gelu_ext.decompositions()[operator](*args)
    torch.testing.assert_close(replayed, operator(*args), rtol=1e-5, atol=1e-5)


def test_who_overrides_functions_sees_what_was_called():
    seen = []

    class Mine(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append((func, kwargs))
            return super().__torch_function__(func, types, args, kwargs or {})

    out = gelu_ext.swiglu(torch.randn(4, 8).as_subclass(Mine), dropout_p=0.5, training=True)
    assert type(out) is Mine and out.shape == (4, 4)
    assert seen[0][0] is gelu_ext.swiglu and seen[0][1]["dropout_p"] == 0.5


@pytest.mark.parametrize("of", ["mode", "class"])
@pytest.mark.parametrize("tile_rows", [None, 8])
@pytest.mark.parametrize("grad", [False, True])
def test_what_overrides_functions_takes_no_dropout_away(of, tile_rows, grad):
    """A default device is a mode. MLPs and patch() draw the numbers before they call an operation."""

    class Plain(torch.Tensor):
        pass

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return super().__torch_function__(func, types, args, kwargs or {})

    kinds = (torch.Tensor, Plain, Watching) if of == "class" else (torch.Tensor,)
    w1, w2 = torch.randn(32, 16, requires_grad=grad), torch.eye(32).requires_grad_(grad)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.5), nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        model[3].weight.copy_(w2)
    model.requires_grad_(grad)
    with torch.device("cpu") if of == "mode" else contextlib.nullcontext():
        assert patch(model, dropout=True, tile_rows=tile_rows).fused
        for kind in kinds:
            x = torch.randn(64, 16).as_subclass(kind)
            torch.manual_seed(3)
            dropped = gelu_ext.mlp(x, w1, None, w2, None, activation="sigmoid", dropout_p=0.5, tile_rows=tile_rows)
            wanted = factors(drawn(3), 0.5, (64, 32)) == 0
            assert torch.equal(dropped.detach().as_subclass(torch.Tensor) == 0, wanted)
            assert 0.4 < (model(x) == 0).float().mean() < 0.6


def test_dtensor_drops_by_its_own_rules(mesh):
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    x = distribute_tensor(torch.ones(40, 64), mesh, [Shard(0)])
    out = gelu_ext.bias_act(x, activation="identity", dropout_p=0.5)
    assert isinstance(out, DTensor) and out.placements == (Shard(0),)
    assert set(out.full_tensor().unique().tolist()) == {0.0, 2.0}
    w1, w2 = (distribute_tensor(torch.randn(64, 64), mesh, [Shard(0)]) for _ in range(2))
    assert isinstance(gelu_ext.mlp(x, w1, None, w2, None, dropout_p=0.5), DTensor)


# --- MLPs -------------------------------------------------------------------------------------------------------------

MLPS = {
    "mlp": (1, {}),
    "glu_mlp": (2, {"activation": "silu", "activated": "first"}),
    "geglu_mlp": (2, {}),
}


@pytest.mark.parametrize("name", [*MLPS, "act_mul_mlp"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_an_mlp_drops_the_same_with_recompute_and_in_tiles(name, dtype):
    hidden, p = 12, 0.4  # no multiple of a block
    halves, options = MLPS.get(name, (1, {"activation": "relu2"}))
    x = randn((3, 9, 16), dtype).requires_grad_()
    first = [
        t.requires_grad_() for i in range(2 if name == "act_mul_mlp" else 1)
        for t in (randn((halves * hidden, 16), dtype, seed=i), randn((halves * hidden,), dtype, seed=i + 5))
    ]  # fmt: skip
    w2, b2 = randn((16, hidden), dtype, seed=9).requires_grad_(), randn((16,), dtype, seed=10).requires_grad_()
    inputs = [x, *first, w2, b2]

    def run(**settings):
        torch.manual_seed(6)
        out = getattr(gelu_ext, name)(*inputs, **options, dropout_p=p, **settings)
        return [out.detach(), *torch.autograd.grad(out.float().square().sum(), inputs)]

    wanted = run(recompute=False)
    assert all(torch.equal(a, b) for a, b in zip(run(), wanted, strict=True))
    for settings in ({"tile_rows": 8}, {"tile_rows": 5}, {"tile_rows": 8, "recompute": False}):
        for got, want in zip(run(**settings), wanted, strict=True):
            allowed = 2e-2 if dtype == torch.bfloat16 else 1e-5
            assert (got - want).abs().max() <= allowed * want.abs().max()
    if name == "mlp":  # and the mask is that of the function alone
        torch.manual_seed(6)
        h = gelu_ext.bias_gelu(F.linear(x, first[0]), first[1], dropout_p=p)
        torch.testing.assert_close(F.linear(h, w2, b2), wanted[0])


MODULES = {
    gelu_ext.BiasGELU: {"features": 16},
    gelu_ext.BiasAct: {"activation": "silu"},
    gelu_ext.GEGLU: {"features": 16},
    gelu_ext.GLU: {"features": 16, "activation": "silu"},
    gelu_ext.MLP: {"in_features": 16, "hidden_features": 32},
    gelu_ext.GLUMLP: {"in_features": 16, "hidden_features": 32, "activation": "silu"},
    gelu_ext.GEGLUMLP: {"in_features": 16, "hidden_features": 32},
}


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_modules_drop_in_training_mode_only(kind):
    x, module = torch.randn(30, 16), kind(**MODULES[kind], dropout_p=0.5)
    assert "dropout_p=0.5" in repr(module) and "dropout_p" not in repr(kind(**MODULES[kind]))
    assert not torch.equal(module(x), module(x))
    assert torch.equal(module.eval()(x), module(x))
    with pytest.raises(ValueError, match=rf"{kind.__name__}: expected dropout_p to be at least 0 and below 1, got 1.0"):
        kind(**MODULES[kind], dropout_p=1.0)


# --- patch() ----------------------------------------------------------------------------------------------------------


class Gated(nn.Module):
    """As T5's."""

    def __init__(self, p):
        super().__init__()
        self.wi_0, self.wi_1, self.wo = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)
        self.dropout, self.act = nn.Dropout(p), nn.GELU()

    def forward(self, x):
        return self.wo(self.dropout(self.act(self.wi_0(x)) * self.wi_1(x)))


class Packed(nn.Module):
    """As ModernBERT's, and what follows the dropout is no Linear."""

    def __init__(self, p):
        super().__init__()
        self.Wi, self.drop, self.act, self.norm = nn.Linear(16, 64), nn.Dropout(p), nn.GELU(), nn.LayerNorm(32)

    def forward(self, x):
        a, b = self.Wi(x).chunk(2, -1)
        return self.norm(self.drop(self.act(a) * b))


BLOCKS = {
    "sequential": lambda p: nn.Sequential(
        nn.Linear(16, 32), nn.GELU("tanh"), nn.Dropout(p), nn.Identity(), nn.Linear(32, 16)
    ),
    "gated": Gated,
    "packed": Packed,
}


@pytest.mark.parametrize("recompute", [False, True], ids=["", "recompute"])
@pytest.mark.parametrize("name", BLOCKS)
def test_patch_takes_a_blocks_dropout_into_the_pass(name, recompute):
    block, x = BLOCKS[name](0.5), torch.randn(2, 5, 16)
    drop = next(module for module in block.modules() if isinstance(module, nn.Dropout))
    torch.manual_seed(1)
    wanted, quiet = block(x), block.eval()(x)
    left = patch(block.train(), recompute=recompute)
    torch.manual_seed(1)
    torch.testing.assert_close(block(x), wanted)  # torch's own dropout, unless it is asked for
    (row,) = patch(block, dropout=True, recompute=recompute).fused
    assert "drops in the pass" in row.note and row.bytes_after < left.fused[0].bytes_after
    counted, forward = Counter(), F.dropout
    try:
        torch.nn.functional.dropout = lambda *args, **kwargs: counted.update(["dropout"]) or forward(*args, **kwargs)
        block(x)
    finally:
        torch.nn.functional.dropout = forward
    assert counted["dropout"] == 1  # who replaces F.dropout gets the block's own forward
    outs = torch.stack([block(x).detach() for _ in range(4000)])
    assert not torch.equal(outs[0], outs[1])
    if name != "packed":  # linear behind the dropout: the mean is that without
        spread = outs.std(0) / math.sqrt(len(outs))
        assert ((outs.mean(0) - quiet).abs() <= 6 * spread + 1e-5).all()
    torch.testing.assert_close(block.eval()(x), quiet)
    block.train()
    drop.p = 0.0
    torch.testing.assert_close(block(x), quiet)
    drop.p = 1.0
    assert block(x).isfinite().all()
    drop.p = 0.25
    assert not torch.equal(block(x), block(x))
    block.zero_grad()
    block(x).square().sum().backward()
    assert all(p.grad is not None for p in block.parameters())


def test_patch_takes_the_dropout_of_an_encoder_layer():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.3, activation=F.gelu, batch_first=True)
    (row,) = patch(layer, dropout=True, recompute=True).fused
    assert row.block.endswith("_ff_block") and row.note == "drops in the pass" and row.op == "mlp"
    layer(torch.randn(2, 5, 16)).square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    with pytest.raises(TypeError, match="patch: expected dropout to be a bool, got 'yes'"):
        patch(layer, dropout="yes")


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["bias_gelu", "geglu", "gelu_mul", "mlp"])
@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"dropout_p": 1.0}, ValueError, "expected dropout_p to be at least 0 and below 1, got 1.0"),
        ({"dropout_p": -0.1}, ValueError, "expected dropout_p to be at least 0 and below 1, got -0.1"),
        ({"dropout_p": math.nan}, ValueError, "expected dropout_p to be at least 0 and below 1, got nan"),
        ({"dropout_p": "0.1"}, TypeError, "expected dropout_p to be a number, got str"),
        ({"dropout_p": None}, TypeError, "expected dropout_p to be a number, got NoneType"),
        ({"dropout_p": 0.1, "training": 1}, TypeError, "expected training to be a bool, got 1"),
        ({"dropout_p": 0.1, "generator": 5}, TypeError, "expected generator to be a torch.Generator, got int"),
    ],
)
def test_bad_input_gets_a_sentence(function, options, error, words):
    x = torch.randn(4, 8)
    args = {"bias_gelu": (x,), "geglu": (x,), "gelu_mul": (x, x), "mlp": (x, x, None, torch.randn(3, 4), None)}
    state = torch.get_rng_state()
    with pytest.raises(error) as caught:
        getattr(gelu_ext, function)(*args[function], **options)
    assert str(caught.value) == f"{function}: {words}"
    assert torch.equal(torch.get_rng_state(), state)


def test_the_operators_check_what_they_are_given():
    x = torch.randn(4, 8)
    for p, philox, error, words in (
        (0.5, None, ValueError, "expected philox to be a Tensor where dropout_p is not 0, got None"),
        (0.5, torch.zeros(2), TypeError, "expected philox of dtype int64, got float32"),
        (0.5, torch.zeros(3, dtype=torch.int64), ValueError, "expected philox of shape [2], contiguous, got [3]"),
        (
            1.5,
            torch.zeros(2, dtype=torch.int64),
            ValueError,
            "expected dropout_p to be at least 0 and below 1, got 1.5",
        ),
    ):
        with pytest.raises(error) as caught:
            torch.ops.gelu_ext.bias_act(x, None, "gelu", p, philox)
        assert str(caught.value).splitlines()[0] == f"bias_act: {words}"
        with pytest.raises(error):
            _native.bias_act_backward(x, x, None, "gelu", [True, False], p, philox)
