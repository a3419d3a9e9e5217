// Memory access: which columns of a row a thread has, and how it loads and stores them.
// VectorColumns: neighbouring columns, one 16-byte word. ScalarColumns: as many columns, one by one and interleaved
// among the lanes of the block, for widths and pointers that do not allow words. Tiles and launch shapes are the same.
#pragma once

#include "storage.cuh"

namespace gelu_ext::cuda {

// What both ways share. Element k of a thread is column(k) = first + k * distance.
template <DType D>
struct ColumnsOf {
  static constexpr DType dtype = D;
  static constexpr int count = elements_per_thread(D);
  using precision = typename PrecisionOf<D>::type;
  using scalar_t = typename ScalarOf<D>::type;
  using opmath_t = typename precision::type;

  // This thread's elements of one row, to compute with.
  struct Values {
    opmath_t value[count];

    GELU_EXT_DEVICE opmath_t& operator[](int k) { return value[k]; }
    GELU_EXT_DEVICE const opmath_t& operator[](int k) const { return value[k]; }
  };
};

template <DType D>
struct VectorColumns : ColumnsOf<D> {
  static constexpr Tuning tuned(Tuning tuning) { return tuning; }
  using Base = ColumnsOf<D>;
  using Base::count;
  using typename Base::scalar_t, typename Base::Values;
  using Loaded = Words;

  int64_t first;
  bool any;  // else this thread lies beyond the last column

  explicit GELU_EXT_DEVICE VectorColumns(int64_t cols)
      : first((static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * count), any(first < cols) {}

  GELU_EXT_DEVICE bool has(int) const { return any; }
  static GELU_EXT_DEVICE bool fits(const void* data) { return reinterpret_cast<uintptr_t>(data) % kVectorBytes == 0; }
  GELU_EXT_DEVICE int64_t column(int k) const { return first + k; }

  // Bytes from a thread's first row to the one of the given pass: a single instruction, unlike 64-bit arithmetic.
  template <class Data>
  static GELU_EXT_DEVICE int64_t offset(int pass, const Rows<Data>& rows) {
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(pass) * kVectorBytes) * rows.step_vectors);
  }

  // `at` is the element at column `first`.
  GELU_EXT_DEVICE Loaded load(const scalar_t* at) const { return load_words(at); }
  static GELU_EXT_DEVICE Values values(const Loaded& loaded) {
    Values values;
    unpack(loaded, values.value, ScalarOf<D>{});
    return values;
  }
  GELU_EXT_DEVICE void store(scalar_t* at, const Values& values) const {
    store_words(at, pack(values.value, ScalarOf<D>{}));
  }

  // Where element (k, lane) lies in the block's tile.
  static GELU_EXT_DEVICE int lane_of(int in_tile) { return in_tile / count; }
  static GELU_EXT_DEVICE int element_of(int in_tile) { return in_tile % count; }
};

template <DType D>
struct ScalarColumns : ColumnsOf<D> {
  // One row has as many loads as it has columns, and their addresses need registers.
  static constexpr Tuning tuned(Tuning) { return {1, 2}; }
  using Base = ColumnsOf<D>;
  using Base::count;
  using typename Base::scalar_t, typename Base::Values;
  struct Loaded {
    scalar_t scalar[count];
  };

  int64_t first;
  int distance, valid;
  bool any;

  explicit GELU_EXT_DEVICE ScalarColumns(int64_t cols)
      : first(static_cast<int64_t>(blockIdx.x) * (static_cast<int64_t>(blockDim.x) * count) + threadIdx.x),
        distance(static_cast<int>(blockDim.x)),
        valid(0),
        any(first < cols) {
#pragma unroll
    for (int k = 0; k < count; ++k) valid += column(k) < cols;
  }

  GELU_EXT_DEVICE bool has(int k) const { return k < valid; }
  static GELU_EXT_DEVICE bool fits(const void*) { return true; }
  GELU_EXT_DEVICE int64_t column(int k) const { return first + k * distance; }

  template <class Data>
  static GELU_EXT_DEVICE int64_t offset(int pass, const Rows<Data>& rows) {
    return pass * rows.step;
  }

  GELU_EXT_DEVICE Loaded load(const scalar_t* at) const {
    Loaded loaded;
#pragma unroll
    for (int k = 0; k < count; ++k) loaded.scalar[k] = has(k) ? load_scalar(at + k * distance) : scalar_t(0.0f);
    return loaded;
  }
  static GELU_EXT_DEVICE Values values(const Loaded& loaded) {
    Values values;
#pragma unroll
    for (int k = 0; k < count; ++k) values[k] = to_opmath(loaded.scalar[k]);
    return values;
  }
  GELU_EXT_DEVICE void store(scalar_t* at, const Values& values) const {
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (has(k)) at[k * distance] = from_opmath<scalar_t>(values[k]);
    }
  }

  static GELU_EXT_DEVICE int lane_of(int in_tile) { return in_tile % static_cast<int>(blockDim.x); }
  static GELU_EXT_DEVICE int element_of(int in_tile) { return in_tile / static_cast<int>(blockDim.x); }
};

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f with the TypeTag of the columns to use.
template <DType D, class F>
void with_columns(bool vectors, F&& f) {
  vectors ? f(TypeTag<VectorColumns<D>>{}) : f(TypeTag<ScalarColumns<D>>{});
}

}  // namespace gelu_ext::cuda
