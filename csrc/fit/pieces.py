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
    f: Function, weight: Function, count: int, degree: int, limit: float, exact_at_centre: tuple[Function, ...] = ()
) -> PiecewiseFit:
    """Polynomials p_i with small |weight * (p_i - f)|, in t or in its distance from the centre of the piece, where the
    given functions are nearly float32s."""
    centres, columns, error = [], [], 0.0
    for index in range(count):
        low, high = piece(index, count, limit)
        middle = (low + high) / 2
        offsets = [(high - low) / 2 * mp.cos(mp.pi * (2 * i + 1) / (2 * degree + 2)) for i in range(degree + 1)]
        points = [middle + offset for offset in offsets]
        centre = mp.mpf(0)
        if exact_at_centre:
            centre = points[degree // 2] = _exact_centre(exact_at_centre, low, high)
            centres.append(float(centre))
        coefficients = _through(f, points, centre)
        columns.append(coefficients)
        for i in range(41):
            t = low + (high - low) * i / 40
            error = max(error, float(abs(weight(t) * (mp.polyval(coefficients, t - centre) - f(t)))))
    return PiecewiseFit(centres, [list(row) for row in zip(*columns, strict=True)], error)


def line_fit(f: Function, weight: Function, curve: PiecewiseFit, limit: float) -> PiecewiseFit:
    """Lines l_i with which curve's polynomials, but for their own two last coefficients, give f."""
    count = len(curve.centres)
    columns, error = [], 0.0
    for index in range(count):
        low, high = piece(index, count, limit)
        centre = mp.mpf(curve.centres[index])
        higher = [row[index] for row in curve.rows[:-2]] + [0, 0]
        points = [(low + high) / 2 + sign * (high - low) / mp.sqrt(8) for sign in (-1, 1)]
        rest = [f(t) - mp.polyval(higher, t - centre) for t in points]
        line = [to_float32((rest[1] - rest[0]) / (points[1] - points[0])), to_float32(f(centre))]
        columns.append(line)
        for i in range(41):
            t = low + (high - low) * i / 40
            value = mp.polyval(higher, t - centre) + mp.polyval(line, t - centre)
            error = max(error, float(abs(weight(t) * (value - f(t)))))
    return PiecewiseFit([], [list(row) for row in zip(*columns, strict=True)], error)


def _exact_centre(functions: tuple[Function, ...], low: mp.mpf, high: mp.mpf) -> mp.mpf:
    """Near the middle, where the functions are nearly float32s; but 0 where they are 0, which keeps them so."""
    if low == 0 and all(f(low) == 0 for f in functions):
        return low

    def error(centre: mp.mpf) -> mp.mpf:
        return max(abs(to_float32(f(centre)) / f(centre) - 1) for f in functions)

    step = (high - low) / 2**14
    return min((mp.mpf(to_float32((low + high) / 2 + k * step)) for k in range(-60, 61)), key=error)


def _through(f: Function, points: list[mp.mpf], centre: mp.mpf) -> list[float]:
    """The polynomial in t - centre through f at the points."""
    system = mp.matrix([[(t - centre) ** k for k in range(len(points) - 1, -1, -1)] for t in points])
    return [to_float32(c) for c in mp.lu_solve(system, mp.matrix([f(t) for t in points]))]
