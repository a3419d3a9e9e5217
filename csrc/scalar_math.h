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

// How exact a result has to be, chosen by the storage type: `type` is what the arithmetic is done in, one `scalar` or
// a pack of them.
struct HalfPrecision {  // for float16 and bfloat16 results: relative error about 1e-6
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

// a * b, which may be subnormal without costing more.
template <class T>
GELU_EXT_FN T product(T a, T b) {
  return a * b;
}

// A product whose multiplication is left to the caller, to be fused with the addition that follows.
template <class T>
struct Product {
  T a, b;

  GELU_EXT_FN T value() const { return product(a, b); }
  GELU_EXT_FN Product half() const { return {a, T(0.5f) * b}; }
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

// Into how many pieces arithmetic in T can divide what it computes, each with numbers of its own looked up in a
// register; 0: it cannot.
template <class T, class = void>
inline constexpr int kPieces = 0;
template <class T>
inline constexpr int kPieces<T, std::void_t<decltype(T::kPieces)>> = T::kPieces;

// x + kShift is kShift + n, n the integer nearest to x; with kShift / steps it is the nearest multiple of 1/steps.
inline constexpr float kShift = 0x1.8p23f;
constexpr int steps_of(int pieces) { return pieces == 0 ? 1 : pieces; }

// x 2^n in factors of which the last rounds: up to there all stays normal.
inline constexpr int kLowestPower = -160;         // 0 below: a factor up to 2^10 still makes the right subnormals
inline constexpr float kPowerUnscale = 0x1p-33f;  // 2^(kLowestPower + 127)

GELU_EXT_FN Product<float> times_power_of_2(float x, float shifted_n) {
  const int32_t power = static_cast<int32_t>(to_bits(shifted_n)) - static_cast<int32_t>(to_bits(kShift));
  const int32_t bounded = power > kLowestPower ? power : kLowestPower;
  return {x * from_bits(static_cast<uint32_t>(bounded - kLowestPower) << 23), kPowerUnscale};
}

// x 2^n / kPowerUnscale, so far
GELU_EXT_FN float scaled_power_of_2(float x, float shifted_n) { return times_power_of_2(x, shifted_n).a; }

// x = n + r, n the nearest integer, or multiple of 1/kPieces.
template <class P>
struct SplitExponent {
  using T = typename P::type;
  static constexpr float kUnitShift = kShift / steps_of(kPieces<T>);

  T shifted_n;  // n + kUnitShift, which has n in its low bits
  T r;

  // x = (a + a_lo) b; a b is not rounded
  GELU_EXT_FN SplitExponent(T a, T b, T a_lo = 0.0f) : shifted_n(mul_add(a, b, T(kUnitShift))) {
    const T n = shifted_n - kUnitShift;
    if constexpr (is_single<P>) {
      r = mul_add(a_lo, b, fused(a, b, -n));
    } else {
      r = mul_add(a, b, -n);
    }
  }
  explicit GELU_EXT_FN SplitExponent(T x) : shifted_n(x + kUnitShift), r(x - (shifted_n - kUnitShift)) {}
};

// 2^x for -2^17 < x <= 0, |a_lo b| << 1. It is kept in factors of which the last rounds, so that products with it are
// rounded once, also where they are subnormal, and fused with what is added to them.
template <class P, int Pieces = kPieces<typename P::type>>
struct Exp2;

#if defined(GELU_EXT_DEVICE_ARITHMETIC)
// The root of it, for the device's unit makes no results below 1.2e-38.
template <>
struct Exp2<HalfPrecision> {
  float root;

  GELU_EXT_FN Exp2(float a, float b) : root(special_exp2(a * (0.5f * b))) {}

  GELU_EXT_FN Product<float> times(float factor) const { return {factor * root, root}; }
  GELU_EXT_FN Product<float> whole() const { return {root, root}; }
};
#endif

// (1 + excess) 2^n
template <class P>
struct Exp2<P, 0> {
  using T = typename P::type;

  T shifted_n;
  T excess;  // 2^r - 1

  GELU_EXT_FN Exp2(T a, T b, T a_lo = 0.0f) : Exp2(SplitExponent<P>(a, b, a_lo)) {}
  explicit GELU_EXT_FN Exp2(T x) : Exp2(SplitExponent<P>(x)) {}
  explicit GELU_EXT_FN Exp2(const SplitExponent<P>& x) : shifted_n(x.shifted_n), excess(x.r * excess_over(x.r)) {}

  GELU_EXT_FN auto times(T factor) const { return times_power_of_2(mul_add(factor, excess, factor), shifted_n); }
  GELU_EXT_FN auto whole() const { return times_power_of_2(1 + excess, shifted_n); }
  GELU_EXT_FN T scaled() const { return scaled_power_of_2(1 + excess, shifted_n); }

 private:
  // (2^r - 1)/r
  static GELU_EXT_FN T excess_over(T r) {
    if constexpr (is_single<P>) {
      return horner(r, 0x1.416b5ep-13f, 0x1.5f082ep-10f, 0x1.3b2dep-7f, 0x1.c6af7cp-5f, 0x1.ebfbdcp-3f, 0x1.62e43p-1f);
    } else {
      return horner(r, 0x1.5bda9p-10f, 0x1.3ce8b2p-7f, 0x1.c6b6d8p-5f, 0x1.ebf9c2p-3f, 0x1.62e42ap-1f);
    }
  }
};

// significand 2^floor(n). 2^(n - floor(n)) is looked up, so that r is small and little is left to compute.
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
      significand = mul_add(power * x.r, horner(x.r, Table::half), power);
    }
  }

  GELU_EXT_FN auto times(T factor) const { return times_power_of_2(factor * significand, shifted_n); }
  GELU_EXT_FN auto whole() const { return times_power_of_2(significand, shifted_n); }
  GELU_EXT_FN T scaled() const { return scaled_power_of_2(significand, shifted_n); }
};

template <>
struct Exp2<DoublePrecision> {
  double value;

  GELU_EXT_FN Product<double> times(double factor) const { return {factor, value}; }
  GELU_EXT_FN Product<double> whole() const { return {1, value}; }
};

// 2^(a b) 2^33, which is normal for all that 16-bit results can be: a single factor of products whose other one is
// times 2^-33. As exact as Exp2 in the tail, but off by up to 1.3e-6 near 1.
template <class P>
GELU_EXT_FN typename P::type scaled_exp2(typename P::type a, typename P::type b) {
  static_assert(kPowerUnscale == 0x1p-33f, "the scale is the same on the host and the device");
#if defined(GELU_EXT_DEVICE_ARITHMETIC)
  return special_exp2(mul_add(a, b, 33.0f));
#else
  return Exp2<P>(a, b).scaled();
#endif
}

// The polynomial of the piece that t lies in, or the rest of one after its higher coefficients. Rows of the table:
// coefficients, highest degree first.
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
// The same in the distance from the piece's centre.
template <class T, int Rows, int Pieces>
GELU_EXT_FN T piecewise(const float (&table)[Rows][Pieces], const float (&centres)[Pieces], T t) {
  const auto piece = piece_of(t);
  return piecewise(table, t - look_up(centres, piece), piece);
}

}  // namespace gelu_ext
