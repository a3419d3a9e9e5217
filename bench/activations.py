"""What is said of activations, tried at small scale on real data: error rates, epochs to a loss, and time.

    python bench/activations.py              three experiments of five seeds: some ten minutes on one core
    python bench/activations.py --quick      one seed of a few steps: does everything run?
    python bench/activations.py --only digits,regularisers

digits: GELU, ReLU, ELU, SiLU, Mish and GELU of a learned Gaussian in an MLP, on the digits that ship with scikit-learn.
regularisers: the same MLP with dropout, and with the zero-one map that GELU is the mean of.
gates: GLUs in a byte-level language model (bench/gpt.py), on the text that ships with Python, at equal parameters.

A seed means the split of the digits, the order of the batches, the draws of dropout and the initial weights, which are
equal in all variants wherever their shapes are; so variants are compared seed by seed. They take turns, an epoch each,
and a ratio of times (of the processor, one thread) is the median of the turns' ratios. Written to
bench/results/activations.md and .png.

GEGLU is the gated product gelu(x W) * (x V) of two linear projections (Shazeer, arXiv:2002.05202). A definition that is
widely copied, x sigmoid(x) + 0.5 x (1 + tanh(...)), is none: it adds SiLU and GELU of one and the same x, without a
gate and without a second projection, and is near 2 x for large x.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from gpt import GPT, Text, read_text
from mlp import ratio
from torch import Tensor, nn

import gelu_ext
from bench import environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
Batch = tuple[Tensor, Tensor]  # input, targets
Layer = Callable[[int, int], nn.Module]  # of the width before it and its own: a Linear and an activation
CONTROL = "torch's GELU"
# Student's t of a two-sided interval of 95 %, by degrees of freedom.
T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


# --- the models -------------------------------------------------------------------------------------------------------


class StochasticGELU(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        return gelu_ext.stochastic_gelu(x, self.bias, training=self.training)


def with_bias(activation: Callable[[int], nn.Module], width: int, hidden: int) -> nn.Module:
    """A Linear whose bias is the activation's."""
    return nn.Sequential(nn.Linear(width, hidden, bias=False), activation(hidden))


def fused(activation: str) -> Layer:
    return partial(with_bias, partial(gelu_ext.BiasAct, activation=activation))


def gaussian(width: int, hidden: int) -> nn.Module:
    """A mean and a deviation of each column are learned."""
    return nn.Sequential(nn.Linear(width, hidden), gelu_ext.GaussianGELU(hidden))


def of_torch(width: int, hidden: int) -> nn.Module:
    """The control, which must learn alike."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU())


def classifier(layer: Layer, hidden: int, dropout: float = 0.0) -> nn.Module:
    """64 pixels -> hidden -> hidden -> 10 digits."""
    layers = [part for width in (64, hidden) for part in (layer(width, hidden), nn.Dropout(dropout))]
    return nn.Sequential(*layers, nn.Linear(hidden, 10))


def start(model: nn.Module, seed: int) -> None:
    """Each weight from draws of its own: a larger one beside it does not move them."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Embedding)]
    with torch.no_grad():
        for i, layer in enumerate(layers):
            random = torch.Generator().manual_seed(1000 * seed + i)
            if isinstance(layer, nn.Embedding):
                layer.weight.normal_(std=0.1, generator=random)
            else:
                bound = layer.in_features**-0.5  # nn.Linear's own
                layer.weight.uniform_(-bound, bound, generator=random)
                if layer.bias is not None:
                    layer.bias.zero_()


# --- the data ---------------------------------------------------------------------------------------------------------


def digits() -> Batch:
    """1797 images of 8 x 8 pixels, 0 to 1, and what they are."""
    from sklearn.datasets import load_digits

    pixels, targets = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(targets).long()


class Digits:
    """Split by the seed: seven tenths to learn from, in batches of 64."""

    def __init__(self, seed: int) -> None:
        images, targets = digits()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        split = len(images) * 7 // 10
        self.images, self.targets = images[order[:split]], targets[order[:split]]
        self.held_out = images[order[split:]], targets[order[split:]]
        self.seed = seed

    def epoch(self, number: int) -> Iterator[Batch]:
        random = torch.Generator().manual_seed(1000 * self.seed + number)
        for rows in torch.randperm(len(self.images), generator=random).split(64):
            yield self.images[rows], self.targets[rows]


