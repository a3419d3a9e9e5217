// THE OPERATIONS, once, for g++ and nvcc: what is computed from the operands, and the gradient of each; and the list.
// Knows activations.h, nothing else.
//
// An operation has operands z_i = x_i + bias_i, matrices whose bias runs along the columns; it may have more vectors of
// its own along the columns, and parameters, which are numbers. It sees one element of each, or one pack of elements:
//     in.z(Index<i>())   in.vector(Index<j>())   in.parameter(Index<k>())   in.grad_out()
// and reads each where it is first needed, because a long formula leaves no register to keep them in. F is an
// Activation: F::value(z), F::slope(z), F::value_and_slope(z), in the type F::T.
#pragma once

#include <algorithm>

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
  static constexpr int operands = 1, vectors = 1, parameters = 0;  // vectors: the operands' biases and one's own

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
  static constexpr int operands = 2, vectors = 2, parameters = 0;

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

// The list. To add an operation: a struct above, its name here; then see CONTRIBUTING.md.
template <class... Ops>
struct OperationList {
  static constexpr int operands[] = {Ops::operands...}, vectors[] = {Ops::vectors...};
  static constexpr int most_operands = std::max({Ops::operands...}), most_vectors = std::max({Ops::vectors...});
  static constexpr int most_parameters = std::max({1, Ops::parameters...});

  template <class Op>
  static constexpr int index() {
    int index = 0;
    (void)((std::is_same_v<Ops, Op> || (++index, false)) || ...);
    return index;
  }
};
using Operations = OperationList<BiasAct, ActMul>;

}  // namespace gelu_ext
