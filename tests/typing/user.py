"""A user's script, for `mypy --strict`: every public name with the types that it has. It runs, too."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import gelu_ext
from gelu_ext.patch import Fused, LeftAlone, Report


def functions(x: Tensor, bias: Tensor | None, vector: Tensor) -> None:
    assert_type(gelu_ext.bias_gelu(x), Tensor)
    assert_type(gelu_ext.bias_gelu(x, bias, approximate="tanh"), Tensor)
    assert_type(gelu_ext.bias_act(x, bias=bias, activation="silu"), Tensor)
    assert_type(gelu_ext.geglu(x, bias, approximate="none", activated="first"), Tensor)
    assert_type(gelu_ext.glu(x, activation="relu2", activated="second"), Tensor)
    assert_type(gelu_ext.swiglu(x, bias), Tensor)
    assert_type(gelu_ext.gelu_mul(x, x, approximate="sigmoid"), Tensor)
    assert_type(gelu_ext.act_mul(x, x, bias, None, activation="mish"), Tensor)
    assert_type(gelu_ext.silu_mul(x, x), Tensor)
    assert_type(gelu_ext.clamped_swiglu(x, bias, alpha=1.0, limit=10, offset=0.0, layout="first"), Tensor)
    assert_type(gelu_ext.gaussian_gelu(x, 0, 1.5), Tensor)
    assert_type(gelu_ext.gaussian_gelu(x, vector, vector, bias), Tensor)
    assert_type(gelu_ext.stochastic_gelu(x, training=False, generator=None), Tensor)
    assert_type(gelu_ext.stochastic_gelu(x, bias, generator=torch.Generator()), Tensor)


def mlps(x: Tensor, w: Tensor, packed: Tensor, b: Tensor | None) -> None:
    assert_type(gelu_ext.mlp(x, w, b, w, None), Tensor)
    assert_type(gelu_ext.mlp(x, w, b, w, b, activation="silu", recompute=False, tile_rows="auto"), Tensor)
    assert_type(gelu_ext.glu_mlp(x, packed, None, w, b, activation="silu", activated="first", tile_rows=2), Tensor)
    assert_type(gelu_ext.geglu_mlp(x, packed, None, w, b, approximate="tanh"), Tensor)
    assert_type(gelu_ext.act_mul_mlp(x, w, b, w, b, w, None, activation="silu"), Tensor)
    assert_type(gelu_ext.gelu_mul_mlp(x, w, None, w, None, w, b, tile_rows=None), Tensor)
    assert_type(gelu_ext.interleave_halves(packed, 2, dim=0), Tensor)


def modules(x: Tensor) -> nn.Module:
    options: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    layers: list[nn.Module] = [
        gelu_ext.GELU("tanh"),
        gelu_ext.BiasAct(4, activation="silu", device="cpu"),
        gelu_ext.BiasGELU(4, approximate="none", **options),
        gelu_ext.GaussianGELU(4),
        gelu_ext.MLP(4, 8, bias=False, tile_rows="auto"),
        gelu_ext.GLUMLP(4, 8, activation="silu", activated="first"),
        gelu_ext.GEGLUMLP(4, 8, 8, recompute=False, dtype=torch.float32),
        gelu_ext.GLU(8, activation="silu"),
        gelu_ext.GEGLU(None, approximate="tanh"),
    ]
    gelu: nn.GELU = gelu_ext.GELU()
    assert_type(gelu_ext.MLP(4, 8).fc1, nn.Linear)
    assert_type(gelu.approximate, str)
    model = nn.Sequential(*layers)
    out: Tensor = model(x)
    assert out.shape == (3, 2)
    return model


def patching(model: nn.Module, x: Tensor) -> list[str]:
    report = gelu_ext.patch(model, {"gelu", "silu"}, recompute=True, tile_rows=512, verify=True)
    assert_type(report, Report)
    assert_type(report.fused, list[Fused])
    assert_type(report.left_alone, list[LeftAlone])
    assert_type(gelu_ext.unpatch(model), nn.Module)
    with gelu_ext.patched(model, activations=None, tile_rows="auto") as inside:
        assert_type(inside, Report)
        model(x)
    return [row.block for row in report.fused] + [row.reason for row in report.left_alone]


def information(model: nn.Module, x: Tensor) -> str:
    info = gelu_ext.build_info()
    lines = [f"{key}: {value}" for key, value in info.items()]
    for name, row in gelu_ext.activations().items():
        assert_type(name, str)
        assert_type(row.formula, str)
        assert_type(row.eager(x), Tensor)
    assert_type(gelu_ext.memory.saved_bytes(model, x, exclude=[x]), int)
    assert_type(gelu_ext.memory.peak_bytes(lambda: model(x)), int)
    assert_type(gelu_ext.decompositions(), dict[Any, Callable[..., Tensor]])
    assert_type(gelu_ext.jit.load(cuda=None, verbose=False), ModuleType)
    if importlib.util.find_spec("transformers"):
        undo = gelu_ext.register_with_transformers()
        assert_type(undo, Callable[[], None])
        undo()
    return "\n".join([gelu_ext.__version__, *lines])


def main() -> None:
    x, w, packed = torch.randn(3, 4), torch.randn(4, 4), torch.randn(8, 4)
    functions(x, torch.randn(4), torch.ones(4))
    mlps(x, w, packed, torch.randn(4))
    model = modules(x)
    patching(model, x)
    information(model, x)


if __name__ == "__main__":
    main()
