// The primitives that the activations are written in: fused multiply-add, clamps, quotient, 2^p.
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

// A product whose multiplication is left to the caller, to be fused with the addition that follows.
template <class T>
struct Product {
  T a, b;

  GELU_EXT_FN T value() const { return a * b; }
  GELU_EXT_FN Product half() const { return {a, T(0.5) * b}; }
  GELU_EXT_FN T plus(T c) const { return mul_add(a, b, c); }
  GELU_EXT_FN T subtracted_from(T c) const { return mul_add(-a, b, c); }
};

// c[0] x^(n-1) + ... + c[n-1]: coefficients highest degree first.
template <class T>
GELU_EXT_FN T horner(T, T c) {
  return c;
}
template <class T, class... Rest>
GELU_EXT_FN T horner(T x, T c0, T c1, Rest... rest) {
  return horner(x, mul_add(c0, x, c1), rest...);
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

// 1 / x; the device's unit is good to about 1 ulp.
template <class T>
GELU_EXT_FN T reciprocal(T x) {
#if defined(GELU_EXT_DEVICE_ARITHMETIC)
  if constexpr (std::is_same_v<T, float>) return special_reciprocal(x);
#endif
  return 1 / x;
}

// a / (b + b_lo) to about half a unit in the last place, given q = 1/b to a few.
GELU_EXT_FN float quotient(float a, float b, float b_lo, float q) {
  const float rough = a * q;
  return mul_add(mul_add(-b_lo, rough, fused(-b, rough, a)), q, rough);
}

// 2^((a + a_lo) b) for -2^20 < a b <= 0, |a_lo b| << 1; a b is not rounded. It is kept in factors of which the last
// rounds, so that products with it are rounded once, also where they are subnormal, and fused with what is added to
// them.
template <class P>
struct Exp2;

#if defined(GELU_EXT_DEVICE_ARITHMETIC)
// The root of it, for the device's unit makes no results below 1.2e-38.
template <>
struct Exp2<HalfPrecision> {
  float root;

  static GELU_EXT_FN Exp2 of(float a, float b) { return {special_exp2(a * (0.5f * b))}; }

  GELU_EXT_FN Product<float> times(float factor) const { return {factor * root, root}; }
};
#endif

// (1 + excess) * scale * kUnscale = 2^r * 2^n, n the nearest integer: all but the last multiplication stay normal.
template <class P>
struct Exp2 {
  static constexpr int kLowest = -160;  // 0 below: a factor up to 2^10 still makes the right subnormals and zeros
  static constexpr float kUnscale = 0x1p-33f;  // 2^(kLowest + 127)
  static constexpr float kShift = 0x1.8p23f;   // adding it rounds to an integer, held in the low bits

  float excess;  // 2^r - 1
  float scale;

  static GELU_EXT_FN Exp2 of(float a, float b, float a_lo = 0.0f) {
    const float shifted = mul_add(a, b, kShift);
    const int32_t n = static_cast<int32_t>(to_bits(shifted)) - static_cast<int32_t>(to_bits(kShift));
    constexpr bool single = std::is_same_v<P, SinglePrecision>;
    const float r = single ? mul_add(a_lo, b, fused(a, b, kShift - shifted)) : mul_add(a, b, kShift - shifted);
    return {r * excess_over(r), from_bits(static_cast<uint32_t>((n > kLowest ? n : kLowest) - kLowest) << 23)};
  }

  GELU_EXT_FN Product<float> times(float factor) const { return {mul_add(factor, excess, factor) * scale, kUnscale}; }

  // (2^r - 1)/r
  static GELU_EXT_FN float excess_over(float r) {
    if constexpr (std::is_same_v<P, SinglePrecision>) {
      return horner(r, 0x1.416b5ep-13f, 0x1.5f082ep-10f, 0x1.3b2dep-7f, 0x1.c6af7cp-5f, 0x1.ebfbdcp-3f, 0x1.62e43p-1f);
    } else {
      return horner(r, 0x1.5bda9p-10f, 0x1.3ce8b2p-7f, 0x1.c6b6d8p-5f, 0x1.ebf9c2p-3f, 0x1.62e42ap-1f);
    }
  }
};

template <>
struct Exp2<DoublePrecision> {
  double whole;

  GELU_EXT_FN Product<double> times(double factor) const { return {factor, whole}; }
};

}  // namespace gelu_ext
