"""Minimax polynomials with float32 coefficients.

Remez exchange in 40-digit arithmetic on a Chebyshev grid. The coefficients are then rounded to float32 one at a time,
and after each rounding the remaining ones are fitted again, so that they absorb it. Both orders are tried.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mpmath as mp
import numpy as np

mp.mp.dps = 40

Function = Callable[[mp.mpf], mp.mpf]


@dataclass
class Fit:
    coefficients: list[float]  # highest degree first, each exactly a float32
    interval: tuple[float, float]
    minimax: float  # largest weighted error before rounding
    rounded: float  # and after


def to_float32(x: mp.mpf) -> float:
    return float(np.float32(float(x)))


def fit(
    f: Function, weight: Function, interval: tuple[float, float], degree: int, constant: float | None = None
) -> Fit:
    """The polynomial p that minimises max |weight * (p - f)| over the interval, with p(0) = constant if given."""
    lo, hi = mp.mpf(interval[0]), mp.mpf(interval[1])
    points = 300  # even: a symmetric interval has no point at 0, where a weight may vanish
    x = np.array([(lo + hi) / 2 - (hi - lo) / 2 * mp.cos(mp.pi * i / (points - 1)) for i in range(points)])
    wanted = np.array([f(xi) for xi in x]) - (constant or 0)
    weights = np.array([weight(xi) for xi in x])
    powers = range(0 if constant is None else 1, degree + 1)
    fits = [_fit_rounded(x, wanted, weights, order) for order in (powers, powers[::-1])]
    best = min(fits, key=lambda result: result.rounded)
    if constant is not None:
        best.coefficients.append(constant)
    return best


def _fit_rounded(x: np.ndarray, wanted: np.ndarray, weights: np.ndarray, order: Sequence[int]) -> Fit:
    """Fits the powers of x in `order`, rounding them in that order."""
    rounded: dict[int, float] = {}
    minimax = None
    residual = wanted
    for i, power in enumerate(order):
        # Where 0 is inside the interval, x^lowest is factored out: a common zero there would spoil the alternation.
        common = x ** min(order[i:]) if x[0] < 0 else x**0
        basis = np.stack([x**k / common for k in order[i:]], axis=1)
        coefficients, error = _remez(basis, residual / common, abs(weights * common))
        minimax = error if minimax is None else minimax
        rounded[power] = to_float32(coefficients[0])
        residual = residual - rounded[power] * x**power
    coefficients = [rounded[k] for k in sorted(order, reverse=True)]
    return Fit(coefficients, (float(x[0]), float(x[-1])), minimax, float(max(abs(weights * residual))))


def _remez(basis: np.ndarray, f: np.ndarray, weights: np.ndarray) -> tuple[list[mp.mpf], float]:
    """Coefficients c that minimise max |weights * (basis @ c - f)| over the rows, and that maximum."""
    points, n = basis.shape
    nodes = [round((points - 1) * i / n) for i in range(n + 1)]
    best = [], float("inf")
    for _ in range(30):
        system = mp.matrix(n + 1, n + 1)
        for row, i in enumerate(nodes):
            for k in range(n):
                system[row, k] = basis[i, k]
            system[row, n] = (-1) ** row / weights[i]
        *coefficients, level = mp.lu_solve(system, mp.matrix([f[i] for i in nodes]))
        error = (weights * (basis @ np.array(coefficients) - f)).astype(float)
        largest = float(np.abs(error).max())
        if largest < best[1]:
            best = coefficients, largest
        nodes = _alternation(error, n + 1)
        if largest <= abs(float(level)) * 1.0005 or len(nodes) < n + 1:
            break
    return best


def _alternation(error: np.ndarray, count: int) -> list[int]:
    """Where the error is extreme with alternating sign: `count` places, the smallest of any surplus dropped."""
    runs = np.split(np.arange(len(error)), np.flatnonzero(np.diff(np.sign(error))) + 1)
    nodes = [int(run[np.argmax(np.abs(error[run]))]) for run in runs]
    while len(nodes) > count:
        size = np.abs(error[nodes])
        smallest = int(np.argmin(size))
        if len(nodes) == count + 1:
            nodes.pop(0 if size[0] < size[-1] else -1)
        elif smallest in (0, len(nodes) - 1):
            nodes.pop(smallest)
        else:  # with a neighbour, so that the signs still alternate
            first = smallest - (size[smallest - 1] < size[smallest + 1])
            del nodes[first : first + 2]
    return nodes
