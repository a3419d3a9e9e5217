// THE MATHEMATICS, once, for g++ and nvcc: every activation's value and slope, and the list of them.
// Knows scalar_math.h and the tables of pieces.h, nothing else.
//
// Every form here is x * F(x) with a symmetric distribution function, F(-x) = 1 - F(x). So the upper tail
// tail(t) = t * F(-t), t = |x|, gives everything without cancellation:
//     value(x) = max(x, 0) - tail(t)            slope(x) = S(t) for x < 0, 1 - S(t) for x > 0,
// where S(t) = F(-t) - t F'(t) is the slope at -t. A form supplies tail, tail_slope and both together, as products
// whose last multiplication is fused with that subtraction; t is clamped to a `limit` beyond which they are zero in
// their arithmetic, so nothing overflows and no residue stays.
//
// The coefficients come from csrc/fit/fit.py, which prints the error of each fit; degrees and the reciprocal's shift
// were chosen there, for the bars that tests/native/accuracy.cpp asserts.
#pragma once

#include "pieces.h"
#include "scalar_math.h"

namespace gelu_ext {

inline constexpr double kLog2E = 0x1.71547652b82fep+0;

template <class T>
struct ValueAndSlope {
  T value, slope;
};

// Both are products whose last multiplication is left to the caller.
template <class Tail, class Slope>
struct TailAndSlope {
  Tail tail;
  Slope slope;
};
template <class Tail, class Slope>
TailAndSlope(Tail, Slope) -> TailAndSlope<Tail, Slope>;

// "none": F = Phi, the normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415).
struct GeluErf {
  static constexpr const char* name = "none";

  // In 16 bits a little less: there 2^33 exp(-t^2/2), a factor, is subnormal from 14.88 on, which costs time.
  template <class P>
  static constexpr typename P::scalar limit = is_double<P>    ? 40.0
                                              : !is_single<P> ? 14.8
                                                              : 14.9;

  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail(T t) {
    if constexpr (is_double<P>) {
      return Product<T>{t, upper_tail(t)};
    } else if constexpr (is_single<P>) {
      const SplitExponent<P> gauss = gauss_single<P>(t);
      const T factor = tail_factor(t);
      return tail_single(Exp2<P>(gauss), factor);
    } else {
      return half_upper_tail<P>(t).times(t);
    }
  }

  // S(t) = (t0 - t) exp(-t^2/2) G: the root t0 is factored out, so nothing cancels beside it. (Polynomials by pieces
  // need not.)
  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail_slope(T t) {
    if constexpr (is_double<P>) {
      return Product<T>{mul_add(-t, density(t), upper_tail(t)), 1.0};
    } else if constexpr (is_single<P>) {
      const SplitExponent<P> gauss = gauss_single<P>(t);
      const T factor = slope_factor(t);
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
      // Phi(-t) = S(t) + t phi(t): the tail is one multiplication from the slope. The sum cancels to 1/t^2 of its
      // terms, which costs 2e-6 in float16's smallest results and 1e-5 in bfloat16's.
      const T e = scaled_exp2<P>(t * t, kGauss), s = from_root<P>(t, slope_factor_half(t));
      return TailAndSlope{Product<T>{t * e, mul_add(t, kDensity, s)}, Product<T>{s, e}};
    }
  }

 private:
  // exp(-t^2/2) = 2^(kGauss t^2). What rounding kGauss costs, float32's factors make good.
  static constexpr float kGauss = static_cast<float>(-0.5 * kLog2E);

  // Carries the rounding error of t^2 along: in the tail it is multiplied by up to 100.
  template <class P, class T = typename P::type>
  static GELU_EXT_FN SplitExponent<P> gauss_single(T t) {
    const T square = t * t;
    return {square, kGauss, fused(t, t, -square)};
  }

  // (t0 - t) g, where the slope at -t0 is zero.
  template <class P, class T = typename P::type>
  static GELU_EXT_FN T from_root(T t, T g) {
    constexpr float kHigh = 0x1.80ead2p-1f, kLow = -0x1.a03fd4p-27f;
    const T distance = kHigh - t;
    if constexpr (is_single<P>) return mul_add(distance, g, kLow * g);
    return distance * g;
  }

  // What exp(-t^2/2) is multiplied by. Each is one polynomial per piece of [0, 15), or one for all of it, in a
  // reciprocal that levels it.
  template <class T>
  using Pieces = GeluErfPieces<kPieces<T>>;