class Bytes:
    """The next byte of 16 x 64; the same 8192 bytes of the last tenth are held out from every seed."""

    def __init__(self, seed: int, steps: int) -> None:
        tokens = torch.frombuffer(bytearray(read_text(None)[1]), dtype=torch.uint8)
        self.text, self.steps = Text(tokens, context=64, batch=16, seed=seed), steps
        self.held_out = self._batch(Text(tokens, context=64, batch=32, seed=seed).held_out())

    def epoch(self, number: int) -> Iterator[Batch]:
        for step in range(number * self.steps, (number + 1) * self.steps):
            yield self._batch(self.text.batch_at(step))

    def _batch(self, windows: Tensor) -> Batch:
        return windows[:, :-1], windows[:, 1:]


# --- the experiments --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Experiment:
    title: str
    about: str
    variants: dict[str, Callable[[], nn.Module]]  # the others are compared with the first
    data: Callable[[int], Digits | Bytes]
    epochs: int
    rate: float  # of AdamW; falls to a tenth by half a cosine
    loss: float  # to be reached on what is held out
    equal_parameters: bool = False


def experiments(quick: bool) -> dict[str, Experiment]:
    hidden = 32 if quick else 256

    def on_digits(title: str, layers: dict[str, tuple[Layer, float]]) -> Experiment:
        return Experiment(
            title=title,
            about=f"An MLP 64 -> {hidden} -> {hidden} -> 10 on the 1797 digits of scikit-learn, 8 x 8 pixels; three "
            "tenths are held out, others for each seed",
            variants={name: partial(classifier, layer, hidden, dropout) for name, (layer, dropout) in layers.items()},
            data=Digits,
            epochs=2 if quick else 40,
            rate=2e-3,
            loss=0.15,
        )

    named = {"GELU": "gelu", "ReLU": "relu", "ELU": "elu", "SiLU": "silu", "Mish": "mish"}
    activations = {name: (fused(activation), 0.0) for name, activation in named.items()}
    activations |= {"GaussianGELU": (gaussian, 0.0), CONTROL: (of_torch, 0.0)}
    gelu, stochastic = fused("gelu"), partial(with_bias, StochasticGELU)
    regularisers = {
        "GELU": (gelu, 0.0),
        "GELU + dropout 0.2": (gelu, 0.2),
        "GELU + dropout 0.5": (gelu, 0.5),
        "stochastic_gelu": (stochastic, 0.0),
        "stochastic_gelu + dropout 0.2": (stochastic, 0.2),
    }
    return {
        "digits": on_digits("Activations, on digits", activations),
        "regularisers": on_digits("Dropout and stochastic_gelu, on digits", regularisers),
        "gates": gates(*((24, 2, 2) if quick else (96, 20, 25))),
    }


def gates(width: int, steps: int, epochs: int) -> Experiment:
    """Gated, an MLP is two thirds as wide: it has three matrices in the place of two."""
    plain, gated = 4 * width, 8 * width // 3
    mlps = {"GELU": partial(gelu_ext.MLP, hidden_features=plain, bias=False, activation="gelu")}
    for name, activation in {"GEGLU": "gelu", "SwiGLU": "silu", "ReGLU": "relu", "Bilinear": "identity"}.items():
        mlps[name] = partial(gelu_ext.GLUMLP, hidden_features=gated, bias=False, activation=activation)
    return Experiment(
        title="Gates, in a language model at equal parameters",
        about=f"A GPT of 2 layers over the bytes of Python's own documentation, a tenth of them held out; its MLPs are "
        f"{width} -> {plain} -> {width}, gated {width} -> 2 x {gated} -> {width}, without biases; an epoch is {steps} "
        "steps of 1024 bytes",
        variants={name: partial(GPT, width, 2, 64, mlp) for name, mlp in mlps.items()},
        data=partial(Bytes, steps=steps),
        epochs=epochs,
        rate=4e-3,
        loss=2.2,
        equal_parameters=True,
    )


