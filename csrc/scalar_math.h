// The primitives that the activations are written in, for one float or double: fused multiply-add, clamps, quotient,
// 2^p. Knows <cmath> and the tables of pieces.h, nothing else. The CPU kernels add the same primitives for packs of
// floats (cpu/pack.h), so nothing here branches. Both compilers run with floating-point contraction off: what is fused
// is written here as fused, so the host and the device round alike wherever the device does not use its
// special-function unit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "pieces.h"

#if defined(__CUDACC__)
#define GELU_EXT_FN __host__ __device__ __forceinline__
#else
// Always inlined: the same source is compiled for several instruction sets in one library, and an out-of-line copy
// would be merged by the linker into one of them.
#define GELU_EXT_FN inline __attribute__((always_inline))
#endif

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__CUDA_ARCH__)
#define GELU_EXT_HAS_FMA 1
#endif

namespace gelu_ext {

// How exact a result has to be, chosen by the type that stores it. `type` is what the arithmetic is done in: one
// `scalar`, or a pack of them.
struct LowPrecision {  // for float16 and bfloat16 results: relative error about 1e-6
  using scalar = float;
  using type = float;
};
struct SinglePrecision {  // for float32 results: a few units in the last place
  using scalar = float;
  using type = float;
};
struct DoublePrecision {
  using scalar = double;
  using type = double;
};
template <class P>
inline constexpr bool is_single = std::is_base_of_v<SinglePrecision, P>;
template <class P>
inline constexpr bool is_double = std::is_base_of_v<DoublePrecision, P>;
// 16-bit results one by one, or in what gives the same bits; not in the CPU's packs.
template <class P>
inline constexpr bool is_low_number = std::is_same_v<P, LowPrecision>;
// A register of the CPU, or several: such a type says how many numbers it holds.
template <class T, class = void>
inline constexpr bool is_pack = false;
template <class T>
inline constexpr bool is_pack<T, std::void_t<decltype(T::kSize)>> = true;

GELU_EXT_FN uint32_t to_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
#endif
}

GELU_EXT_FN float from_bits(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
#endif
}

// The device's special-function unit.
#if defined(__CUDA_ARCH__)
#define GELU_EXT_DEVICE_ARITHMETIC 1
__device__ __forceinline__ float special_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float special_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#elif defined(GELU_EXT_MODEL_DEVICE)
// ... and its model, for tests on a machine without a device: correctly rounded, then off by so many ulps.
#define GELU_EXT_DEVICE_ARITHMETIC 1
inline int special_exp2_ulps = 0, special_reciprocal_ulps = 0;
inline float special_exp2(float x) {
  const float y = static_cast<float>(std::exp2(static_cast<double>(x)));
  return y < 0x1p-126f ? 0.0f : from_bits(to_bits(y) + static_cast<uint32_t>(y < 1.0f ? special_exp2_ulps : 0));
}
inline float special_reciprocal(float x) {
  return from_bits(to_bits(1.0f / x) + static_cast<uint32_t>(special_reciprocal_ulps));
}
#endif

// Whether P's powers of 2 are that unit's.
#if defined(GELU_EXT_DEVICE_ARITHMETIC)
template <class P>
inline constexpr bool has_special_exp2 = is_low_number<P>;
#else
template <class P>
inline constexpr bool has_special_exp2 = false;
#endif

// a * b + c, fused where the hardware can, else rounded twice. For polynomials, where either will do.
GELU_EXT_FN float mul_add(float a, float b, float c) {
#if defined(GELU_EXT_HAS_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
GELU_EXT_FN double mul_add(double a, double b, double c) {
#if defined(GELU_EXT_HAS_FMA)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// a * b + c rounded once on every machine, where an error term depends on it.
GELU_EXT_FN float fused(float a, float b, float c) {
#if defined(GELU_EXT_HAS_FMA)
  return __builtin_fmaf(a, b, c);
#else
  // The product of two 24-bit significands is exact in double; a call to fmaf would not vectorise.
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) + static_cast<double>(c));
#endif
}
GELU_EXT_FN double fused(double a, double b, double c) { return std::fma(a, b, c); }

// a * b. Packs have a product of their own that is as fast where the result is subnormal.
template <class T>
GELU_EXT_FN T product(T a, T b) {
  return a * b;
}

