// THE MATHEMATICS, once, for g++ and nvcc: every activation's value and slope, and the list of them.
// Knows scalar_math.h and nothing else.
//
// Every form here is x * F(x) with a symmetric distribution function, F(-x) = 1 - F(x). So the upper tail
// tail(t) = t * F(-t), t = |x|, gives everything without cancellation:
//     value(x) = max(x, 0) - tail(t)            slope(x) = S(t) for x < 0, 1 - S(t) for x > 0,
// where S(t) = F(-t) - t F'(t) is the slope at -t. A form supplies tail, tail_slope and both together; t is clamped to
// a `limit` beyond which the tail is zero in its arithmetic, so nothing overflows and no residue stays.
//
// The coefficients come from csrc/fit/fit.py, which prints the error of each fit.
#pragma once

#include "scalar_math.h"

namespace gelu_ext {

inline constexpr double kLog2E = 0x1.71547652b82fep+0;

template <class T>
struct ValueAndSlope {
  T value, slope;
};

// "none": F = Phi, the normal distribution function (Hendrycks and Gimpel, arXiv:1606.08415).
struct GeluErf {
  static constexpr const char* name = "none";

  template <class P>
  static constexpr typename P::type limit = std::is_same_v<P, DoublePrecision> ? 40.0 : 14.5;

  template <class P>
  static GELU_EXT_FN typename P::type tail(typename P::type t) {
    if constexpr (std::is_same_v<P, DoublePrecision>) {
      return t * upper_tail(t);
    } else if constexpr (std::is_same_v<P, SinglePrecision>) {
      // Phi(-t) = exp(-t^2/2) q (1/2 + w K(w)), q = 1/(1 + t/2), w = t q / 2, so t Phi(-t) = exp(-t^2/2) 2 w (...).
      const float w = 0.5f * t * reciprocal<P>(mul_add(0.5f, t, 1.0f));
      return gauss<P>(t).times((w + w) * mills_w(w));
    } else {
      // log2 Phi(-t) is nearly a parabola: one polynomial, one exp2.
      return Exp2<P>::of(horner(t, 0x1.2335ecp-34f, -0x1.b1e2c0p-28f, 0x1.1bda0ep-22f, -0x1.b0c3b2p-18f,
                                0x1.ae8022p-14f, -0x1.294a68p-10f, 0x1.2990a6p-7f, -0x1.c14040p-5f, -0x1.d4cb34p-2f,
                                -0x1.26c46ap+0f, -0x1.fffe52p-1f))
          .times(t);
    }
  }

  // S(t) = (t0 - t) exp(-t^2/2) G(q): the root t0 is factored out, so nothing cancels beside it.
  template <class P>
  static GELU_EXT_FN typename P::type tail_slope(typename P::type t) {
    if constexpr (std::is_same_v<P, DoublePrecision>) {
      return mul_add(-t, density(t), upper_tail(t));
    } else if constexpr (std::is_same_v<P, SinglePrecision>) {
      return gauss<P>(t).times_signed(from_root(t) * slope_q32(reciprocal<P>(mul_add(0.25f, t, 1.0f))));
    } else {
      const float q = reciprocal<P>(mul_add(0x1.555556p-2f, t, 1.0f));
      const float g =
          horner(q, -0x1.00d766p-5f, 0x1.4992d8p-4f, 0x1.e7f89cp-6f, 0x1.698882p-4f, 0x1.952dd0p-4f, 0x1.98931cp-2f);
      return gauss<P>(t).times_signed((0x1.80ead2p-1f - t) * g);
    }
  }

  template <class P>
  static GELU_EXT_FN ValueAndSlope<typename P::type> tail_and_slope(typename P::type t) {
    if constexpr (std::is_same_v<P, DoublePrecision>) {
      const double p = upper_tail(t);
      return {t * p, mul_add(-t, density(t), p)};
    } else if constexpr (std::is_same_v<P, SinglePrecision>) {
      const Exp2<P> e = gauss<P>(t);
      const float w = 0.5f * t * reciprocal<P>(mul_add(0.5f, t, 1.0f));
      const float q = reciprocal<P>(mul_add(0.25f, t, 1.0f));
      return {e.times((w + w) * mills_w(w)), e.times_signed(from_root(t) * slope_q32(q))};
    } else {
      const Exp2<P> e = gauss<P>(t);
      const float q = reciprocal<P>(mul_add(0x1.4p-2f, t, 1.0f));
      const float r =
          horner(q, -0x1.26dcd2p-4f, 0x1.5a8624p-3f, 0x1.a6730ep-6f, 0x1.0a16e2p-3f, 0x1.f4d998p-4f, 0x1.ff295ap-4f) *
          q;
      const float g = horner(q, 0x1.aeaf52p-7f, 0x1.c2b2b8p-4f, 0x1.4abe08p-5f, 0x1.a806c6p-4f, 0x1.97963cp-2f);
      return {e.times(t * r), e.times_signed((0x1.80ead2p-1f - t) * g)};
    }
  }