# --- the measurement --------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """One variant of one seed; after each epoch, of what is held out."""

    losses: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)  # share of wrong answers
    training: list[float] = field(default_factory=list)  # seconds of the epoch; processor time, which no one else takes
    inference: list[float] = field(default_factory=list)  # seconds of all that is held out

    def epochs_to(self, loss: float) -> float:
        return next((i for i, reached in enumerate(self.losses, start=1) if reached <= loss), math.inf)


class Trained:
    """A variant in training."""

    def __init__(self, experiment: Experiment, make: Callable[[], nn.Module], seed: int) -> None:
        self.model, self.seed, self.run = make(), seed, Run()
        start(self.model, seed)
        self.data = experiment.data(seed)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=experiment.rate, fused=True)
        half_a_cosine = lambda i: 0.55 + 0.45 * math.cos(math.pi * i / experiment.epochs)  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, half_a_cosine)

    def epoch(self, number: int) -> None:
        self.model.train()
        torch.manual_seed(1000 * self.seed + number)  # of dropout
        begin = time.process_time()
        for x, targets in self.data.epoch(number):
            self.optimizer.zero_grad()
            _loss(self.model(x), targets).backward()
            self.optimizer.step()
        self.run.training.append(time.process_time() - begin)
        self.schedule.step()

    @torch.no_grad()
    def evaluate(self) -> None:
        self.model.eval()
        x, targets = self.data.held_out
        begin = time.process_time()
        logits = self.model(x)
        self.run.inference.append(time.process_time() - begin)
        self.run.losses.append(_loss(logits, targets).item())
        self.run.errors.append((logits.argmax(-1) != targets).double().mean().item())


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def parameters(make: Callable[[], nn.Module]) -> int:
    return sum(p.numel() for p in make().parameters())


def measured(experiment: Experiment, seeds: int) -> dict[str, list[Run]]:
    """Of each variant, a run of each seed."""
    counts = {name: parameters(make) for name, make in experiment.variants.items()}
    if experiment.equal_parameters and len(set(counts.values())) > 1:
        raise AssertionError(f"activations: expected equal parameters, got {counts}")
    found: dict[str, list[Run]] = {name: [] for name in experiment.variants}
    for seed in range(seeds):
        trained = {name: Trained(experiment, make, seed) for name, make in experiment.variants.items()}
        for number in range(experiment.epochs):
            for name in list(trained)[:: 1 if number % 2 else -1]:
                trained[name].epoch(number)
                trained[name].evaluate()
        for name, variant in trained.items():
            found[name].append(variant.run)
        errors = ", ".join(f"{name} {variant.run.errors[-1]:.2%}" for name, variant in trained.items())
        print(f"  seed {seed}: {errors}", flush=True)
    return found


# --- what it shows ----------------------------------------------------------------------------------------------------


def mean_and_deviation(numbers: list[float], digits: int) -> str:
    deviation = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.{digits}f}{deviation}"


def errors_of(runs: list[Run]) -> list[float]:
    """In percent, after the last epoch."""
    return [100 * run.errors[-1] for run in runs]


def losses_of(runs: list[Run]) -> list[float]:
    return [run.losses[-1] for run in runs]


def difference(ours: list[float], others: list[float]) -> tuple[float, float]:
    """(mean, half of its interval of 95 %) of the differences seed by seed; nan of one seed."""
    apart = [a - b for a, b in zip(ours, others, strict=True)]
    spread = statistics.stdev(apart) if len(apart) > 1 else math.nan
    return statistics.mean(apart), T95[len(apart) - 1] * spread / math.sqrt(len(apart))


def times_of(runs: list[Run], what: str) -> list[float]:
    return [seconds for run in runs for seconds in getattr(run, what)]


def milliseconds(runs: list[Run], first: list[Run], what: str) -> str:
    times = times_of(runs, what)
    return f"{1e3 * statistics.median(times):.2f} ({ratio(times, times_of(first, what)):.2f})"


def epochs_to(runs: list[Run], loss: float) -> str:
    counts = [run.epochs_to(loss) for run in runs]
    missed = sum(math.isinf(count) for count in counts)
    return f"not in {missed} of {len(counts)}" if missed else mean_and_deviation(counts, 1)