// a * b, not multiplied yet: the caller fuses the multiplication with the addition that follows.
template <class T>
struct Product {
  T a, b;

  GELU_EXT_FN T value() const { return product(a, b); }
  GELU_EXT_FN Product halved() const { return {a, T(0.5f) * b}; }
  GELU_EXT_FN T plus(T c) const { return mul_add(a, b, c); }
  GELU_EXT_FN T subtracted_from(T c) const { return mul_add(-a, b, c); }
};

// c[0] x^(n-1) + ... + c[n-1]: coefficients highest degree first.
template <class T>
GELU_EXT_FN T horner_step(T, T sum) {
  return sum;
}
template <class T, class... Rest>
GELU_EXT_FN T horner_step(T x, T sum, float c, Rest... rest) {
  return horner_step(x, mul_add(sum, x, T(c)), rest...);
}
template <class T, class... Rest>
GELU_EXT_FN T horner(T x, float leading, Rest... rest) {
  return horner_step(x, T(leading), rest...);
}

template <class T, size_t N>
GELU_EXT_FN T horner(T x, const float (&c)[N]) {
  T sum = c[0];
  for (size_t i = 1; i < N; ++i) sum = mul_add(sum, x, T(c[i]));
  return sum;
}

// min(|x|, limit); for a NaN the limit. On the host it is a minimum of integers, because g++ specialises what follows a
// comparison with a constant, which costs more than the comparison.
GELU_EXT_FN float clamped_magnitude(float x, float limit) {
#if defined(__CUDA_ARCH__)
  return fminf(fabsf(x), limit);
#else
  const int32_t magnitude = static_cast<int32_t>(to_bits(x) & 0x7fffffffu), most = static_cast<int32_t>(to_bits(limit));
  return from_bits(static_cast<uint32_t>(magnitude < most ? magnitude : most));
#endif
}
GELU_EXT_FN double clamped_magnitude(double x, double limit) {
  const double magnitude = __builtin_fabs(x);
  return magnitude < limit ? magnitude : limit;
}

// The same that keeps a NaN.
GELU_EXT_FN float clamped_magnitude_or_nan(float x, float limit) {
  const float magnitude = __builtin_fabsf(x);
  return magnitude > limit ? limit : magnitude;
}
GELU_EXT_FN double clamped_magnitude_or_nan(double x, double limit) {
  const double magnitude = __builtin_fabs(x);
  return magnitude > limit ? limit : magnitude;
}

// max(x, low) and min(x, high) that keep NaN, and x where it equals the bound: -0 is at least 0.
template <class T>
GELU_EXT_FN T at_least(T x, T low) {
  return x < low ? low : x;
}
template <class T>
GELU_EXT_FN T at_most(T x, T high) {
  return x > high ? high : x;
}

// a where x > bound or x is NaN, else b
template <class T>
GELU_EXT_FN T where_above(T x, T bound, T a, T b) {
  return x <= bound ? b : a;
}

// a where x <= bound or x is NaN, else b
template <class T>
GELU_EXT_FN T where_at_most(T x, T bound, T a, T b) {
  return x > bound ? b : a;
}

// a where x == y, else b
template <class T>
GELU_EXT_FN T where_equal(T x, T y, T a, T b) {
  return x == y ? a : b;
}

// |y| with the sign of x
GELU_EXT_FN float with_sign_of(float x, float y) { return __builtin_copysignf(y, x); }
GELU_EXT_FN double with_sign_of(double x, double y) { return __builtin_copysign(y, x); }

// max(x, 0) that keeps NaN and the sign of zero: max0(-0) and max0(x < 0) are -0, so that `max0(x) - 0` is gelu's
// limit.
template <class T>
GELU_EXT_FN T max0(T x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, float>) {
    float result;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(-0.0f));
    return result;
  }
#endif
  return x < T(-0.0) ? T(-0.0) : x;
}

// 1 / x to about 1 ulp.
template <class T>
GELU_EXT_FN T reciprocal(T x) {
#if defined(GELU_EXT_DEVICE_ARITHMETIC)
  if constexpr (std::is_same_v<T, float>) return special_reciprocal(x);
#endif
  return 1 / x;
}

// 1 / x to 2^-13 or better.
template <class T>
GELU_EXT_FN T rough_reciprocal(T x) {
  return reciprocal(x);
}

