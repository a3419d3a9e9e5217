"""The MLP as one autograd node: right to float64's truth, exact with and without recompute, and half the bytes."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from reference import ACTIVATIONS, DTYPES, TRUTHS, every_activation, every_form, leaf, randn, same_bits
from torch import nn
from torch.utils.checkpoint import checkpoint

import gelu_ext
from gelu_ext import GEGLUMLP, GELU, GLUMLP, MLP, act_mul_mlp, geglu_mlp, gelu_mul_mlp, glu_mlp, mlp
from gelu_ext._activations import GELUS
from gelu_ext.memory import saved_bytes

pytestmark = pytest.mark.usefixtures("one_thread_one_seed")

C, H, D = 12, 20, 7
KINDS = ["mlp", "second", "first", "two"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def inputs(kind, dtype, device="cpu", bias=True, rows=(3, 5)):
    """x, first Linear(s), second Linear, as leaves."""
    packed = 2 * H if kind in ("first", "second") else H
    shapes = [(*rows, C), (packed, C), (packed,)] + ([(H, C), (H,)] if kind == "two" else []) + [(D, H), (D,)]
    tensors = [leaf(randn(shape, dtype, device)) for shape in shapes]
    return [t if bias or len(t.shape) > 1 else None for t in tensors]


def fused(kind, tensors, activation="gelu", recompute=True):
    if kind == "mlp":
        return mlp(*tensors, activation=activation, recompute=recompute)
    if kind == "two":
        return act_mul_mlp(*tensors, activation=activation, recompute=recompute)
    return glu_mlp(*tensors, activation=activation, activated=kind, recompute=recompute)


def truth(kind, tensors, activation="gelu"):
    """In plain operations, of the tensors' dtype."""
    return written_out(kind, tensors, TRUTHS[activation].value)


def written_out(kind, tensors, act):
    x, *first, w2, b2 = tensors
    h = F.linear(x, first[0], first[1])
    if kind == "mlp":
        return F.linear(act(h), w2, b2)
    a, b = (h, F.linear(x, first[2], first[3])) if kind == "two" else h.chunk(2, -1)
    return F.linear(a * act(b) if kind == "second" else act(a) * b, w2, b2)


def results(out, tensors, seed=0):
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(out)
    return [out.detach(), *torch.autograd.grad(out, [t for t in tensors if t is not None], grad)]


@every_activation
@every_kind
def test_values_and_gradients_are_right(kind, activation, device):
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)):
        for bias in (True, False):
            tensors = inputs(kind, dtype, device, bias)
            exact = [t if t is None else leaf(t.detach().double()) for t in tensors]
            out, expected = fused(kind, tensors, activation), truth(kind, exact, activation)
            grads = zip(results(out, tensors), results(expected, exact), strict=True)
            for i, (found, wanted) in enumerate(grads):
                assert found.dtype == dtype
                if i and activation == "relu" and dtype is torch.bfloat16:
                    continue  # its slope jumps where the rounding of a pre-activation decides
                assert (found.double() - wanted).abs().max() <= bound * wanted.abs().max()


@every_kind
def test_recompute_changes_no_bit(kind, device):
    for activation, dtype in itertools.product(ACTIVATIONS, DTYPES):
        tensors = inputs(kind, dtype, device)
        with_it, without = (results(fused(kind, tensors, activation, flag), tensors) for flag in (True, False))
        assert all(map(same_bits, with_it, without))


@every_form
def test_gelus_functions_are_these_with_gelu(form):
    x, w1, b1, w2, b2 = inputs("mlp", torch.float32)
    packed, two = inputs("first", torch.float32), inputs("two", torch.float32)
    for ours, general in (
        (mlp(x, w1, b1, w2, b2, approximate=form), fused("mlp", [x, w1, b1, w2, b2], GELUS[form])),
        (geglu_mlp(*packed, approximate=form), fused("second", packed, GELUS[form])),
        (gelu_mul_mlp(*two, approximate=form), fused("two", two, GELUS[form])),
        (geglu_mlp(*packed, approximate=form, activated="first"), fused("first", packed, GELUS[form])),
    ):
        assert torch.equal(ours, general)


@every_kind
def test_first_and_second_derivatives(kind):
    tensors = inputs(kind, torch.float64, rows=(2,))
    for recompute in (True, False):

        def call(*ts, recompute=recompute):
            return fused(kind, ts, "gelu_tanh", recompute)

        assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@every_kind
def test_computes_only_the_gradients_that_are_needed(kind):
    tensors = inputs(kind, torch.float64)
    wanted = results(fused(kind, tensors), tensors)[1:]
    for i, t in enumerate(tensors):
        alone = [other.detach() for other in tensors]
        alone[i] = leaf(t.detach())
        (grad,) = results(fused(kind, alone), [alone[i]])[1:]
        assert torch.equal(grad, wanted[i])