def table(experiment: Experiment, found: dict[str, list[Run]]) -> list[str]:
    baseline, first = next(iter(found.items()))
    lines = [
        f"| | parameters | error, % | lowest..highest | minus {baseline}'s | loss | epochs to loss {experiment.loss} "
        "| epoch, ms | inference, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, runs in found.items():
        errors = errors_of(runs)
        mean, half = difference(errors, errors_of(first))
        apart = "" if name == baseline else f"{mean:+.2f}" if math.isnan(half) else f"{mean:+.2f} ± {half:.2f}"
        lines.append(
            f"| {name} | {parameters(experiment.variants[name])} | {mean_and_deviation(errors, 2)} "
            f"| {min(errors):.2f}..{max(errors):.2f} | {apart} | {mean_and_deviation(losses_of(runs), 4)} "
            f"| {epochs_to(runs, experiment.loss)} | {milliseconds(runs, first, 'training')} "
            f"| {milliseconds(runs, first, 'inference')} |"
        )
    return lines


WORDS = {
    "fewer errors": errors_of,
    "more errors": errors_of,
    "a lower loss": losses_of,
    "a higher loss": losses_of,
}


def verdict(found: dict[str, list[Run]]) -> str:
    """What the table does and does not show, counted; the control is left out."""
    baseline, first = next(iter(found.items()))
    others = {name: runs for name, runs in found.items() if name not in (baseline, CONTROL)}
    if len(first) < 2:
        return "One seed shows nothing of a difference."
    said = []
    for (words, values), sign in zip(WORDS.items(), (-1, 1, -1, 1), strict=True):
        apart = {name: difference(values(runs), values(first)) for name, runs in others.items()}
        names = [name for name, (mean, half) in apart.items() if sign * mean > half]
        said.append(f"{', '.join(names) or 'none'} {'have' if len(names) > 1 else 'has'} {words}")
    low, high = min(errors_of(first)), max(errors_of(first))
    overlap = [name for name, runs in others.items() if min(errors_of(runs)) <= high and low <= max(errors_of(runs))]
    pairs = [difference(errors_of(a), errors_of(b)) for a, b in itertools.combinations(others.values(), 2)]
    apart_pairs = sum(abs(mean) > half for mean, half in pairs)
    return (
        f"By intervals that leave out zero, compared with {baseline}: {'; '.join(said)}; of {2 * len(others)} such "
        f"intervals {0.1 * len(others):.1f} are expected to do so by chance. The error rates of {len(overlap)} of "
        f"{len(others)} overlap with {baseline}'s, from lowest to highest seed. Of the {len(pairs)} pairs of others, "
        f"{apart_pairs} are told apart by their error rates."
    )


READING = """Error rate and loss are of what is held out, after the last epoch: mean ± standard deviation of the seeds.
The differences are taken seed by seed: mean ± half of the 95 % interval of Student's t, not corrected for the number of
comparisons. Times are processor times of one thread, medians of all turns, in brackets the median ratio to the first
row: of an epoch's training steps (what training costs), and of one forward of all that is held out (what inference
costs)."""

DEFINITION = """GEGLU is the gated product of two linear projections, gelu(x W) * (x V) (Shazeer, arXiv:2002.05202).
The widely copied `x*sigmoid(x) + 0.5 x (1 + tanh(...))` adds SiLU and GELU of one and the same x, without a gate and
without a second projection."""

LIMITS = """The scale is small, so no ranking carries over to another one. There is one size of each model, one learning
rate that was tuned for none of the variants, one schedule, and torch's own initialisation for all. {seeds} seed(s) show
differences beyond the intervals above only; one digit of those held out is 0.19 % of error. The language model sees a
part of its text once and is far from converged: what it shows is how fast variants learn at first. The same 8192 bytes
are held out from all of its seeds, so its intervals know nothing of other text. Times are of layers a few hundred
columns wide, on a machine whose caches other programs used too: calls and matrix products are most of them, and a few
hundredths are noise. What an activation costs on its own is in `bench/bench.py`. The zero-one map draws and compares in
torch's own functions, in training only; in inference it is GELU."""


Found = dict[str, dict[str, list[Run]]]  # of each experiment


def report(found: Found, planned: dict[str, Experiment], seeds: int, command: str, about: str) -> str:
    parts = ["# Activations at small scale", f"{about}. `{command}`: {seeds} seed(s) each.", READING, DEFINITION]
    for key, runs in found.items():
        experiment = planned[key]
        parts += [f"## {experiment.title}", f"{experiment.about}; {experiment.epochs} epochs."]
        parts += ["\n".join(table(experiment, runs)), "\n".join(textwrap.wrap(verdict(runs), 120))]
    parts += ["## What cannot be concluded", LIMITS.format(seeds=seeds)]
    return "\n\n".join(parts) + "\n"


def draw(found: Found, planned: dict[str, Experiment], path: Path, command: str, about: str) -> None:
    """Error rates of each seed above, ratios of times below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = {"figsize": (5.2 * len(found), 7.5), "layout": "constrained"}
    figure, axes = pyplot.subplots(2, len(found), sharex="col", squeeze=False, **size)
    for (above, below), (key, runs_of) in zip(axes.T, found.items(), strict=True):
        names, first = list(runs_of), next(iter(runs_of.values()))
        for errors in zip(*map(errors_of, runs_of.values()), strict=True):  # a line joins what one seed gave
            above.plot(names, errors, "o-", color="0.6", linewidth=0.6, markersize=4, label="a seed")
        means = [statistics.mean(errors_of(runs)) for runs in runs_of.values()]
        above.plot(names, means, "_", color="tab:red", markersize=22, markeredgewidth=2, label="mean")
        above.set(title=planned[key].title, ylabel="errors of what is held out, %")
        most = 1.0
        for what, marker in (("training", "s"), ("inference", "^")):
            ratios = [ratio(times_of(runs, what), times_of(first, what)) for runs in runs_of.values()]
            below.plot(names, ratios, marker, label=what)
            most = max(most, *ratios)
        below.axhline(1, color="0.6", linewidth=0.8)
        below.set(ylabel=f"time over {names[0]}'s", ylim=(0, 1.1 * most))
        below.tick_params(axis="x", rotation=40)
        pyplot.setp(below.get_xticklabels(), ha="right", rotation_mode="anchor")
    lines, labels = axes[0][0].get_legend_handles_labels()
    axes[0][0].legend(lines[-2:], labels[-2:], frameon=False)
    axes[1][0].legend(frameon=False)
    figure.suptitle(f"{command}\n{about}", fontsize=9)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed of a few steps of small models")
    parser.add_argument("--only", default="digits,regularisers,gates", help="names of experiments, by commas")
    parser.add_argument("--seeds", type=int, default=None, help="five, or one with --quick; at most 10")
    parser.add_argument("--output", type=Path, default=None, help="the folder; without, --quick writes nothing")
    argv = sys.argv[1:] if argv is None else argv
    options = parser.parse_args(argv)
    planned = experiments(options.quick)
    names = options.only.split(",")
    if not set(names) <= planned.keys():
        parser.error(f"--only: expected some of {', '.join(planned)}, got {options.only}")
    seeds = options.seeds or (1 if options.quick else 5)
    if not 1 <= seeds <= len(T95):
        parser.error(f"--seeds: expected 1 to {len(T95)}, got {seeds}")
    torch.set_num_threads(1)  # for such models more only wait for each other
    command = " ".join(["python bench/activations.py", *argv])
    about = ", ".join(f"{key} {text}" for key, text in environment(torch.device("cpu")).items()) + ", one thread"
    found = {}
    for name in names:
        begin = time.perf_counter()
        print(f"{planned[name].title}:", flush=True)
        try:
            found[name] = measured(planned[name], seeds)
        except ImportError as error:
            print(f"  left out, it needs scikit-learn (pip install '.[experiments]'): {error}")
            continue
        print("\n".join(table(planned[name], found[name])))
        print(f"{verdict(found[name])}\n{time.perf_counter() - begin:.0f} s\n", flush=True)
    folder = options.output or (None if options.quick else RESULTS)
    if folder is None or not found:
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "activations.md").write_text(report(found, planned, seeds, command, about))
    try:
        draw(found, planned, folder / "activations.png", command, about)
    except ImportError as error:
        print(f"no picture, which needs matplotlib: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