// a / b and a / (b + b_lo) to about half a unit in the last place, given q = 1/b to 2^-13.
template <class T>
GELU_EXT_FN T quotient(T a, T b, T q) {
  const T rough = a * q;
  return mul_add(fused(-b, rough, a), q, rough);
}
template <class T>
GELU_EXT_FN T quotient(T a, T b, T b_lo, T q) {
  const T rough = a * q;
  return mul_add(mul_add(-b_lo, rough, fused(-b, rough, a)), q, rough);
}

// a / b to about half a unit in the last place, given q = 1/b to 2^-13, and the rest, which the quotient has lost. a
// may be infinite, and has an error, a_lo. From `most` on a rough quotient without a rest will do.
template <class T>
struct QuotientAndRest {
  T quotient, rest;
};
template <class T, class S>
GELU_EXT_FN QuotientAndRest<T> quotient_and_rest(T a, T a_lo, T b, T q, S most) {
  const T rough = a * q, magnitude = clamped_magnitude_or_nan(rough, most + most);
  const T exact = where_at_most(magnitude, most, quotient(a, b, q), rough);
  return {exact, where_at_most(magnitude, most, mul_add(fused(-exact, b, a), q, a_lo * q), T(0.0f))};
}

// How many numbers an instruction can look up in one register of T: so many pieces an interval is divided into, each
// with coefficients of its own. 0: T has no such instruction.
template <class T, class = void>
inline constexpr int kPieces = 0;
template <class T>
inline constexpr int kPieces<T, std::void_t<decltype(T::kPieces)>> = T::kPieces;

// x + kShift rounds x to the nearest integer n and has it in its low bits; x + kUnitShift<N> rounds to the nearest
// multiple of 1/N (of 1 for N = 0, where nothing is looked up) and counts in those.
constexpr int steps_of(int pieces) { return pieces == 0 ? 1 : pieces; }
inline constexpr float kShift = 0x1.8p23f;
template <int Pieces>
inline constexpr float kUnitShift = kShift / steps_of(Pieces);

// 2^n is computed "scaled", as 2^(n + 33), and multiplied by 2^-33 last of all. So every factor but the last is a
// normal number, also where the result is subnormal, and the result is rounded once.
inline constexpr int kScale = 33;
inline constexpr float kUnscale = 0x1p-33f;
// 2^n is taken for 0 from here down. That rounds right for factors up to 2^10: 2^-150 is half the smallest float.
inline constexpr int kLowestPower = -127 - kScale;
// Where 2^-y is 0 in the arithmetic of P, or so small that a product of it with a factor up to 2^10 is: 2 more than
// kLowestPower, as n is y rounded; the library's exp() is 0 below 2^-1075.
template <class P>
inline constexpr double kVanishing = is_double<P> ? 1080 : 2 - kLowestPower;

GELU_EXT_FN Product<float> times_power_of_2(float x, float shifted_n) {
  const int32_t power = static_cast<int32_t>(to_bits(shifted_n)) - static_cast<int32_t>(to_bits(kShift));
  const int32_t bounded = power > kLowestPower ? power : kLowestPower;
  return {x * from_bits(static_cast<uint32_t>(bounded - kLowestPower) << 23), kUnscale};
}

// x 2^n, scaled
GELU_EXT_FN float scaled_power_of_2(float x, float shifted_n) { return times_power_of_2(x, shifted_n).a; }

// x = n + r, where n is the nearest integer, or the nearest multiple of 1/kPieces where 2^n is looked up.
template <class P>
struct SplitExponent {
  using T = typename P::type;
  static constexpr float kUnit = kUnitShift<kPieces<T>>;

  T shifted_n;  // n + kUnit
  T r;

  // x = (a + a_lo) b, where a b is not rounded. LowPrecision needs no a_lo and leaves it out.
  GELU_EXT_FN SplitExponent(T a, T b, T a_lo = 0.0f) : shifted_n(mul_add(a, b, T(kUnit))) {
    const T n = shifted_n - kUnit;
    if constexpr (is_single<P>) {
      r = mul_add(a_lo, b, fused(a, b, -n));
    } else {
      r = mul_add(a, b, -n);
    }
  }
  explicit GELU_EXT_FN SplitExponent(T x) : shifted_n(x + kUnit), r(x - (shifted_n - kUnit)) {}
};