 private:
  // exp(-t^2/2) as a power of two. SinglePrecision carries the rounding error of t^2 along: in the tail it is
  // multiplied by up to 150.
  template <class P>
  static GELU_EXT_FN Exp2<P> gauss(float t) {
    constexpr float kHigh = static_cast<float>(-0.5 * kLog2E), kLow = static_cast<float>(-0.5 * kLog2E - kHigh);
    const float square = t * t;
    const float hi = square * kHigh;
    if constexpr (!std::is_same_v<P, SinglePrecision>) return Exp2<P>::of(hi);
    const float square_error = product_error(t, t, square);
    const float lo = product_error(square, kHigh, hi) + mul_add(square, kLow, square_error * kHigh);
    return Exp2<P>::of(hi, lo);
  }

  // t0 - t, where the slope at -t0 is zero.
  static GELU_EXT_FN float from_root(float t) { return (0x1.80ead2p-1f - t) - 0x1.a03fd4p-27f; }

  static GELU_EXT_FN float mills_w(float w) {
    return horner(w, -0x1.0e6b42p-4f, 0x1.26c150p-2f, -0x1.fd68a8p-2f, 0x1.dffa82p-2f, -0x1.344b8ep-2f, 0x1.bdcbe6p-4f,
                  -0x1.e3b34ep-8f, 0x1.d75e0ep-5f, 0x1.58d6aap-5f, -0x1.8831eap-4f, -0x1.3108bap-2f, 0.5f);
  }

  static GELU_EXT_FN float slope_q32(float q) {
    return horner(q, -0x1.6e92a4p-10f, 0x1.12fbc0p-6f, -0x1.039abap-4f, 0x1.9754e4p-4f, -0x1.27d912p-4f, 0x1.307996p-4f,
                  0x1.23dcfep-6f, 0x1.ce4a54p-5f, 0x1.0328dap-4f, 0x1.3376acp-4f, 0x1.988364p-2f);
  }

  // Phi(-t) = erfc(t/sqrt 2)/2. Rounding t/sqrt 2 alone would cost t^2 2^-53, so its error r is carried: a factor
  // (1 - 2 z r).
  static GELU_EXT_FN double upper_tail(double t) {
    constexpr double kHigh = 0x1.6a09e667f3bcdp-1, kLow = -0x1.bdd3413b26456p-55;  // sqrt(1/2)
    const double z = t * kHigh;
    const double r = product_error(t, kHigh, z) + t * kLow;
    const double p = 0.5 * ::erfc(z);
    return p - p * (2.0 * z * r);
  }

  static GELU_EXT_FN double density(double t) {
    const double square = t * t;
    return 0x1.9884533d43651p-2 * ::exp(-0.5 * square) * (1.0 - 0.5 * product_error(t, t, square));
  }
};

// x * sigmoid(z(x)) with an odd polynomial z. Written in e = exp(-z(t)) <= 1 and g = 1/(1 + e) = F(t), all positive:
// F(-t) = e g, F'(t) = e g^2 z'(t).
template <class Argument>
struct SigmoidGate {
  template <class P>
  static constexpr typename P::type limit = Argument::template limit<P>;

  template <class P>
  static GELU_EXT_FN typename P::type tail(typename P::type t) {
    const auto e = Argument::template exp_minus<P>(t);
    return e.times(t * reciprocal<P>(1 + e.value()));
  }

  // S(t) = e g (1 - t z' g) = e g^2 (1 - t z' + e)
  template <class P>
  static GELU_EXT_FN typename P::type tail_slope(typename P::type t) {
    return tail_and_slope<P>(t).slope;
  }

