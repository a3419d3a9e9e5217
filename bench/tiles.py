"""An MLP in tiles of rows: time and peak memory, of training and of inference, beside eager and recompute.

    python bench/tiles.py              # the table: ratios to eager, and whether they are within the bars
    python bench/tiles.py --sweep      # inference with tile_rows="auto" against all rows at once, by width and rows
    python bench/tiles.py --figure     # peak and time against the number of rows (needs matplotlib)

The table checks before it times: the output and every gradient against eager in float64. Peaks are of the call alone,
above the input, the weights and the gradient of the output. The variants alternate, and a ratio is the median of the
rounds' ratios.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from mlp import KINDS, check, ratio
from torch import Tensor, nn

import gelu_ext
from gelu_ext.memory import peak_bytes
from gelu_ext.patch import patch

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHOWN = ("GELU", "GeGLU", "GeGLU, two Linears")
# (peak, time) to eager's at most
BARS = {
    ("training", "float32"): (0.30, 1.20),
    ("training", "bfloat16"): (0.30, 1.00),
    ("inference", "float32"): (0.25, 1.00),
    ("inference", "bfloat16"): (0.25, 0.75),
}
Step = Callable[[], object]


def variants(model: nn.Module) -> dict[str, nn.Module]:
    """With weights of their own and equal, patched and proved."""
    found = {"eager": model}
    options = {"recompute": None, "tiles of 512": 512, "tiles of 2048": 2048, "auto": "auto"}
    for name, tile_rows in options.items():
        found[name] = copy.deepcopy(model)
        report = patch(found[name], recompute=True, tile_rows=tile_rows)
        assert report.fused and not report.left_alone, report
    return found


def steps(models: dict[str, nn.Module], x: Tensor, training: bool) -> dict[str, Step]:
    grad_out = torch.randn_like(x)

    def train(model: nn.Module) -> None:
        leaf = x.detach().requires_grad_()
        model.zero_grad(set_to_none=True)
        model(leaf).backward(grad_out)
        model.zero_grad(set_to_none=True)

    def infer(model: nn.Module) -> None:
        with torch.no_grad():
            model(x)

    return {name: (lambda model=model: (train if training else infer)(model)) for name, model in models.items()}


def seconds(calls: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Of each round, the calls in turn, and every second round from the last to the first."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            start = time.perf_counter()
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return times


def measured(models: dict[str, nn.Module], x: Tensor, training: bool, rounds: int) -> dict[str, tuple[float, ...]]:
    """Of each variant: peak in bytes, seconds, and both as ratios to eager's. The pass for the peak warms up."""
    calls = steps(models, x, training)
    peaks = {name: peak_bytes(lambda _, call=call: call(), x) for name, call in calls.items()}
    times = seconds(calls, rounds)
    return {
        name: (peak, statistics.median(times[name]), peak / peaks["eager"], ratio(times[name], times["eager"]))
        for name, peak in peaks.items()
    }


def table(options: argparse.Namespace) -> None:
    for kind in options.kinds.split(";"):
        for dtype in options.dtypes.split(","):
            models = variants(KINDS[kind](options.width, options.hidden).to(options.device, DTYPES[dtype]))
            check(models, torch.randn(1024, options.width, device=options.device, dtype=DTYPES[dtype]))
            x = torch.randn(options.rows, options.width, device=options.device, dtype=DTYPES[dtype])
            for what in ("training", "inference"):
                found = measured(models, x, what == "training", options.rounds)
                cells = [
                    f"{second * 1e3:.0f} ms ({time_ratio:.2f}), {peak / 1e6:.0f} MB ({peak_ratio:.2f})"
                    for peak, second, peak_ratio, time_ratio in found.values()
                ]
                if (what, dtype) == ("training", "float32") and kind == options.kinds.split(";")[0]:
                    print(f"| | {' | '.join(found)} | within the bar |\n|---|{'---|' * (len(found) + 1)}")
                print(f"| {kind}, {dtype} {what} | {' | '.join(cells)} | {verdict(found, what, dtype)} |", flush=True)


