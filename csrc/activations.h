// THE MATHEMATICS, once, for g++ and nvcc: every activation's value and slope, and the list of them.
// Knows scalar_math.h and the tables of pieces.h, nothing else.
//
// An activation is a struct with a name, which is what users call it, and one of two sets of members, for each
// precision P of scalar_math.h. Activation, below, makes value, slope and both of either.
//
// A gate is x F(x), where F rises from 0 to 1 and F(-x) = 1 - F(x). With t = |x|, its upper tail tail(t) = t F(-t)
// gives everything without cancellation:
//     value(x) = max(x, 0) - tail(t)            slope(x) = S(t) for x < 0, 1 - S(t) for x > 0,
// where S(t) = F(-t) - t F'(t) is the slope at -t. So its struct says no more than
//     tail<P>(t), tail_slope<P>(t),   tail(t), S(t) and both. Each is a product whose last multiplication is not done
//     tail_and_slope<P>(t)            yet: Activation fuses it with the subtraction in value(x) or slope(x).
//     limit<P>                        t is clamped to it. There tail and S are 0 in P's arithmetic, so that nothing
//                                     overflows and no residue is left for a gate to multiply.
// Any other function says itself what it is, for every x, infinities and NaN too:
//     value<P>(x), slope<P>(x), value_and_slope<P>(x)
//
// To add one, write its struct (for x sigmoid(k x) one like GeluSigmoid is enough) and put it into the list
// Activations; CONTRIBUTING.md has the other steps.
//
// csrc/fit/fit.py computes every coefficient. The comment at a polynomial gives its degree, its interval and its error,
// relative to the activation's result. fit.py --check asserts these numbers; tests/native/accuracy.cpp asserts the
// error of the result, in units in the last place.
#pragma once

#include "pieces.h"
#include "scalar_math.h"

namespace gelu_ext {

inline constexpr double kLog2E = 0x1.71547652b82fep+0;  // log2(e) = 1.442695

template <class T>
struct ValueAndSlope {
  T value, slope;
};

// Both are products whose last multiplication is not done yet.
template <class Tail, class Slope>
struct TailAndSlope {
  Tail tail;
  Slope slope;
};
template <class Tail, class Slope>
TailAndSlope(Tail, Slope) -> TailAndSlope<Tail, Slope>;

// F = Phi, the normal distribution function, whose density is phi (Hendrycks and Gimpel, arXiv:1606.08415). With
// E = exp(-t^2/2) and the Mills ratio M(t) = Phi(-t)/E, which falls slowly from 1/2 at 0 to 0.027 at 14.9,
//     tail(t) = E t M(t)
//     S(t)    = E (M(t) - t phi(0)) = E (t0 - t) G(t).
// t0 = 0.75179 is the root of S. Near it M(t) - t phi(0) cancels; with the root factored out, the rest G does not.
//
// Vector registers with lookup (AVX2, AVX-512) divide [0, 15) into 8 or 16 pieces: p[table] is the polynomial of the
// piece that t lies in, see pieces.h. "Plain" is without: on the device and in registers of 128 bits one polynomial, R,
// G or L, covers all of it. So this is what is computed:
//
//              tail                     slope                    both
//   float64    t erfc(t/sqrt 2)/2       Phi(-t) - t phi(t)       as each alone
//   float32    E p[tail]                E p[slope]               E t p[mills_*], E p[mills_curve, slope_line]
//     plain    E w (1/2 + R(w))/2       E (t0 - t) G(w)          as each alone, sharing w = t/(1 + t/2)
//   16 bits    t 2^p[log2_upper_tail]   E (t0 - t) p[slope_low]  slope as alone, tail = t (S(t) + t phi(t))
//     plain    t 2^(2 L(t))             E (t0 - t) G(q)          the same, with q = 1/(t + 2.9375)
struct Gelu {
  static constexpr const char* name = "gelu";

