// Walking down the rows: every thread keeps its columns and takes each `step`-th row, so that the bias stays in
// registers. All that depends on the problem alone is worked out on the host and read from the kernel's parameters:
// a row costs a thread one 64-bit addition of a constant per matrix, and no registers but the address.
#pragma once

#include "columns.cuh"

namespace gelu_ext::cuda {

// How many rows a thread has: `passes`, and one more if its first row is below `remainder`.
struct Walk {
  int passes, remainder;

  Walk(int64_t rows, const LaunchShape& shape)
      : passes(static_cast<int>(rows / shape.row_step())), remainder(static_cast<int>(rows % shape.row_step())) {}
};

// A matrix as the kernels take it; lengths in bytes.
template <class Data>
struct Strided {
  Data* data;  // null: not wanted
  int64_t row_stride, step;

  template <class AnyMatrix>
  Strided(const AnyMatrix& matrix, DType dtype, const LaunchShape& shape)
      : data(static_cast<Data*>(matrix.data)),
        row_stride(matrix.row_stride * static_cast<int64_t>(size_of(dtype))),
        step(row_stride * shape.row_step()) {}
};
using Input = Strided<const char>;
using Output = Strided<char>;

GELU_EXT_DEVICE int first_row() { return static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y); }

// Calls body(std::integral_constant<int, n>) for every n = kUnroll of this thread's rows, then one by one.
template <int kUnroll, class Body>
GELU_EXT_DEVICE void walk_rows(const Walk& walk, Body&& body) {
  int left = walk.passes + (first_row() < walk.remainder);
#pragma unroll 1
  for (; left >= kUnroll; left -= kUnroll) body(std::integral_constant<int, kUnroll>{});
  if constexpr (kUnroll > 1) {
#pragma unroll 1
    for (; left > 0; --left) body(std::integral_constant<int, 1>{});
  }
}

// This thread's elements of a matrix, from its first row downwards.
template <class Columns, class Data>
class RowCursor {
 public:
  GELU_EXT_DEVICE RowCursor(const Strided<Data>& matrix, const Columns& columns)
      : matrix_(matrix),
        at_(matrix.data == nullptr ? nullptr : matrix.data + first_row() * matrix.row_stride + columns.first * kSize) {}

  template <int n>
  GELU_EXT_DEVICE void load(const Columns& columns, typename Columns::Loaded (&loaded)[n]) {
#pragma unroll
    for (int u = 0; u < n; ++u) {
      loaded[u] = columns.load(reinterpret_cast<const scalar_t*>(at_));
      at_ += matrix_.step;
    }
  }

  GELU_EXT_DEVICE void store(const Columns& columns, const typename Columns::opmath_t (&values)[Columns::count]) {
    columns.store(reinterpret_cast<scalar_t*>(at_), values);
    at_ += matrix_.step;
  }

  // Not to be used where nothing else uses the values: the compiler then moves their loads and arithmetic behind the
  // test, and rows are no longer loaded together.
  GELU_EXT_DEVICE void store_if_wanted(const Columns& columns,
                                       const typename Columns::opmath_t (&values)[Columns::count]) {
    if (matrix_.data != nullptr) store(columns, values);
  }

 private:
  using scalar_t = typename Columns::scalar_t;
  static constexpr int64_t kSize = sizeof(scalar_t);
  const Strided<Data>& matrix_;
  Data* at_;
};

// This thread's elements of a bias. An absent bias is -0: x + -0 is x, of either sign of zero.
template <class Columns>
GELU_EXT_DEVICE void load_bias(const Columns& columns, const ConstVector& bias,
                               typename Columns::opmath_t (&values)[Columns::count]) {
  using scalar_t = typename Columns::scalar_t;
#pragma unroll
  for (int k = 0; k < Columns::count; ++k) values[k] = -0.0f;
  if (bias.data == nullptr) return;
  if (bias.dtype == Columns::dtype && columns.fits(bias.data)) {
    const scalar_t* data = static_cast<const scalar_t*>(bias.data);
    columns.to_opmath(columns.load(data + columns.first), values);
    return;
  }
#pragma unroll
  for (int k = 0; k < Columns::count; ++k) {
    if (!columns.has(k)) continue;
    if (bias.dtype == Columns::dtype) {
      values[k] = to_opmath(load_scalar(static_cast<const scalar_t*>(bias.data) + columns.column(k)));
    } else {
      values[k] = load_scalar(static_cast<const float*>(bias.data) + columns.column(k));
    }
  }
}

}  // namespace gelu_ext::cuda