  // float32's factors, one alone
  template <class T>
  static GELU_EXT_FN T tail_factor(T t) {
    if constexpr (kPieces<T> != 0) {
      return piecewise(Pieces<T>::tail, Pieces<T>::tail_centres, t);
    } else {
      return SingleFactors<T>(t).tail();
    }
  }
  template <class T>
  static GELU_EXT_FN T slope_factor(T t) {
    if constexpr (kPieces<T> != 0) {
      return piecewise(Pieces<T>::slope, Pieces<T>::slope_centres, t);
    } else {
      return SingleFactors<T>(t).slope();
    }
  }

  // Both together. t Phi(-t) = t M(t) exp(-t^2/2) and S(t) = (M(t) - t phi(0)) exp(-t^2/2): by pieces the two
  // polynomials differ in the line alone.
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

    GELU_EXT_FN T tail() const { return t * piecewise(Pieces<T>::mills_line, distance, piece, curve); }
    GELU_EXT_FN T slope() const { return piecewise(Pieces<T>::slope_line, distance, piece, curve); }
  };

  // In w = t/(1 + t/2), in [0, 2): M = w (1/2 + M(w))/2 / t, and G, so flat that w's rounding errors hardly matter.
  template <class T>
  struct SingleFactors<T, 0> {
    T t, sum, inverse;

    explicit GELU_EXT_FN SingleFactors(T t) : t(t), sum(mul_add(0.5f, t, 1.0f)), inverse(reciprocal(sum)) {}

    GELU_EXT_FN T tail() const {  // twice
      const T w = quotient(t, sum, mul_add(0.5f, t, 1.0f - sum), inverse);
      return mul_add(w, mills_single(w), 0.5f * w);
    }
    GELU_EXT_FN T slope() const { return from_root<SinglePrecision>(t, slope_single(t * inverse)); }
  };

  template <class E, class T>
  static GELU_EXT_FN auto tail_single(const E& e, T factor) {
    if constexpr (kPieces<T> != 0) {
      return e.times(factor);
    } else {
      return e.times(factor).half();  // last, so that it is t/2 also for the smallest t
    }
  }

  // 2^-33 G: scaled_exp2() is times 2^33.
  template <class T>
  static GELU_EXT_FN T slope_factor_half(T t) {
    if constexpr (kPieces<T> != 0) {
      return piecewise(Pieces<T>::slope_half, t, piece_of(t));
    } else {
      return slope_half(reciprocal(t + kHalfShift));
    }
  }

  // Phi(-t)
  template <class P, class T = typename P::type>
  static GELU_EXT_FN Exp2<P> half_upper_tail(T t) {
    if constexpr (kPieces<T> != 0) {
      return Exp2<P>(piecewise(Pieces<T>::log2_upper_tail, t, piece_of(t)));
    } else {
      // Nearly a parabola, so that one polynomial and one exp2 will do.
      return Exp2<P>(half_log2_upper_tail(t), 2.0f);
    }
  }

  template <class T>
  static GELU_EXT_FN T mills_single(T w) {
    return horner(w, -0x1.1a10c2p-14f, 0x1.33ab8p-11f, -0x1.0b18c2p-9f, 0x1.fae1c6p-9f, -0x1.466da2p-8f, 0x1.dd299ep-9f,
                  -0x1.3753d2p-11f, 0x1.da58a4p-8f, 0x1.588b5ap-7f, -0x1.883016p-5f, -0x1.3108bcp-2f, 0x1p-1f);
  }

  template <class T>
  static GELU_EXT_FN T slope_single(T w) {
    return horner(w, -0x1.345f8cp-17f, 0x1.ead034p-14f, -0x1.af8d12p-12f, 0x1.f780a6p-12f, -0x1.5ca23ap-11f,
                  0x1.2e054p-10f, 0x1.9779d8p-8f, 0x1.2ee4c8p-7f, -0x1.69c95cp-3f, 0x1.54851ap-1f);
  }

  // log2(Phi(-t))/2
  template <class T>
  static GELU_EXT_FN T half_log2_upper_tail(T t) {
    return horner(t, -0x1.28351cp-30f, 0x1.4aebf6p-24f, -0x1.450536p-19f, 0x1.73cbaep-15f, -0x1.15b15ap-11f,
                  0x1.21ab5cp-8f, -0x1.bd9aa6p-6f, -0x1.d53ad8p-3f, -0x1.26b922p-1f, -0x1.00004ep-1f);
  }