@every_kind
def test_no_node_where_nothing_needs_a_gradient(kind):
    tensors = inputs(kind, torch.float32)
    with torch.no_grad():
        out = fused(kind, tensors)
    assert out.grad_fn is None
    assert torch.equal(out, fused(kind, tensors).detach())
    with torch.inference_mode():
        assert torch.equal(out, fused(kind, tensors))


@every_kind
def test_is_one_node(kind):
    tensors = inputs(kind, torch.float32)
    out = fused(kind, tensors)  # alive: torch 2.11 frees what a node knows with it
    node = out.grad_fn
    accumulate = [f for f, _ in node.next_functions if f is not None]
    assert {type(f).__name__ for f in accumulate} == {"AccumulateGrad"} and len(accumulate) == len(tensors)


def eager(kind, tensors, activation="gelu"):
    return written_out(kind, tensors, gelu_ext.activations()[activation].eager)


@pytest.mark.parametrize("activation", ["gelu", "silu"])
@every_kind
def test_bytes_kept_per_hidden_element(kind, activation, device):
    """In bfloat16, beyond the input and the weights (and a copy of the biases): 2 for 4, and 4 for 8 with a GLU."""
    tensors = inputs(kind, torch.bfloat16, device, rows=(64,))
    elements = 64 * H
    per_element = {
        name: saved_bytes(function, exclude=tensors) // elements
        for name, function in (
            ("recompute", lambda: fused(kind, tensors, activation)),
            ("keep", lambda: fused(kind, tensors, activation, recompute=False)),
            ("eager", lambda: eager(kind, tensors, activation)),
        )
    }
    expected = {"recompute": 2, "keep": 4, "eager": 4} if kind == "mlp" else {"recompute": 4, "keep": 6, "eager": 8}
    assert per_element == expected


@every_kind
def test_bytes_kept_by_a_compiled_graph(kind):
    """The compiler must not merge the recomputed activation with the forward's."""
    tensors = inputs(kind, torch.float32, rows=(16,))
    torch._dynamo.reset()
    compiled = torch.compile(lambda *ts: fused(kind, ts), fullgraph=True, backend="aot_eager_decomp_partition")
    wanted = results(fused(kind, tensors), tensors)
    found = results(compiled(*tensors), tensors)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    kept = saved_bytes(compiled, *tensors, exclude=tensors) / (16 * H)
    assert kept == (4 if kind == "mlp" else 8)


