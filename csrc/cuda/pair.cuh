// A pair of floats, for devices that compute with two at a time (compute capability 10.0 and later): half the
// instructions of the polynomials. The mathematics takes it for one number, as it does the CPU's packs; the primitives
// of scalar_math.h that the values of gates need are found for it by argument-dependent lookup, and give the bits that
// they give for one float.
#pragma once

#include "columns.cuh"

namespace gelu_ext::cuda {

#if (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000) || defined(GELU_EXT_EMULATE_PAIRS)
inline constexpr bool kComputesInPairs = true;
#else
inline constexpr bool kComputesInPairs = false;
#endif

struct Pair {
  float2 of;

  Pair() = default;
  GELU_EXT_FN Pair(float both) : of{both, both} {}
  GELU_EXT_FN Pair(float first, float second) : of{first, second} {}
  GELU_EXT_FN Pair(float2 of) : of(of) {}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  friend GELU_EXT_FN Pair operator+(Pair a, Pair b) { return __fadd2_rn(a.of, b.of); }
  friend GELU_EXT_FN Pair operator*(Pair a, Pair b) { return __fmul2_rn(a.of, b.of); }
  friend GELU_EXT_FN Pair mul_add(Pair a, Pair b, Pair c) { return __ffma2_rn(a.of, b.of, c.of); }
#else
  friend GELU_EXT_FN Pair operator+(Pair a, Pair b) { return {a.of.x + b.of.x, a.of.y + b.of.y}; }
  friend GELU_EXT_FN Pair operator*(Pair a, Pair b) { return {a.of.x * b.of.x, a.of.y * b.of.y}; }
  friend GELU_EXT_FN Pair mul_add(Pair a, Pair b, Pair c) {
    using gelu_ext::mul_add;
    return {mul_add(a.of.x, b.of.x, c.of.x), mul_add(a.of.y, b.of.y, c.of.y)};
  }
#endif
  friend GELU_EXT_FN Pair operator-(Pair a) { return {-a.of.x, -a.of.y}; }
  friend GELU_EXT_FN Pair operator-(Pair a, Pair b) { return a + -b; }

  // What a function gives for each of the two.
  template <class F>
  static GELU_EXT_FN Pair each(Pair a, const F& f) {
    return {f(a.of.x), f(a.of.y)};
  }
  friend GELU_EXT_FN Pair max0(Pair x) {
    return each(x, [](float x) { return gelu_ext::max0(x); });
  }
  friend GELU_EXT_FN Pair at_least(Pair x, float low) {
    return each(x, [=](float x) { return gelu_ext::at_least(x, low); });
  }
  friend GELU_EXT_FN Pair at_most(Pair x, float high) {
    return each(x, [=](float x) { return gelu_ext::at_most(x, high); });
  }
  friend GELU_EXT_FN Pair clamped_magnitude(Pair x, float limit) {
    return each(x, [=](float x) { return gelu_ext::clamped_magnitude(x, limit); });
  }
  friend GELU_EXT_FN Pair reciprocal(Pair x) {
    return each(x, [](float x) { return gelu_ext::reciprocal(x); });
  }
  friend GELU_EXT_FN Pair scaled_power_of_2(Pair x, Pair shifted_n) {
    return {gelu_ext::scaled_power_of_2(x.of.x, shifted_n.of.x), gelu_ext::scaled_power_of_2(x.of.y, shifted_n.of.y)};
  }
  friend GELU_EXT_FN Product<Pair> times_power_of_2(Pair x, Pair shifted_n) {
    return {scaled_power_of_2(x, shifted_n), kUnscale};
  }
#if defined(GELU_EXT_DEVICE_ARITHMETIC)
  friend GELU_EXT_FN Pair special_exp2(Pair x) {
    return each(x, [](float x) { return gelu_ext::special_exp2(x); });
  }
#endif
};

// 16-bit results, two at a time.
struct PairPrecision : LowPrecision {
  using type = Pair;
};

// What a forward kernel computes in. Other functions than gates, operations with vectors of their own, and backward
// kernels, which keep more numbers, would load less at a time for want of registers.
template <class Op, class Act, class Columns>
using ForwardPrecision = std::conditional_t<kComputesInPairs && is_gate<Act> && !kSizes<Op>.has_own_vectors() &&
                                                size_of(Columns::dtype) == 2,
                                            PairPrecision, typename Columns::precision>;

// How many elements make a T; those from k on of a thread's values.
template <class T>
inline constexpr int kTogether = std::is_same_v<T, Pair> ? 2 : 1;
template <class T, class Values>
GELU_EXT_DEVICE T get(const Values& values, int k) {
  if constexpr (kTogether<T> == 2) {
    return {values[k], values[k + 1]};
  } else {
    return values[k];
  }
}
template <class T, class Values>
GELU_EXT_DEVICE void set(Values& values, int k, const T& t) {
  if constexpr (kTogether<T> == 2) {
    values[k] = t.of.x, values[k + 1] = t.of.y;
  } else {
    values[k] = t;
  }
}

}  // namespace gelu_ext::cuda

namespace gelu_ext {

template <>
inline constexpr bool is_low_number<cuda::PairPrecision> = true;
#if defined(GELU_EXT_DEVICE_ARITHMETIC)
template <>
struct Exp2<cuda::PairPrecision, 0> : SpecialExp2<cuda::Pair> {
  using SpecialExp2::SpecialExp2;
};
#endif

}  // namespace gelu_ext
