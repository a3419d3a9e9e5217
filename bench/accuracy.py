"""The accuracy report: every bfloat16 and float16 number and a dense sample of float32 against float64.

    python bench/accuracy.py                 # the table, written to bench/results/accuracy_<device>.md
    python bench/accuracy.py --plot          # and the picture in the README (needs matplotlib)
    python bench/accuracy.py --no-compile    # without torch.compile, which needs a minute

Two tables. The first has a row for each activation and dtype: the largest error of value and slope, in ulp of the
result, and how many finite inputs give NaN, of gelu_ext and of eager torch. The second adds torch.compile and the share
of inputs that are not correctly rounded. The float32 slope is counted where it is above 0.05 in magnitude: at its root
no relative error is small. Exits with 1 if gelu_ext gives a NaN.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import gelu_ext
from bench import environment
from gelu_ext._activations import ACTIVATIONS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from reference import slope, ulp_error, value  # noqa: E402  the tests' truth is the only one

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Function = Callable[[Tensor], Tensor]


def inputs(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a 16-bit type; of float32 one in 1009, and one in 97 between 2^-6 and 16."""
    if dtype.itemsize == 2:
        x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    else:
        low, high = (torch.tensor(x).view(torch.int32).item() for x in (2.0**-6, 16.0))
        patterns = torch.cat([torch.arange(0, 0x7F800000, 1009), torch.arange(low, high, 97)]).unique()
        x = torch.cat([patterns, patterns - 2**31]).to(torch.int32).view(dtype)
    return x[x.isfinite()]


def contenders(activation: str, with_compile: bool) -> dict[str, Function]:
    eager = ACTIVATIONS[activation].eager
    found: dict[str, Function] = {
        "gelu_ext": lambda x: gelu_ext.bias_act(x, activation=activation),
        "eager": eager,
    }
    if with_compile:
        torch.compiler.reset()  # or it stops compiling after a few dtypes and activations
        found["torch.compile"] = torch.compile(eager, dynamic=True)
    return found


def results(function: Function, x: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Value and slope; the slope through a backward with random signs as the gradient, which change no digit."""
    x = x.to(device).requires_grad_()
    out = function(x)
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
    (grad,) = torch.autograd.grad(out, x, signs)
    return out.detach().cpu(), (grad * signs).cpu()


def describe(got: Tensor, truth: Tensor) -> dict[str, float]:
    errors = ulp_error(got, truth)
    wrong = (got.double() != truth.to(got.dtype).double()) & ~got.isnan()
    return {
        "ulp": errors[~got.isnan()].max().item(),
        "misrounded": wrong.double().mean().item(),
        "nan": int(got.isnan().sum()),
    }


Results = dict[str, tuple[dict[str, float], dict[str, float]]]  # of each contender: value, slope


def measured(activation: str, dtype: torch.dtype, device: str, with_compile: bool) -> Results:
    x = inputs(dtype)
    truths = value(activation, x), slope(activation, x)
    counted = torch.ones_like(x, dtype=torch.bool), (truths[1].abs() > 0.05) | (x.itemsize == 2)
    found = {}
    for name, call in contenders(activation, with_compile).items():
        pair = results(call, x, device)
        found[name] = tuple(describe(pair[i][counted[i]], truths[i][counted[i]]) for i in range(2))
    return found


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def report(device: str, with_compile: bool) -> tuple[list[str], int]:
    """The lines of both tables, and how many NaN are ours."""
    names = list(contenders("gelu", with_compile))
    columns = ("activation", "dtype", "value, ulp", "torch's", "slope, ulp", "torch's", "NaN", "torch's")
    short = [row(*columns), "|" + "---|" * 2 + "---:|" * 6]
    full = [row("activation", "dtype", "", *names), "|" + "---|" * (3 + len(names))]
    ours = 0
    for activation in ACTIVATIONS:
        for dtype in DTYPES:
            found = measured(activation, dtype, device, with_compile)
            which = (activation, str(dtype).removeprefix("torch."))
            pairs = [found[name] for name in ("gelu_ext", "eager")]
            ulps = [f"{pair[i]['ulp']:.4g}" for i in range(2) for pair in pairs]
            nan = [int(sum(part["nan"] for part in pair)) for pair in pairs]
            ours += nan[0]
            short.append(row(*which, *ulps, *map(str, nan)))
            full += [row(*which, ("value", "slope")[i], *(cell(found[name][i]) for name in names)) for i in range(2)]
            print(short[-1], flush=True)
    return [*short, "", *full], ours


def cell(found: dict[str, float]) -> str:
    text = f"{found['ulp']:.4g} ulp, {found['misrounded'] * 100:.2g} % misrounded"
    return text + (f", **{found['nan']} NaN**" if found["nan"] else "")


def plot(path: Path, device: str) -> None:
    """Error of the bfloat16 value over x, on logarithmic scales, eager in grey and ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for axis, activation in zip(axes, ("gelu", "gelu_tanh"), strict=True):
        x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
        x = x[(x.double() <= -(2.0**-6)) & (x.double() >= -16)].sort().values
        truth = value(activation, x)
        for name, call in zip(("gelu_ext", "F.gelu"), contenders(activation, False).values(), strict=True):
            errors = ulp_error(call(x.to(device)).cpu(), truth).clamp(min=1e-3)
            axis.semilogy(
                x.double(), errors, ".", color="C0" if name == "gelu_ext" else "0.6", label=name, markersize=3
            )
        half = axis.axhline(0.5, color="0.3", linewidth=0.8, linestyle="--", label="correctly rounded")
        half.set_zorder(0)
        axis.set(xlabel="x", title=f"bfloat16, {activation}")
    axes[0].set_ylabel("error in ulp of the result")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"wrote {path.relative_to(ROOT)}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--plot", action="store_true")
    args = parser.parse_args(argv)
    folder = ROOT / "bench" / "results"
    folder.mkdir(exist_ok=True)
    about = ", ".join(f"{key} {text}" for key, text in environment(torch.device(args.device)).items())
    tables, nan = report(args.device, not args.no_compile)
    (folder / f"accuracy_{args.device}.md").write_text("\n".join([about, "", *tables]) + "\n")
    if args.plot:
        plot(folder / f"accuracy_{args.device}.png", args.device)
    return 1 if nan else 0


if __name__ == "__main__":
    sys.exit(main())