// (2^r - 1)/r for |r| <= 1/2. Errors, here and below, are relative to the result that it goes into.
template <class P, class T = typename P::type>
GELU_EXT_FN T exp2_excess_over(T r) {
  if constexpr (is_single<P>) {
    // degree 5 in r on [-0.5, 0.5], error 3.0e-09
    return horner(r, 0x1.416b5ep-13f, 0x1.5f082ep-10f, 0x1.3b2dep-7f, 0x1.c6af7cp-5f, 0x1.ebfbdcp-3f, 0x1.62e43p-1f);
  } else {
    // degree 4 in r on [-0.5, 0.5], error 9.3e-08
    return horner(r, 0x1.5bda9p-10f, 0x1.3ce8b2p-7f, 0x1.c6b6d8p-5f, 0x1.ebf9c2p-3f, 0x1.62e42ap-1f);
  }
}

// 2^x for -2^17 < x <= 64, |a_lo b| << 1. It is not multiplied out: times(factor) is a product whose last
// multiplication is fused with what is added to it, so that it is rounded once, also where it is subnormal.
template <class P, int Pieces = kPieces<typename P::type>>
struct Exp2;

#if defined(GELU_EXT_DEVICE_ARITHMETIC)
// On the device, 2^x = (2^(x/2))^2: its unit makes no results below 2^-126 = 1.2e-38.
template <class T>
struct SpecialExp2 {
  T root;

  GELU_EXT_FN SpecialExp2(T a, T b, T = 0.0f) : root(special_exp2(a * (T(0.5f) * b))) {}

  GELU_EXT_FN Product<T> times(T factor) const { return {factor * root, root}; }
  GELU_EXT_FN Product<T> whole() const { return {root, root}; }
};
template <>
struct Exp2<LowPrecision, 0> : SpecialExp2<float> {
  using SpecialExp2::SpecialExp2;
};
#endif

// One number, or a register without lookup: 2^x = (1 + excess) 2^n.
template <class P>
struct Exp2<P, 0> {
  using T = typename P::type;

  T shifted_n;
  T excess;  // 2^r - 1, so exact that 1 + excess would lose bits

  GELU_EXT_FN Exp2(T a, T b, T a_lo = 0.0f) : Exp2(SplitExponent<P>(a, b, a_lo)) {}
  explicit GELU_EXT_FN Exp2(T x) : Exp2(SplitExponent<P>(x)) {}
  explicit GELU_EXT_FN Exp2(const SplitExponent<P>& x)
      : shifted_n(x.shifted_n), excess(x.r * exp2_excess_over<P>(x.r)) {}

  GELU_EXT_FN auto times(T factor) const { return times_power_of_2(mul_add(factor, excess, factor), shifted_n); }
  GELU_EXT_FN auto whole() const { return times_power_of_2(1 + excess, shifted_n); }
  GELU_EXT_FN T scaled() const { return scaled_power_of_2(1 + excess, shifted_n); }
};

// A register with lookup: 2^x = significand 2^floor(n). 2^(n - floor(n)) is looked up; |r| <= 1/(2 Pieces) is so small
// that a polynomial of degree 2 to 4 does the rest.
template <class P, int Pieces>
struct Exp2 {
  using T = typename P::type;

  T shifted_n;
  T significand;

  GELU_EXT_FN Exp2(T a, T b, T a_lo = 0.0f) : Exp2(SplitExponent<P>(a, b, a_lo)) {}
  explicit GELU_EXT_FN Exp2(T x) : Exp2(SplitExponent<P>(x)) {}
  explicit GELU_EXT_FN Exp2(const SplitExponent<P>& x) : shifted_n(x.shifted_n) {
    using Table = Exp2Pieces<Pieces>;
    const auto fraction = bits_of(shifted_n);
    const T power = look_up(Table::powers, fraction);
    if constexpr (is_single<P>) {
      const T excess = mul_add(x.r, horner(x.r, Table::single), look_up(Table::power_errors, fraction));
      significand = mul_add(power, excess, power);
    } else {
      significand = mul_add(power * x.r, horner(x.r, Table::low), power);
    }
  }