@every_kind
def test_recompute_writes_over_no_saved_tensor(kind):
    """Its backward reuses memory: what it kept, and a second backward, must not see that."""
    tensors = inputs(kind, torch.float32, rows=(2, 5))
    out = fused(kind, tensors)
    wanted = torch.autograd.grad(out.square().sum(), tensors, retain_graph=True)
    again = torch.autograd.grad(out.square().sum(), tensors, retain_graph=True)
    plain = torch.autograd.grad(fused(kind, tensors, recompute=False).square().sum(), tensors)
    for a, b, c in zip(wanted, again, plain, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


@every_kind
def test_checkpointing(kind):
    tensors = inputs(kind, torch.float64)
    wanted = results(fused(kind, tensors), tensors)
    for reentrant in (False, True):
        out = checkpoint(lambda *ts: fused(kind, ts), *tensors, use_reentrant=reentrant)
        if reentrant:
            out.backward(torch.ones_like(out))
            continue
        assert all(torch.equal(a, b) for a, b in zip(results(out, tensors), wanted, strict=True))


@every_kind
def test_autocast_is_that_of_linear(kind, device):
    tensors = inputs(kind, torch.float32, device)
    with torch.autocast(device, dtype=torch.bfloat16):
        out, reference = fused(kind, tensors), eager(kind, tensors)
        with torch.no_grad():
            assert fused(kind, tensors).dtype == torch.bfloat16
    assert out.dtype == reference.dtype == torch.bfloat16
    for found, wanted in zip(results(out, tensors), results(reference, tensors), strict=True):
        assert found.dtype == wanted.dtype
        assert (found - wanted).abs().max() <= 5e-2 * wanted.abs().max()
    doubles = [t.detach().double() for t in tensors]
    with torch.autocast(device, dtype=torch.bfloat16):
        assert fused(kind, [leaf(t) for t in doubles]).dtype == torch.float64


@every_kind
def test_transforms(kind):
    tensors = [t.detach() for t in inputs(kind, torch.float64)]
    leaves = [leaf(t) for t in tensors]
    out = fused(kind, leaves)
    wanted = torch.autograd.grad(out.sum(), leaves)
    found = torch.func.grad(lambda *ts: fused(kind, ts).sum(), tuple(range(len(tensors))))(*tensors)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(torch.func.vmap(lambda x: fused(kind, [x, *tensors[1:]]))(tensors[0]), out.detach())


def test_awkward_gradients_and_inputs():
    for kind in KINDS:
        tensors = inputs(kind, torch.float64)
        (grad,) = torch.autograd.grad(fused(kind, tensors).sum(), tensors[1])  # an expanded gradient
        (wanted,) = torch.autograd.grad(truth(kind, tensors).sum(), tensors[1])
        torch.testing.assert_close(grad, wanted)
        x = leaf(torch.randn(C, 4, dtype=torch.float64)).t()
        torch.testing.assert_close(fused(kind, [x, *tensors[1:]]), truth(kind, [x, *tensors[1:]]))
        vector, empty = leaf(torch.randn(C, dtype=torch.float64)), leaf(torch.randn(0, C, dtype=torch.float64))
        assert fused(kind, [vector, *tensors[1:]]).shape == (D,)
        out = fused(kind, [empty, *tensors[1:]])
        out.sum().backward()
        assert out.shape == (0, D) and not tensors[1].grad.any()


def test_float32_bias_beside_half_precision():
    x, w1, b1, w2, b2 = inputs("mlp", torch.bfloat16)
    b1 = leaf(b1.detach().float())
    mlp(x, w1, b1, w2, b2).sum().backward()
    assert b1.grad.dtype == torch.float32


def test_errors_say_what_was_expected():
    x, w1, b1, w2, b2 = (t.detach() for t in inputs("mlp", torch.float32))
    meta = torch.empty(H, C, device="meta")
    for error, words, call in [
        (TypeError, "mlp: expected x to be a Tensor, got int", lambda: mlp(1, w1, b1, w2, b2)),
        (
            TypeError,
            "mlp: expected x of dtype float64, float32, float16 or bfloat16",
            lambda: mlp(x.int(), w1, b1, w2, b2),
        ),
        (ValueError, "mlp: expected x of at least 1 dimension, got a scalar", lambda: mlp(x[0, 0, 0], w1, b1, w2, b2)),
        (ValueError, rf"mlp: expected w1 of shape \[any, {C}\], got \[{D}, {H}\]", lambda: mlp(x, w2, b1, w2, b2)),
        (ValueError, rf"mlp: expected b1 of shape \[{H}\], got \[{D}\]", lambda: mlp(x, w1, b2, w2, b2)),
        (ValueError, rf"mlp: expected w2 of shape \[any, {H}\], got \[{H}, {C}\]", lambda: mlp(x, w1, b1, w1, b2)),
        (ValueError, rf"mlp: expected b2 of shape \[{D}\], got \[{H}\]", lambda: mlp(x, w1, b1, w2, b1)),
        (TypeError, "mlp: expected w1 of the dtype of x, torch.float32, got", lambda: mlp(x, w1.half(), b1, w2, b2)),
        (RuntimeError, "mlp: expected w1 on device cpu, got meta", lambda: mlp(x, meta, b1, w2, b2)),
        (
            ValueError,
            "mlp: expected approximate to be one of 'none', ",
            lambda: mlp(x, w1, b1, w2, b2, approximate="erf"),
        ),
        (
            ValueError,
            "geglu_mlp: expected activated to be 'first' or 'second', got 'third'",
            lambda: geglu_mlp(x, w1, b1, w2, b2, activated="third"),
        ),
        (ValueError, "geglu_mlp: expected w1 with an even number of rows", lambda: geglu_mlp(x, w1[1:], None, w2, b2)),
        (ValueError, "gelu_mul_mlp: expected w_linear of shape", lambda: gelu_mul_mlp(x, w1, b1, w2, b2, w2, b2)),
        (
            ValueError,
            "GELU: expected approximate to be one of 'none', 'tanh', 'sigmoid', got 'erf'",
            lambda: GELU("erf"),
        ),
    ]:
        with pytest.raises(error, match=words):
            call()


@pytest.mark.parametrize(
    ("module", "kind", "activation"),
    [
        (MLP(C, H, D), "mlp", "gelu"),
        (MLP(C, H, D, activation="silu"), "mlp", "silu"),
        (GEGLUMLP(C, H, D, activated="first", approximate="tanh"), "first", "gelu_tanh"),
        (GLUMLP(C, H, D, activation="silu", activated="first"), "first", "silu"),
    ],
    ids=lambda value: repr(value) if isinstance(value, nn.Module) else "",
)
def test_modules(module, kind, activation):
    assert [*module.state_dict()] == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]
    x = leaf(torch.randn(3, C))
    tensors = [x, *module.parameters()]
    torch.testing.assert_close(module(x), truth(kind, tensors, activation))
    other = copy.deepcopy(module)
    seen = []
    other.fc1.register_forward_hook(lambda *args: seen.append(args[2]))
    torch.testing.assert_close(other(x), module(x))
    torch.testing.assert_close(seen[0], F.linear(x, module.fc1.weight, module.fc1.bias))
    other.fc2 = nn.Sequential(other.fc2)  # as an adapter or a quantiser would
    torch.testing.assert_close(other(x), module(x))