  template <class P>
  static GELU_EXT_FN ValueAndSlope<typename P::type> tail_and_slope(typename P::type t) {
    const auto e = Argument::template exp_minus<P>(t);
    const typename P::type g = reciprocal<P>(1 + e.value());
    return {e.times(t * g), e.times_signed(g * g * ((1 - t * Argument::slope(t)) + e.value()))};
  }
};

// "tanh": 0.5 x (1 + tanh(u)) = x sigmoid(2u), 2u = sqrt(8/pi) (x + 0.044715 x^3).
struct TanhArgument {
  static constexpr double kCubic = 0.044715;
  static constexpr double kLinear = 0x1.9884533d43651p+0;  // sqrt(8/pi)

  template <class P>
  static constexpr typename P::type limit = std::is_same_v<P, DoublePrecision> ? 24.0 : 11.75;

  template <class P>
  static GELU_EXT_FN Exp2<P> exp_minus(typename P::type t) {
    if constexpr (std::is_same_v<P, DoublePrecision>) {
      return {::exp(-kLinear * (t * mul_add(kCubic * t, t, 1.0)))};
    } else {
      constexpr double a = -kLinear * kLog2E, b = a * kCubic;
      constexpr float a_hi = static_cast<float>(a), a_lo = static_cast<float>(a - a_hi);
      constexpr float b_hi = static_cast<float>(b), b_lo = static_cast<float>(b - b_hi);
      const float square = t * t;
      if constexpr (std::is_same_v<P, HalfPrecision>) return Exp2<P>::of(t * mul_add(b_hi, square, a_hi));
      // t (a + b t^2), with the errors of t^2, of the product, of the sum (a two-sum) and of the constants in `m_lo`.
      const float cubic = b_hi * square;
      const float cubic_lo =
          product_error(b_hi, square, cubic) + mul_add(b_hi, product_error(t, t, square), b_lo * square);
      const float m = cubic + a_hi;
      const float rounded = m - cubic;
      const float m_lo = ((cubic - (m - rounded)) + (a_hi - rounded)) + (cubic_lo + a_lo);
      const float z = t * m;
      return Exp2<P>::of(z, mul_add(t, m_lo, product_error(t, m, z)));
    }
  }

  // z'(t)
  template <class T>
  static GELU_EXT_FN T slope(T t) {
    return mul_add(static_cast<T>(3 * kLinear * kCubic) * t, t, static_cast<T>(kLinear));
  }
};

// "sigmoid": x sigmoid(1.702 x), "quick" GELU (Hendrycks and Gimpel).
struct QuickArgument {
  static constexpr double kLinear = 1.702;

  template <class P>
  static constexpr typename P::type limit = std::is_same_v<P, DoublePrecision> ? 460.0 : 80.0;

  template <class P>
  static GELU_EXT_FN Exp2<P> exp_minus(typename P::type t) {
    if constexpr (std::is_same_v<P, DoublePrecision>) {
      return {::exp(-kLinear * t)};
    } else {
      constexpr double a = -kLinear * kLog2E;
      constexpr float a_hi = static_cast<float>(a), a_lo = static_cast<float>(a - a_hi);
      const float z = t * a_hi;
      if constexpr (std::is_same_v<P, HalfPrecision>) return Exp2<P>::of(z);
      return Exp2<P>::of(z, mul_add(t, a_lo, product_error(t, a_hi, z)));
    }
  }

  template <class T>
  static GELU_EXT_FN T slope(T) {
    return static_cast<T>(kLinear);
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

// value, slope and both of a form at any x: NaN stays NaN, value(-inf) is -0.
template <class Form, class P>
struct Activation {
  using T = typename P::type;

  static GELU_EXT_FN T clamped(T x) { return min_keep_nan(magnitude(x), Form::template limit<P>); }

  // Below 2^-64, F(-t) is 1/2 to every bit; Exp2::times does not take factors so small on the host.
  static GELU_EXT_FN T tail_of_tiny(T t, T tail) {
#if defined(__CUDA_ARCH__)
    return tail;
#else
    return t < T(0x1p-64) ? T(0.5) * t : tail;
#endif
  }

  static GELU_EXT_FN T value(T x) {
    const T t = clamped(x);
    return max0(x) - tail_of_tiny(t, Form::template tail<P>(t));
  }

  static GELU_EXT_FN T slope(T x) {
    const T s = Form::template tail_slope<P>(clamped(x));
    return x > 0 ? 1 - s : s;
  }

  static GELU_EXT_FN ValueAndSlope<T> value_and_slope(T x) {
    const T t = clamped(x);
    const ValueAndSlope<T> both = Form::template tail_and_slope<P>(t);
    return {max0(x) - tail_of_tiny(t, both.value), x > 0 ? 1 - both.slope : both.slope};
  }
};

}  // namespace gelu_ext
