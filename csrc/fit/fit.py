"""Reproduces every fitted number of csrc, in the syntax in which it stands there.

    python csrc/fit/fit.py            prints each line of activations.h and scalar_math.h with the errors of its fit
    python csrc/fit/fit.py --check    also fails unless the headers carry exactly these lines and say these errors
    python csrc/fit/fit.py --write    also writes csrc/pieces.h

Errors are relative to the result that the polynomial goes into. Of the two kinds of arithmetic in float32, "single" is
for float32 results, "low" for float16 and bfloat16 results. Needs mpmath and numpy.
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import mpmath as mp
from pieces import PiecewiseFit, line_fit, piecewise_fit
from remez import Fit, Function, fit, to_float32

CSRC = Path(__file__).parents[1]
HEADERS = [CSRC / name for name in ("activations.h", "scalar_math.h")]
PIECES = CSRC / "pieces.h"

# Where t is clamped in float32: exp(-t^2/2) is 2^-160 there, and the results have long been zero.
LIMIT = 14.9


def upper_tail(t: mp.mpf) -> mp.mpf:
    return mp.erfc(t / mp.sqrt(2)) / 2


def tail_slope(t: mp.mpf) -> mp.mpf:
    return upper_tail(t) - t * mp.npdf(t)


ROOT = mp.findroot(tail_slope, 0.75)


GAUSS = to_float32(-1 / (2 * mp.log(2)))  # exp(-t^2/2) is computed as 2^(GAUSS t^2), off by 1e-6 in the far tail


def gauss_free(f: Function) -> Function:
    return lambda t: f(t) * mp.exp(t * t / 2)


def gauss_free_single(f: Function) -> Function:
    """f without the factor that the kernels will multiply by, which is 2^(GAUSS t^2) and not quite exp(-t^2/2)."""
    return lambda t: f(t) * mp.mpf(2) ** (-GAUSS * t * t)


def slope_over_root(t: mp.mpf, without_gauss: Callable[[Function], Function] = gauss_free) -> mp.mpf:
    """G(t) = tail_slope(t) exp(t^2/2) / (ROOT - t)."""
    if abs(t - ROOT) < 1e-12:
        t = t + mp.mpf(10) ** -10
    return without_gauss(tail_slope)(t) / (ROOT - t)


def slope_over_root_single(t: mp.mpf) -> mp.mpf:
    return slope_over_root(t, gauss_free_single)


def single_weight(result: mp.mpf) -> mp.mpf:
    """Relative accuracy, fading where a float32 result is subnormal."""
    return max(mp.mpf(2) ** -15, min(mp.mpf(1), abs(result) * mp.mpf(2) ** 130))


def low_weight(result: mp.mpf) -> mp.mpf:
    """Full accuracy for normal float16 results; for smaller ones, which only bfloat16 has, 3.5 times less will do."""
    return max(single_weight(result) / mp.mpf(3.5), min(mp.mpf(1), abs(result) * 2**14))


def slope_size(t: mp.mpf) -> mp.mpf:
    """About |tail_slope(t)|, without its root."""
    return mp.npdf(t) * (t + mp.mpf(1) / 4)


def exp2_fit(degree: int, pieces: int = 1) -> Fit:
    """2^r where it is not looked up, with 2^0 = 1; the header has (2^r - 1)/r."""
    end = mp.mpf(1) / (2 * pieces)
    result = fit(lambda r: mp.mpf(2) ** r, lambda r: mp.mpf(2) ** -r, (-end, end), degree, constant=1.0)
    result.coefficients.pop()
    return result


def exp2_minus_1_fit(degree: int, pieces: int) -> Fit:
    """(2^r - 1)/r, exact relative to itself: 2^r - 1 stands alone where nothing is looked up but 1."""
    end = mp.mpf(1) / (2 * pieces)

    def over_r(r: mp.mpf) -> mp.mpf:
        return mp.expm1(r * mp.log(2)) / r if abs(r) > 1e-12 else mp.log(2)

    return fit(over_r, lambda r: 1 / over_r(r), (-end, end), degree)


def log2_upper_tail_fit() -> Fit:
    """log2(Phi(-t))/2"""
    return fit(
        lambda t: mp.log(upper_tail(t), 2) / 2,
        lambda t: 2 * mp.log(2) * low_weight(upper_tail(t)),
        (0, LIMIT),
        degree=9,
    )


def single_fits() -> tuple[Fit, Fit]:
    """R and G in w = t/(1 + t/2), where t Phi(-t) = exp(-t^2/2) w (1/2 + R(w))/2."""

    def t_of(w: mp.mpf) -> mp.mpf:
        return w / (1 - w / 2)

    def r(w: mp.mpf) -> mp.mpf:
        return (2 + t_of(w)) * gauss_free_single(upper_tail)(t_of(w)) - mp.mpf(1) / 2

    interval = (0, LIMIT / (1 + LIMIT / 2))
    return (
        fit(r, lambda w: single_weight(upper_tail(t_of(w))) / (r(w) + mp.mpf(1) / 2), interval, 11, constant=0.5),
        fit(
            lambda w: slope_over_root_single(t_of(w)),
            lambda w: single_weight(slope_size(t_of(w))) / slope_over_root_single(t_of(w)),
            interval,
            degree=9,
        ),
    )


RECIPROCAL_SHIFT = 2.9375  # where a quintic happens to fit G well
UNSCALE = mp.mpf(2) ** -33  # kUnscale of scalar_math.h


def scaled_slope(t: mp.mpf) -> mp.mpf:
    return slope_over_root(t) * UNSCALE


def scaled_slope_weight(t: mp.mpf) -> mp.mpf:
    """For the slope and for Phi(-t) = tail_slope(t) + t phi(t)."""
    cancellation = abs(tail_slope(t)) / upper_tail(t)
    return max(low_weight(slope_size(t)), low_weight(upper_tail(t)) * cancellation) / scaled_slope(t)


def slope_low_fit() -> Fit:
    """2^-33 G in q = 1/(t + RECIPROCAL_SHIFT)"""
    return fit(
        lambda q: scaled_slope(1 / q - RECIPROCAL_SHIFT),
        lambda q: scaled_slope_weight(1 / q - RECIPROCAL_SHIFT),
        (1 / (LIMIT + RECIPROCAL_SHIFT), 1 / RECIPROCAL_SHIFT),
        degree=5,
    )


MEANINGS = {
    "tail": "t M(t)",
    "slope": "M(t) - t phi(0)",
    "mills": "M(t), its two lowest powers apart from the others",
    "log2_upper_tail": "log2(Phi(-t))",
    "slope_low": "2^-33 G(t)",
    "slope_line": "M(t) - t phi(0), its two lowest powers; the others are mills_curve",
}


def piecewise_fits(count: int) -> dict[str, PiecewiseFit]:
    """What Gelu looks up. The degrees are those for 16 and for 8 pieces."""

    def log2_upper_tail(t: mp.mpf) -> mp.mpf:
        return mp.log(upper_tail(t), 2)

    def mills(t: mp.mpf) -> mp.mpf:
        return gauss_free_single(upper_tail)(t)

    # S(t) exp(t^2/2) = M(t) - t phi(0): but for that line the same as M.
    slope = gauss_free_single(tail_slope)

    def tail(t: mp.mpf) -> mp.mpf:
        return t * mills(t)

    def mills_weight(t: mp.mpf) -> mp.mpf:
        return single_weight(upper_tail(t)) / mills(t)

    def slope_weight(t: mp.mpf) -> mp.mpf:
        return single_weight(slope_size(t)) / max(abs(slope(t)), mp.mpf("0.05"))

    tables = {
        "tail": (tail, lambda t: mills_weight(t) / max(t, mp.mpf("1e-20")), {16: 6, 8: 7}),
        "slope": (slope, slope_weight, {16: 5, 8: 6}),
        "mills": (mills, mills_weight, {16: 6, 8: 8}),
        "log2_upper_tail": (
            log2_upper_tail,
            lambda t: mp.log(2) * low_weight(upper_tail(t)),
            {16: 3, 8: 4},
        ),
        "slope_low": (scaled_slope, scaled_slope_weight, {16: 4, 8: 5}),
    }
    exact = {"tail": (tail,), "slope": (slope,), "mills": (mills, slope)}
    fits = {
        name: piecewise_fit(f, weight, count, degrees[count], LIMIT, exact.get(name, ()))
        for name, (f, weight, degrees) in tables.items()
    }
    fits["slope_line"] = line_fit(slope, slope_weight, fits["mills"], LIMIT)
    return fits


def c_hex(x: float, suffix: str = "") -> str:
    mantissa, exponent = float(x).hex().split("p")
    return (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + "p" + exponent + suffix


def c_row(numbers: list[float]) -> str:
    return f"{{{', '.join(c_hex(x, 'f') for x in numbers)}}}"


def c_horner(variable: str, result: Fit) -> str:
    return f"return horner({variable}, {', '.join(c_hex(c, 'f') for c in result.coefficients)});"


def constants() -> dict[str, str]:
    root_high = to_float32(ROOT)
    sqrt_one_half = mp.sqrt(mp.mpf(1) / 2)
    density = to_float32(mp.npdf(0) * UNSCALE)
    return {
        "limit of t": f"is_single<P> ? {LIMIT} :",
        "log2 e": f"kLog2E = {c_hex(1 / mp.log(2))};",
        "sqrt(8/pi)": f"kLinear = {c_hex(mp.sqrt(8 / mp.pi))},",
        "1/sqrt(2 pi)": f"return {c_hex(1 / mp.sqrt(2 * mp.pi))} *",
        "sqrt(1/2)": f"c_hi = {c_hex(sqrt_one_half)}, c_lo = {c_hex(sqrt_one_half - float(sqrt_one_half))};",
        "root of the slope": f"t0_hi = {c_hex(root_high, 'f')}, t0_lo = {c_hex(to_float32(ROOT - root_high), 'f')};",
        "shift of q": f"kReciprocalShift = {c_hex(RECIPROCAL_SHIFT, 'f')},",
        "phi(0)": f"kScaledDensity = {c_hex(density, 'f')};",
    }


def polynomials() -> dict[str, tuple[str, Fit]]:
    rest_single, slope_single = single_fits()
    return {
        "2^r, single": ("r", exp2_fit(6)),
        "2^r, low": ("r", exp2_fit(5)),
        "R, single": ("w", rest_single),
        "G, single": ("w", slope_single),
        "log2 Phi(-t) / 2, low": ("t", log2_upper_tail_fit()),
        "G, low": ("q", slope_low_fit()),
    }


def described(variable: str, result: Fit) -> str:
    """What a comment beside the polynomial has to say."""
    low, high = result.interval
    degree = len(result.coefficients) - 1
    return f"degree {degree} in {variable} on [{low:.3g}, {high:.3g}], error {result.rounded:.1e}"


def exp2_table(count: int, low_degree: int, single_degree: int) -> list[str]:
    """2^(i / count) in two parts, and (2^r - 1)/r."""
    roots = [mp.mpf(2) ** (mp.mpf(i) / count) for i in range(count)]
    powers = [to_float32(root) for root in roots]
    errors = [to_float32(root / power - 1) for root, power in zip(roots, powers, strict=True)]
    lines = ["", "template <>", f"struct Exp2Pieces<{count}> {{"]
    for name, row in (("powers", powers), ("power_errors", errors)):
        what = "2^(i/%d)" if name == "powers" else "(2^(i/%d) - powers[i])/powers[i]"
        lines.append(f"  // {what % count}")
        lines.append(f"  alignas(64) static constexpr float {name}[{count}] = {c_row(row)};")
    for name, degree in (("low", low_degree), ("single", single_degree)):
        result = exp2_fit(degree, count)
        print(f"2^r, {name}, {count} pieces: minimax error {result.minimax:.1e}, rounded {result.rounded:.1e}")
        lines.append(f"  // (2^r - 1)/r, {described('r', result)}")
        lines.append(f"  static constexpr float {name}[{degree}] = {c_row(result.coefficients)};")
    result = exp2_minus_1_fit(3, count)
    print(f"2^r - 1, {count} pieces: minimax error {result.minimax:.1e}, rounded {result.rounded:.1e}")
    lines.append(f"  // (2^r - 1)/r, relative to itself, {described('r', result)}")
    lines.append(f"  static constexpr float minus_one[{len(result.coefficients)}] = {c_row(result.coefficients)};")
    return [*lines, "};"]


def pieces_header() -> str:
    lines = [
        "// Written by csrc/fit/fit.py --write: the numbers that are looked up in vector registers. Powers of 2, see",
        "// Exp2 in scalar_math.h, and polynomials by pieces of [0, 15), see Gelu in activations.h: a column for each",
        "// piece, in the order of piece_of() in cpu/pack.h, and a row for each power of t, the highest first.",
        "#pragma once",
        "// clang-format off",
        "",
        "namespace gelu_ext {",
        "",
        "template <int Pieces>",
        "struct Exp2Pieces;",
        "template <int Pieces>",
        "struct GeluPieces;",
    ]
    for count, low_degree, single_degree in ((16, 2, 3), (8, 3, 4)):
        lines += exp2_table(count, low_degree, single_degree)
    for count in (16, 8):
        lines += ["", "template <>", f"struct GeluPieces<{count}> {{"]
        for name, result in piecewise_fits(count).items():
            print(f"{name}, {count} pieces: error {result.error:.1e}", flush=True)
            variable = f"t - {name}_centres" if result.centres else "t"
            degree = f", degree {len(result.rows) - 1} in {variable}" if name != "slope_line" else ""
            lines.append(f"  // {MEANINGS[name]}{degree}, error {result.error:.1e}")
            if result.centres:
                lines.append(f"  alignas(64) static constexpr float {name}_centres[{count}] = {c_row(result.centres)};")
            parts = {name: result.rows}
            if name == "mills":
                parts = {"mills_curve": result.rows[:-2], "mills_line": result.rows[-2:]}
            for part, rows in parts.items():
                lines.append(f"  alignas(64) static constexpr float {part}[{len(rows)}][{count}] = {{")
                lines += [f"      {c_row(row)}," for row in rows]
                lines.append("  };")
        lines.append("};")
    return "\n".join([*lines, "", "}  // namespace gelu_ext", ""])


def main() -> int:
    lines = {}
    for name, line in constants().items():
        lines[name] = line
        print(f"{name}\n  {line}")
    for name, (variable, result) in polynomials().items():
        lines[name] = c_horner(variable, result)
        lines[f"{name}, comment"] = described(variable, result)
        print(f"{name}: minimax error {result.minimax:.1e}, rounded {result.rounded:.1e}\n  {lines[name]}", flush=True)
    header = pieces_header()
    if "--write" in sys.argv[1:]:
        PIECES.write_text(header)
    if "--check" not in sys.argv[1:]:
        return 0
    if PIECES.read_text() != header:
        print(f"not what the fit gives: {PIECES.name}", file=sys.stderr)
        return 1
    source = re.sub(r"\s+", " ", " ".join(header.read_text() for header in HEADERS))
    missing = [line for line in lines.values() if line not in source]
    unknown = [line for line in re.findall(r"return horner\(\w, [-0-9][^;]*;", source) if line not in lines.values()]
    for what, which in (("not in the headers", missing), ("in the headers, but not reproduced", unknown)):
        for line in which:
            print(f"{what}: {line}", file=sys.stderr)
    return 1 if missing or unknown else 0


if __name__ == "__main__":
    sys.exit(main())