  GELU_EXT_FN auto times(T factor) const { return times_power_of_2(factor * significand, shifted_n); }
  GELU_EXT_FN auto whole() const { return times_power_of_2(significand, shifted_n); }
  GELU_EXT_FN T scaled() const { return scaled_power_of_2(significand, shifted_n); }
};

template <>
struct Exp2<DoublePrecision, 0> {
  double value;

  GELU_EXT_FN Product<double> times(double factor) const { return {factor, value}; }
  GELU_EXT_FN Product<double> whole() const { return {1, value}; }
};

// 2^x - 1 for x <= 0 without cancellation, and 2^x: 2^x - 1 = (2^n - 1) + 2^n (2^r - 1). The first term is 0 for small
// x, and exact down to 2^n = 1/2; the second is exact relative to itself, as r is.
template <class P, int Pieces = kPieces<typename P::type>>
struct Exp2Minus1 {
  using T = typename P::type;

  T shifted_n;
  T power, excess;  // 2^x = power (1 + excess) 2^floor(n)

  GELU_EXT_FN Exp2Minus1(T a, T b, T a_lo = 0.0f) {
    const SplitExponent<P> x(a, b, a_lo);
    shifted_n = x.shifted_n;
    if constexpr (Pieces == 0) {
      power = 1.0f;
      excess = x.r * exp2_excess_over<P>(x.r);
    } else {
      using Table = Exp2Pieces<Pieces>;
      const auto fraction = bits_of(shifted_n);
      power = look_up(Table::powers, fraction);
      if constexpr (is_single<P>) {
        excess = mul_add(x.r, horner(x.r, Table::minus_one), look_up(Table::power_errors, fraction));
      } else {
        excess = x.r * horner(x.r, Table::minus_one);
      }
    }
  }

  GELU_EXT_FN auto times(T factor) const { return times_power_of_2(factor * whole_significand(), shifted_n); }
  GELU_EXT_FN auto whole() const { return times_power_of_2(whole_significand(), shifted_n); }
  GELU_EXT_FN T minus_one() const {
    return times_power_of_2(power * excess, shifted_n).plus(times_power_of_2(power, shifted_n).plus(-1.0f));
  }

 private:
  GELU_EXT_FN T whole_significand() const { return mul_add(power, excess, power); }
};

template <>
struct Exp2Minus1<DoublePrecision, 0> {
  double value, value_minus_1;

  GELU_EXT_FN Product<double> times(double factor) const { return {factor, value}; }
  GELU_EXT_FN Product<double> whole() const { return {1, value}; }
  GELU_EXT_FN double minus_one() const { return value_minus_1; }
};

// 2^(a b), scaled: one number, normal wherever a 16-bit result is not 0. What it is multiplied by has to carry 2^-33.
// As exact as Exp2 in the tail, but off by up to 1.3e-6 near 1 on the device, where a b + 33 is rounded.
template <class P>
GELU_EXT_FN typename P::type scaled_exp2(typename P::type a, typename P::type b) {
#if defined(GELU_EXT_DEVICE_ARITHMETIC)
  return special_exp2(mul_add(a, b, static_cast<float>(kScale)));
#else
  return Exp2<P>(a, b).scaled();
#endif
}

// The polynomial of the piece that t lies in. The table has a column for each piece and a row for each power of t, the
// highest first. Given `sum`, the value so far of a polynomial's higher powers, it continues with the table's rows.
template <class T, int Rows, int Pieces, class Piece>
GELU_EXT_FN T piecewise(const float (&table)[Rows][Pieces], T t, Piece piece, T sum) {
  for (const auto& row : table) sum = mul_add(sum, t, look_up(row, piece));
  return sum;
}
template <class T, int Rows, int Pieces, class Piece>
GELU_EXT_FN T piecewise(const float (&table)[Rows][Pieces], T t, Piece piece) {
  T sum = look_up(table[0], piece);
  for (int row = 1; row < Rows; ++row) sum = mul_add(sum, t, look_up(table[row], piece));
  return sum;
}
// The same for polynomials in the distance of t from its piece's centre.
template <class T, int Rows, int Pieces>
GELU_EXT_FN T piecewise(const float (&table)[Rows][Pieces], const float (&centres)[Pieces], T t) {
  const auto piece = piece_of(t);
  return piecewise(table, t - look_up(centres, piece), piece);
}

}  // namespace gelu_ext