@every_activation
def test_modules_are_the_functions(activation):
    x = torch.randn(3, C)
    for module, kind in ((MLP(C, H, activation=activation), "mlp"), (GLUMLP(C, H, activation=activation), "second")):
        assert torch.equal(module(x), fused(kind, [x, *module.parameters()], activation))


def test_repr_of_the_modules():
    assert "approximate='none', recompute=True" in repr(MLP(C, H))
    assert "activation='silu', recompute=False" in repr(MLP(C, H, activation="silu", recompute=False))
    assert "approximate='tanh', activated='second', recompute=True" in repr(GEGLUMLP(C, H, approximate="tanh"))
    assert "activation='silu', activated='first', recompute=True" in repr(
        GLUMLP(C, H, activation="silu", activated="first")
    )


def test_module_without_bias_and_with_default_width():
    module = MLP(C, H, bias=False, dtype=torch.float64)
    assert module(torch.randn(2, C, dtype=torch.float64)).shape == (2, C)
    assert [*module.state_dict()] == ["fc1.weight", "fc2.weight"]


def test_gelu_module_replaces_nn_gelu():
    x = leaf(torch.randn(4, 5, dtype=torch.float64))
    for form in ("none", "tanh"):
        torch.testing.assert_close(GELU(form)(x), nn.GELU(form)(x))
        assert repr(GELU(form)) == repr(nn.GELU(form))
    torch.testing.assert_close(GELU("sigmoid")(x), x * torch.sigmoid(1.702 * x))
    assert not GELU().state_dict()


def test_saved_bytes_counts_each_storage_once():
    x = leaf(torch.randn(8, dtype=torch.float32))
    assert saved_bytes(lambda: x * x) == 32
    assert saved_bytes(lambda: x * x, exclude=[x]) == 0
    a, b = torch.randn(16, requires_grad=True).chunk(2)
    assert saved_bytes(lambda: a * b) == 64  # two halves keep the whole
    linear = nn.Linear(4, 6)
    assert saved_bytes(linear, torch.randn(3, 4)) == 48  # the input, and no parameter
    assert saved_bytes(lambda: x.exp().exp()) == 64


def test_fully_sharded(mesh):
    """FSDP2 in one process: sharded parameters gather for the forward and the backward of the node."""
    from torch.distributed.fsdp import fully_shard

    plain = MLP(C, H)
    sharded = fully_shard(copy.deepcopy(plain), mesh=mesh)
    x = torch.randn(3, C)
    for module in (plain, sharded):
        module(x).square().sum().backward()
    for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad.full_tensor())


@pytest.mark.parametrize("sizes", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_a_width_of_zero_has_gradients_of_its_shape(sizes):
    c, h, d = sizes
    x, w1, w2 = (torch.randn(shape, requires_grad=True) for shape in ((5, c), (h, c), (d, h)))
    out = mlp(x, w1, None, w2, None)
    grads = torch.autograd.grad(out, (x, w1, w2), torch.randn_like(out))
    assert [g.shape for g in grads] == [x.shape, w1.shape, w2.shape]


@every_kind
@pytest.mark.parametrize("recompute", [False, True])
def test_the_backward_writes_over_nothing_of_the_callers(kind, recompute):
    """The node puts gradients where its own gradients were, so it must know whose a tensor is."""
    tensors = inputs(kind, torch.float32)
    grad = randn((*tensors[0].shape[:-1], D), torch.float32, seed=3)
    before = [t.detach().clone() for t in (*tensors, grad)]
    out = fused(kind, tensors, recompute=recompute)
    first = torch.autograd.grad(out, tensors, grad, retain_graph=True)
    kept = [g.clone() for g in first]
    again = torch.autograd.grad(out, tensors, grad)
    assert all(torch.equal(a, b) for a, b in zip((*tensors, grad), before, strict=True))
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(first, kept, again, strict=True))
    plain = torch.autograd.grad(truth(kind, tensors), tensors, grad)
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(first, plain, strict=True))
