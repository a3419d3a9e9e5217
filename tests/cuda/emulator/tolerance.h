// How far a result of the emulated kernels may be from the truth, which tests/native/truth.h knows.
#pragma once

#include <cmath>

#include "test_matrix.h"

namespace emulated {

// Allowed is the sum of four errors: `ulps` of the result's own format; `relative` to the result, or for a sum to the
// sum of its terms' magnitudes; `absolute` for a slope near its root, times what the slope is multiplied by;
// `smallest`, for a factor that was a subnormal number, off by half its unit, and was multiplied by up to twice this.
// The accuracy tests set narrower bars; these are to find wrong indices.
struct Tolerance {
  double ulps, relative, absolute, smallest = 0;

  // The promise is for values of the dtype; a 16-bit x plus a bias lies between them, and may be off a little more.
  static Tolerance of_value(DType dtype, double z, bool biased) {
    switch (dtype) {
      case DType::float64: return {1, z < -4 ? 1e-12 : 1e-14, 0};
      case DType::float32: return {4, 0, 0};
      case DType::float16: return {0.52, biased ? 5e-5 : 0, 0};
      case DType::bfloat16: return {0.505, biased ? 5e-5 : 0, 0};
    }
    __builtin_unreachable();
  }
  static Tolerance of_product(DType dtype, double z) {
    switch (dtype) {
      case DType::float64: return {1, z < -4 ? 1e-12 : 2e-13, 2e-15, 16 * 0x1p-1074};
      case DType::float32: return {8, 0, 5e-8, 16 * 0x1p-149};
      case DType::float16: return {0.51, 8e-5, 3e-7, 16 * 0x1p-149};
      case DType::bfloat16: return {0.505, 8e-5, 3e-7, 16 * 0x1p-149};
    }
    __builtin_unreachable();
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
