"""Polynomials by pieces, one for each place of a vector register, with float32 coefficients.

The pieces divide [0, 15) so that a few bits of t + 1 say which one t lies in: equally many between 1 and 2, 2 and 4, 4
and 8, 8 and 16. So narrow a piece needs no Remez exchange: the polynomial through the Chebyshev points is as good, and
rounding the coefficients of powers hardly matters. The constant coefficient does where results are float32: there the
centre is moved a little, to where it is nearly a float32 already.
"""

from dataclasses import dataclass

import mpmath as mp
from remez import Function, to_float32

OCTAVES = 4


@dataclass
class PiecewiseFit:
    centres: list[float]  # none: polynomials in t itself
    rows: list[list[float]]  # coefficients, highest degree first; a column for each piece
    error: float  # largest weighted error, coefficients rounded


def piece(index: int, count: int, limit: float) -> tuple[mp.mpf, mp.mpf]:
    """The interval of t whose t + 1 has `index` in the low bits of its exponent and the high bits of its fraction."""
    per_octave = count // OCTAVES
    octave, part = (index // per_octave + 1) % OCTAVES, index % per_octave  # 1 = 2^0 has the odd exponent 127
    low, high = (2**octave * (1 + mp.mpf(p) / per_octave) - 1 for p in (part, part + 1))
    return low, min(high, mp.mpf(limit))


def piecewise_fit(
    f: Function, weight: Function, count: int, degree: int, limit: float, about_centre: bool
) -> PiecewiseFit:
    """Polynomials p_i, in t or in its distance from the centre of the piece, with small |weight * (p_i - f)|."""
    centres, columns, error = [], [], 0.0
    for index in range(count):
        low, high = piece(index, count, limit)
        middle = (low + high) / 2
        offsets = [(high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * degree + 2)) for i in range(degree + 1)]
        points = [middle + offset for offset in offsets]
        centre = mp.mpf(0)
        if about_centre:
            centre = points[degree // 2] = _exact_centre(f, low, high)
            centres.append(float(centre))
        coefficients = _through(f, points, centre)
        columns.append(coefficients)
        for i in range(41):
            t = low + (high - low) * i / 40
            error = max(error, float(abs(weight(t) * (mp.polyval(coefficients, t - centre) - f(t)))))
    return PiecewiseFit(centres, [list(row) for row in zip(*columns, strict=True)], error)


def _exact_centre(f: Function, low: mp.mpf, high: mp.mpf) -> mp.mpf:
    """Near the middle, where f is nearly a float32."""
    step = (high - low) / 2**14
    candidates = (mp.mpf(to_float32((low + high) / 2 + k * step)) for k in range(-60, 61))
    return min(candidates, key=lambda centre: abs(to_float32(f(centre)) / f(centre) - 1))


def _through(f: Function, points: list[mp.mpf], centre: mp.mpf) -> list[float]:
    """The polynomial in t - centre through f at the points."""
    system = mp.matrix([[(t - centre) ** k for k in range(len(points) - 1, -1, -1)] for t in points])
    return [to_float32(c) for c in mp.lu_solve(system, mp.matrix([f(t) for t in points]))]