def verdict(found: dict[str, tuple[float, ...]], what: str, dtype: str) -> str:
    """Which of the tiles are within the bars of peak, and of time."""
    tiles = {name.removeprefix("tiles of "): at[2:] for name, at in found.items() if name not in ("eager", "recompute")}
    within = [[name for name, at in tiles.items() if at[i] <= bar] for i, bar in enumerate(BARS[what, dtype])]
    return "; ".join(
        f"{n}: {', '.join(names) or '**none**'}" for n, names in zip(("peak", "time"), within, strict=True)
    )


def sweep(options: argparse.Namespace) -> None:
    """One cell after the other; one that seems slower is measured again, with more rounds."""
    print("| dtype | width | rows | auto / all rows |\n|---|---:|---:|---:|")
    for dtype in options.dtypes.split(","):
        ratios = []
        for width in (256, 512, 1024, 2048, 4096):
            hidden = 4 * width
            tensors = [
                torch.randn(shape, device=options.device, dtype=DTYPES[dtype]) / math.sqrt(shape[-1])
                for shape in ((hidden, width), (hidden,), (width, hidden), (width,))
            ]
            for rows in (2**i for i in range(0, 18)):
                if rows * hidden * width > options.most:
                    break
                x = torch.randn(rows, width, device=options.device, dtype=DTYPES[dtype])
                calls = {
                    name: (lambda x=x, tensors=tensors, t=t: gelu_ext.mlp(x, *tensors, tile_rows=t))
                    for name, t in (("all", None), ("auto", "auto"))
                }
                with torch.no_grad():
                    found = slower(calls, options.rounds)
                ratios.append(found)
                print(
                    f"| {dtype} | {width} | {rows} | {found:.3f}{' **slower**' if found > 1.03 else ''} |", flush=True
                )
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"| {dtype} | geometric mean | | {mean:.3f}, largest {max(ratios):.3f} |", flush=True)


def slower(calls: dict[str, Step], rounds: int) -> float:
    """The ratio of a cell; each round is of some milliseconds at least."""
    start = time.perf_counter()
    calls["all"]()
    calls["auto"]()
    count = max(1, int(0.02 / (time.perf_counter() - start)))
    repeated = {name: (lambda call=call: [call() for _ in range(count)]) for name, call in calls.items()}
    times = seconds(repeated, rounds)
    if ratio(times["auto"], times["all"]) > 1.03:
        times = seconds(repeated, 5 * rounds)
    return ratio(times["auto"], times["all"])


def figure(options: argparse.Namespace) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(2, 2, figsize=(11, 7), sharex=True, layout="constrained")
    rows = [1024 * 2**i for i in range(8) if 1024 * 2**i <= options.rows]
    for column, what in enumerate(("training", "inference")):
        models = variants(KINDS["GELU"](options.width, options.hidden).to(options.device))
        found = [
            measured(models, torch.randn(n, options.width, device=options.device), column == 0, options.rounds)
            for n in rows
        ]
        for name in ("eager", "recompute", "auto"):
            label = "in tiles" if name == "auto" else name
            axes[0][column].loglog(rows, [at[name][0] / 1e6 for at in found], "o-", label=label)
            axes[1][column].loglog(rows, [at[name][1] * 1e3 for at in found], "o-", label=label)
        axes[0][column].set(title=f"{what}, float32, {options.width} -> {options.hidden} -> {options.width}")
        axes[1][column].set(xlabel="rows")
    axes[0][0].set_ylabel("peak, MB")
    axes[1][0].set_ylabel("time, ms")
    drawn.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    path = ROOT / "bench" / "results" / f"tiles_{options.device}.png"
    drawn.savefig(path, dpi=130)
    print(f"wrote {path.relative_to(ROOT)}")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rows", type=int, default=32768, help="of the table; at most, of the figure")
    arguments.add_argument("--width", type=int, default=768)
    arguments.add_argument("--hidden", type=int, default=3072)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--kinds", default=";".join(SHOWN))
    arguments.add_argument("--dtypes", default="float32,bfloat16")
    arguments.add_argument("--most", type=float, default=2.0**38, help="of the sweep: rows * width * hidden of a cell")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--sweep", action="store_true")
    arguments.add_argument("--figure", action="store_true")
    options = arguments.parse_args()
    torch.manual_seed(0)
    place = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{options.rows} x {options.width} -> {options.hidden} -> {options.width}, {place}, torch {torch.__version__}\n"
    )
    (sweep if options.sweep else figure if options.figure else table)(options)


if __name__ == "__main__":
    main()
