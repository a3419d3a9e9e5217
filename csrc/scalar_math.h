// The primitives that the activations are written in: fused multiply-add, 2^p, reciprocal, NaN-keeping clamps.
// Knows <cmath> and nothing else. Host versions are branch-free, so that g++ vectorises the loops around them; device
// versions use the special-function unit. Both compilers run with floating-point contraction off: what is fused is
// written here as fused, so the host and the device round alike wherever they do not use that unit.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

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

// How exact a result has to be, chosen by the storage type: `type` is what the arithmetic is done in.
struct HalfPrecision {  // for float16 and bfloat16 results: relative error about 1e-6
  using type = float;
};
struct SinglePrecision {  // for float32 results: a few units in the last place
  using type = float;
};
struct DoublePrecision {
  using type = double;
};

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

// a * b - product with the exact product: the rounding error that `product = a * b` made.
GELU_EXT_FN float product_error(float a, float b, float product) {
#if defined(GELU_EXT_HAS_FMA)
  return __builtin_fmaf(a, b, -product);
#else
  // The product of two 24-bit significands is exact in double; a call to fmaf would not vectorise.
  return static_cast<float>(static_cast<double>(a) * static_cast<double>(b) - static_cast<double>(product));
#endif
}
GELU_EXT_FN double product_error(double a, double b, double product) { return std::fma(a, b, -product); }

// c[0] x^(n-1) + ... + c[n-1]: coefficients highest degree first.
template <class T>
GELU_EXT_FN T horner(T, T c) {
  return c;
}
template <class T, class... Rest>
GELU_EXT_FN T horner(T x, T c0, T c1, Rest... rest) {
  return horner(x, mul_add(c0, x, c1), rest...);
}

// min(x, limit) that keeps a NaN in x (x86 `minps` returns its second operand when either is NaN).
GELU_EXT_FN float min_keep_nan(float x, float limit) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(limit));
  return result;
#else
  return limit < x ? limit : x;
#endif
}
GELU_EXT_FN double min_keep_nan(double x, double limit) { return limit < x ? limit : x; }

GELU_EXT_FN float magnitude(float x) { return __builtin_fabsf(x); }
GELU_EXT_FN double magnitude(double x) { return __builtin_fabs(x); }

// max(x, 0) that keeps NaN and the sign of zero: max0(-0) and max0(x < 0) are -0, so that `max0(x) - 0` is gelu's
// limit.
template <class T>
GELU_EXT_FN T max0(T x) {
  return x < T(-0.0) ? T(-0.0) : x;
}

// 1 / x. The device's unit is good to about 1 ulp; SinglePrecision adds a Newton step.
template <class P>
GELU_EXT_FN typename P::type reciprocal(typename P::type x) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<P, DoublePrecision>) return 1.0 / x;
  float q;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(q) : "f"(x));
  if constexpr (std::is_same_v<P, SinglePrecision>) q = mul_add(mul_add(-x, q, 1.0f), q, q);
  return q;
#else
  return 1 / x;
#endif
}

// 2^(hi + lo) for -250 < hi + lo <= 0, |lo| << 1: kept as significand * 2^n so that products with it round once, also
// where the result is subnormal.
template <class P>
struct Exp2 {
  float significand;  // 2^r, |r| <= 1/2
  uint32_t shifted;   // bits of n + 1.5 * 2^23: its low bits are n

  static constexpr float kShift = 0x1.8p23f;  // adding it rounds to an integer, held in the low bits
  static constexpr uint32_t kShiftBits = 0x4b400000u;

  static GELU_EXT_FN Exp2 of(float hi, float lo = 0.0f) {
    const float shifted = hi + kShift;
    const float r = (hi - (shifted - kShift)) + lo;
    return {polynomial(r), to_bits(shifted)};
  }

  // For use in sums with numbers near 1: below the smallest normal it stays there.
  GELU_EXT_FN float value() const {
    const int32_t n = static_cast<int32_t>(shifted - kShiftBits);
    return significand * from_bits(static_cast<uint32_t>((n < -126 ? -126 : n) + 127) << 23);
  }

  // factor * 2^(hi + lo), rounded once: honest subnormals and an honest zero below them. On the host the factor must be
  // 0 or in [2^-100, 2^20).
  GELU_EXT_FN float times(float factor) const {
    const float product = factor * significand;
#if defined(__CUDA_ARCH__)
    const int32_t n = static_cast<int32_t>(shifted - kShiftBits), half = n >> 1;
    return product * from_bits(static_cast<uint32_t>(half + 127) << 23) *
           from_bits(static_cast<uint32_t>(n - half + 127) << 23);
#else
    // A multiplication with a subnormal result costs some processors a hundred cycles, so subnormals are made by the
    // rounding of an addition instead: product * 2^(n + 149), in units of the smallest subnormal, plus 2^23.
    const uint32_t normal = to_bits(product) + (shifted << 23);
    const uint32_t limited = shifted < kShiftBits - 25u ? shifted : kShiftBits - 25u;
    const float units = product * from_bits((limited << 23) + ((149u + 127u) << 23));
    const uint32_t subnormal = to_bits(units + 0x1p23f) - to_bits(0x1p23f);
    return from_bits(units < 0x1p23f ? subnormal : normal);
#endif
  }

  // The same for a factor of either sign, or NaN.
  GELU_EXT_FN float times_signed(float factor) const {
#if defined(__CUDA_ARCH__)
    return times(factor);
#else
    const float scaled = __builtin_copysignf(times(magnitude(factor)), factor);
    return factor == factor ? scaled : factor;
#endif
  }

  // Minimax on [-1/2, 1/2]: relative error 1.9e-7 (degree 5) and 2e-9 (degree 6) before rounding.
  static GELU_EXT_FN float polynomial(float r) {
    if constexpr (std::is_same_v<P, SinglePrecision>) {
      return horner(r, 0x1.4bc1c8p-13f, 0x1.5fbffcp-10f, 0x1.3b21cap-7f, 0x1.c6ada6p-5f, 0x1.ebfbe6p-3f, 0x1.62e432p-1f,
                    1.0f);
    } else {
      return horner(r, 0x1.4bc1c8p-13f, 0x1.5fbffcp-10f, 0x1.3b21cap-7f, 0x1.c6ada6p-5f, 0x1.ebfbe6p-3f, 0x1.62e432p-1f,
                    1.0f);
    }
  }
};

template <>
struct Exp2<DoublePrecision> {
  double whole;

  GELU_EXT_FN double value() const { return whole; }
  GELU_EXT_FN double times(double factor) const { return factor * whole; }
  GELU_EXT_FN double times_signed(double factor) const { return factor * whole; }
};

#if defined(__CUDACC__)
// One special-function operation instead; results below 1.2e-38 are flushed to zero.
template <>
struct Exp2<HalfPrecision> {
  float whole;

  static GELU_EXT_FN Exp2 of(float hi, float = 0.0f) {
    Exp2 result;
#if defined(__CUDA_ARCH__)
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result.whole) : "f"(hi));
#else
    result.whole = exp2f(hi);
#endif
    return result;
  }
  GELU_EXT_FN float value() const { return whole; }
  GELU_EXT_FN float times(float factor) const { return factor * whole; }
  GELU_EXT_FN float times_signed(float factor) const { return factor * whole; }
};
#endif

}  // namespace gelu_ext
