// The truth for the emulated tests: values and slopes in double (long double for float64), and how far a result may be
// from it. Written from the definitions, not from activations.h.
#pragma once

#include <cmath>

#include "test_matrix.h"

namespace emulated {

template <class R>
struct Truth {
  R value, slope;
};

// gelu_ext::Activations::names[form] at z, where nothing cancels: every form is z * F(z), F(-z) = 1 - F(z).
template <class R>
Truth<R> truth(int form, R z) {
  if (std::isinf(z)) return z > 0 ? Truth<R>{z, 1} : Truth<R>{R(-0.0), 0};
  const std::string name = gelu_ext::Activations::names[form];
  if (name == "none") {
    const R cdf = std::erfc(-z * std::sqrt(R(0.5))) / 2;
    const R density = std::exp(-z * z / 2) / std::sqrt(2 * std::acos(R(-1)));
    return {z * cdf, cdf + z * density};
  }
  const R k = name == "tanh" ? std::sqrt(8 / std::acos(R(-1))) : R(1.702L);  // F(z) = sigmoid(k (z + c z^3))
  const R c = name == "tanh" ? R(0.044715L) : 0;
  if (name != "tanh" && name != "sigmoid") fail("no truth for the form " + name);
  const R argument = k * (z + c * z * z * z);
  const R cdf = 1 / (1 + std::exp(-argument)), rest = 1 / (1 + std::exp(argument));
  return {z * cdf, cdf + cdf * (rest * (k * z * (1 + 3 * c * z * z)))};
}

// What a result may be off: `ulps` of its own format, `relative` to the result (or to the sum of the terms'
// magnitudes), `absolute` for a slope near its root, times what it is multiplied by, and `smallest`: a factor that was
// a subnormal number and was multiplied by up to twice this. The accuracy tests set narrower bars; these are to find
// wrong indices.
struct Tolerance {
  double ulps, relative, absolute, smallest = 0;

  // The promise is for values of the dtype; a 16-bit x plus a bias lies between them, and may be off a little more.
  static Tolerance of_value(DType dtype, double z, bool biased) {
    switch (dtype) {
      case DType::float64: return {1, z < -4 ? 1e-12 : 1e-14, 0};
      case DType::float32: return {4, 0, 0};
      case DType::float16: return {0.52, biased ? 5e-5 : 0, 0};
      default: return {0.505, biased ? 5e-5 : 0, 0};
    }
  }
  static Tolerance of_product(DType dtype, double z) {
    switch (dtype) {
      case DType::float64: return {1, z < -4 ? 1e-12 : 2e-13, 2e-15, 16 * 0x1p-1074};
      case DType::float32: return {8, 0, 5e-8, 16 * 0x1p-149};
      case DType::float16: return {0.51, 8e-5, 3e-7, 16 * 0x1p-149};
      default: return {0.505, 8e-5, 3e-7, 16 * 0x1p-149};
    }
  }
  // `dtype` of the problem, `sum` of the result; `rows` terms were added one after another.
  static Tolerance of_sum(DType dtype, DType sum, int64_t rows) {
    const bool wide = dtype == DType::float64;
    Tolerance tolerance = of_product(dtype, 0);
    tolerance.ulps = size_of(sum) == 2 ? 0.51 : 1;
    tolerance.relative += (wide ? 0 : 1e-6) + (wide ? 2e-16 : 1.2e-7) * std::sqrt(static_cast<double>(rows));
    return tolerance;
  }

  // size: the sum of the terms' magnitudes; scale: what the slope was multiplied by, summed likewise.
  bool allows(DType dtype, double got, double want, double size, double scale) const {
    const Format format = Format::of(dtype);
    if (std::isnan(want)) return std::isnan(got);
    if (got == want) return true;
    const double allowed = ulps * format.ulp(want) + relative * size + absolute * scale + smallest;
    if (std::isinf(got)) return std::signbit(got) == std::signbit(want) && std::fabs(want) + allowed >= format.max();
    return std::fabs(got - want) <= allowed;
  }
};

}  // namespace emulated
