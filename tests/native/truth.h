// What every activation is, from its definition and not from activations.h: a row each, evaluated in double for results
// up to float32 and in long double for float64. An activation without a row does not compile: the error names it.
#pragma once

#include <cmath>
#include <string_view>

#include "activations.h"

template <class R>
struct Truth {
  R value, slope;
};

// Of x F(x) at the infinities.
template <class R>
Truth<R> gate_at_infinity(R x) {
  return x > 0 ? Truth<R>{x, 1} : Truth<R>{R(-0.0), 0};
}

// x sigmoid(z); above is 1 - sigmoid(z), without cancellation.
template <class R>
Truth<R> gate(R x, R z, R z_slope) {
  if (std::isinf(x)) return gate_at_infinity(x);
  const R below = 1 / (1 + std::exp(-z)), above = 1 / (1 + std::exp(z));
  return {x * below, below * (1 + x * z_slope * above)};
}

template <class R>
struct TruthRow {
  std::string_view name;
  Truth<R> (*at)(R x);  // for every x, infinities and NaN too
};

template <class R>
inline constexpr TruthRow<R> kTruth[] = {
    {"gelu",
     [](R x) {
       if (std::isinf(x)) return gate_at_infinity(x);
       const R cdf = std::erfc(-x / std::sqrt(R(2))) / 2;
       const R density = std::exp(-x * x / 2) / std::sqrt(2 * std::acos(R(-1)));
       return Truth<R>{x * cdf, cdf + x * density};
     }},
    {"gelu_tanh",
     [](R x) {
       const R linear = std::sqrt(8 / std::acos(R(-1))), cubic = R(0.044715L);
       return gate<R>(x, linear * (x + cubic * x * x * x), linear * (1 + 3 * cubic * x * x));
     }},
    {"gelu_sigmoid", [](R x) { return gate<R>(x, R(1.702L) * x, R(1.702L)); }},
    {"silu", [](R x) { return gate<R>(x, x, 1); }},
    {"relu", [](R x) { return Truth<R>{x < 0 ? 0 : x, R(x <= 0 ? 0 : 1)}; }},
    {"relu2",
     [](R x) {
       const R root = x < 0 ? 0 : x;
       return Truth<R>{root * root, 2 * root};
     }},
    {"sigmoid",
     [](R x) {
       const R below = 1 / (1 + std::exp(-x)), above = 1 / (1 + std::exp(x));
       return Truth<R>{below, below * above};
     }},
    {"tanh",
     [](R x) {
       const R e = std::exp(-2 * std::fabs(x));
       return Truth<R>{std::tanh(x), 4 * e / ((1 + e) * (1 + e))};
     }},
    {"mish",  // tanh(log(1 + u)) = n/(n + 2) with n = u (u + 2), for x > 0 in 1/u, which does not overflow
     [](R x) {
       if (std::isinf(x)) return gate_at_infinity(x);
       const R e = std::exp(-std::fabs(x)), d = x > 0 ? 1 + 2 * e + 2 * e * e : 2 + 2 * e + e * e;
       const R ratio = (x > 0 ? 1 + 2 * e : e * (2 + e)) / d;
       const R rest = x > 0 ? e * e * (1 + e) : e * (1 + e);  // (1 - ratio^2) sigmoid(x) = 4 rest/d^2
       return Truth<R>{x * ratio, ratio + 4 * x * rest / (d * d)};
     }},
    {"elu", [](R x) { return x > 0 ? Truth<R>{x, 1} : Truth<R>{std::expm1(x), std::exp(x)}; }},
    {"identity", [](R x) { return Truth<R>{x, 1}; }},
};

template <class R>
constexpr const TruthRow<R>* truth_row(std::string_view name) {
  for (const TruthRow<R>& row : kTruth<R>) {
    if (row.name == name) return &row;
  }
  return nullptr;
}

template <class Act>
struct HasTruth {
  static_assert(truth_row<double>(Act::name) != nullptr, "tests/native/truth.h has no row for the activation Act");
  static constexpr bool value = true;
};

template <class... Acts>
constexpr bool all_have_truth(gelu_ext::ActivationList<Acts...>) {
  return (HasTruth<Acts>::value && ...);
}
static_assert(all_have_truth(gelu_ext::Activations{}));

// Value and slope of the activation of this name, which is in the list.
template <class R>
Truth<R> truth(std::string_view name, R x) {
  return truth_row<R>(name)->at(x);
}