  // phi(0) and G in q = 1/(t + kHalfShift), both times 2^-33.
  static constexpr float kHalfShift = 0x1.78p+1f, kDensity = 0x1.988454p-35f;

  template <class T>
  static GELU_EXT_FN T slope_half(T q) {
    return horner(q, -0x1.afc2p-31f, 0x1.59a63ap-31f, 0x1.caa37p-34f, 0x1.83a3f6p-34f, 0x1.30c4e2p-35f,
                  0x1.988f6cp-35f);
  }

  // Phi(-t) = erfc(t/sqrt 2)/2. Rounding t/sqrt 2 alone would cost t^2 2^-53, so its error r is carried: a factor
  // (1 - 2 z r).
  static GELU_EXT_FN double upper_tail(double t) {
    constexpr double kHigh = 0x1.6a09e667f3bcdp-1, kLow = -0x1.bdd3413b26456p-55;  // sqrt(1/2)
    const double z = t * kHigh;
    const double r = fused(t, kHigh, -z) + t * kLow;
    const double p = 0.5 * ::erfc(z);
    return p - p * (2.0 * z * r);
  }

  static GELU_EXT_FN double density(double t) {
    const double square = t * t;
    return 0x1.9884533d43651p-2 * ::exp(-0.5 * square) * (1.0 - 0.5 * fused(t, t, -square));
  }
};

