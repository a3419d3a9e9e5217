// THE OPERATIONS, once, for g++ and nvcc: what is computed from the operands, and the gradient of each; and the list.
// Knows activations.h, nothing else.
//
// An operation has operands z_i = x_i + bias_i, matrices whose bias runs along the columns; it may have more vectors of
// its own along the columns, and parameters, which are numbers. It sees one element of each, or one pack of elements:
//     in.z(Index<i>())   in.vector(Index<j>())   in.parameter(Index<k>())   in.grad_out()
// and reads each where it is first needed, because a long formula leaves no register to keep them in. F is an
// Activation: F::value(z), F::slope(z), F::value_and_slope(z), in the type F::T.
//
// The operands lie in `matrices` matrices: in one each, or interleaved in one, z0 z1 z0 z1 ...
#pragma once

#include <algorithm>
#include <array>

#include "activations.h"

namespace gelu_ext {

template <int I>
using Index = std::integral_constant<int, I>;

// The gradients of the operands, then those of the vectors of one's own: numbers or packs. Kernels store the first and
// sum all of them over the rows: the sum of an operand's gradient is its bias's.
template <class T, int N>
struct Terms {
  T term[N];
};

// act(z0)
struct BiasAct {
  static constexpr int operands = 1, matrices = 1, parameters = 0;
  static constexpr int vectors = 1;  // the operands' biases and one's own
  using Only = void;                 // the activation, where it is for one alone

  template <class F, class In>
  static GELU_EXT_FN auto value(const In& in) {
    return F::value(in.z(Index<0>()));
  }

  template <class F, class In>
  static GELU_EXT_FN auto gradients(const In& in) {
    const auto z = in.z(Index<0>());
    return Terms<typename F::T, 1>{{product(in.grad_out(), F::slope(z))}};
  }
};

// act(z0) z1
struct ActMul {
  static constexpr int operands = 2, matrices = 2, vectors = 2, parameters = 0;
  using Only = void;

  template <class F, class In>
  static GELU_EXT_FN auto value(const In& in) {
    const auto activated = F::value(in.z(Index<0>()));
    return product(activated, in.z(Index<1>()));
  }

  template <class F, class In>
  static GELU_EXT_FN auto gradients(const In& in) {
    const auto activated = F::value_and_slope(in.z(Index<0>()));
    const auto grad_out = in.grad_out();
    return Terms<typename F::T, 2>{
        {product(grad_out * in.z(Index<1>()), activated.slope), product(grad_out, activated.value)}};
  }
};

// g sigmoid(alpha g) (u + offset) with g = min(z0, limit) and u = clamp(z1, -limit, limit). A gradient is 0 where its
// operand is beyond the limit.
struct ClampedSwiglu {
  static constexpr int operands = 2, matrices = 2, vectors = 2, parameters = 7;
  using Only = Silu;

  // The last is where exp(-alpha t) has vanished.
  static std::array<double, parameters> numbers(double alpha, double limit, double offset, bool in_double) {
    const double exponent = -alpha * kLog2E;
    const double vanishing = in_double ? kVanishing<DoublePrecision> : kVanishing<SinglePrecision>;
    return {limit, offset, alpha, rest_of(alpha), exponent, rest_of(exponent), -vanishing / exponent};
  }

  template <class F, class In>
  static GELU_EXT_FN auto value(const In& in) {
    const auto limit = in.parameter(Index<0>());
    const auto activated = swish<F>(in).value(at_most(in.z(Index<0>()), limit));
    return product(activated, between_limits(in.z(Index<1>()), limit) + in.parameter(Index<1>()));
  }

  template <class F, class In>
  static GELU_EXT_FN auto gradients(const In& in) {
    using T = typename F::T;
    const auto limit = in.parameter(Index<0>());
    const T z0 = in.z(Index<0>()), zero = 0.0f;
    const auto activated = swish<F>(in).value_and_slope(at_most(z0, limit));
    const T grad_out = in.grad_out(), by_linear = product(grad_out, activated.value), z1 = in.z(Index<1>());
    const T linear = between_limits(z1, limit) + in.parameter(Index<1>());
    // Chosen before the slope, which is finite at the limit, is multiplied: afterwards it would cost registers.
    const T weight = where_at_most(z0, limit, grad_out * linear, zero);
    return Terms<T, 2>{
        {product(weight, activated.slope), where_at_most(z1, limit, where_at_most(-z1, limit, by_linear, zero), zero)}};
  }

 private:
  static double rest_of(double x) { return x - static_cast<float>(x); }

  template <class T, class S>
  static GELU_EXT_FN T between_limits(T z, S limit) {
    return at_most(at_least(z, -limit), limit);
  }
  template <class F, class In, class P = typename F::Precision>
  static GELU_EXT_FN Gate<SigmoidGate<ScaledArgument<P>>, P> swish(const In& in) {
    return {{{in.parameter(Index<2>()), in.parameter(Index<3>()), in.parameter(Index<4>()), in.parameter(Index<5>())}},
            in.parameter(Index<6>())};
  }
};

// The same of operands that are interleaved.
struct InterleavedClampedSwiglu : ClampedSwiglu {
  static constexpr int matrices = 1;
};

// z0 Phi((z0 - mu)/sigma), GELU with a mean and a deviation along the columns
struct GaussianGelu {
  static constexpr int operands = 1, matrices = 1, vectors = 3, parameters = 0;
  using Only = Gelu;

  template <class F, class In>
  static GELU_EXT_FN auto value(const In& in) {
    return gate<F>(in).value();
  }

  template <class F, class In>
  static GELU_EXT_FN auto gradients(const In& in) {
    const auto slopes = gate<F>(in).slopes();
    const auto grad_out = in.grad_out();
    return Terms<typename F::T, 3>{
        {product(grad_out, slopes.by_z), product(grad_out, slopes.by_mu), product(grad_out, slopes.by_sigma)}};
  }

 private:
  template <class F, class In>
  static GELU_EXT_FN GaussianGate<typename F::Precision> gate(const In& in) {
    return {in.z(Index<0>()), in.vector(Index<1>()), in.vector(Index<2>())};
  }
};

// The list. To add an operation: a struct above, its name here; then see CONTRIBUTING.md.
template <class... Ops>
struct OperationList {
  static constexpr int operands[] = {Ops::operands...}, matrices[] = {Ops::matrices...}, vectors[] = {Ops::vectors...};
  static constexpr int parameters[] = {Ops::parameters...};
  static constexpr int most_operands = std::max({Ops::operands...}), most_vectors = std::max({Ops::vectors...});
  static constexpr int most_parameters = std::max({1, Ops::parameters...});

  template <class Op>
  static constexpr int index() {
    int index = 0;
    (void)((std::is_same_v<Ops, Op> || (++index, false)) || ...);
    return index;
  }
};
using Operations = OperationList<BiasAct, ActMul, ClampedSwiglu, InterleavedClampedSwiglu, GaussianGelu>;

}  // namespace gelu_ext
