// Memory access: which columns of a row a thread has, and how it loads and stores them.
// VectorColumns: neighbouring columns, 16 bytes. PieceColumns: as many columns in pieces of 8, 4 or 2 bytes, which lie
// interleaved among the lanes of the block, for widths and pointers that allow no more. Tiles and launch shapes are the
// same.
#pragma once

#include "storage.cuh"

namespace gelu_ext::cuda {

// What both ways share.
template <DType D>
struct ColumnsOf {
  static constexpr DType dtype = D;
  static constexpr int count = elements_per_thread(D);
  using precision = typename PrecisionOf<D>::type;
  using scalar_t = typename ScalarOf<D>::type;
  using opmath_t = typename precision::type;

  using Loaded = Words;

  // This thread's elements of one row, to compute with.
  struct Values {
    opmath_t value[count];

    GELU_EXT_DEVICE opmath_t& operator[](int k) { return value[k]; }
    GELU_EXT_DEVICE const opmath_t& operator[](int k) const { return value[k]; }
  };
  static GELU_EXT_DEVICE Values values(const Loaded& loaded) {
    Values values;
    unpack(loaded, values.value, ScalarOf<D>{});
    return values;
  }
};

template <DType D>
struct VectorColumns : ColumnsOf<D> {
  static constexpr Tuning tuned(Tuning tuning) { return tuning; }
  using Base = ColumnsOf<D>;
  using Base::count;
  using typename Base::scalar_t, typename Base::Values, typename Base::Loaded;

  int64_t first;
  bool any;  // else this thread lies beyond the last column

  GELU_EXT_DEVICE VectorColumns(int64_t cols, int)
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
  GELU_EXT_DEVICE void store(scalar_t* at, const Values& values) const {
    store_words(at, pack(values.value, ScalarOf<D>{}));
  }

  // Where element (k, lane) lies in the block's tile.
  static GELU_EXT_DEVICE int lane_of(int in_tile) { return in_tile / count; }
  static GELU_EXT_DEVICE int element_of(int in_tile) { return in_tile % count; }
};

template <DType D>
struct PieceColumns : ColumnsOf<D> {
  // The addresses of the pieces need registers.
  static constexpr Tuning tuned(Tuning) { return {1, 2}; }
  using Base = ColumnsOf<D>;
  using Base::count;
  using typename Base::scalar_t, typename Base::Values, typename Base::Loaded;

  int64_t first;  // of the first piece
  int piece;      // its elements, a power of two
  int distance;   // in elements, from piece to piece
  int pieces;     // that lie within the row
  bool any;

  GELU_EXT_DEVICE PieceColumns(int64_t cols, int piece)
      : first(static_cast<int64_t>(blockIdx.x) * (static_cast<int64_t>(blockDim.x) * count) + threadIdx.x * piece),
        piece(piece),
        distance(static_cast<int>(blockDim.x) * piece),
        pieces(0),
        any(first < cols) {
    for (int i = 0; i < count / piece; ++i) pieces += first + i * distance < cols;
  }

  GELU_EXT_DEVICE bool has(int k) const { return k / piece < pieces; }
  GELU_EXT_DEVICE bool fits(const void* data) const {
    return reinterpret_cast<uintptr_t>(data) % (piece * sizeof(scalar_t)) == 0;
  }
  GELU_EXT_DEVICE int64_t column(int k) const { return first + k / piece * distance + k % piece; }

  template <class Data>
  static GELU_EXT_DEVICE int64_t offset(int pass, const Rows<Data>& rows) {
    return pass * rows.step;
  }

  // The branches are the same for all threads of a grid.
  GELU_EXT_DEVICE Loaded load(const scalar_t* at) const {
    Loaded loaded = {};
    if (piece * sizeof(scalar_t) == 8) {
      load_pieces<uint64_t>(at, loaded);
    } else if (piece * sizeof(scalar_t) == 4) {
      load_pieces<uint32_t>(at, loaded);
    } else {
      load_pieces<uint16_t>(at, loaded);
    }
    return loaded;
  }
  GELU_EXT_DEVICE void store(scalar_t* at, const Values& values) const {
    const Words words = pack(values.value, ScalarOf<D>{});
    if (piece * sizeof(scalar_t) == 8) {
      store_pieces<uint64_t>(at, words);
    } else if (piece * sizeof(scalar_t) == 4) {
      store_pieces<uint32_t>(at, words);
    } else {
      store_pieces<uint16_t>(at, words);
    }
  }

  GELU_EXT_DEVICE int lane_of(int in_tile) const { return in_tile % distance / piece; }
  GELU_EXT_DEVICE int element_of(int in_tile) const { return in_tile / distance * piece + in_tile % piece; }

 private:
  template <class Piece>
  GELU_EXT_DEVICE void load_pieces(const scalar_t* at, Words& words) const {
#pragma unroll
    for (int i = 0; i < kVectorBytes / static_cast<int>(sizeof(Piece)); ++i) {
      if (i < pieces) set_piece(words, i, load_piece<Piece>(at + i * distance));
    }
  }
  template <class Piece>
  GELU_EXT_DEVICE void store_pieces(scalar_t* at, const Words& words) const {
#pragma unroll
    for (int i = 0; i < kVectorBytes / static_cast<int>(sizeof(Piece)); ++i) {
      if (i < pieces) store_piece(at + i * distance, get_piece<Piece>(words, i));
    }
  }
};

template <class T>
struct TypeTag {
  using type = T;
};

// Calls f with the TypeTag of the columns to use. float64, which is there for exactness, has pieces alone.
template <DType D, class F>
void with_columns(int piece, F&& f) {
  if constexpr (D != DType::float64) {
    if (piece == elements_per_thread(D)) return f(TypeTag<VectorColumns<D>>{});
  }
  f(TypeTag<PieceColumns<D>>{});
}

}  // namespace gelu_ext::cuda
