// Walking down the rows: every thread keeps its columns and takes each `step`-th row, so that the bias stays in
// registers. All that depends on the problem alone is worked out on the host and read from the kernel's parameters;
// a row costs a thread the multiplication of its number with the step of each matrix, and no registers.
#pragma once

#include <utility>

#include "pair.cuh"

namespace gelu_ext::cuda {

GELU_EXT_DEVICE int first_row() { return static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y); }

// This thread's elements of a matrix.
template <class Columns, class Data, class Access>
class ThreadRows {
 public:
  GELU_EXT_DEVICE ThreadRows(const Columns& columns, const Rows<Data>& rows)
      : columns_(columns), rows_(rows), first_(rows.data) {
    constexpr auto kColumnBytes = static_cast<int64_t>(Access::step * sizeof(scalar_t));
    if (wanted()) first_ += first_row() * rows.row_stride + columns.first * kColumnBytes;
  }

  GELU_EXT_DEVICE bool wanted() const { return rows_.data != nullptr; }

  template <int n>
  GELU_EXT_DEVICE void load(int pass, typename Columns::Loaded (&loaded)[n]) const {
#pragma unroll
    for (int u = 0; u < n; ++u) {
      loaded[u] = Access::load(columns_, reinterpret_cast<const scalar_t*>(first_ + Columns::offset(pass + u, rows_)));
    }
  }

  template <class As = Access>
  GELU_EXT_DEVICE void store(int pass, const typename Columns::Values& values) const {
    As::store(columns_, reinterpret_cast<scalar_t*>(first_ + Columns::offset(pass, rows_)), values);
  }

 private:
  using scalar_t = typename Columns::scalar_t;
  const Columns& columns_;
  const Rows<Data>& rows_;
  Data* first_;
};
template <class Columns, class Access = Alone>
using InputRows = ThreadRows<Columns, const char, Access>;
template <class Columns, class Access = Alone>
using OutputRows = ThreadRows<Columns, char, Access>;

// From `pass` on, as long as there are kRows rows together: loads them of all inputs, then calls
// process(pass, elements of the first input, elements of the second, ...) row by row. The next rows are loaded where
// the loop ends: loads that are written where it begins the compiler delays, in some kernels, until others have been
// used, which saves registers at the price of bytes in flight.
template <class Columns, int kRows, class Prepare, class Process, size_t... kInput, class... Inputs>
GELU_EXT_DEVICE int walk_together(int pass, int end, Prepare& prepare, Process& process, std::index_sequence<kInput...>,
                                  const Inputs&... inputs) {
  if (pass > end - kRows) return pass;
  typename Columns::Loaded loaded[sizeof...(inputs)][kRows];
  (inputs.load(pass, loaded[kInput]), ...);
  if (pass == 0) prepare();
#pragma unroll 1
  while (true) {
#pragma unroll
    for (int u = 0; u < kRows; ++u) process(pass + u, Columns::values(loaded[kInput][u])...);
    pass += kRows;
    if (pass > end - kRows) return pass;
    (inputs.load(pass, loaded[kInput]), ...);
  }
}

// Walks down all rows of this thread, kUnroll together and then one by one. prepare() is called once, when the first
// rows are on their way: what it loads arrives with them, where it would else be waited for before.
template <class Columns, int kUnroll, class Prepare, class Process, class... Inputs>
GELU_EXT_DEVICE void walk_rows(const Passes& passes, Prepare prepare, Process process, const Inputs&... inputs) {
  constexpr auto kInputs = std::index_sequence_for<Inputs...>();
  const int end = passes.full + (first_row() < passes.remainder);
  const int pass = walk_together<Columns, kUnroll>(0, end, prepare, process, kInputs, inputs...);
  if constexpr (kUnroll > 1) walk_together<Columns, 1>(pass, end, prepare, process, kInputs, inputs...);
}

// This thread's elements of a vector. An absent bias is -0: x + -0 is x, of either sign of zero.
template <class Columns>
GELU_EXT_DEVICE typename Columns::Values load_vector(const Columns& columns, const ConstVector& vector) {
  using scalar_t = typename Columns::scalar_t;
  typename Columns::Values values;
#pragma unroll
  for (int k = 0; k < Columns::count; ++k) values[k] = -0.0f;
  if (vector.data == nullptr) return values;
  if (vector.step == 1 && vector.dtype == Columns::dtype && columns.fits(vector.data)) {
    return columns.values(columns.load(static_cast<const scalar_t*>(vector.data) + columns.first));
  }
  if constexpr (std::is_same_v<Columns, VectorColumns<Columns::dtype>> && Columns::count % 4 == 0) {
    if (vector.step == 1 && vector.dtype == DType::float32 && columns.fits(vector.data)) {
      const float* at = static_cast<const float*>(vector.data) + columns.first;
#pragma unroll
      for (int k = 0; k < Columns::count; k += 4) {
        const Words words = load_words(at + k);
#pragma unroll
        for (int i = 0; i < 4; ++i) values[k + i] = bit_cast<float>(words.word[i]);
      }
      return values;
    }
  }
#pragma unroll
  for (int k = 0; k < Columns::count; ++k) {
    if (!columns.has(k)) continue;
    const int64_t at = columns.column(k) * vector.step;
    if (vector.dtype == Columns::dtype) {
      values[k] = to_opmath(load_scalar(static_cast<const scalar_t*>(vector.data) + at));
    } else {
      values[k] = load_scalar(static_cast<const float*>(vector.data) + at);
    }
  }
  return values;
}

// The parameters of an operation, for its kernels, which convert none.
template <class Op, int = Op::parameters>
struct Parameters {
  double in_double[Op::parameters];
  float in_float[Op::parameters];

  explicit Parameters(const Problem& p) {
    std::copy(p.parameter, p.parameter + Op::parameters, in_double);
    std::transform(in_double, in_double + Op::parameters, in_float, [](double x) { return static_cast<float>(x); });
  }
};
template <class Op>
struct Parameters<Op, 0> {
  explicit Parameters(const Problem&) {}
};

// T, once for each index of a sequence.
template <class T, int>
using OfEach = T;

// What an operation sees: from element k on a T of the operands' rows and of the vectors; of grad_out in a backward.
template <class Op, class T, class Values>
struct Element {
  int k;
  const Values (&x)[Op::operands], (&vectors)[Op::vectors];
  const Parameters<Op>& parameters;
  const Values* grads;

  template <int I>
  GELU_EXT_DEVICE T z(Index<I>) const {
    return get<T>(x[I], k) + get<T>(vectors[I], k);
  }
  template <int J>
  GELU_EXT_DEVICE T vector(Index<J>) const {
    return get<T>(vectors[J], k);
  }
  template <int K>
  GELU_EXT_DEVICE auto parameter(Index<K>) const {
    if constexpr (std::is_same_v<T, double>) {
      return parameters.in_double[K];
    } else {
      return parameters.in_float[K];
    }
  }
  GELU_EXT_DEVICE T grad_out() const { return get<T>(*grads, k); }
};
template <class Op, class T, class Values>
GELU_EXT_DEVICE Element<Op, T, Values> element(int k, const Values (&x)[Op::operands],
                                               const Values (&vectors)[Op::vectors], const Parameters<Op>& parameters,
                                               const Values* grads = nullptr) {
  return {k, x, vectors, parameters, grads};
}

}  // namespace gelu_ext::cuda