// x * sigmoid(z(x)) with an odd polynomial z. Written in e = exp(-z(t)) <= 1, all positive: F(-t) = e/(1 + e) and
// F'(t) = e/(1 + e)^2 z'(t), so S(t) = e (1 + e - t z'(t))/(1 + e)^2.
template <class Argument>
struct SigmoidGate {
  template <class P>
  static constexpr typename P::scalar limit = Argument::template limit<P>;

  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail(T t) {
    const Exp2<P> e = Argument::template exp_minus<P>(t);
    return e.times(OnePlus<P>(e).divide(t));
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail_slope(T t) {
    return tail_and_slope<P>(t).slope;
  }

  template <class P, class T = typename P::type>
  static GELU_EXT_FN auto tail_and_slope(T t) {
    const Exp2<P> e = Argument::template exp_minus<P>(t);
    const OnePlus<P> one_plus_e(e);
    const T numerator = Argument::template slope_numerator<P>(t, e.whole());
    return TailAndSlope{e.times(one_plus_e.divide(t)), e.times(one_plus_e.divide_twice(numerator))};
  }

 private:
  template <class P>
  struct OnePlus {
    using T = typename P::type;

    T sum, sum_error, inverse;

    explicit GELU_EXT_FN OnePlus(Exp2<P> e)
        : sum(e.whole().plus(1)), sum_error(e.whole().plus(1 - sum)), inverse(inverse_of(sum)) {}

    GELU_EXT_FN T divide(T a) const {
      if constexpr (is_single<P>) return quotient(a, sum, sum_error, inverse);
      return a * inverse;
    }

    // a / (1 + e)^2
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
};

// "tanh": 0.5 x (1 + tanh(u)) = x sigmoid(2u), 2u = kLinear (x + kCubic x^3).
struct TanhArgument {
  static constexpr double kCubic = 0.044715;
  static constexpr double kLinear = 0x1.9884533d43651p+0;  // sqrt(8/pi)

  template <class P>
  static constexpr typename P::scalar limit = is_double<P> ? 24.0 : 11.75;

  template <class P>
  static GELU_EXT_FN Exp2<P> exp_minus(typename P::type t) {
    constexpr double a = -kLinear * kLog2E, b = a * kCubic;
    if constexpr (is_double<P>) {
      return {::exp(-kLinear * (t * mul_add(kCubic * t, t, 1.0)))};
    } else if constexpr (std::is_same_v<P, HalfPrecision>) {
      return Exp2<P>(t, mul_add(static_cast<float>(b), t * t, static_cast<float>(a)));
    } else {
      // t (a + b t^2), with the errors of t^2, of the sum and of the constants in `m_lo`; a_hi is so short that
      // a_hi - m is exact.
      constexpr float a_hi = static_cast<float>(static_cast<int>(a * 0x1p19) * 0x1p-19);
      constexpr float a_lo = static_cast<float>(a - a_hi);
      constexpr float b_hi = static_cast<float>(b), b_lo = static_cast<float>(b - b_hi);
      const auto square = t * t, square_error = fused(t, t, -square);
      const auto m = mul_add(b_hi, square, a_hi);
      const auto m_lo = fused(b_hi, square, a_hi - m) + mul_add(b_hi, square_error, mul_add(b_lo, square, a_lo));
      return Exp2<P>(m, t, m_lo);
    }
  }

  // 1 + e - t z'(t), z' = a + b t^2
  template <class P, class E, class T = typename P::type>
  static GELU_EXT_FN T slope_numerator(T t, E e) {
    using S = typename P::scalar;
    constexpr S a = static_cast<S>(kLinear), b = static_cast<S>(3 * kLinear * kCubic);
    if constexpr (is_single<P>) {
      constexpr float a_lo = static_cast<float>(kLinear - a);
      return fused(-a, t, 1.0f) + mul_add(-b * (t * t), t, mul_add(-a_lo, t, e.value()));
    } else {
      return mul_add(-t, mul_add(b * t, t, a), e.plus(1));
    }
  }
};

// "sigmoid": x sigmoid(1.702 x), "quick" GELU (Hendrycks and Gimpel).
struct QuickArgument {
  static constexpr double kLinear = 1.702;

  template <class P>
  static constexpr typename P::scalar limit = is_double<P> ? 460.0 : 80.0;

  template <class P>
  static GELU_EXT_FN Exp2<P> exp_minus(typename P::type t) {
    constexpr double a = -kLinear * kLog2E;
    if constexpr (is_double<P>) {
      return {::exp(-kLinear * t)};
    } else if constexpr (std::is_same_v<P, HalfPrecision>) {
      return Exp2<P>(t, static_cast<float>(a));
    } else {
      constexpr float a_hi = static_cast<float>(a), a_lo = static_cast<float>(a - a_hi);
      return Exp2<P>(a_hi, t, a_lo);
    }
  }

  // 1 + e - t z'(t), z' = a
  template <class P, class E, class T = typename P::type>
  static GELU_EXT_FN T slope_numerator(T t, E e) {
    using S = typename P::scalar;
    constexpr S a = static_cast<S>(kLinear);
    if constexpr (is_single<P>) {
      constexpr float a_lo = static_cast<float>(kLinear - a);
      return fused(-a, t, 1.0f) + mul_add(-a_lo, t, e.value());
    } else {
      return mul_add(-t, a, e.plus(1));
    }
  }
};

struct GeluTanh : SigmoidGate<TanhArgument> {
  static constexpr const char* name = "tanh";
};

struct GeluSigmoid : SigmoidGate<QuickArgument> {
  static constexpr const char* name = "sigmoid";
};

// The list. To add a form: a struct above, its name here, and a line of float64 truth in tests/.
template <class... Forms>
struct ActivationList {
  static constexpr int size = sizeof...(Forms);
  static constexpr const char* names[] = {Forms::name...};
};
using Activations = ActivationList<GeluErf, GeluTanh, GeluSigmoid>;

// value, slope and both of a form at any x. The clamp may lose a NaN; max0(x) brings it back.
template <class Form, class P>
struct Activation {
  using T = typename P::type;

  static GELU_EXT_FN T value(T x) { return value(x, Form::template tail<P>(clamped(x))); }

  static GELU_EXT_FN T slope(T x) { return slope(x, Form::template tail_slope<P>(clamped_for_slope(x))); }

  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    const auto both = Form::template tail_and_slope<P>(clamped_for_slope(x));
    return {value(x, both.tail), slope(x, both.slope)};
  }

 private:
  static GELU_EXT_FN T clamped(T x) { return clamped_magnitude(x, Form::template limit<P>); }

  // Packs do without max0(x) in the slope, so theirs keeps a NaN.
  static GELU_EXT_FN T clamped_for_slope(T x) {
    if constexpr (std::is_arithmetic_v<T>) {
      return clamped(x);
    } else {
      return clamped_magnitude_or_nan(x, Form::template limit<P>);
    }
  }

  template <class Tail>
  static GELU_EXT_FN T value(T x, Tail tail) {
    return tail.subtracted_from(max0(x));
  }

  template <class Slope>
  static GELU_EXT_FN T slope(T x, Slope s) {
    if constexpr (std::is_arithmetic_v<T>) {
      return x > 0 ? s.subtracted_from(1) : s.plus(max0(x));
    } else {
      return complement_where_positive(x, s.value());
    }
  }
};

}  // namespace gelu_ext