  // In float64 erfc and exp are 0 from 38.6 on. In float32 E is 2^-160, which is kLowestPower, at 14.9. In 16 bits all
  // is 0 at 14.8 too; beyond 14.84 the scaled E, a factor there, would be subnormal, and that costs time.
  template <class P>
  static constexpr typename P::scalar limit = is_double<P>   ? 40.0
                                              : is_single<P> ? 14.9
                                                             : 14.8;

  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail(T t) {
    if constexpr (is_double<P>) {
      return Product<T>{t, upper_tail(t)};
    } else if constexpr (is_single<P>) {
      const SplitExponent<P> gauss = gauss_single<P>(t);
      const T factor = SingleFactors<T>::tail(t);
      return tail_single(Exp2<P>(gauss), factor);
    } else {
      return upper_tail_low<P>(t).times(t);
    }
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail_slope(T t) {
    if constexpr (is_double<P>) {
      return Product<T>{mul_add(-t, density(t), upper_tail(t)), 1.0};
    } else if constexpr (is_single<P>) {
      const SplitExponent<P> gauss = gauss_single<P>(t);
      const T factor = SingleFactors<T>::slope(t);
      return Exp2<P>(gauss).times(factor);
    } else {
      return tail_and_slope<P>(t).slope;
    }
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail_and_slope(T t) {
    if constexpr (is_double<P>) {
      const double p = upper_tail(t);
      return TailAndSlope{Product<T>{t, p}, Product<T>{mul_add(-t, density(t), p), 1.0}};
    } else if constexpr (is_single<P>) {
      const SplitExponent<P> gauss = gauss_single<P>(t);
      const SingleFactors<T> factors(t);
      const T tail = factors.tail(), slope = factors.slope();
      const Exp2<P> e(gauss);
      return TailAndSlope{tail_single(e, tail), e.times(slope)};
    } else {
      // Phi(-t) = S(t) + t phi(t), so the tail costs one multiplication more than the slope. The sum cancels to 1/t^2
      // of its terms: an error of 2e-6 in float16's smallest results and of 1e-5 in bfloat16's.
      const T e = scaled_exp2<P>(t * t, kGauss), s = from_root<P>(t, slope_factor_low(t));
      return TailAndSlope{Product<T>{t * e, mul_add(t, kScaledDensity, s)}, Product<T>{s, e}};
    }
  }

 private:
  template <class P>
  friend struct GaussianGate;

  // E = 2^(kGauss t^2) with -log2(e)/2 = -0.7213475 rounded, which makes E up to 1e-6 wrong in the tail. The factors of
  // float32 results make that good: they are fitted to what this E has to be multiplied by.
  static constexpr float kGauss = static_cast<float>(-0.5 * kLog2E);

  // E with the rounding error of t^2 carried along: relative to E, an error of t^2 counts up to t^2/2 = 111 times.
  // That of t itself too, where it has one.
  template <class P, class T = typename P::type>
  static GELU_EXT_FN SplitExponent<P> gauss_single(T t) {
    const T square = t * t;
    return {square, kGauss, fused(t, t, -square)};
  }
  template <class P, class T = typename P::type>
  static GELU_EXT_FN SplitExponent<P> gauss_single(T t, T t_lo) {
    const T square = t * t;
    return {square, kGauss, mul_add(t + t, t_lo, fused(t, t, -square))};
  }

  // (t0 - t) g, t0 = t0_hi + t0_lo = 0.7517916
  template <class P, class T = typename P::type>
  static GELU_EXT_FN T from_root(T t, T g) {
    constexpr float t0_hi = 0x1.80ead2p-1f, t0_lo = -0x1.a03fd4p-27f;
    const T distance = t0_hi - t;
    if constexpr (is_single<P>) return mul_add(distance, g, t0_lo * g);
    return distance * g;
  }

  template <class T>
  using Pieces = GeluPieces<kPieces<T>>;

  // What E is multiplied by for float32 results: t M(t) and M(t) - t phi(0), each alone (the static members) or both.
  // As t phi(0) is a line, the polynomials of M(t) and M(t) - t phi(0) have the same higher coefficients (mills_curve)
  // and differ in the last two (mills_line, slope_line). p[slope] needs no factored root: a slope near its root has to
  // have a small absolute error only, which the polynomial of so narrow a piece has.
  template <class T, int = kPieces<T>>
  struct SingleFactors {
    using Piece = decltype(piece_of(T()));

    T t;
    Piece piece;
    T distance, curve;

    explicit GELU_EXT_FN SingleFactors(T t)
        : t(t),
          piece(piece_of(t)),
          distance(t - look_up(Pieces<T>::mills_centres, piece)),
          curve(piecewise(Pieces<T>::mills_curve, distance, piece)) {}

    static GELU_EXT_FN T tail(T t) { return piecewise(Pieces<T>::tail, Pieces<T>::tail_centres, t); }
    static GELU_EXT_FN T slope(T t) { return piecewise(Pieces<T>::slope, Pieces<T>::slope_centres, t); }
    GELU_EXT_FN T mills() const { return piecewise(Pieces<T>::mills_line, distance, piece, curve); }
    GELU_EXT_FN T tail() const { return t * mills(); }
    GELU_EXT_FN T slope() const { return piecewise(Pieces<T>::slope_line, distance, piece, curve); }
  };

  // Without lookup, in w = t/(1 + t/2), which lies in [0, 2): t M(t) = w (1/2 + R(w))/2. There w is a factor, which has
  // to be right; G is so flat that a rough w will do for it. tail() is twice t M(t) and mills() twice M(t):
  // tail_single() halves the product.
  template <class T>
  struct SingleFactors<T, 0> {
    T t, sum, inverse;

    explicit GELU_EXT_FN SingleFactors(T t) : t(t), sum(mul_add(0.5f, t, 1.0f)), inverse(reciprocal(sum)) {}

    static GELU_EXT_FN T tail(T t) { return SingleFactors(t).tail(); }
    static GELU_EXT_FN T slope(T t) { return SingleFactors(t).slope(); }
    GELU_EXT_FN T tail() const {
      const T w = quotient(t, sum, mul_add(0.5f, t, 1.0f - sum), inverse);
      return mul_add(w, rest_single(w), 0.5f * w);
    }
    GELU_EXT_FN T mills() const {
      const T w = quotient(t, sum, mul_add(0.5f, t, 1.0f - sum), inverse);
      return quotient(rest_single(w) + 0.5f, sum, mul_add(0.5f, t, 1.0f - sum), inverse);
    }
    GELU_EXT_FN T slope() const { return from_root<SinglePrecision>(t, slope_over_root_single(t * inverse)); }
  };

  template <class E, class T>
  static GELU_EXT_FN auto tail_single(const E& e, T factor) {
    if constexpr (kPieces<T> != 0) {
      return e.times(factor);
    } else {
      return e.times(factor).halved();  // halved last, the tail is exactly t/2 for subnormal t
    }
  }

  // 2^-33 G, for scaled_exp2() is 2^33 E.
  template <class T>
  static GELU_EXT_FN T slope_factor_low(T t) {
    if constexpr (kPieces<T> != 0) {
      return piecewise(Pieces<T>::slope_low, t, piece_of(t));
    } else {
      return slope_over_root_low(reciprocal(t + kReciprocalShift));
    }
  }

  // Phi(-t)
  template <class P, class T = typename P::type>
  static GELU_EXT_FN Exp2<P> upper_tail_low(T t) {
    if constexpr (kPieces<T> != 0) {
      return Exp2<P>(piecewise(Pieces<T>::log2_upper_tail, t, piece_of(t)));
    } else {
      // The logarithm is nearly a parabola, so that one polynomial will do.
      return Exp2<P>(log2_upper_tail_over_2(t), 2.0f);
    }
  }

  // R = (2 + t) M(t) - 1/2, which falls from 1/2 to -0.1: degree 11 in w on [0, 1.76], error 6.2e-09
  template <class T>
  static GELU_EXT_FN T rest_single(T w) {
    return horner(w, -0x1.1a10c2p-14f, 0x1.33ab8p-11f, -0x1.0b18c2p-9f, 0x1.fae1c6p-9f, -0x1.466da2p-8f, 0x1.dd299ep-9f,
                  -0x1.3753d2p-11f, 0x1.da58a4p-8f, 0x1.588b5ap-7f, -0x1.883016p-5f, -0x1.3108bcp-2f, 0x1p-1f);
  }

  // G = (M(t) - t phi(0))/(t0 - t): degree 9 in w on [0, 1.76], error 1.8e-08
  template <class T>
  static GELU_EXT_FN T slope_over_root_single(T w) {
    return horner(w, -0x1.345f8cp-17f, 0x1.ead034p-14f, -0x1.af8d12p-12f, 0x1.f780a6p-12f, -0x1.5ca23ap-11f,
                  0x1.2e054p-10f, 0x1.9779d8p-8f, 0x1.2ee4c8p-7f, -0x1.69c95cp-3f, 0x1.54851ap-1f);
  }

  // L = log2(Phi(-t))/2: degree 9 in t on [0, 14.9], error 8.9e-06
  // This error and the next hold for normal float16 results. In smaller ones, which only bfloat16 has, 3.5 times as
  // much is allowed.
  template <class T>
  static GELU_EXT_FN T log2_upper_tail_over_2(T t) {
    return horner(t, -0x1.28351cp-30f, 0x1.4aebf6p-24f, -0x1.450536p-19f, 0x1.73cbaep-15f, -0x1.15b15ap-11f,
                  0x1.21ab5cp-8f, -0x1.bd9aa6p-6f, -0x1.d53ad8p-3f, -0x1.26b922p-1f, -0x1.00004ep-1f);
  }

  // 2.9375 and 2^-33 phi(0) = 2^-33 * 0.3989423
  static constexpr float kReciprocalShift = 0x1.78p+1f, kScaledDensity = 0x1.988454p-35f;

  // 2^-33 G: degree 5 in q on [0.0561, 0.34], error 3.4e-06
  template <class T>
  static GELU_EXT_FN T slope_over_root_low(T q) {
    return horner(q, -0x1.afc2p-31f, 0x1.59a63ap-31f, 0x1.caa37p-34f, 0x1.83a3f6p-34f, 0x1.30c4e2p-35f,
                  0x1.988f6cp-35f);
  }

  // Phi(-t) = erfc(t/sqrt 2)/2. Rounding z = t/sqrt 2 alone would cost t^2 2^-53, so its error r is carried along:
  // erfc(z + r) = erfc(z) (1 - 2 z r), nearly, in the tail where it counts.
  static GELU_EXT_FN double upper_tail(double t, double t_lo = 0) {
    constexpr double c_hi = 0x1.6a09e667f3bcdp-1, c_lo = -0x1.bdd3413b26456p-55;  // sqrt(1/2) = 0.7071068
    const double z = t * c_hi;
    const double r = fused(t, c_hi, -z) + (t * c_lo + t_lo * c_hi);
    const double p = 0.5 * ::erfc(z);
    return p - p * (2.0 * z * r);
  }

  // phi(t); phi(0) = 0.3989423
  static GELU_EXT_FN double density(double t, double t_lo = 0) {
    const double square = t * t;
    return 0x1.9884533d43651p-2 * ::exp(-0.5 * square) * (1.0 - (0.5 * fused(t, t, -square) + t * t_lo));
  }
};

// A sum, its rounding error, and divisions by it; below, sums of exponential functions.
template <class P>
struct Divisor {
  using T = typename P::type;

  T sum, sum_error, inverse;

  GELU_EXT_FN Divisor(T sum, T sum_error) : sum(sum), sum_error(sum_error), inverse(inverse_of(sum)) {}

  GELU_EXT_FN T divide(T a) const {
    if constexpr (is_single<P>) return quotient(a, sum, sum_error, inverse);
    return a * inverse;
  }

  // a / sum^2
  GELU_EXT_FN T divide_twice(T a) const {
    if constexpr (is_single<P>) {
      const T square = fused(sum, sum, sum * (sum_error + sum_error));
      return quotient(a, square, inverse * inverse);
    } else {
      return a * inverse * inverse;
    }
  }

 private:
  static GELU_EXT_FN T inverse_of(T sum) {
    if constexpr (is_single<P>) return rough_reciprocal(sum);
    return reciprocal(sum);
  }
};

// 1 + e for an Exp2 that is at most 1
template <class P, class E, class T = typename P::type>
GELU_EXT_FN Divisor<P> one_plus(E e) {
  const T sum = e.whole().plus(1);
  return {sum, e.whole().plus(1 - sum)};
}

// x sigmoid(z(x)) with an odd, rising polynomial z, which `argument` computes. With e = exp(-z(t)) <= 1,
//     F(-t) = e/(1 + e)      F'(t) = e/(1 + e)^2 z'(t)      S(t) = e (1 + e - t z'(t))/(1 + e)^2.
template <class Argument>
struct SigmoidGate {
  Argument argument;

  // The first multiple of 1/4 at which e has vanished. Below it every result is computed, down to the smallest
  // subnormal; from it on all are 0, since tail is less than e t and S less than e t z'(t), and both factors are below
  // 2^10.
  template <class P>
  static constexpr typename P::scalar limit = [] {
    double t = 0;
    while (Argument::z(t) * kLog2E < kVanishing<P>) t += 0.25;
    return static_cast<typename P::scalar>(t);
  }();

  template <class P, class T = typename P::type>
  GELU_EXT_FN auto tail(T t) const {
    const Exp2<P> e = argument.template exp_minus<P>(t);
    return e.times(one_plus<P>(e).divide(t));
  }

  template <class P, class T = typename P::type>
  GELU_EXT_FN auto tail_slope(T t) const {
    return tail_and_slope<P>(t).slope;
  }

  template <class P, class T = typename P::type>
  GELU_EXT_FN auto tail_and_slope(T t) const {
    const Exp2<P> e = argument.template exp_minus<P>(t);
    const Divisor<P> one_plus_e = one_plus<P>(e);
    const T numerator = argument.template slope_numerator<P>(t, e.whole());
    return TailAndSlope{e.times(one_plus_e.divide(t)), e.times(one_plus_e.divide_twice(numerator))};
  }
};

// z(t) = kLinear (t + kCubic t^3), with the constants of Act.
template <class Act>
struct CubicArgument {
  static constexpr double z(double t) { return Act::kLinear * (t + Act::kCubic * t * t * t); }

  template <class P>
  static GELU_EXT_FN Exp2<P> exp_minus(typename P::type t) {
    constexpr double a = -Act::kLinear * kLog2E, b = a * Act::kCubic;
    if constexpr (is_double<P>) {
      return {::exp(-Act::kLinear * (t * mul_add(Act::kCubic * t, t, 1.0)))};
    } else if constexpr (is_low_number<P>) {  // on the device; packs go on below, and ignore m_lo
      return Exp2<P>(t, mul_add(static_cast<float>(b), t * t, static_cast<float>(a)));
    } else {
      // t (m + m_lo), where m is a + b t^2 and m_lo holds the errors of t^2, of the sum and of the constants. a_hi is
      // so short that a_hi - m is exact.
      constexpr float a_hi = static_cast<float>(static_cast<int>(a * 0x1p19) * 0x1p-19);
      constexpr float a_lo = static_cast<float>(a - a_hi);
      constexpr float b_hi = static_cast<float>(b), b_lo = static_cast<float>(b - b_hi);
      const auto square = t * t, square_error = fused(t, t, -square);
      const auto m = mul_add(b_hi, square, a_hi);
      const auto m_lo = fused(b_hi, square, a_hi - m) + mul_add(b_hi, square_error, mul_add(b_lo, square, a_lo));
      return Exp2<P>(m, t, m_lo);
    }
  }

  // 1 + e - t z'(t), where z'(t) = a + b t^2
  template <class P, class E, class T = typename P::type>
  static GELU_EXT_FN T slope_numerator(T t, E e) {
    using S = typename P::scalar;
    constexpr S a = static_cast<S>(Act::kLinear), b = static_cast<S>(3 * Act::kLinear * Act::kCubic);
    if constexpr (is_single<P>) {
      constexpr float a_lo = static_cast<float>(Act::kLinear - a);
      return fused(-a, t, 1.0f) + mul_add(-b * (t * t), t, mul_add(-a_lo, t, e.value()));
    } else {
      return mul_add(-t, mul_add(b * t, t, a), e.plus(1));
    }
  }
};

// z(t) = kLinear t, with the constant of Act.
template <class Act>
struct LinearArgument {
  static constexpr double z(double t) { return Act::kLinear * t; }

  template <class P>
  static GELU_EXT_FN Exp2<P> exp_minus(typename P::type t) {
    constexpr double a = -Act::kLinear * kLog2E;
    if constexpr (is_double<P>) {
      return {::exp(-Act::kLinear * t)};
    } else if constexpr (is_low_number<P>) {
      return Exp2<P>(t, static_cast<float>(a));
    } else {
      constexpr float a_hi = static_cast<float>(a), a_lo = static_cast<float>(a - a_hi);
      return Exp2<P>(a_hi, t, a_lo);
    }
  }

  // 1 + e - t z'(t), where z'(t) = a
  template <class P, class E, class T = typename P::type>
  static GELU_EXT_FN T slope_numerator(T t, E e) {
    using S = typename P::scalar;
    constexpr S a = static_cast<S>(Act::kLinear);
    if constexpr (is_single<P>) {
      constexpr float a_lo = static_cast<float>(Act::kLinear - a);
      return fused(-a, t, 1.0f) + mul_add(-a_lo, t, e.value());
    } else {
      return mul_add(-t, a, e.plus(1));
    }
  }
};

// z(t) = k t, with a k that is known at run time only: k and -k log2(e), each as a number and its rest, which float32
// needs.
template <class P>
struct ScaledArgument {
  using S = typename P::scalar;
  S k, k_rest, exponent, exponent_rest;

  template <class>
  GELU_EXT_FN Exp2<P> exp_minus(typename P::type t) const {
    if constexpr (is_double<P>) {
      return {::exp(-k * t)};
    } else if constexpr (is_low_number<P>) {
      return Exp2<P>(t, exponent);
    } else {
      return Exp2<P>(exponent, t, exponent_rest);
    }
  }

  // 1 + e - t z'(t), where z'(t) = k
  template <class, class E, class T = typename P::type>
  GELU_EXT_FN T slope_numerator(T t, E e) const {
    if constexpr (is_single<P>) {
      return fused(T(-k), t, T(1.0f)) + mul_add(T(-k_rest), t, e.value());
    } else {
      return mul_add(-t, T(k), e.plus(1));
    }
  }
};

// 0.5 x (1 + tanh(u)) = x sigmoid(2 u), 2 u = sqrt(8/pi) (x + 0.044715 x^3): the usual approximation of gelu.
struct GeluTanh : SigmoidGate<CubicArgument<GeluTanh>> {
  static constexpr const char* name = "gelu_tanh";
  static constexpr double kLinear = 0x1.9884533d43651p+0, kCubic = 0.044715;  // sqrt(8/pi) = 1.595769
};

// "Quick" gelu, a rougher approximation (Hendrycks and Gimpel).
struct GeluSigmoid : SigmoidGate<LinearArgument<GeluSigmoid>> {
  static constexpr const char* name = "gelu_sigmoid";
  static constexpr double kLinear = 1.702;
};

// x sigmoid(x), also called swish: GELU with the logistic distribution (Elfwing, Uchibe and Doya, arXiv:1702.03118).
struct Silu : SigmoidGate<LinearArgument<Silu>> {
  static constexpr const char* name = "silu";
  static constexpr double kLinear = 1;
};

// max(x, 0). Its slope at 0 is 0 and that at NaN is 1, as in torch.
struct Relu {
  static constexpr const char* name = "relu";

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T value(T x) {
    return at_least(x, typename P::scalar(0));
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T slope(T x) {
    return where_above(x, typename P::scalar(0), T(1.0f), T(0.0f));
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    return {value<P>(x), slope<P>(x)};
  }
};

// max(x, 0)^2, also called squared ReLU (So et al., arXiv:2109.08668).
struct Relu2 {
  static constexpr const char* name = "relu2";

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T value(T x) {
    return value_and_slope<P>(x).value;
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T slope(T x) {
    return value_and_slope<P>(x).slope;
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    const T root = at_least(x, typename P::scalar(0));
    return {product(root, root), root + root};
  }
};

// exp(k x) as an E, which is Exp2<P> or Exp2Minus1<P>: a power of 2 in float32, both of the library's in float64.
template <class P, int k, class E = Exp2<P>, class T = typename P::type>
GELU_EXT_FN E exp_of(T x) {
  if constexpr (!is_double<P>) {
    constexpr double a = k * kLog2E;
    constexpr float a_hi = static_cast<float>(a), a_lo = static_cast<float>(a - a_hi);
    return E(a_hi, x, a_lo);
  } else if constexpr (std::is_same_v<E, Exp2<P>>) {
    return {::exp(k * x)};
  } else {
    return {::exp(k * x), ::expm1(k * x)};
  }
}

// A multiple of 1/4 at which exp(-k t) has vanished, and so have its products with factors up to 2^10.
template <class P, int k>
inline constexpr typename P::scalar kVanished = static_cast<int>(4 * kVanishing<P> / (k * kLog2E) + 1) / 4.0f;

// 1/(1 + exp(-x)), the logistic function: e/(1 + e) at -t and 1 - e/(1 + e) at t, where e = exp(-t). Its slope is
// e/(1 + e)^2 at both.
struct Sigmoid {
  static constexpr const char* name = "sigmoid";

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T value(T x) {
    const Exp2<P> e = exp_minus<P>(x);
    return value(x, e, one_plus<P>(e));
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T slope(T x) {
    const Exp2<P> e = exp_minus<P>(x);
    return slope<T>(e, one_plus<P>(e));
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    const Exp2<P> e = exp_minus<P>(x);
    const Divisor<P> one_plus_e = one_plus<P>(e);
    return {value(x, e, one_plus_e), slope<T>(e, one_plus_e)};
  }

 private:
  template <class P, class T>
  static GELU_EXT_FN Exp2<P> exp_minus(T x) {
    return exp_of<P, -1>(clamped_magnitude_or_nan(x, kVanished<P, 1>));
  }

  template <class T, class E, class Sum>
  static GELU_EXT_FN T value(T x, E e, Sum one_plus_e) {
    const auto below = e.times(one_plus_e.divide(1.0f));
    if constexpr (is_pack<T>) {
      return complement_where_positive(x, below.value());
    } else {
      return x > 0 ? below.subtracted_from(1) : below.value();
    }
  }

  template <class T, class E, class Sum>
  static GELU_EXT_FN T slope(E e, Sum one_plus_e) {
    return e.times(one_plus_e.divide_twice(1.0f)).value();
  }
};

// tanh(t) = (1 - e)/(1 + e) with e = exp(-2 t), where 1 - e would cancel for small t; the slope is 4 e/(1 + e)^2.
struct Tanh {
  static constexpr const char* name = "tanh";

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T value(T x) {
    const T t = clamped<P>(x);
    const auto e = exp_of<P, -2, Exp2Minus1<P>>(t);
    return value<P>(x, t, e, one_plus<P>(e));
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T slope(T x) {
    const auto e = exp_of<P, -2>(clamped<P>(x));
    return slope<T>(e, one_plus<P>(e));
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    const T t = clamped<P>(x);
    const auto e = exp_of<P, -2, Exp2Minus1<P>>(t);
    const Divisor<P> one_plus_e = one_plus<P>(e);
    return {value<P>(x, t, e, one_plus_e), slope<T>(e, one_plus_e)};
  }

 private:
  template <class P, class T>
  static GELU_EXT_FN T clamped(T x) {
    return clamped_magnitude_or_nan(x, kVanished<P, 2>);
  }

  template <class P, class T, class E, class Sum>
  static GELU_EXT_FN T value(T x, T t, E e, Sum one_plus_e) {
    const T ratio = one_plus_e.divide(e.minus_one());
    if constexpr (is_single<P>) {
      return with_sign_of(x, where_above(t, 0x1p-12f, ratio, t));  // below it is t, which loses no bit of a subnormal
    } else {
      return with_sign_of(x, ratio);
    }
  }

  template <class T, class E, class Sum>
  static GELU_EXT_FN T slope(E e, Sum one_plus_e) {
    return e.times(one_plus_e.divide_twice(4.0f)).value();
  }
};

// x tanh(log(1 + exp(x))) (Misra, arXiv:1908.08681). With u = exp(x) and d = (1 + u)^2 + 1 = u (u + 2) + 2, nothing
// cancels but the slope at its root, in
//     value     x u (u + 2)/d                                            for x <= 0     x - 2 x/d    for x > 0
//     slope     u (u^3 + 4 u^2 + (4 x + 6) u + 4 (x + 1))/d^2            for x <= 0
//               1 + ((4 x - 2) u^2 + (4 x - 4) u - 4)/d^2                for x > 0.
struct Mish {
  static constexpr const char* name = "mish";

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T value(T x) {
    return Parts<P>(x).value(x);
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T slope(T x) {
    return Parts<P>(x).slope();
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    const Parts<P> parts(x);
    return {parts.value(x), parts.slope()};
  }

 private:
  template <class P>
  struct Parts {
    using T = typename P::type;
    using S = typename P::scalar;
    static constexpr S kHigh = is_double<P> ? 24 : 12;  // from here on value and slope are x and 1 to every bit

    T x;  // clamped
    Exp2<P> exp;
    T u;
    Divisor<P> d;

    explicit GELU_EXT_FN Parts(T any_x)
        : x(at_most(at_least(any_x, -kVanished<P, 1>), kHigh)),
          exp(exp_of<P, 1>(x)),
          u(exp.whole().value()),
          d(divisor(u, exp.whole().plus(2))) {}

    GELU_EXT_FN T value(T any_x) const {
      const T twice = x + x, ratio = d.divide(where_above(x, S(0), twice, mul_add(x, u, twice)));
      const T value = where_above(x, S(0), any_x - ratio, exp.times(ratio).value());
      // A quotient of float32, and a power of 2 that is computed, may have made 0 of -0.
      if constexpr (has_special_exp2<P>) return value;
      return with_sign_of(any_x, value);
    }

    GELU_EXT_FN T slope() const {
      const T x4 = T(4.0f) * x;
      const T c2 = where_above(x, S(0), x4 - T(2.0f), u + T(4.0f));
      const T c1 = x4 + where_above(x, S(0), T(-4.0f), T(6.0f));
      const T c0 = where_above(x, S(0), T(-4.0f), x4 + T(4.0f));
      const T ratio = d.divide_twice(mul_add(mul_add(c2, u, c1), u, c0));
      return where_above(x, S(0), T(1.0f) + ratio, exp.times(ratio).value());
    }

   private:
    static GELU_EXT_FN Divisor<P> divisor(T u, T u_plus_2) {
      const T two = 2.0f, sum = mul_add(u, u_plus_2, two);
      if constexpr (is_single<P>) {
        return {sum, mul_add(u, u - (u_plus_2 - two), fused(u, u_plus_2, two - sum))};
      } else {
        return {sum, two};
      }
    }
  };
};

// x above 0, exp(x) - 1 below (Clevert, Unterthiner and Hochreiter, arXiv:1511.07289, with alpha = 1).
struct Elu {
  static constexpr const char* name = "elu";

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T value(T x) {
    return value<P>(x, exp_of<P, 1, Exp2Minus1<P>>(at_least(x, -kVanished<P, 1>)));
  }

  // exp(x) clamped to 1: so a NaN stays one.
  template <class P, class T = typename P::type>
  static GELU_EXT_FN T slope(T x) {
    return exp_of<P, 1>(clamped<P>(x)).whole().value();
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    const auto e = exp_of<P, 1, Exp2Minus1<P>>(clamped<P>(x));
    return {value<P>(x, e), e.whole().value()};
  }

 private:
  template <class P, class T>
  static GELU_EXT_FN T clamped(T x) {
    return at_most(at_least(x, -kVanished<P, 1>), typename P::scalar(0));
  }

  // Just below 0 it is x too, to every bit, also of a subnormal. Above, e may have overflown.
  template <class P, class T, class E>
  static GELU_EXT_FN T value(T x, E e) {
    constexpr typename P::scalar kLinear = is_double<P> ? -0x1p-54 : -0x1p-25;
    return where_above(x, kLinear, x, e.minus_one());
  }
};

// x, for bilinear gates: glu then is the product of its halves.
struct Identity {
  static constexpr const char* name = "identity";

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T value(T x) {
    return x;
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN T slope(T) {
    return 1.0f;
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    return {x, slope<P>(x)};
  }
};

// Whether it says what a gate says.
template <class Act, class = void>
inline constexpr bool is_gate = false;
template <class Act>
inline constexpr bool is_gate<Act, std::void_t<decltype(Act::template limit<SinglePrecision>)>> = true;

template <class... Acts>
struct ActivationList {
  static constexpr int size = sizeof...(Acts);
  static constexpr const char* names[] = {Acts::name...};
};
using Activations = ActivationList<Gelu, GeluTanh, GeluSigmoid, Silu, Relu, Relu2, Sigmoid, Tanh, Mish, Elu, Identity>;

// Value, slope and both of the activation Act at any x, in precision P.
template <class Act, class P, bool = is_gate<Act>>
struct Activation {
  using T = typename P::type;
  using Precision = P;

  static GELU_EXT_FN T value(T x) { return Act::template value<P>(x); }
  static GELU_EXT_FN T slope(T x) { return Act::template slope<P>(x); }
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) { return Act::template value_and_slope<P>(x); }
};

// The same of a gate: an object of Act, or of what has its members, and the limit that t is clamped to. Clamping may
// lose a NaN; max0(x) brings it back.
template <class Act, class P>
struct Gate {
  using T = typename P::type;

  Act act;
  typename P::scalar limit;

  GELU_EXT_FN T value(T x) const { return value(x, act.template tail<P>(clamped(x))); }

  GELU_EXT_FN T slope(T x) const { return slope(x, act.template tail_slope<P>(clamped_for_slope(x))); }

  GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) const {
    const auto both = act.template tail_and_slope<P>(clamped_for_slope(x));
    return {value(x, both.tail), slope(x, both.slope)};
  }

  // From the slope at -|x|.
  template <class Slope>
  static GELU_EXT_FN T slope(T x, Slope s) {
    if constexpr (is_pack<T>) {
      return complement_where_positive(x, s.value());
    } else {
      return x > 0 ? s.subtracted_from(1) : s.plus(max0(x));
    }
  }

 private:
  GELU_EXT_FN T clamped(T x) const { return clamped_magnitude(x, limit); }

  // For the slope, packs do without max0(x), so their clamp has to keep a NaN.
  GELU_EXT_FN T clamped_for_slope(T x) const {
    if constexpr (is_pack<T>) {
      return clamped_magnitude_or_nan(x, limit);
    } else {
      return clamped(x);
    }
  }

  template <class Tail>
  static GELU_EXT_FN T value(T x, Tail tail) {
    return tail.subtracted_from(max0(x));
  }
};

template <class Act, class P>
struct Activation<Act, P, true> {
  using T = typename P::type;
  using Precision = P;
  static_assert(is_double<P> || Act::template limit<P> < 0x1p10, "kVanishing is for factors up to 2^10");

  static GELU_EXT_FN T value(T x) { return gate().value(x); }
  static GELU_EXT_FN T slope(T x) { return gate().slope(x); }
  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) { return gate().value_and_slope(x); }

 private:
  static GELU_EXT_FN Gate<Act, P> gate() { return {Act(), Act::template limit<P>}; }
};

// z Phi(y) and its derivatives, y = (z - mu)/sigma: GELU with another mean and deviation. With t = |y|, z' = z for y >
// 0 and -z below, E and the Mills ratio M as of Gelu,
//     value       (z for y > 0, else 0) - z' E M(t)
//     by z        (1 for y > 0, else 0) -+ (E M(t) - z'/sigma phi(t))
//     by mu       -z/sigma phi(t)               by sigma    y times that
// For mu = 0 and sigma = 1, where z' = t, value and slope are Gelu's to the bit: in float32 its own polynomials are
// chosen, as they are not those of M. sigma is above 0, or all is NaN.
template <class P>
struct GaussianGate {
  using T = typename P::type;
  using S = typename P::scalar;
  struct Slopes {
    T by_z, by_mu, by_sigma;
  };

  GELU_EXT_FN GaussianGate(T z, T mu, T sigma) : z(z) {
    const T distance = z - mu;
    const T inverse = where_above(sigma, S(0), inverse_of(sigma), T(static_cast<S>(NAN)));
    const auto y_and_rest = quotient_and_rest(distance, lost(z, mu, distance), sigma, inverse, kFar);
    y = y_and_rest.quotient;
    t = clamped_magnitude_or_nan(y, Gelu::limit<P>);
    t_lo = where_above(y, S(0), y_and_rest.rest, -y_and_rest.rest);
    // Where all has vanished, an infinite factor must not meet it: there t does for every factor.
    const T magnitude = clamped_magnitude_or_nan(y, kFar), signed_t = where_above(y, S(0), t, -t);
    near = where_at_most(magnitude, Gelu::limit<P>, z, signed_t);
    const T quotient = quotient_and_rest(z, T(0.0f), sigma, inverse, kLarge).quotient;
    ratio = where_at_most(magnitude, Gelu::limit<P>, quotient, signed_t);
  }

  GELU_EXT_FN T value() const {
    // 0 is taken with what is above it, and its sign is z's.
    const T from = where_at_most(-y, S(0), z, T(-0.0f)), weight = where_at_most(-y, S(0), near, -near) + T(0.0f);
    if constexpr (is_double<P>) {
      return mul_add(-weight, Gelu::upper_tail(t, t_lo), from);
    } else if constexpr (is_single<P>) {
      const Exp2<P> e(Gelu::gauss_single<P>(t, t_lo));
      using Factors = Gelu::SingleFactors<T>;
      const T factor = where_equal(weight, t, Factors::tail(t), weight * Factors(t).mills());
      return Gelu::tail_single(e, factor).subtracted_from(from);
    } else {
      return Gelu::upper_tail_low<P>(t).times(weight).subtracted_from(from);
    }
  }

  GELU_EXT_FN Slopes slopes() const {
    const T toward = where_above(y, S(0), ratio, -ratio);
    if constexpr (is_double<P>) {
      const T density = Gelu::density(t, t_lo);
      return with_slopes(Product<T>{mul_add(-toward, density, Gelu::upper_tail(t, t_lo)), 1.0}, density);
    } else if constexpr (is_single<P>) {
      // phi(t)/E, with what rounding kGauss has made of E
      constexpr float phi_0 = 0x1.988454p-2f, correction = static_cast<float>(phi_0 * (-0.5 - Gelu::kGauss / kLog2E));
      const Exp2<P> e(Gelu::gauss_single<P>(t, t_lo));
      using Factors = Gelu::SingleFactors<T>;
      const Factors factors(t);
      const T density = mul_add(T(correction), t * t, T(phi_0));
      const T mills = kPieces<T> != 0 ? factors.mills() : T(0.5f) * factors.mills();
      const T factor = where_equal(toward, t, Factors::slope(t), mul_add(-toward, density, mills));
      return with_slopes(e.times(factor), e.times(density).value());
    } else {
      const T e = scaled_exp2<P>(t * t, Gelu::kGauss), s = Gelu::from_root<P>(t, Gelu::slope_factor_low(t));
      return with_slopes(Product<T>{mul_add(t - toward, T(Gelu::kScaledDensity), s), e}, T(Gelu::kScaledDensity) * e);
    }
  }

 private:
  static constexpr S kFar = 64;         // beyond it all has vanished
  static constexpr S kLarge = 0x1p100;  // a quotient that does not overflow

  // What a subtraction has lost; 16-bit results do without.
  static GELU_EXT_FN T lost(T a, T b, T difference) {
    if constexpr (is_single<P> || is_double<P>) {
      const T b_used = a - difference;
      return (a - (difference + b_used)) + (b_used - b);
    } else {
      return 0.0f;
    }
  }
  static GELU_EXT_FN T inverse_of(T sigma) {
    if constexpr (is_double<P>) return 1 / sigma;
    return reciprocal(sigma);
  }

  template <class Below>
  GELU_EXT_FN Slopes with_slopes(Below below, T density) const {
    const T by_mu = product(-ratio, density);
    return {Gate<Gelu, P>::slope(y, below), by_mu, product(by_mu, t) * where_above(y, S(0), T(1.0f), T(-1.0f))};
  }

  T z, y, t, t_lo, near, ratio;
};

}  // namespace gelu_ext
